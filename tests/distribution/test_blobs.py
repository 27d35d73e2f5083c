"""Pulling and deleting blobs, and ranges of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distribution.client import Client, digest
from tonnage.distribution.blobs import parse_range
from tonnage.distribution.errors import Refusal

DATA = os.urandom(300_000)


def test_version(client: Client) -> None:
    for method in ("GET", "HEAD"):
        reply = client(method, "/v2/")
        assert reply.status == 200
        assert reply.headers["Docker-Distribution-API-Version"] == "registry/2.0"


def test_whole(client: Client) -> None:
    path = f"/v2/a/b/blobs/{client.blob('a/b', DATA)}"
    got, head = client("GET", path), client("HEAD", path)
    assert (got.status, got.body) == (200, DATA)
    assert (head.status, head.body) == (200, b"")
    for reply in (got, head):
        assert reply.headers["Content-Length"] == str(len(DATA))
        assert reply.headers["Docker-Content-Digest"] == digest(DATA)
        assert reply.headers["Accept-Ranges"] == "bytes"
        assert reply.headers["Content-Type"] == "application/octet-stream"


def test_empty_blob(client: Client) -> None:
    reply = client("GET", f"/v2/a/blobs/{client.blob('a', b'')}")
    assert (reply.status, reply.body) == (200, b"")


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=100-199", slice(100, 200)),
        ("bytes=299999-", slice(299_999, None)),
        ("bytes=1000-9999999", slice(1000, None)),
        ("bytes=-5", slice(-5, None)),
        ("bytes=-99999999", slice(0, None)),
    ],
)
def test_range(client: Client, header: str, part: slice) -> None:
    path = f"/v2/a/blobs/{client.blob('a', DATA)}"
    for method in ("GET", "HEAD"):
        reply = client(method, path, headers={"Range": header})
        start, stop, _ = part.indices(len(DATA))
        assert reply.status == 206
        assert reply.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(DATA)}"
        assert reply.headers["Content-Length"] == str(stop - start)
        assert reply.body == (DATA[part] if method == "GET" else b"")


@pytest.mark.parametrize("header", ["bytes=300000-", "bytes=300000-300001", "bytes=-0", "bytes=9-5"])
def test_unsatisfiable_range(client: Client, header: str) -> None:
    reply = client("GET", f"/v2/a/blobs/{client.blob('a', DATA)}", headers={"Range": header})
    assert (reply.status, reply.codes) == (416, ["RANGE_INVALID"])
    assert reply.headers["Content-Range"] == f"bytes */{len(DATA)}"


@pytest.mark.parametrize("header", ["lines=1-2", "bytes=0-1,5-6", "bytes=-", "bytes=a-b", "bytes=" + "9" * 5000 + "-"])
def test_other_ranges_mean_everything(header: str) -> None:
    assert parse_range(header, 100) is None


def test_range_of_nothing() -> None:
    with pytest.raises(Refusal):
        parse_range("bytes=0-", 0)


def test_conditions(client: Client) -> None:
    path = f"/v2/a/blobs/{client.blob('a', DATA)}"
    tag = client("HEAD", path).headers["ETag"]
    assert client("GET", path, headers={"If-None-Match": tag}).status == 304
    assert client("GET", path, headers={"If-None-Match": '"x"'}).status == 200
    assert client("GET", path, headers={"If-Range": tag, "Range": "bytes=0-9"}).status == 206
    assert client("GET", path, headers={"If-Range": '"x"', "Range": "bytes=0-9"}).status == 200


def test_unknown(client: Client) -> None:
    client.blob("a", DATA)
    for path in (f"/v2/a/blobs/{digest(b'x')}", f"/v2/other/blobs/{digest(DATA)}"):
        reply = client("GET", path)
        assert (reply.status, reply.codes) == (404, ["BLOB_UNKNOWN"])
        assert client("HEAD", path).status == 404
        assert client("DELETE", path).status == 404


def test_last_link_removes_the_content(client: Client, root: Path) -> None:
    content = root / "blobs" / digest(DATA).replace(":", "/")
    for name in ("a", "b"):
        client.blob(name, DATA)
    assert client("DELETE", f"/v2/a/blobs/{digest(DATA)}").status == 202
    assert client("GET", f"/v2/a/blobs/{digest(DATA)}").status == 404
    assert client("GET", f"/v2/b/blobs/{digest(DATA)}").body == DATA
    assert client("DELETE", f"/v2/b/blobs/{digest(DATA)}").status == 202
    assert not content.exists()


@pytest.mark.parametrize(
    "path",
    [
        "/v2/a/blobs/../../../../etc/passwd",
        "/v2/../../blobs/" + digest(DATA),
        "/v2/%2e%2e/%2e%2e/blobs/" + digest(DATA),
        "/v2/%2e%2e%2f%2e%2e/blobs/" + digest(DATA),
        "/v2/a/blobs/%2e%2e%2f%2e%2e%2flock",
        "/v2/a/blobs/sha256:%2e%2e%2f%2e%2e%2flock",
        "/v2/a/blobs/sha256:..",
        "/v2/a/blobs/sha256:" + "A" * 64,
        "/v2/a/blobs/sha256:" + "0" * 63,
        "/v2/a/blobs/md5:" + "0" * 32,
        "/v2/a/blobs/sha256:" + "0" * 64 + "%00",
        "/v2/A/blobs/" + digest(DATA),
        "/v2/_blobs/blobs/" + digest(DATA),
        "/v2/a/_manifests/blobs/" + digest(DATA),
        "/v2//blobs/" + digest(DATA),
        "/v2/" + "a" * 256 + "/blobs/" + digest(DATA),
    ],
)
def test_paths_cannot_escape(client: Client, path: str) -> None:
    client.blob("a", DATA)
    for method in ("GET", "DELETE"):
        reply = client(method, path)
        assert reply.status in (400, 404, 405)
        assert reply.codes[0] in ("NAME_INVALID", "NAME_UNKNOWN", "DIGEST_INVALID", "UNSUPPORTED")
    assert client("GET", f"/v2/a/blobs/{digest(DATA)}").status == 200


def test_unknown_routes_answer_as_oci(client: Client) -> None:
    assert client("GET", "/elsewhere").codes == ["NAME_UNKNOWN"]
    reply = client("POST", "/v2/a/tags/list")
    assert (reply.status, reply.codes, reply.headers["Allow"]) == (405, ["UNSUPPORTED"], "GET, HEAD")
