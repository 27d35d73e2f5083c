"""Image layouts that others made, that are damaged, and that several processes write to."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tonnage.content.descriptor import Descriptor
from tonnage.content.digest import Digest
from tonnage.content.graph import walk
from tonnage.content.mediatype import OCI_MANIFEST, REF_NAME
from tonnage.content.verify import opener, read_all
from tonnage.errors import InvalidContent, LocalError, NotFound, StorageFull, TonnageError, Truncated
from tonnage.stores.layout import MAX_INDEX, LayoutStore

BLOB = b"weights" * 1000
NODE = Descriptor.of(BLOB, "application/octet-stream")


@pytest.fixture
def store(tmp_path: Path) -> LayoutStore:
    return LayoutStore(tmp_path / "layout", create=True)


def push_manifest(store: LayoutStore, tag: str = "", **fields: Any) -> Descriptor:
    config = Descriptor.of(b"{}", "application/vnd.oci.empty.v1+json")
    store.push(config, opener(b"{}"))
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config.to_dict(), "layers": [], **fields}
    raw = json.dumps(document).encode()
    node = Descriptor.of(raw, OCI_MANIFEST)
    store.push(node, opener(raw))
    if tag:
        store.tag(node, tag)
    return node


def index_of(store: LayoutStore) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((store.root / "index.json").read_bytes())
    return found


# --- what is in the folder


def test_the_folder_is_a_layout(store: LayoutStore) -> None:
    node = push_manifest(store, "v1")
    store.push(NODE, opener(BLOB))
    assert json.loads((store.root / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert index_of(store)["schemaVersion"] == 2
    assert index_of(store)["manifests"] == [{**node.to_dict(), "annotations": {REF_NAME: "v1"}}]
    assert (store.root / "blobs" / "sha256" / NODE.digest.hex).read_bytes() == BLOB
    assert sorted(path.name for path in store.root.iterdir()) == ["blobs", "index.json", "oci-layout"]


def test_what_fails_leaves_no_file(store: LayoutStore) -> None:
    before = sorted(store.root.rglob("*"))
    with pytest.raises(TonnageError):
        store.push(NODE, opener(BLOB[:-1]))
    assert sorted(store.root.rglob("*")) == before


BLOCKED_PUSH = """
import sys
from pathlib import Path
from tonnage.content.descriptor import Descriptor
from tonnage.stores.layout import LayoutStore

class Blocked:
    started = False
    def readinto(self, buffer):
        if self.started:
            print("writing", flush=True)
            sys.stdin.read()
        self.started = True
        buffer[:5] = b"bytes"
        return 5
    def close(self): pass

LayoutStore(Path(sys.argv[1])).push(Descriptor.of(bytes(99), "a/b"), lambda _: Blocked())
"""


def ingests(store: LayoutStore) -> list[Path]:
    return sorted(store.root.glob(".ingest-*"))


def test_what_a_killed_writer_leaves_is_removed_by_the_next(store: LayoutStore) -> None:
    command = [sys.executable, "-c", BLOCKED_PUSH, str(store.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"writing\n"
            (held,) = ingests(store)
            LayoutStore(store.root, create=True).push(NODE, opener(BLOB))
            assert ingests(store) == [held], "its writer lives"
        finally:
            writer.kill()
    assert ingests(store) == [held]
    LayoutStore(store.root)
    assert ingests(store) == [held], "a reader removes nothing"
    LayoutStore(store.root).push(NODE, opener(BLOB))
    assert ingests(store) == []


def test_opening_to_write_removes_what_is_abandoned(store: LayoutStore) -> None:
    (store.root / ".ingest-old").write_bytes(b"part")
    (store.root / ".ingest-folder").mkdir()
    (store.root / ".ingest-link").symlink_to(store.root / "index.json")
    LayoutStore(store.root, create=True)
    assert [path.name for path in ingests(store)] == [".ingest-folder", ".ingest-link"]
    assert index_of(store)["manifests"] == []


def test_a_file_that_was_taken_for_abandoned_before_its_lock(
    store: LayoutStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may look at the file between its creation and its lock."""
    lock = fcntl.flock
    removed: list[Path] = []

    def late(fd: int, operation: int) -> None:
        if not removed:
            removed.extend(ingests(store))
            removed[0].unlink()
        lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    store._swept = True
    store.push(NODE, opener(BLOB))
    assert len(removed) == 1
    assert read_all(store.fetch(NODE), NODE, limit=len(BLOB)) == BLOB
    assert ingests(store) == []


def test_an_empty_reference_names_the_only_entry(store: LayoutStore) -> None:
    with pytest.raises(NotFound, match="holds 0 entries"):
        store.resolve("")
    first = push_manifest(store, "v1")
    store.tag(first, "also")
    assert store.resolve("").digest == first.digest
    push_manifest(store, "v2", annotations={"n": "2"})
    with pytest.raises(NotFound, match="holds 3 entries; name one; its tags are: also, v1, v2"):
        store.resolve("")
    latest = push_manifest(store, "latest", annotations={"n": "3"})
    assert store.resolve("").digest == latest.digest


def test_what_others_wrote_into_the_index_stays(store: LayoutStore) -> None:
    node = push_manifest(store)
    document = index_of(store)
    document["annotations"] = {"ours": "theirs"}
    document["x-future"] = [1, {"a": None}]
    document["manifests"] = [{**node.to_dict(), "platform": {"os": "linux", "architecture": "arm64"}, "x-more": 1}]
    (store.root / "index.json").write_text(json.dumps(document))
    store.tag(push_manifest(store, annotations={"n": "2"}), "v2")
    after = index_of(store)
    assert after["manifests"][0] == document["manifests"][0]
    assert {key: after[key] for key in ("annotations", "x-future", "schemaVersion")} == {
        key: document[key] for key in ("annotations", "x-future", "schemaVersion")
    }


# --- foreign layouts


@pytest.fixture
def foreign(tmp_path: Path, store: LayoutStore) -> Iterator[Path]:
    """A layout that skopeo has written."""
    if not shutil.which("skopeo"):
        if os.environ.get("TONNAGE_REQUIRE_PEERS") == "1":
            pytest.fail("skopeo is not installed, and TONNAGE_REQUIRE_PEERS is 1")
        pytest.skip("skopeo is not installed")
    layer, config = b"\0" * 10240, b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["%s"]}}'
    nodes = [
        Descriptor.of(config % Digest.of(layer).encode(), "application/vnd.oci.image.config.v1+json"),
        Descriptor.of(layer, "application/vnd.oci.image.layer.v1.tar"),
    ]
    for node, data in zip(nodes, (config % Digest.of(layer).encode(), layer), strict=True):
        store.push(node, opener(data))
    push_manifest(store, "v1", config=nodes[0].to_dict(), layers=[nodes[1].to_dict()])
    target = tmp_path / "foreign"
    command = ["skopeo", "copy", "-q", "--insecure-policy", f"oci:{store.root}:v1", f"oci:{target}:their-tag"]
    subprocess.run(command, check=True, env={**os.environ, "HOME": str(tmp_path)})
    yield target


@pytest.mark.peers
def test_a_layout_of_skopeo(foreign: Path) -> None:
    theirs = LayoutStore(foreign)
    assert list(theirs.tags()) == ["their-tag"]
    root = theirs.resolve("their-tag")
    assert theirs.resolve("") == root
    assert theirs.resolve(root.digest).digest == root.digest
    assert len(list(walk(theirs, root))) == 3
    theirs.tag(root, "ours")
    assert list(LayoutStore(foreign).tags()) == ["ours", "their-tag"]


@pytest.mark.peers
def test_skopeo_reads_what_we_wrote_into_its_layout(foreign: Path, tmp_path: Path) -> None:
    theirs = LayoutStore(foreign)
    theirs.tag(theirs.resolve("their-tag"), "ours")
    command = ["skopeo", "inspect", "--raw", f"oci:{foreign}:ours"]
    raw = subprocess.run(command, check=True, capture_output=True, env={**os.environ, "HOME": str(tmp_path)}).stdout
    assert Digest.of(raw) == theirs.resolve("ours").digest


# --- damage


def test_no_layout(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(NotFound, match="is not an OCI layout; check the path"):
            LayoutStore(path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(TonnageError):
        LayoutStore(tmp_path / "file")
    with pytest.raises(LocalError, match="cannot open the layout"):
        LayoutStore(tmp_path / "file", create=True)
    with pytest.raises(LocalError, match="is not empty, and not an OCI layout"):
        LayoutStore(tmp_path, create=True)


@pytest.mark.parametrize(
    ("marker", "text"),
    [
        (b'{"imageLayoutVersion": "2.0.0"}', "of version '2.0.0', not 1.0.0"),
        (b"{}", "of version None"),
        (b"", "oci-layout is damaged"),
        (b"[]", "oci-layout is damaged"),
        (b'{"imageLayoutVersion": "\xff"}', "oci-layout is damaged"),
        (b'{"a":' + b"[" * 4000, "oci-layout is damaged"),
        (b" " * 5000 + b"{}", "oci-layout is damaged"),
    ],
)
def test_versions(store: LayoutStore, marker: bytes, text: str) -> None:
    (store.root / "oci-layout").write_bytes(marker)
    with pytest.raises(InvalidContent, match=text):
        LayoutStore(store.root)


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"manifests": {}}',
        b'{"manifests": [1]}',
        b'{"manifests": [{}]}',
        b'{"manifests": [{"mediaType": "a", "digest": "sha256:12", "size": 1}]}',
        b'{"manifests": [], "a": "\xff"}',
        b'{"manifests": [], "a": ' + b"[" * 10_000,
    ],
)
def test_a_damaged_index(store: LayoutStore, index: bytes) -> None:
    node = push_manifest(store, "v1")
    (store.root / "index.json").write_bytes(index)
    for call in (lambda: store.resolve("v1"), store.tags, lambda: store.tag(node, "v2"), lambda: store.delete(node)):
        with pytest.raises(InvalidContent, match=r"index\.json|is not a sha256 digest"):
            call()
    assert (store.root / "index.json").read_bytes() == index


def test_a_huge_index_is_not_read(store: LayoutStore) -> None:
    with (store.root / "index.json").open("r+b") as file:
        file.truncate(MAX_INDEX + 1)
    with pytest.raises(InvalidContent, match="larger than the limit"):
        store.tags()


def test_no_index(store: LayoutStore) -> None:
    (store.root / "index.json").unlink()
    with pytest.raises(LocalError, match=r"cannot read .*index\.json"):
        store.tags()


def test_a_blob_that_lost_its_end(store: LayoutStore) -> None:
    store.push(NODE, opener(BLOB))
    os.truncate(store.root / "blobs" / "sha256" / NODE.digest.hex, 100)
    assert not store.exists(NODE)
    with pytest.raises(Truncated, match="6900 bytes early"):
        read_all(store.fetch(NODE), NODE, limit=7000)
    store.push(NODE, opener(BLOB))
    assert read_all(store.fetch(NODE), NODE, limit=7000) == BLOB


def test_a_folder_in_place_of_a_blob(store: LayoutStore) -> None:
    (store.root / "blobs" / "sha256" / NODE.digest.hex).mkdir()
    with pytest.raises(LocalError):
        read_all(store.fetch(NODE), NODE, limit=7000)
    with pytest.raises(LocalError):
        store.resolve(NODE.digest)
    with pytest.raises(LocalError):
        store.push(NODE, opener(BLOB))


def test_a_digest_that_names_no_manifest(store: LayoutStore) -> None:
    store.push(NODE, opener(BLOB))
    with pytest.raises(InvalidContent):
        store.resolve(NODE.digest)


def test_a_manifest_that_is_too_large(store: LayoutStore) -> None:
    raw = b" " * (5 << 20)
    with pytest.raises(InvalidContent, match="has 5242880 bytes"):
        store.push(Descriptor.of(raw, OCI_MANIFEST), opener(raw))


# --- several processes

WRITER = """
import sys
from pathlib import Path
from tonnage.content.descriptor import Descriptor
from tonnage.content.verify import opener
from tonnage.stores.layout import LayoutStore
number = sys.argv[2]
sys.stdin.readline()
store = LayoutStore(Path(sys.argv[1]), create=True)
for turn in range(10):
    data = b"%d" % turn
    blob = Descriptor.of(data, "x/y")
    store.push(blob, opener(data))
    store.tag(blob, f"v{number}-{turn}")
"""


def test_processes_that_make_and_tag_one_layout(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "layout"), str(number)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(4)
    ]
    for writer in writers:  # all at once, once all have been started
        assert writer.stdin is not None
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    for writer in writers:
        _, errors = writer.communicate(timeout=60)
        assert (writer.returncode, errors) == (0, b"")
    store = LayoutStore(tmp_path / "layout")
    assert list(store.tags()) == sorted(f"v{number}-{turn}" for number in range(4) for turn in range(10))
    assert sorted(path.name for path in store.root.iterdir()) == ["blobs", "index.json", "oci-layout"]


# --- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small disk needs privileges")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    store = LayoutStore(small_disk / "layout", create=True)
    node = Descriptor.of(bytes(2 << 20), "x/y")
    with pytest.raises(StorageFull, match="free some space and run the command again"):
        store.push(node, opener(bytes(2 << 20)))
    assert not store.exists(node)
    assert sorted(path.name for path in store.root.iterdir()) == ["blobs", "index.json", "oci-layout"]


def test_a_disk_that_is_too_full_for_the_index(small_disk: Path) -> None:
    store = LayoutStore(small_disk / "layout", create=True)
    node = push_manifest(store, "v1")
    before = (store.root / "index.json").read_bytes()
    with (small_disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="space"):
        while True:
            filler.write(bytes(4096))
    with pytest.raises(StorageFull):
        store.tag(node, "v2")
    assert (store.root / "index.json").read_bytes() == before
    assert sorted(path.name for path in store.root.iterdir()) == ["blobs", "index.json", "oci-layout"]


def test_a_read_only_disk(small_disk: Path) -> None:
    store = LayoutStore(small_disk / "layout", create=True)
    node = push_manifest(store, "v1")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    store = LayoutStore(small_disk / "layout", create=True)
    assert store.resolve("v1").digest == node.digest
    assert list(store.tags()) == ["v1"]
    read_all(store.fetch(node), node, limit=4000)
    for call in (
        lambda: store.push(NODE, opener(BLOB)),
        lambda: store.tag(node, "v2"),
        lambda: store.delete(node),
        lambda: LayoutStore(small_disk / "another", create=True),
    ):
        with pytest.raises(LocalError, match=r"[Rr]ead-only"):
            call()
