"""HTTP/1.1 to one registry and wherever it redirects: a pool of connections, and bodies that are never copied.

Built on `http.client`, whose `readinto` puts bytes from the socket straight into the caller's memory (ADR 0003). What
it adds: connections kept alive and shared by threads, time-outs, redirects that do not carry credentials to another
host, and errors that say what to do.
"""

from __future__ import annotations

import http.client
import re
import select
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from tonnage import __version__
from tonnage.content.storage import Opener
from tonnage.content.verify import BUFFER_SIZE
from tonnage.errors import IntegrityError, RegistryError, TonnageError, Truncated, Unavailable, Unreachable

USER_AGENT = f"tonnage/{__version__}"
MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CLEAN = re.compile(r"[\x21-\x7e]+")
_TLS_ALERT = "\x15\x03"


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Limits on waiting.

    Args:
        connect: seconds to open a connection.
        stall: seconds without a byte, after which a connection counts as broken. A registry may hash gigabytes before
            it answers the last request of an upload, so this is long.
    """

    connect: float = 10.0
    stall: float = 300.0


@dataclass(frozen=True, kw_only=True)
class Body:
    """A request body that is streamed.

    Args:
        open: opens it, as often as a retry needs.
        size: bytes.
    """

    open: Opener
    size: int


class Response:
    """A response whose body is read once, into memory that the caller owns. A `Reader`.

    Args:
        transport: gets the connection back.
        connection: has sent the request.
        url: of the request.
        reusable: whether the connection can serve another request, as far as this side knows.
    """

    def __init__(
        self, transport: Transport, connection: http.client.HTTPConnection, url: str, *, reusable: bool
    ) -> None:
        self._transport = transport
        self._connection: http.client.HTTPConnection | None = connection
        self._inner = connection.getresponse()
        self._reusable = reusable and not self._inner.will_close
        self.url = url
        self.status = self._inner.status
        self.headers: http.client.HTTPMessage = self._inner.headers
        self._left = self._inner.length
        self._broken: OSError | None = None
        if self._left == 0:
            self._finish()

    @property
    def length(self) -> int | None:
        """Bytes of the body still to come, if the server said."""
        return self._left

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of `buffer`; 0 at the end of the body.

        Raises:
            Unavailable: the connection broke or stalled; `Truncated` when the server ended early.
        """
        if self._left == 0 or self._connection is None:
            return 0
        try:
            count = self._fill(buffer)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise translate(error, self.url) from error
        if self._left is not None:
            if not count:
                self.close()
                raise Truncated(f"{host_of(self.url)} closed the connection {self._left} bytes early", hint="try again")
            self._left -= count
        if not count or self._left == 0:
            self._finish()
        return count

    def read(self, limit: int) -> bytes:
        """At most `limit` bytes of the body, and closes the response."""
        data = bytearray()
        buffer = memoryview(bytearray(min(limit, 1 << 16) or 1))
        with closing(self):
            while len(data) < limit and (count := self.readinto(buffer[: limit - len(data)])):
                data += buffer[:count]
        return bytes(data)

    def close(self) -> None:
        """Give up the rest of the body, and the connection with it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            # Both: `http.client` leaves the socket to the response when the server closes after it.
            self._inner.close()
            connection.close()

    def _fill(self, buffer: memoryview) -> int:
        """Read until `buffer` is full or the body ends. What arrived before a break is not lost with it: the break is
        told by the next read, so that a slow line that often breaks gets on nevertheless."""
        if self._left is None:
            return self._inner.readinto(buffer)
        if self._broken is not None:
            raise self._broken
        room = min(len(buffer), self._left)
        count = 0
        try:
            while count < room and (more := self._inner.fp.readinto1(buffer[count:room])):
                count += more
        except OSError as error:
            if not count:
                raise
            self._broken = error
        return count

    def _finish(self) -> None:
        """The body is read: the connection can serve another request."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._inner.close()
        if self._reusable:
            self._transport.give_back(self.url, connection)
        else:
            connection.close()


class Transport:
    """Sends requests; safe for several threads.

    Args:
        timeouts: limits on waiting.
        tls: for HTTPS; the system's certificates by default.
    """

    def __init__(self, *, timeouts: Timeouts | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._timeouts = timeouts or Timeouts()
        self._tls = tls
        self._idle: dict[tuple[str, str], list[http.client.HTTPConnection]] = {}
        self._lock = threading.Lock()

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | Body | None = None,
    ) -> Response:
        """Send a request, following redirects of GET and HEAD.

        Returns:
            The response, of whatever status; close it, or read it to its end.

        Raises:
            Unavailable: no connection, or it broke.
            RegistryError: the certificate is not trusted, or the redirects make no sense.
        """
        headers = dict(headers or {})
        for _ in range(MAX_REDIRECTS + 1):
            response = self._send(method, url, headers, body)
            location = response.headers.get("Location")
            if method not in ("GET", "HEAD") or response.status not in _REDIRECTS or not location:
                return response
            response.close()
            target = follow(url, location)
            if _origin(url) != _origin(target):
                headers.pop("Authorization", None)
            url = target
        raise RegistryError(f"{host_of(url)} redirects in circles", hint="ask who runs the registry")

    def give_back(self, url: str, connection: http.client.HTTPConnection) -> None:
        """Keep a connection for the next request."""
        with self._lock:
            self._idle.setdefault(_origin(url), []).append(connection)

    def close(self) -> None:
        """Close all idle connections."""
        with self._lock:
            connections = [connection for idle in self._idle.values() for connection in idle]
            self._idle.clear()
        for connection in connections:
            connection.close()

    def _send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | Body | None) -> Response:
        kept = self._take(url)
        try:
            if kept is not None:
                # The server may have closed it meanwhile; then a new one.
                with suppress(ConnectionError, http.client.BadStatusLine, ssl.SSLError):
                    return self._send_on(kept, method, url, headers, body)
            return self._send_on(self._connect(url), method, url, headers, body)
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            raise translate(error, url) from error

    def _send_on(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Body | None,
    ) -> Response:
        try:
            connection.putrequest(method, _path(url), skip_accept_encoding=True)
            connection.putheader("User-Agent", USER_AGENT)
            # Go's servers, among others, would otherwise be free to compress what we hash.
            connection.putheader("Accept-Encoding", "identity")
            for key, value in headers.items():
                connection.putheader(key, value)
            if body is not None or method in ("POST", "PUT", "PATCH"):
                size = len(body) if isinstance(body, bytes) else body.size if body else 0
                connection.putheader("Content-Length", str(size))
            connection.endheaders(body if isinstance(body, bytes) else None)
            sent = not isinstance(body, Body) or _send_body(connection, body)
            return Response(self, connection, url, reusable=sent)
        except BaseException:
            connection.close()
            raise

    def _take(self, url: str) -> http.client.HTTPConnection | None:
        with self._lock:
            idle = self._idle.get(_origin(url))
            return idle.pop() if idle else None

    def _connect(self, url: str) -> http.client.HTTPConnection:
        parts = urlsplit(url)
        host, port, timeout = parts.hostname or "", parts.port, self._timeouts.connect
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = self._tls or _system_tls()
            connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=timeout)
        try:
            connection.connect()
        except (ssl.SSLError, ConnectionResetError) as error:
            connection.close()
            raise _handshake_error(error, url) from error
        except BaseException:
            connection.close()
            raise
        connection.sock.settimeout(self._timeouts.stall)
        return connection


def _send_body(connection: http.client.HTTPConnection, body: Body) -> bool:
    """Stream a body; if the server answers before it has all of it, leave the rest, so that the answer is read.

    Returns:
        Whether all of it was sent.
    """
    buffer = memoryview(bytearray(BUFFER_SIZE))
    left = body.size
    with closing(body.open(0)) as reader:
        while left:
            count = reader.readinto(buffer[:left])
            if not count:
                raise Truncated(f"the source ended {left} bytes early")
            if _has_answered(connection.sock):
                return False
            try:
                connection.sock.sendall(buffer[:count])
            except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
                return False
            left -= count
    return True


def _has_answered(sock: socket.socket) -> bool:
    """Whether the server speaks already. Over TLS nobody can tell: what has arrived may be a session ticket."""
    if isinstance(sock, ssl.SSLSocket):
        return False
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def translate(error: Exception, url: str) -> TonnageError:
    """The error to raise for one of `socket`, `ssl` or `http.client`."""
    host = host_of(url)
    if isinstance(error, http.client.BadStatusLine) and str(error).startswith(_TLS_ALERT):
        return RegistryError(f"{host} speaks TLS, and was asked without", hint="say --tls")
    known = {
        ConnectionRefusedError: ("refused the connection", "check the address, and that the registry runs"),
        socket.gaierror: ("has a name that cannot be resolved", "check the spelling, and the DNS"),
        UnicodeError: ("has a name that no DNS can hold", "check the spelling"),
        TimeoutError: ("does not answer", "check the network; the command can be run again"),
        http.client.BadStatusLine: ("closed the connection without an answer", "try again"),
    }
    for kind, (what, hint) in known.items():
        if isinstance(error, kind):
            unreachable = kind in (ConnectionRefusedError, socket.gaierror, UnicodeError)
            return (Unreachable if unreachable else Unavailable)(f"{host} {what}", hint=hint)
    return Unavailable(f"the connection to {host} broke: {error}", hint="the command can be run again")


def _handshake_error(error: OSError, url: str) -> TonnageError:
    """The error for a TLS handshake that failed."""
    host = host_of(url)
    if isinstance(error, ssl.SSLCertVerificationError):
        return RegistryError(
            f"the certificate of {host} is not trusted: {error.verify_message}",
            hint="let SSL_CERT_FILE name the file of your own authority's certificate",
        )
    hint = "if it is meant to be plain HTTP, say --plain-http"
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ConnectionResetError):
        return Unavailable(f"{host} closed the connection before TLS was set up", hint=hint)
    return RegistryError(f"{host} does not speak TLS: {getattr(error, 'reason', '') or error}", hint=hint)


def host_of(url: str) -> str:
    """`host[:port]` of a URL, without any user information in it."""
    return urlsplit(url).netloc.rpartition("@")[2]


def follow(url: str, location: str) -> str:
    """The URL that the answer to a request of `url` points to, in a `Location` or a `Link`.

    Raises:
        RegistryError: it is no URL that can be requested.
        IntegrityError: it would leave TLS.
    """
    try:
        target = urljoin(url, location)
        parts = urlsplit(target)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) and _CLEAN.fullmatch(target)
    except ValueError:
        usable = False
    if not usable:
        raise RegistryError(f"{host_of(url)} points to {location[:200]!r}, which is no URL", hint="ask who runs it")
    if parts.scheme == "http" and urlsplit(url).scheme == "https":
        raise IntegrityError(f"{host_of(url)} points to http://{host_of(target)}, which is not protected")
    return target


def _origin(url: str) -> tuple[str, str]:
    return urlsplit(url).scheme, host_of(url)


def _path(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


_tls_lock = threading.Lock()
_tls: ssl.SSLContext | None = None


def _system_tls() -> ssl.SSLContext:
    """The system's certificates; loading them takes tens of milliseconds, so once."""
    global _tls  # noqa: PLW0603
    with _tls_lock:
        if _tls is None:
            _tls = ssl.create_default_context()
        return _tls
