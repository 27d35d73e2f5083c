"""HTTP as servers really speak it, over loopback sockets."""

# ruff: noqa: SIM117 - servers outside, expectations inside
from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from stores.wire import Line, Request, wire
from tonnage.content.storage import Reader
from tonnage.content.verify import BytesReader, opener
from tonnage.errors import IntegrityError, RegistryError, Truncated, Unavailable
from tonnage.stores.registry.transport import Body, Response, Timeouts, Transport

QUICK = Timeouts(connect=5, stall=0.3)


@contextmanager
def transport(timeouts: Timeouts | None = None, tls: ssl.SSLContext | None = None) -> Iterator[Transport]:
    with closing(Transport(timeouts=timeouts or Timeouts(connect=5, stall=10), tls=tls)) as found:
        yield found


def drain(response: Response) -> bytes:
    return response.read(1 << 24)


def hello(_: Request, line: Line) -> None:
    line.reply(200, b"hello")


# --- connections


def test_a_connection_is_kept() -> None:
    with wire(hello) as server, transport() as http:
        for _ in range(3):
            assert drain(http.request("GET", f"http://{server.host}/a?b=c")) == b"hello"
        drain(http.request("HEAD", f"http://{server.host}/a"))
    assert server.connections == 1
    assert server.asked == ["GET /a?b=c"] * 3 + ["HEAD /a"]
    assert server.requests[0].headers["accept-encoding"] == "identity"
    assert server.requests[0].headers["user-agent"].startswith("tonnage/")


def test_a_connection_in_use_is_not_shared() -> None:
    with wire(hello) as server, transport() as http:
        first = http.request("GET", f"http://{server.host}/")
        second = http.request("GET", f"http://{server.host}/")
        assert (drain(first), drain(second)) == (b"hello", b"hello")
    assert server.connections == 2


def test_a_response_that_is_not_read_gives_up_its_connection() -> None:
    with wire(lambda _, line: line.reply(200, bytes(1 << 20))) as server, transport() as http:
        http.request("GET", f"http://{server.host}/").close()
        assert len(drain(http.request("GET", f"http://{server.host}/"))) == 1 << 20
    assert server.connections == 2


@pytest.mark.parametrize("reset", [False, True])
def test_a_kept_connection_that_the_server_closed_is_replaced(reset: bool) -> None:
    def once(request: Request, line: Line) -> None:
        line.reply(200, request.body)
        line.close(reset=reset)

    with wire(once) as server, transport() as http:
        for number in range(4):
            body = Body(open=opener(b"body"), size=4) if number % 2 else b"bytes"
            assert (
                drain(http.request("PUT", f"http://{server.host}/", body=body)) == (b"body", b"bytes")[number % 2 == 0]
            )
    assert server.connections == 4


def test_a_server_that_ends_each_connection() -> None:
    def last(_: Request, line: Line) -> None:
        line.reply(200, b"bye", {"Connection": "close"})

    with wire(last) as server, transport() as http:
        assert drain(http.request("GET", f"http://{server.host}/")) == b"bye"
        http.request("GET", f"http://{server.host}/").close()
    assert server.connections == 2


def test_a_fresh_connection_that_ends_without_an_answer_is_not_tried_again() -> None:
    with wire(lambda _, line: line.close()) as server, transport() as http:
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:\d+ closed the connection without an answer"):
            http.request("GET", f"http://{server.host}/")
    assert server.connections == 1


# --- bodies of responses


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    with wire(lambda _, line: line.reply(200, b"until the end", length=None)) as server, transport() as http:
        response = http.request("GET", f"http://{server.host}/")
        assert response.length is None
        assert drain(response) == b"until the end"


def test_chunks() -> None:
    def chunked(_: Request, line: Line) -> None:
        line.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n")
        line.send(b"04\r\ndefg\r\n0\r\nTrailer: x\r\n\r\n")

    with wire(chunked) as server, transport() as http:
        assert drain(http.request("GET", f"http://{server.host}/")) == b"abcdefg"
        assert drain(http.request("GET", f"http://{server.host}/")) == b"abcdefg"
    assert server.connections == 1


@pytest.mark.parametrize("end", [b"", b"5\r\nab", b"zz\r\n", b"5"])
def test_chunks_that_break_are_not_an_end(end: bytes) -> None:
    def chunked(_: Request, line: Line) -> None:
        line.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n" + end)
        line.close()

    with wire(chunked) as server, transport() as http, pytest.raises(Unavailable):
        drain(http.request("GET", f"http://{server.host}/"))


def test_a_body_that_ends_early() -> None:
    def short(_: Request, line: Line) -> None:
        line.reply(200, bytes(60), length=100)
        line.close()

    with wire(short) as server, transport() as http, pytest.raises(Truncated, match="40 bytes early"):
        drain(http.request("GET", f"http://{server.host}/"))


def test_a_body_that_breaks() -> None:
    def broken(_: Request, line: Line) -> None:
        line.reply(200, bytes(60), length=100)
        line.close(reset=True)

    with wire(broken) as server, transport() as http, pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
        drain(http.request("GET", f"http://{server.host}/"))


@pytest.mark.parametrize("started", [False, True])
def test_a_server_that_stalls(started: bool) -> None:
    def stall(_: Request, line: Line) -> None:
        if started:
            line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        line.take(1)

    with wire(stall) as server, transport(QUICK) as http, pytest.raises(Unavailable, match="does not answer"):
        drain(http.request("GET", f"http://{server.host}/"))


def test_a_server_that_is_slow_but_alive() -> None:
    def slow(_: Request, line: Line) -> None:
        line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        for letter in b"slow":
            line.sock.settimeout(0.15)
            with pytest.raises(TimeoutError):
                line.sock.recv(1)
            line.sock.settimeout(20)
            line.send(bytes([letter]))

    with wire(slow) as server, transport(QUICK) as http:
        assert drain(http.request("GET", f"http://{server.host}/")) == b"slow"


def test_a_limited_read_takes_no_more() -> None:
    with wire(lambda _, line: line.reply(200, bytes(1 << 20))) as server, transport() as http:
        assert http.request("GET", f"http://{server.host}/").read(1000) == bytes(1000)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 99999 X\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 " + b"y" * 70_000,
        bytes(range(256)),
    ],
)
def test_what_is_not_http_is_an_error_of_ours(answer: bytes) -> None:
    def odd(_: Request, line: Line) -> None:
        line.send(answer)
        line.close()

    with wire(odd) as server, transport() as http, pytest.raises(Unavailable) as caught:
        http.request("GET", f"http://{server.host}/")
    assert len(str(caught.value)) < 500


# --- bodies of requests


class Slow(BytesReader):
    """Remembers how much of it was wanted."""

    taken = 0

    def readinto(self, buffer: memoryview, /) -> int:
        count = super().readinto(buffer)
        self.taken += count
        return count


def test_a_body_is_streamed() -> None:
    data = bytes(range(256)) * 20_000
    with wire(lambda request, line: line.reply(201, request.body[-10:])) as server, transport() as http:
        body = Body(open=opener(data), size=len(data))
        assert drain(http.request("PUT", f"http://{server.host}/", body=body)) == data[-10:]
    assert server.requests[0].body == data
    assert server.requests[0].headers["content-length"] == str(len(data))


@pytest.mark.parametrize("close", [True, False])
def test_an_answer_before_the_end_of_the_body_is_read(close: bool) -> None:
    """A registry refuses a layer that is too large, or a token that has ended, without taking gigabytes."""

    def refuse(_: Request, line: Line) -> None:
        line.take(100)
        line.reply(413, b"too large")
        if close:
            line.close()
        line.take(1 << 30)

    source = Slow(bytes(64 << 20))
    with wire(refuse, bodies=False) as server, transport() as http:
        body = Body(open=lambda _: source, size=64 << 20)
        response = http.request("PUT", f"http://{server.host}/", body=body)
        assert (response.status, drain(response)) == (413, b"too large")
        assert source.taken < 64 << 20
        # What is left of the body would be taken for a request.
        assert drain(http.request("PUT", f"http://{server.host}/", body=b"x" * 100)) == b"too large"
    assert server.connections == 2


def test_a_source_that_ends_early_ends_the_request() -> None:
    closed: list[bool] = []

    class Watched(BytesReader):
        def close(self) -> None:
            closed.append(True)

    def open_source(_: int) -> Reader:
        return Watched(bytes(50))

    with wire(hello) as server, transport() as http:
        with pytest.raises(Truncated, match="50 bytes early"):
            http.request("PUT", f"http://{server.host}/", body=Body(open=open_source, size=100))
        assert drain(http.request("GET", f"http://{server.host}/")) == b"hello"
    assert closed == [True]
    assert server.asked == ["GET /"]


def test_a_server_that_does_not_take_the_body() -> None:
    def stuck(_: Request, line: Line) -> None:
        line.sock.recv(1, socket.MSG_PEEK)
        line.sock.settimeout(10)
        while line.sock.fileno() >= 0 and line.sock.recv(1, socket.MSG_PEEK):
            if not hold.wait(0.05):
                continue
            return

    hold = threading.Event()
    with wire(stuck, bodies=False) as server, transport(QUICK) as http:
        with pytest.raises(Unavailable, match="does not answer"):
            http.request(
                "PUT", f"http://{server.host}/", body=Body(open=lambda _: BytesReader(bytes(64 << 20)), size=64 << 20)
            )
        hold.set()


# --- redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_and_credentials_stay(status: int) -> None:
    """With real hosts: 127.0.0.1 is the registry, 127.0.0.2 the bucket it sends us to."""
    with wire(hello, address="127.0.0.2") as bucket:

        def registry(_: Request, line: Line) -> None:
            line.reply(status, b"elsewhere", {"Location": f"http://{bucket.host}/blob?signature=x"})

        with wire(registry) as server, transport() as http:
            headers = {"Authorization": "Bearer secret", "Range": "bytes=0-4"}
            response = http.request("GET", f"http://{server.host}/v2/", headers=headers)
            assert drain(response) == b"hello"
            assert response.url == f"http://{bucket.host}/blob?signature=x"
    assert server.requests[0].headers["authorization"] == "Bearer secret"
    assert "authorization" not in bucket.requests[0].headers
    assert bucket.requests[0].headers["range"] == "bytes=0-4"
    assert bucket.asked == ["GET /blob?signature=x"]


def test_another_port_is_another_host() -> None:
    with wire(hello) as other:
        with (
            wire(lambda _, line: line.reply(307, headers={"Location": f"http://{other.host}/"})) as server,
            transport() as http,
        ):
            drain(http.request("GET", f"http://{server.host}/", headers={"Authorization": "secret"}))
    assert "authorization" not in other.requests[0].headers


def test_redirects_on_the_same_host_keep_credentials() -> None:
    def play(request: Request, line: Line) -> None:
        if request.path == "/a/b":
            line.reply(307, headers={"Location": "../c"})
        else:
            line.reply(200, b"here")

    with wire(play) as server, transport() as http:
        assert drain(http.request("GET", f"http://{server.host}/a/b", headers={"Authorization": "secret"})) == b"here"
    assert [request.headers["authorization"] for request in server.requests] == ["secret", "secret"]
    assert server.asked == ["GET /a/b", "GET /c"]


def test_credentials_do_not_come_back_after_a_detour() -> None:
    with wire(hello) as server:
        back = f"http://{server.host}/back"
        with wire(lambda _, line: line.reply(302, headers={"Location": back}), address="127.0.0.2") as detour:

            def start(request: Request, line: Line) -> None:
                line.reply(302, headers={"Location": f"http://{detour.host}/"})

            with wire(start) as first, transport() as http:
                drain(http.request("GET", f"http://{first.host}/", headers={"Authorization": "secret"}))
    assert "authorization" not in server.requests[0].headers


def test_redirects_in_circles() -> None:
    with wire(lambda _, line: line.reply(302, headers={"Location": "/again"})) as server, transport() as http:
        with pytest.raises(RegistryError, match="in circles"):
            http.request("GET", f"http://{server.host}/")
    assert len(server.requests) == 6


def test_other_methods_are_not_redirected() -> None:
    with wire(lambda _, line: line.reply(307, headers={"Location": "/there"})) as server, transport() as http:
        assert http.request("PUT", f"http://{server.host}/", body=b"x").status == 307
    assert server.asked == ["PUT /"]


@pytest.mark.parametrize(
    "location",
    [
        "ftp://example.test/",
        "file:///etc/passwd",
        "http://[::1",
        "http://host:99999/",
        "http://host:port/",
        "http://h\xf6st/",
        "/with space",
        "/esc\x1b[31m",
        "javascript:alert(1)",
    ],
)
def test_locations_that_are_no_urls(location: str) -> None:
    with wire(lambda _, line: line.reply(302, headers={"Location": location})) as server, transport() as http:
        with pytest.raises(RegistryError, match="which is no URL") as caught:
            http.request("GET", f"http://{server.host}/")
    assert "\x1b" not in str(caught.value)


def test_tls_is_not_left(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    with wire(hello) as plain:

        def down(_: Request, line: Line) -> None:
            line.reply(302, headers={"Location": f"http://{plain.host}/"})

        with wire(down, tls=server_tls) as server, transport(tls=client_tls) as http:
            with pytest.raises(IntegrityError, match="not protected"):
                http.request("GET", f"https://{server.host}/")
    assert plain.connections == 0


# --- no connection


def test_a_refused_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with transport() as http, pytest.raises(Unavailable, match=f"127.0.0.1:{port} refused the connection; check"):
        http.request("GET", f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize("host", ["nowhere.invalid", "a..b", "x" * 64 + ".test", "registry.example.invalid:5000"])
def test_a_name_that_does_not_resolve(host: str) -> None:
    with transport() as http, pytest.raises(Unavailable, match="has a name that"):
        http.request("GET", f"http://{host}/")


# --- TLS


def test_tls(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    data = bytes(range(256)) * 10_000
    with wire(lambda request, line: line.reply(200, request.body), tls=server_tls) as server:
        with transport(tls=client_tls) as http:
            for _ in range(2):
                body = Body(open=opener(data), size=len(data))
                assert drain(http.request("PUT", f"https://{server.host}/", body=body)) == data
    assert server.connections == 1


def test_a_certificate_that_is_not_trusted(server_tls: ssl.SSLContext) -> None:
    with (
        wire(hello, tls=server_tls) as server,
        transport() as http,
        pytest.raises(
            RegistryError, match=r"certificate of 127.* is not trusted: self.signed.*SSL_CERT_FILE"
        ) as caught,
    ):
        http.request("GET", f"https://{server.host}/")
    assert not caught.value.retryable
    assert server.requests == []


def test_a_certificate_of_another_host(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    with wire(hello, tls=server_tls, address="127.0.0.2") as server, transport(tls=client_tls) as http:
        with pytest.raises(RegistryError, match="is not trusted: IP address mismatch"):
            http.request("GET", f"https://{server.host}/")


def test_certificates_of_ssl_cert_file(
    server_tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setattr("tonnage.stores.registry.transport._tls", None)
    with wire(hello, tls=server_tls) as server, transport() as http:
        assert drain(http.request("GET", f"https://{server.host}/")) == b"hello"
    monkeypatch.setattr("tonnage.stores.registry.transport._tls", None)


def test_tls_to_a_plain_port() -> None:
    with plain_talker(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n") as host, transport() as http:
        with pytest.raises(RegistryError, match=r"does not speak TLS.*--plain-http"):
            http.request("GET", f"https://{host}/")


def test_tls_to_a_port_that_hangs_up() -> None:
    with plain_talker(b"") as host, transport() as http:
        with pytest.raises(Unavailable, match=r"before TLS was set up.*--plain-http"):
            http.request("GET", f"https://{host}/")


def test_plain_to_a_tls_port() -> None:
    """OpenSSL answers with an alert; for Go's and nginx' servers, which answer with a 400, see `test_client`."""
    with plain_talker(b"\x15\x03\x01\x00\x02\x02\x46") as host, transport() as http:
        with pytest.raises(RegistryError, match="speaks TLS, and was asked without; say --tls"):
            http.request("GET", f"http://{host}/")


def test_tls_that_breaks_in_a_body_is_worth_a_retry(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    def cut(_: Request, line: Line) -> None:
        line.reply(200, bytes(1000), length=2000)
        line.close(reset=True)

    with wire(cut, tls=server_tls) as server, transport(tls=client_tls) as http:
        with pytest.raises(Unavailable) as caught:
            drain(http.request("GET", f"https://{server.host}/"))
    assert caught.value.retryable


@contextmanager
def plain_talker(answer: bytes) -> Iterator[str]:
    """Answers one connection with these bytes, whatever it hears."""
    listener = socket.create_server(("127.0.0.1", 0))

    def talk() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(10)
            sock.recv(1 << 16)
            sock.sendall(answer)

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        thread.join(20)
        listener.close()
