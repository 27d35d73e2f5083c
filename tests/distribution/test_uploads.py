"""Pushing blobs: at once, in chunks, after a break, after a restart, by mounting."""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
from pathlib import Path

import pytest

from distribution.client import Client, digest
from support.servers import running
from tonnage.distribution.app import create_app

DATA = os.urandom(3_000_000)


def files(root: Path) -> list[Path]:
    """Everything on disk that an upload could leave."""
    return [path for folder in ("uploads", "blobs") for path in (root / folder).rglob("*") if path.is_file()]


def stored(client: Client, name: str = "a") -> bytes:
    return client("GET", f"/v2/{name}/blobs/{digest(DATA)}").body


def test_post_then_put(client: Client) -> None:
    reply = client("PUT", f"{client.start('a/b')}?digest={digest(DATA)}", DATA)
    assert reply.status == 201
    assert reply.headers["Location"] == f"/v2/a/b/blobs/{digest(DATA)}"
    assert reply.headers["Docker-Content-Digest"] == digest(DATA)
    assert stored(client, "a/b") == DATA


def test_one_post(client: Client) -> None:
    assert client("POST", f"/v2/a/blobs/uploads/?digest={digest(DATA)}", DATA).status == 201
    assert stored(client) == DATA


def test_one_post_with_the_wrong_digest(client: Client, root: Path) -> None:
    reply = client("POST", f"/v2/a/blobs/uploads/?digest={digest(b'x')}", DATA)
    assert (reply.status, reply.codes) == (400, ["DIGEST_INVALID"])
    assert files(root) == []


def test_sha512(client: Client) -> None:
    name = digest(DATA, "sha512")
    assert client("PUT", f"{client.start('a')}?digest={name}", DATA).status == 201
    assert client("GET", f"/v2/a/blobs/{name}").body == DATA


def test_streamed_patch(client: Client) -> None:
    upload = client.start("a")
    chunked = client("PATCH", upload, iter([DATA[:1000], DATA[1000:]]))
    assert (chunked.status, chunked.headers["Range"]) == (202, f"0-{len(DATA) - 1}")
    assert client("PUT", f"{chunked.headers['Location']}?digest={digest(DATA)}").status == 201
    assert stored(client) == DATA


def test_chunks_in_order(client: Client) -> None:
    upload = client.start("a")
    for start in (0, 1_000_000):
        headers = {"Content-Range": f"{start}-{start + 999_999}"}
        reply = client("PATCH", upload, DATA[start : start + 1_000_000], headers)
        assert (reply.status, reply.headers["Range"]) == (202, f"0-{start + 999_999}")
        upload = reply.headers["Location"]
    status = client("GET", upload)
    assert (status.status, status.headers["Range"], status.headers["Location"]) == (204, "0-1999999", upload)
    last = {"Content-Range": "bytes 2000000-2999999/3000000"}
    assert client("PUT", f"{upload}?digest={digest(DATA)}", DATA[2_000_000:], last).status == 201
    assert stored(client) == DATA


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
@pytest.mark.parametrize("header", ["0-99", "101-200", "50-149"])
def test_chunks_out_of_order(client: Client, method: str, header: str) -> None:
    upload = client.start("a")
    client("PATCH", upload, DATA[:100])
    reply = client(method, f"{upload}?digest={digest(DATA)}", DATA[:100], {"Content-Range": header})
    assert (reply.status, reply.codes) == (416, ["BLOB_UPLOAD_INVALID"])
    assert (reply.headers["Range"], reply.headers["Location"]) == ("0-99", upload)
    assert client("PUT", f"{upload}?digest={digest(DATA)}", DATA[100:]).status == 201


@pytest.mark.parametrize("header", ["0-98", "0-100", "x", "100", "5-4"])
def test_content_range_that_lies(client: Client, header: str) -> None:
    reply = client("PATCH", client.start("a"), DATA[:100], {"Content-Range": header})
    assert reply.status in (400, 416)


def test_wrong_digest_leaves_nothing(client: Client, root: Path) -> None:
    upload = client.start("a")
    reply = client("PUT", f"{upload}?digest={digest(b'x')}", DATA)
    assert (reply.status, reply.codes) == (400, ["DIGEST_INVALID"])
    assert files(root) == []
    assert client("GET", upload).codes == ["BLOB_UPLOAD_UNKNOWN"]
    assert client("HEAD", f"/v2/a/blobs/{digest(b'x')}").status == 404


@pytest.mark.parametrize("query", ["", "?digest=", "?digest=sha256:1", "?digest=../../x", "?digest=md5:00"])
def test_put_without_a_digest_keeps_the_upload(client: Client, query: str) -> None:
    upload = client.start("a")
    client("PATCH", upload, DATA[:100])
    assert client("PUT", upload + query, DATA[100:]).codes == ["DIGEST_INVALID"]
    assert client("PUT", f"{upload}?digest={digest(DATA)}", DATA[100:]).status == 201


def test_cancel(client: Client, root: Path) -> None:
    upload = client.start("a")
    client("PATCH", upload, DATA)
    assert client("DELETE", upload).status == 204
    assert files(root) == []
    for method in ("GET", "PATCH", "DELETE"):
        assert client(method, upload).codes == ["BLOB_UPLOAD_UNKNOWN"]


@pytest.mark.parametrize("upload", ["x", "%2e%2e", "%2e%2e%2flock", "0" * 32, "0" * 31 + "/", "A" * 32])
def test_strange_upload_ids(client: Client, upload: str) -> None:
    for method in ("GET", "PATCH", "DELETE"):
        assert client(method, f"/v2/a/blobs/uploads/{upload}").status in (404, 405)


def test_upload_belongs_to_its_repository(client: Client) -> None:
    upload = client.start("a").rpartition("/")[2]
    assert client("GET", f"/v2/b/blobs/uploads/{upload}").codes == ["BLOB_UPLOAD_UNKNOWN"]


def test_encoded_body_is_refused(client: Client) -> None:
    reply = client("PATCH", client.start("a"), b"\x1f\x8b", {"Content-Encoding": "gzip"})
    assert (reply.status, reply.codes) == (415, ["UNSUPPORTED"])


@pytest.mark.parametrize("abrupt", [True, False], ids=["reset", "closed"])
def test_broken_connection_keeps_what_arrived(client: Client, caplog: pytest.LogCaptureFixture, abrupt: bool) -> None:
    caplog.set_level(logging.INFO)
    upload = client.start("a")
    connection = client.broken("PATCH", upload, length=len(DATA), sent=DATA[:2_000_000])
    # Before the break: what was sent is being stored, so that a reset cannot throw it away.
    client.until(upload, lambda reply: int(reply.headers["Range"][2:]) >= 1_000_000)
    if abrupt:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    status = client("GET", upload)
    size = int(status.headers["Range"][2:]) + 1
    while True:
        reply = client("PATCH", upload, DATA[size:], {"Content-Range": f"{size}-{len(DATA) - 1}"})
        if reply.status == 202:
            break
        # The server was still storing what the broken connection had brought, and says how much.
        assert reply.status == 416
        size = int(reply.headers["Range"][2:]) + 1
    assert size >= 1_000_000
    assert client("PUT", f"{upload}?digest={digest(DATA)}").status == 201
    assert stored(client) == DATA
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_silent_connection_gives_way(client: Client) -> None:
    upload = client.start("a")
    silent = client.broken("PATCH", upload, length=len(DATA), sent=DATA[:500_000])
    client.until(upload, lambda reply: reply.headers["Range"] == "0-499999")
    reply = client("PATCH", upload, DATA[500_000:], {"Content-Range": f"500000-{len(DATA) - 1}"})
    assert reply.status == 202
    assert silent.recv(1000).startswith(b"HTTP/1.1 409")
    silent.close()
    assert client("PUT", f"{upload}?digest={digest(DATA)}").status == 201
    assert stored(client) == DATA


def test_broken_monolithic_post_leaves_nothing(client: Client, root: Path) -> None:
    path = f"/v2/a/blobs/uploads/?digest={digest(DATA)}"
    client.broken("POST", path, length=len(DATA), sent=DATA[:2_000_000]).close()
    client.until("/v2/", lambda _: files(root) == [])


def test_restart_in_the_middle(root: Path) -> None:
    with running(create_app(root)) as host:
        client = Client(host)
        upload = client.start("a")
        client("PATCH", upload, DATA[:1_234_567])
    with running(create_app(root)) as host:
        client = Client(host)
        assert client("GET", upload).headers["Range"] == "0-1234566"
        assert client("PUT", f"{upload}?digest={digest(DATA)}", DATA[1_234_567:]).status == 201
        assert stored(client) == DATA


def test_restart_before_the_end(root: Path) -> None:
    with running(create_app(root)) as host:
        upload = Client(host).start("a")
        Client(host)("PATCH", upload, DATA)
    with running(create_app(root)) as host:
        assert Client(host)("PUT", f"{upload}?digest={digest(DATA)}").status == 201
        assert stored(Client(host)) == DATA


def test_expired_uploads_are_removed(root: Path) -> None:
    with running(create_app(root)) as host:
        old, new = Client(host).start("a"), Client(host).start("a")
        client = Client(host)
        client("PATCH", new, DATA)
    path = next(path for path in (root / "uploads").iterdir() if path.name.startswith(old.rpartition("/")[2]))
    os.utime(path, (1000, 1000))
    with running(create_app(root)) as host:
        client = Client(host)
        client.until(old, lambda reply: reply.status == 404)
        assert client("GET", new).status == 204


def test_loose_content_is_removed(root: Path) -> None:
    loose = root / "blobs" / digest(b"loose").replace(":", "/")
    with running(create_app(root)) as host:
        Client(host).blob("a", DATA)
    loose.write_bytes(b"loose")
    with running(create_app(root)) as host:
        client = Client(host)
        client.until("/v2/", lambda _: not loose.exists())
        assert stored(client) == DATA


def test_concurrent_uploads_of_the_same_blob(client: Client, root: Path) -> None:
    statuses: list[int] = []

    def push(name: str) -> None:
        statuses.append(client("PUT", f"{client.start(name)}?digest={digest(DATA)}", DATA).status)

    threads = [threading.Thread(target=push, args=(f"r{number % 3}",)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [201] * 9
    assert [stored(client, f"r{number}") == DATA for number in range(3)] == [True] * 3
    assert len(files(root)) == 1


def test_uploads_and_deletions_at_once(client: Client) -> None:
    """Whoever was told 201 has the blob, however often others delete theirs."""
    lost: list[str] = []

    def work(name: str) -> None:
        for _ in range(15):
            client("POST", f"/v2/{name}/blobs/uploads/?digest={digest(b'small')}", b"small")
            if client("GET", f"/v2/{name}/blobs/{digest(b'small')}").body != b"small":
                lost.append(name)
            client("DELETE", f"/v2/{name}/blobs/{digest(b'small')}")

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lost == []


def test_mount(client: Client) -> None:
    client.blob("a", DATA)
    reply = client("POST", f"/v2/b/blobs/uploads/?mount={digest(DATA)}&from=a")
    assert (reply.status, reply.headers["Location"]) == (201, f"/v2/b/blobs/{digest(DATA)}")
    assert stored(client, "b") == DATA


@pytest.mark.parametrize("source", ["&from=c", "&from=../a", "&from=", ""])
def test_mount_of_what_is_not_there_starts_an_upload(client: Client, source: str) -> None:
    client.blob("a", DATA)
    reply = client("POST", f"/v2/b/blobs/uploads/?mount={digest(DATA)}{source}")
    assert reply.status == 202
    assert client("HEAD", f"/v2/b/blobs/{digest(DATA)}").status == 404
    assert client("PUT", f"{reply.headers['Location']}?digest={digest(DATA)}", DATA).status == 201


def test_mount_of_ones_own(client: Client) -> None:
    client.blob("a", DATA)
    assert client("POST", f"/v2/a/blobs/uploads/?mount={digest(DATA)}").status == 201


def test_names_are_checked(client: Client) -> None:
    for name in ("A", "a..b", "%2e%2e", "a/_uploads", "-a"):
        reply = client("POST", f"/v2/{name}/blobs/uploads/")
        assert (reply.status, reply.codes) == (400, ["NAME_INVALID"])


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "length"])
def test_size_limit(root: Path, chunked: bool) -> None:
    with running(create_app(root, max_blob_size=2_000_000)) as host:
        client = Client(host)
        assert client.blob("a", DATA[:2_000_000])
        reply = client("PATCH", client.start("a"), iter([DATA]) if chunked else DATA)
        assert (reply.status, reply.codes) == (413, ["SIZE_INVALID"])


def test_read_only(root: Path) -> None:
    with running(create_app(root)) as host:
        Client(host).blob("a", DATA)
    before = sorted(root.rglob("*"))
    with running(create_app(root, read_only=True)) as host:
        client = Client(host)
        assert stored(client) == DATA
        for method, path in [
            ("POST", "/v2/a/blobs/uploads/"),
            ("PATCH", f"/v2/a/blobs/uploads/{'0' * 32}"),
            ("PUT", "/v2/a/manifests/x"),
            ("DELETE", "/v2/a/manifests/x"),
            ("DELETE", f"/v2/a/blobs/{digest(DATA)}"),
        ]:
            reply = client(method, path)
            assert (reply.status, reply.codes) == (405, ["UNSUPPORTED"])
            assert reply.headers["Allow"] == "GET, HEAD"
    assert sorted(root.rglob("*")) == before


def test_one_writer(root: Path) -> None:
    with (
        running(create_app(root)),
        pytest.raises(Exception, match="another registry serves"),
        running(create_app(root)),
    ):
        pass
