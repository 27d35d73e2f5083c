"""A server that says exactly what a test wants, byte by byte, and remembers what it was asked."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus

TIMEOUT = 20.0


@dataclass(frozen=True)
class Request:
    """What a client asked; `headers` with names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


class Closed(Exception):
    """The connection is over."""


class Line:
    """One connection, from the server's side."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._rest = b""

    def send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise Closed from error

    def reply(
        self, status: int = 200, body: bytes = b"", headers: Mapping[str, str] | None = None, *, length: int | None = -1
    ) -> None:
        """An answer; `length` overrides Content-Length, None leaves it out and ends the connection after the body."""
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        if length is not None:
            lines.append(f"Content-Length: {len(body) if length < 0 else length}")
        lines += [f"{key}: {text}" for key, text in (headers or {}).items()]
        self.send("\r\n".join([*lines, "\r\n"]).encode("latin-1") + body)
        if length is None:
            raise Closed

    def close(self, *, reset: bool = False) -> None:
        """End the connection, with a RST if `reset`."""
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        raise Closed

    def head(self) -> Request:
        while b"\r\n\r\n" not in self._rest:
            self._rest += self._recv()
        raw, _, self._rest = self._rest.partition(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        headers = {key.lower(): text for key, _, text in (line.partition(": ") for line in lines)}
        return Request(method, path, headers)

    def take(self, count: int) -> bytes:
        """That many bytes of the body."""
        while len(self._rest) < count:
            self._rest += self._recv()
        data, self._rest = self._rest[:count], self._rest[count:]
        return data

    def _recv(self) -> bytes:
        try:
            data = self.sock.recv(1 << 16)
        except OSError as error:
            raise Closed from error
        if not data:
            raise Closed
        return data


Play = Callable[[Request, Line], None]
"""Answers a request, by `line.reply` or by bytes of its own."""


@dataclass
class Wire:
    """What the server saw."""

    host: str
    requests: list[Request] = field(default_factory=list)
    connections: int = 0

    @property
    def asked(self) -> list[str]:
        return [f"{request.method} {request.path}" for request in self.requests]


@contextmanager
def wire(
    play: Play, *, address: str = "127.0.0.1", tls: ssl.SSLContext | None = None, bodies: bool = True
) -> Iterator[Wire]:
    """Serve while the block runs; with `bodies`, `play` gets requests that are read to their end."""
    listener = socket.create_server((address, 0))
    seen = Wire(f"{address}:{listener.getsockname()[1]}")
    open_sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def talk(sock: socket.socket) -> None:
        with suppress(Closed, OSError, ValueError):
            if tls is not None:
                sock = tls.wrap_socket(sock, server_side=True)
                open_sockets.append(sock)
            line = Line(sock)
            while True:
                request = line.head()
                if bodies:
                    body = line.take(int(request.headers.get("content-length", 0)))
                    request = Request(request.method, request.path, request.headers, body)
                seen.requests.append(request)
                play(request, line)
        sock.close()

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.settimeout(TIMEOUT)
            seen.connections += 1
            open_sockets.append(sock)
            threads.append(threading.Thread(target=talk, args=(sock,), name="wire"))
            threads[-1].start()

    acceptor = threading.Thread(target=accept, name="wire")
    acceptor.start()
    try:
        yield seen
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join(TIMEOUT)
        listener.close()
        for sock in open_sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(TIMEOUT)
        for sock in open_sockets:
            sock.close()
