"""Credentials and tokens: what a registry asks for in `WWW-Authenticate`, and how to answer it.

Basic authentication (RFC 7617), bearer tokens (distribution, docs/spec/auth/token.md) and anonymous access. Where the
user names and passwords come from is `docker`'s business.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

import msgspec

from tonnage.content.reference import is_loopback
from tonnage.errors import AccessDenied, InvalidContent, Unavailable
from tonnage.stores.registry.transport import Transport

MAX_TOKEN = 1 << 20
"""Bytes of a token server's answer."""

_EARLY = 30.0
"""Seconds before its end that a token is not used any more."""

_LIFETIME = 60.0
"""Seconds that a token lives if its server does not say (distribution, docs/spec/auth/token.md)."""

_LONGEST = 1e9
_BEARER = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True)
class Credentials:
    """A user name and a password; the password is never shown."""

    username: str
    password: str = field(repr=False)

    @property
    def basic(self) -> str:
        """The value of an `Authorization` header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


CredentialSource = Callable[[str], Credentials | None]
"""Finds the credentials for a host, if there are any."""


@dataclass(frozen=True)
class Challenge:
    """One challenge of a `WWW-Authenticate` header: its scheme in lower case, and its parameters."""

    scheme: str
    parameters: Mapping[str, str]


# RFC 9110, 5.6.2 and 11.6.1. The look-behind and the possessive repetitions keep hostile headers linear.
_NAME = r"[\w!#$%&'*+.^`|~-]++"
_CHALLENGE = re.compile(rf'(?<![\w-])({_NAME})(?:\s++|$)((?:{_NAME}=(?:"[^"]*"|[^\s,"]++)|[\s,]++)*+)')
_PARAMETER = re.compile(rf'({_NAME})=(?:"([^"]*)"|([^\s,"]++))')


def parse_challenges(header: str) -> list[Challenge]:
    """Read a `WWW-Authenticate` header.

    >>> parse_challenges('Bearer realm="https://auth.example/token",service="example"')[0].parameters["service"]
    'example'
    """
    found = []
    for scheme, text in _CHALLENGE.findall(header[:8192]):
        parameters = {key.lower(): quoted or plain for key, quoted, plain in _PARAMETER.findall(text)}
        found.append(Challenge(scheme.lower(), parameters))
    return found


@dataclass
class _Token:
    header: str = field(repr=False)
    expires: float


class Authenticator:
    """Answers the challenges of one registry, and keeps a token for each scope until shortly before it ends.

    Args:
        host: the registry, `host[:port]`.
        transport: for requests to the token server.
        credentials: where to look for a user name and password.
        plain_http: whether the registry is spoken to without TLS, so that its token server may be, too.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        host: str,
        transport: Transport,
        credentials: CredentialSource,
        *,
        plain_http: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._transport = transport
        self._credentials = credentials
        self._plain_http = plain_http
        self._clock = clock
        self._tokens: dict[str, _Token] = {}
        self._lock = threading.Lock()

    def header(self, scope: str) -> str | None:
        """The `Authorization` header to send, if one is known to be wanted."""
        with self._lock:
            token = self._tokens.get(scope)
            return token.header if token and self._clock() < token.expires else None

    def answer(self, challenge_header: str, scope: str, *, rejected: str | None) -> str:
        """The header that answers a 401.

        Args:
            challenge_header: its `WWW-Authenticate`.
            scope: what is to be done, such as `repository:models/llama:pull,push`.
            rejected: the header that was sent and refused, if one was.

        Raises:
            AccessDenied: there is nothing (else) to answer with.
        """
        with self._lock:
            token = self._tokens.get(scope)
            if token is not None and token.header != rejected and self._clock() < token.expires:
                return token.header  # another thread was quicker
            self._tokens.pop(scope, None)
            token = self._new_token(parse_challenges(challenge_header), scope)
            if token.header == rejected:
                raise AccessDenied(
                    f"{self._host} refused the credentials", hint=f"log in again: docker login {self._host}"
                )
            self._tokens[scope] = token
            return token.header

    def _new_token(self, challenges: list[Challenge], scope: str) -> _Token:
        known = {challenge.scheme: challenge for challenge in challenges}
        credentials = self._credentials(self._host)
        if "bearer" in known:
            return self._fetch_token(known["bearer"], scope, credentials)
        if "basic" in known:
            if credentials is None:
                raise AccessDenied(f"{self._host} wants a user name and password", hint=f"docker login {self._host}")
            return _Token(credentials.basic, float("inf"))
        raise AccessDenied(f"{self._host} wants an authentication that we do not know: {', '.join(known) or 'none'}")

    def _fetch_token(self, challenge: Challenge, scope: str, credentials: Credentials | None) -> _Token:
        realm = challenge.parameters.get("realm", "")
        self._check_realm(realm)
        query = {"service": challenge.parameters.get("service", ""), "scope": scope}
        url = realm + ("&" if "?" in realm else "?") + urlencode({key: text for key, text in query.items() if text})
        headers = {"Authorization": credentials.basic} if credentials else {}
        response = self._transport.request("GET", url, headers=headers)
        raw = response.read(MAX_TOKEN)
        if response.status in (400, 401, 403):
            hint = "check that the account may do this" if credentials else f"docker login {self._host}"
            raise AccessDenied(f"{self._host} gives no token for {scope or 'this'} (HTTP {response.status})", hint=hint)
        if response.status != 200:
            raise Unavailable(f"the token server of {self._host} failed (HTTP {response.status})", hint="try again")
        try:
            obj = msgspec.json.decode(raw, type=_Answer)
        except (ValueError, RecursionError):
            # Without the cause: a parser's message may quote what it read, which may be a token.
            raise InvalidContent(f"the token server of {self._host} sent no token") from None
        token = obj.token or obj.access_token or ""
        if not _BEARER.fullmatch(token):
            raise InvalidContent(f"the token server of {self._host} sent no token")
        said = obj.expires_in
        seconds = float(said) if isinstance(said, int | float) and 0 < said <= _LONGEST else _LIFETIME
        return _Token(f"Bearer {token}", self._clock() + max(seconds - _EARLY, seconds / 2))

    def _check_realm(self, realm: str) -> None:
        """Send credentials only to a place that a registry has a reason to name.

        A realm on a link-local address would make us fetch a cloud's instance metadata for the registry (SSRF).
        """
        try:
            parts = urlsplit(realm)
            host = (parts.hostname or "").rstrip(".")
            usable = parts.scheme in ("http", "https") and host and (parts.port or 1) and realm.isascii()
        except ValueError:
            usable = False
        if not usable:
            raise AccessDenied(f"{self._host} names no usable token server: {realm[:200]!r}")
        local = is_loopback(self._host)
        if parts.scheme == "http" and not (local or self._plain_http):
            raise AccessDenied(f"{self._host} names a token server without TLS: {realm[:200]!r}")
        address = _address(host)
        if address is None:
            forbidden = host == "metadata.google.internal" or (is_loopback(host) and not local)
        else:
            forbidden = (
                address.is_link_local
                or address == _AWS_METADATA
                or ((address.is_loopback or address.is_unspecified) and not local)
            )
        if forbidden:
            raise AccessDenied(f"{self._host} names a token server on a forbidden address: {host}")


_AWS_METADATA = ipaddress.ip_address("fd00:ec2::254")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host is written as, in any form that the system's resolver takes; None for a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            return ipaddress.ip_address(socket.inet_aton(host))
        except OSError:
            return None
    return getattr(address, "ipv4_mapped", None) or address


class _Answer(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    expires_in: object = None
