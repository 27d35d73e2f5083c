"""Registries that lie, refuse, and list without end."""

# ruff: noqa: SIM117 - servers outside, expectations inside
from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.wire import Line, Request, Wire, wire
from tonnage.content.descriptor import Descriptor
from tonnage.content.digest import Digest
from tonnage.content.mediatype import OCI_INDEX, OCI_MANIFEST
from tonnage.content.reference import Repository
from tonnage.content.verify import opener, read_all
from tonnage.errors import (
    AccessDenied,
    DigestMismatch,
    IntegrityError,
    InvalidContent,
    NotFound,
    RegistryError,
    TonnageError,
    TooManyRequests,
    Truncated,
    Unavailable,
)
from tonnage.stores.registry import Credentials, RegistryStore, Timeouts
from tonnage.stores.registry.client import _error_body
from tonnage.stores.registry.kept import KeptManifests

BLOB = bytes(range(256)) * 4
NODE = Descriptor.of(BLOB, "application/octet-stream")
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": Descriptor.of(b"{}", "application/vnd.oci.empty.v1+json").to_dict(),
        "layers": [],
    }
).encode()
ROOT = Descriptor.of(MANIFEST, OCI_MANIFEST)
INDEX = {"schemaVersion": 2, "mediaType": OCI_INDEX}


@contextmanager
def store_of(server: Wire) -> Iterator[RegistryStore]:
    repository = Repository(server.host, "models/llama")
    with closing(RegistryStore(repository, timeouts=Timeouts(connect=5, stall=5))) as store:
        yield store


@contextmanager
def registry(status: int = 200, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Iterator[RegistryStore]:
    """One answer to everything."""
    with wire(lambda _, line: line.reply(status, body, headers)) as server, store_of(server) as store:
        yield store


# --- ranges


def test_a_range() -> None:
    def play(request: Request, line: Line) -> None:
        first, last = map(int, request.headers["range"].removeprefix("bytes=").split("-"))
        part = BLOB[first : last + 1]
        line.reply(206, part, {"Content-Range": f"bytes {first}-{last}/{len(BLOB)}"})

    with wire(play) as server, store_of(server) as store:
        assert read(store, 100, 50) == BLOB[100:150]
        assert read(store, 0, len(BLOB)) == BLOB
        assert read(store, 7, 0) == b""
    assert [request.headers["range"] for request in server.requests] == ["bytes=100-149", f"bytes=0-{len(BLOB) - 1}"]


@pytest.mark.parametrize(
    "said",
    [
        "",
        "bytes 0-49/1024",
        "bytes 100-149/1025",
        "bytes 100-148/1024",
        "bytes 101-150/1024",
        "bytes */1024",
        "garbage",
    ],
)
def test_a_range_that_is_another_one(said: str) -> None:
    with registry(206, BLOB[100:150], {"Content-Range": said}) as store:
        with pytest.raises(Unavailable, match="does not serve the range 100-149"):
            read(store, 100, 50)


def test_the_whole_blob_for_a_range() -> None:
    with registry(200, BLOB) as store:
        with pytest.raises(Unavailable, match="does not serve the range"):
            read(store, 100, 50)
        assert read(store, 0, len(BLOB)) == BLOB


@pytest.mark.parametrize("length", [49, 51])
def test_a_range_of_another_length(length: int) -> None:
    with registry(206, bytes(length), {"Content-Range": "bytes 100-149/1024"}) as store:
        with pytest.raises(IntegrityError, match=f"sends {length} bytes"):
            read(store, 100, 50)


def test_a_range_that_cannot_be_satisfied() -> None:
    with registry(416, b"") as store, pytest.raises(RegistryError, match="HTTP 416"):
        read(store, 100, 50)


# --- blobs


@pytest.mark.parametrize("length", [0, 1023, 1025, 1 << 40])
def test_a_blob_of_another_length_is_refused_at_once(length: int) -> None:
    with wire(lambda _, line: line.reply(200, BLOB, length=length)) as server, store_of(server) as store:
        with pytest.raises(IntegrityError, match=f"sends {length} bytes for sha256"):
            store.fetch(NODE)


def test_a_blob_that_ends_early() -> None:
    def cut(_: Request, line: Line) -> None:
        line.reply(200, BLOB[:1000], length=1024)
        line.close()

    with wire(cut) as server, store_of(server) as store, pytest.raises(Truncated, match="24 bytes early"):
        read_all(store.fetch(NODE), NODE, limit=2000)


@pytest.mark.parametrize(
    ("body", "kind"), [(BLOB[:-1], Truncated), (BLOB + b"x", IntegrityError), (bytes(1024), DigestMismatch)]
)
def test_a_blob_without_a_length_is_verified_by_who_reads_it(body: bytes, kind: type[TonnageError]) -> None:
    with wire(lambda _, line: line.reply(200, body, length=None)) as server, store_of(server) as store:
        with pytest.raises(kind):
            read_all(store.fetch(NODE), NODE, limit=2000)


def test_existence_is_of_the_right_size() -> None:
    for length, there in ((1024, True), (1023, False), (0, False), (None, True)):

        def head(_: Request, line: Line, length: int | None = length) -> None:
            line.reply(200, length=length)

        with wire(head) as server, store_of(server) as store:
            assert store.exists(NODE) is there
        assert server.asked == [f"HEAD /v2/models/llama/blobs/{NODE.digest}"]


@pytest.mark.parametrize("status", [401, 403, 429, 500])
def test_a_failure_is_not_an_absence(status: int) -> None:
    with registry(status, b"") as store, pytest.raises(TonnageError):
        store.exists(NODE)


# --- manifests


def test_a_manifest() -> None:
    with registry(200, MANIFEST, {"Content-Type": f"{OCI_MANIFEST}; charset=utf-8"}) as store:
        assert store.resolve("v1") == ROOT
        assert store.resolve(ROOT.digest) == ROOT


def test_a_manifest_is_asked_for_once() -> None:
    def play(request: Request, line: Line) -> None:
        line.reply(200, MANIFEST, {"Content-Type": OCI_MANIFEST})

    with wire(play) as server, store_of(server) as store:
        for _ in range(3):
            assert read_all(store.fetch(store.resolve("v1")), ROOT, limit=4000) == MANIFEST
    assert server.asked == ["GET /v2/models/llama/manifests/v1"] * 3
    assert OCI_INDEX in server.requests[0].headers["accept"]


def test_a_digest_header_that_lies() -> None:
    headers = {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": Digest.of(b"other")}
    with registry(200, MANIFEST, headers) as store:
        with pytest.raises(DigestMismatch, match="sent a manifest that hashes to"):
            store.resolve("v1")


@pytest.mark.parametrize("said", ["garbage", "sha512:00", "", "blake3:12"])
def test_a_digest_header_that_says_nothing(said: str) -> None:
    with registry(200, MANIFEST, {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": said}) as store:
        assert store.resolve("v1") == ROOT


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_manifest_that_is_not_the_one_named(algorithm: str) -> None:
    wanted = Digest.of(b"another manifest", algorithm)
    headers = {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": wanted}
    with registry(200, MANIFEST, headers) as store, pytest.raises(DigestMismatch, match=f"for {algorithm}"):
        store.resolve(wanted)


def test_a_manifest_named_by_sha512() -> None:
    with registry(200, MANIFEST, {"Content-Type": OCI_MANIFEST}) as store:
        named = Digest.of(MANIFEST, "sha512")
        node = store.resolve(named)
        assert node.digest == named
        assert read_all(store.fetch(node), node, limit=4000) == MANIFEST


def test_a_manifest_of_a_gigabyte_is_not_read() -> None:
    sent: list[int] = []

    def endless(_: Request, line: Line) -> None:
        line.send(f"HTTP/1.1 200 OK\r\nContent-Type: {OCI_MANIFEST}\r\nContent-Length: {1 << 30}\r\n\r\n".encode())
        while True:
            line.send(b" " * (1 << 18))
            sent.append(1 << 18)

    with wire(endless) as server, store_of(server) as store:
        with pytest.raises(InvalidContent, match="more than the limit"):
            store.resolve("v1")
        node = Descriptor(media_type=OCI_MANIFEST, digest=ROOT.digest, size=1 << 30)
        with pytest.raises(InvalidContent, match="more than the limit"):
            read_all(store.fetch(node), node, limit=4 << 20)
    # 4 MiB, and what fits into the buffers of two sockets.
    assert sum(sent) < 32 << 20


@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        ("text/html", b"<html>"),
        (OCI_MANIFEST, b"<html>the hotel's login page</html>"),
        ("", b"{}"),
        (OCI_MANIFEST, b"[]"),
        (OCI_MANIFEST, b"[" * 100_000),
        (OCI_MANIFEST, b'{"mediaType":"\xff"}'),
        (OCI_INDEX, MANIFEST),
        ("application/vnd.docker.distribution.manifest.v1+prettyjws", b"{}"),
    ],
)
def test_what_is_no_manifest(media_type: str, body: bytes) -> None:
    with registry(200, body, {"Content-Type": media_type}) as store, pytest.raises(InvalidContent):
        store.resolve("v1")


# --- errors


@pytest.mark.parametrize(
    ("status", "kind", "text"),
    [
        (400, RegistryError, "refused GET"),
        (401, AccessDenied, "that we do not know"),
        (403, AccessDenied, "does not allow GET of models/llama"),
        (404, NotFound, "does not have models/llama/manifests/v1"),
        (405, RegistryError, "HTTP 405"),
        (408, Unavailable, "HTTP 408"),
        (418, RegistryError, "HTTP 418"),
        (429, TooManyRequests, "slow down"),
        (500, Unavailable, "failed on GET"),
        (502, Unavailable, "HTTP 502"),
        (503, Unavailable, "HTTP 503"),
        (504, Unavailable, "HTTP 504"),
        (507, RegistryError, "HTTP 507.*free space on the registry"),
    ],
)
def test_statuses(status: int, kind: type[TonnageError], text: str) -> None:
    with registry(status, b"") as store, pytest.raises(kind, match=text) as caught:
        store.resolve("v1")
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><body><h1>502 Bad Gateway</h1></body></html>",
        b"{",
        b'"text"',
        b'{"errors": "none"}',
        b'{"errors": []}',
        b'{"errors": [{"code": 5}]}',
        b'{"errors": [null]}',
        b'{"errors": [{"code":"X","message":null}]}',
        b'{"errors":[{"detail":' + b"[" * 60_000,
        b"\xff\xfe",
        b"x" * (8 << 20),
    ],
)
def test_bodies_of_errors_that_say_nothing(body: bytes) -> None:
    with registry(400, body) as store, pytest.raises(RegistryError) as caught:
        store.resolve("v1")
    assert str(caught.value).startswith(f"{store.repository.host} refused GET models/llama/manifests/v1 (HTTP 400)")
    assert len(str(caught.value)) < 500


_KEYS = ("code", "message", "detail")


def test_bodies_of_errors_that_say_why() -> None:
    problems = [
        {"code": "DENIED", "message": "no\n\tmore   space", "detail": {"a": [1]}},
        {"code": "X", "message": "y"},
    ]
    with registry(400, json.dumps({"errors": problems}).encode()) as store:
        with pytest.raises(RegistryError, match=r"\(HTTP 400\): DENIED no more space; ask") as caught:
            store.resolve("v1")
    assert (caught.value.status, caught.value.codes) == (400, ("DENIED", "X"))


_JSON = st.recursive(
    st.text() | st.none() | st.integers(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(_KEYS), inner),
)


@given(st.binary(max_size=300) | _JSON.map(lambda obj: json.dumps({"errors": obj}).encode()))
def test_no_body_of_an_error_is_too_much(raw: bytes) -> None:
    codes, message = _error_body(raw)
    assert all(isinstance(code, str) for code in codes)
    assert len(message) <= 300


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "17"}, 17.0),
        ({"Retry-After": "0"}, 0.0),
        ({}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "\xb2"}, None),
        ({"Retry-After": "9" * 400}, None),
        ({"Date": "Wed, 21 Oct 2026 07:28:00 GMT", "Retry-After": "Wed, 21 Oct 2026 07:29:30 GMT"}, 90.0),
        ({"Date": "Wed, 21 Oct 2026 07:28:00 GMT", "Retry-After": "Wed, 21 Oct 2026 07:00:00 GMT"}, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
    ],
)
def test_retry_after(headers: Mapping[str, str], seconds: float | None) -> None:
    with registry(429, b"", headers) as store, pytest.raises(TooManyRequests) as caught:
        store.resolve("v1")
    assert caught.value.retry_after == seconds


@pytest.mark.parametrize(
    "text",
    [b"Client sent an HTTP request to an HTTPS server.\n", b"<h1>The plain HTTP request was sent to HTTPS port</h1>"],
)
def test_plain_http_to_a_port_of_go_or_nginx_that_speaks_tls(text: bytes) -> None:
    with registry(400, text) as store, pytest.raises(RegistryError, match=r"HTTP 400.*; say --tls"):
        store.resolve("v1")


# --- lists


def pages(*bodies: tuple[bytes, str]) -> Callable[[Request, Line], None]:
    """Answers the requests in turn, with a body and a `Link`."""
    left = list(bodies)

    def play(_: Request, line: Line) -> None:
        body, link = left.pop(0)
        line.reply(200, body, {"Link": link} if link else {})

    return play


def tags(*names: str) -> bytes:
    return json.dumps({"name": "models/llama", "tags": names}).encode()


@pytest.mark.parametrize(
    ("link", "path"),
    [
        ('</v2/models/llama/tags/list?last=b&n=2>; rel="next"', "/v2/models/llama/tags/list?last=b&n=2"),
        ("<list?last=b>;rel=next", "/v2/models/llama/tags/list?last=b"),
        ('<?last=b> ; rel="next"', "/v2/models/llama/tags/list?last=b"),
    ],
)
def test_pages_of_tags(link: str, path: str) -> None:
    with wire(pages((tags("a", "c"), link), (tags("b", "a"), ""))) as server, store_of(server) as store:
        assert list(store.tags()) == ["a", "b", "c"]
    assert server.asked == ["GET /v2/models/llama/tags/list", f"GET {path}"]


@pytest.mark.parametrize(
    "link", ["<http://elsewhere.invalid/list>; rel=next", "</other>; rel=prev", "nothing", "<>;rel=next"]
)
def test_links_that_are_not_followed(link: str) -> None:
    with wire(pages((tags("a"), link), (tags("b"), ""))) as server, store_of(server) as store:
        assert list(store.tags()) == ["a"]


def test_pages_in_circles() -> None:
    circle = "</v2/models/llama/tags/list>; rel=next"
    with wire(pages((tags("a"), circle), (tags("b"), ""))) as server, store_of(server) as store:
        assert list(store.tags()) == ["a"]


def test_pages_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tonnage.stores.registry.client.MAX_PAGES", 10)

    def play(request: Request, line: Line) -> None:
        line.reply(200, tags("a"), {"Link": f"<{request.path}x>; rel=next"})

    with wire(play) as server, store_of(server) as store:
        with pytest.raises(InvalidContent, match="more than 10 pages"):
            store.tags()
    assert len(server.requests) == 10


def test_pages_of_too_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tonnage.stores.registry.client.MAX_PAGED", 2000)

    def play(request: Request, line: Line) -> None:
        line.reply(200, tags("a"), {"Link": f"<{request.path}?{'x' * 500}>; rel=next"})

    with wire(play) as server, store_of(server) as store, pytest.raises(InvalidContent, match="more than 2000 bytes"):
        store.tags()
    assert len(server.requests) == 4


def test_pages_of_too_many_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tonnage.stores.registry.client.MAX_ENTRIES", 3)
    following = "<?next=1>; rel=next"
    with wire(pages((tags("a", "b"), following), (tags("b", "c"), ""))) as server, store_of(server) as store:
        assert len(store.tags()) == 3
    with wire(pages((tags("a", "b"), following), (tags("c", "d"), ""))) as server, store_of(server) as store:
        with pytest.raises(InvalidContent, match="more than 3 entries"):
            store.tags()
    listing = json.dumps({**INDEX, "manifests": [entry(number, "a/b") for number in range(4)]}).encode()
    with registry(200, listing) as store, pytest.raises(InvalidContent, match="more than 3 entries"):
        store.referrers(ROOT)


@pytest.mark.parametrize("body", [b'{"tags": null}', b"{}", b'{"name": "x"}'])
def test_no_tags(body: bytes) -> None:
    with registry(200, body) as store:
        assert list(store.tags()) == []


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b'{"tags": "v1"}', b'{"tags": [1]}', b'{"tags":["\xff"]}', b'{"tags":' + b"[" * 9999],
)
def test_a_malformed_list_of_tags(body: bytes) -> None:
    with registry(200, body) as store, pytest.raises(InvalidContent, match="malformed list of tags"):
        store.tags()


def entry(number: int, artifact_type: str) -> dict[str, Any]:
    return Descriptor.of(bytes([number]), OCI_MANIFEST, artifact_type=artifact_type).to_dict()


def test_pages_of_referrers_filtered_here_if_not_there() -> None:
    first = json.dumps({**INDEX, "manifests": [entry(1, "a/b"), entry(2, "c/d")]}).encode()
    second = json.dumps({**INDEX, "manifests": [entry(3, "a/b")]}).encode()
    with wire(pages((first, "<?next=1>; rel=next"), (second, ""))) as server, store_of(server) as store:
        assert [node.digest for node in store.referrers(ROOT, "a/b")] == [
            entry(1, "")["digest"],
            entry(3, "")["digest"],
        ]
    path = f"/v2/models/llama/referrers/{ROOT.digest}"
    assert server.asked == [f"GET {path}?artifactType=a%2Fb", f"GET {path}?next=1"]


@pytest.mark.parametrize("body", [b"", b"{}", MANIFEST, b'{"manifests": 5}', b"[" * 9999])
def test_a_malformed_list_of_referrers(body: bytes) -> None:
    with registry(200, body) as store, pytest.raises(InvalidContent):
        store.referrers(ROOT)


def test_referrers_by_tag() -> None:
    listing = json.dumps({**INDEX, "manifests": [entry(1, "a/b")]}).encode()

    def play(request: Request, line: Line) -> None:
        if request.path == f"/v2/models/llama/manifests/sha256-{ROOT.digest.hex}":
            line.reply(200, listing, {"Content-Type": OCI_INDEX})
        else:
            line.reply(404, b"404 page not found")

    with wire(play) as server, store_of(server) as store:
        assert len(store.referrers(ROOT)) == 1
        assert list(store.referrers(ROOT, "other")) == []


# --- uploads


def upload(location: str, status: int = 201, body: bytes = b"") -> Callable[[Request, Line], None]:
    def play(request: Request, line: Line) -> None:
        if request.method == "POST":
            line.reply(202, headers={"Location": location} if location else {})
        else:
            line.reply(status, body)

    return play


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/v2/models/llama/blobs/uploads/1", "/v2/models/llama/blobs/uploads/1?digest="),
        ("/up?_state=a%2Bb%3D%3D", "/up?_state=a%2Bb%3D%3D&digest="),
        ("1", "/v2/models/llama/blobs/uploads/1?digest="),
    ],
)
def test_an_upload_goes_where_the_registry_says(location: str, path: str) -> None:
    with wire(upload(location)) as server, store_of(server) as store:
        store.push(NODE, opener(BLOB))
    asked = f"PUT {path}sha256%3A{NODE.digest.hex}"
    assert server.asked == ["POST /v2/models/llama/blobs/uploads/", asked]
    assert server.requests[1].body == BLOB


def test_an_upload_to_a_bucket_gets_no_credentials() -> None:
    with wire(lambda _, line: line.reply(201), address="127.0.0.2") as bucket:

        def guard(request: Request, line: Line) -> None:
            if "authorization" not in request.headers:
                line.reply(401, headers={"WWW-Authenticate": "Basic"})
            else:
                line.reply(202, headers={"Location": f"http://{bucket.host}/signed?x=1"})

        with wire(guard) as server:
            anna = Credentials("anna", "secret")
            with closing(RegistryStore(Repository(server.host, "a"), credentials=lambda _: anna)) as store:
                store.push(NODE, opener(BLOB))
    assert "authorization" not in bucket.requests[0].headers


@pytest.mark.parametrize("location", ["", "http://[", "ftp://x/", "http://host:port/"])
def test_an_upload_that_goes_nowhere(location: str) -> None:
    with wire(upload(location)) as server, store_of(server) as store, pytest.raises(RegistryError):
        store.push(NODE, opener(BLOB))


@pytest.mark.parametrize("code", ["DIGEST_INVALID", "SIZE_INVALID"])
def test_an_upload_of_other_bytes(code: str) -> None:
    body = json.dumps({"errors": [{"code": code, "message": "m"}]}).encode()
    with wire(upload("/up", 400, body)) as server, store_of(server) as store:
        with pytest.raises(IntegrityError, match="received other bytes than sha256"):
            store.push(NODE, opener(BLOB))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (200, RegistryError),
        (400, RegistryError),
        (403, AccessDenied),
        (404, NotFound),
        (413, RegistryError),
        (503, Unavailable),
    ],
)
def test_an_upload_that_is_refused(status: int, kind: type[TonnageError]) -> None:
    with wire(upload("/up", status)) as server, store_of(server) as store, pytest.raises(kind):
        store.push(NODE, opener(BLOB))


@pytest.mark.parametrize("status", [400, 404, 500])
def test_the_state_of_an_upload_is_not_shown(status: int) -> None:
    location = "/v2/models/llama/blobs/uploads/1?_state=SECRET"
    with wire(upload(location, status)) as server, store_of(server) as store:
        with pytest.raises(TonnageError, match="models/llama/blobs/uploads/1") as caught:
            store.push(NODE, opener(BLOB))
    assert "SECRET" not in f"{caught.value} {caught.value!r}"
    assert "?" not in str(caught.value)


# --- kept manifests


def test_a_manifest_is_kept_after_it_was_resolved() -> None:
    with wire(lambda _, line: line.reply(200, MANIFEST, {"Content-Type": OCI_MANIFEST})) as server:
        with store_of(server) as store:
            read_all(store.fetch(store.resolve("v1")), ROOT, limit=4000)
    assert server.asked == ["GET /v2/models/llama/manifests/v1"]


def test_kept_manifests_are_bounded_by_their_bytes() -> None:
    kept = KeptManifests(11_000)

    def left() -> list[int]:
        return [number for number in range(1000) if kept.get(str(number)) is not None]

    for number in range(4):
        kept.keep(str(number), bytes(3000))
    assert left() == [1, 2, 3]
    kept.keep("1", bytes(2000))
    kept.forget("2")
    kept.forget("unknown")
    kept.keep("4", bytes(4000))
    assert left() == [1, 3, 4], "what was kept twice counts once, what was forgotten not at all"
    kept.keep("5", bytes(20_000))
    assert left() == [], "it is larger than all that may be kept"
    for number in range(1000):
        kept.keep(str(number), b"{}")
    assert 10 < len(left()) < 30, "small ones are not free"


def test_docker_io_is_another_host() -> None:
    store = RegistryStore(Repository("docker.io", "library/llama"))
    assert store._url == "https://registry-1.docker.io/v2/library/llama"


@pytest.mark.parametrize(
    ("host", "plain_http", "scheme"),
    [
        ("127.0.0.1:5000", None, "http"),
        ("localhost:5000", None, "http"),
        ("[::1]:5000", None, "http"),
        ("registry.example", None, "https"),
        ("10.0.0.1:5000", None, "https"),
        ("127.0.0.1:5000", False, "https"),
        ("registry.example", True, "http"),
    ],
)
def test_plain_http_only_to_this_machine(host: str, plain_http: bool | None, scheme: str) -> None:
    store = RegistryStore(Repository(host, "a"), plain_http=plain_http)
    assert store._url == f"{scheme}://{host}/v2/a"


def read(store: RegistryStore, offset: int, length: int) -> bytes:
    data = bytearray()
    buffer = memoryview(bytearray(4096))
    with closing(store.fetch_range(NODE, offset, length)) as reader:
        while count := reader.readinto(buffer):
            data += buffer[:count]
    return bytes(data)
