"""What every store must do, wherever it keeps its content: the tests that each store's class inherits.

A subclass has a fixture `store`, a new and empty store.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, Protocol

import pytest

from tonnage.content.descriptor import Descriptor
from tonnage.content.digest import Digest
from tonnage.content.graph import read_manifest
from tonnage.content.mediatype import OCI_EMPTY, OCI_INDEX, OCI_MANIFEST
from tonnage.content.storage import Deleter, Opener, RangeFetcher, Reader, ReferrerLister, Source, TagLister, Target
from tonnage.content.verify import BytesReader, opener, read_all
from tonnage.errors import (
    DigestMismatch,
    IntegrityError,
    InvalidContent,
    InvalidReference,
    NotFound,
    TonnageError,
    Truncated,
)

BLOB = "application/vnd.cncf.model.weight.v1.raw"
MIB = 1 << 20


class Store(Source, Target, RangeFetcher, TagLister, Deleter, ReferrerLister, Protocol):
    """All that a store can be asked."""


class StoreSuite:
    """Inherit, and define `store`."""

    lists_referrers = True
    """Whether the store finds referrers by itself; else they are only read, from the tag scheme."""

    def test_a_blob_comes_back(self, store: Store) -> None:
        node = put(store, b"weights")
        assert store.exists(node)
        assert get(store, node) == b"weights"

    def test_an_empty_blob_comes_back(self, store: Store) -> None:
        node = put(store, b"")
        assert store.exists(node)
        assert get(store, node) == b""

    def test_what_is_not_there_is_not_found(self, store: Store) -> None:
        blob, absent = Descriptor.of(b"never", BLOB), Descriptor.of(b"{}", OCI_MANIFEST)
        for node in (blob, absent):
            assert not store.exists(node)
            with pytest.raises(NotFound, match=r"sha256"):
                get(store, node)
            with pytest.raises(NotFound):
                ranged(store, node, 0, 1)
            with pytest.raises(NotFound):
                store.delete(node)
        for reference in ("v1", absent.digest):
            with pytest.raises(NotFound):
                store.resolve(reference)
        with pytest.raises(NotFound):
            store.tag(absent, "v1")
        assert list(store.referrers(absent)) == []

    def test_pushing_again_changes_nothing(self, store: Store) -> None:
        node = put(store, b"weights")
        put(store, b"weights")
        assert get(store, node) == b"weights"

    @pytest.mark.parametrize(
        ("offset", "length"), [(0, 5000), (0, 1), (4999, 1), (1234, 2345), (3000, 2000), (2500, 1), (2500, 0)]
    )
    def test_ranges(self, store: Store, offset: int, length: int) -> None:
        data = bytes(range(250)) * 20
        assert ranged(store, put(store, data), offset, length) == data[offset : offset + length]

    def test_a_large_blob_in_pieces(self, store: Store) -> None:
        block = hashlib.sha256(b"seed").digest() * (MIB // 32)
        state = hashlib.sha256()
        for number in range(32):
            state.update(number.to_bytes(4, "big") + block[4:])
        node = Descriptor(media_type=BLOB, digest=Digest.from_hash(state), size=32 * MIB)
        store.push(node, lambda offset: Blocks(block, offset))
        at = 17 * MIB - 2
        assert ranged(store, node, at, 6) == block[-2:] + (17).to_bytes(4, "big")
        found = hashlib.sha256()
        buffer = memoryview(bytearray(MIB))
        with closing(store.fetch(node)) as reader:
            while count := reader.readinto(buffer):
                found.update(buffer[:count])
        assert Digest.from_hash(found) == node.digest

    def test_what_is_read_in_parts_need_not_be_read_to_its_end(self, store: Store) -> None:
        node = put(store, bytes(3 * MIB))
        for _ in range(3):
            with closing(store.fetch(node)) as reader:
                assert reader.readinto(memoryview(bytearray(10))) > 0
        assert len(get(store, node)) == 3 * MIB

    @pytest.mark.parametrize("given", [b"wrongly", b"short", b"", b"longer than said"])
    def test_wrong_bytes_leave_nothing(self, store: Store, given: bytes) -> None:
        node = Descriptor.of(b"weights", BLOB)
        with pytest.raises((IntegrityError, Truncated)):
            store.push(node, opener(given))
        assert not store.exists(node)
        with pytest.raises(NotFound):
            get(store, node)
        store.push(node, opener(b"weights"))
        assert get(store, node) == b"weights"

    def test_a_wrong_manifest_leaves_nothing(self, store: Store) -> None:
        raw = manifest_of(store)
        node = Descriptor.of(raw, OCI_MANIFEST)
        with pytest.raises(DigestMismatch):
            store.push(node, opener(raw.replace(b"2", b"3")))
        assert not store.exists(node)

    def test_a_source_that_fails_leaves_nothing(self, store: Store) -> None:
        node = Descriptor.of(bytes(MIB), BLOB)
        with pytest.raises(TonnageError, match="the cat"):
            store.push(node, lambda _: Failing(MIB // 2))
        assert not store.exists(node)

    def test_manifests_keep_their_bytes_and_unknown_fields(self, store: Store) -> None:
        raw = manifest_of(store, indent=3, shipName="Ever Given", annotations={"b": "1", "a": "ä €"})
        node = push_manifest(store, raw, "v1")
        assert get(store, node) == raw
        assert get(store, store.resolve("v1")) == raw

    def test_descriptors_say_what_the_content_is(self, store: Store) -> None:
        node = push_manifest(store, manifest_of(store), "v1")
        for reference in ("v1", node.digest):
            found = store.resolve(reference)
            assert (found.digest, found.size, found.media_type) == (node.digest, node.size, OCI_MANIFEST)

    def test_indexes(self, store: Store) -> None:
        child = push_manifest(store, manifest_of(store))
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child.to_dict()]}
        root = push_manifest(store, json.dumps(document).encode(), "v1", media_type=OCI_INDEX)
        found = store.resolve("v1")
        assert (found.digest, found.media_type) == (root.digest, OCI_INDEX)
        assert [node.digest for node in read_manifest(store, found).children] == [child.digest]

    def test_a_tag_moves(self, store: Store) -> None:
        first = push_manifest(store, manifest_of(store), "v1")
        second = push_manifest(store, manifest_of(store, annotations={"n": "2"}), "v1")
        assert first.digest != second.digest
        assert store.resolve("v1").digest == second.digest
        assert store.resolve(first.digest).digest == first.digest
        assert list(store.tags()) == ["v1"]

    def test_tags_are_sorted_and_once_each(self, store: Store) -> None:
        node = push_manifest(store, manifest_of(store))
        for tag in ("v10", "Latest", "v2", "latest", "_x", "v2", "a.b-c_d"):
            store.tag(node, tag)
        assert list(store.tags()) == ["Latest", "_x", "a.b-c_d", "latest", "v10", "v2"]

    @pytest.mark.parametrize("name", ["", " ", "a b", "../up", "a/b", "-v1", ".v1", "ä", "a" * 129, "a\n", "v1?x=y"])
    def test_names_that_are_no_tags_are_refused(self, store: Store, name: str) -> None:
        node = push_manifest(store, manifest_of(store), "v1")
        with pytest.raises(InvalidReference):
            store.tag(node, name)
        assert list(store.tags()) == ["v1"]

    @pytest.mark.parametrize("reference", ["sha256:", "sha256:12", "md5:" + "0" * 32, "sha256:" + "G" * 64, ":", "a:b"])
    def test_references_that_are_no_digests_name_nothing(self, store: Store, reference: str) -> None:
        push_manifest(store, manifest_of(store), "v1")
        with pytest.raises((NotFound, InvalidContent, InvalidReference)):
            store.resolve(reference)

    def test_the_longest_tag(self, store: Store) -> None:
        node = push_manifest(store, manifest_of(store), "a" * 128)
        assert store.resolve("a" * 128).digest == node.digest

    def test_deleted_content_is_gone(self, store: Store) -> None:
        blob = put(store, b"to be deleted")
        store.delete(blob)
        assert not store.exists(blob)
        with pytest.raises(NotFound):
            get(store, blob)
        put(store, b"to be deleted")
        assert get(store, blob) == b"to be deleted"

    def test_a_deleted_manifest_takes_its_tags_along(self, store: Store) -> None:
        kept = push_manifest(store, manifest_of(store), "kept")
        node = push_manifest(store, manifest_of(store, annotations={"n": "2"}), "v1")
        store.tag(node, "v2")
        store.delete(node)
        assert not store.exists(node)
        for reference in ("v1", "v2", node.digest):
            with pytest.raises(NotFound):
                store.resolve(reference)
        assert list(store.tags()) == ["kept"]
        assert store.resolve("kept").digest == kept.digest

    def test_referrers_and_their_filter(self, store: Store) -> None:
        subject = push_manifest(store, manifest_of(store), "v1")
        other = push_manifest(store, manifest_of(store, annotations={"other": "1"}))
        wanted = [
            manifest_of(store, subject=subject.to_dict(), artifactType="application/x.signature", annotations={"n": n})
            for n in ("1", "2")
        ]
        raws = [
            *wanted,
            manifest_of(store, subject=subject.to_dict(), artifactType="application/x.sbom"),
            manifest_of(store, subject=other.to_dict(), artifactType="application/x.signature"),
        ]
        nodes = [push_manifest(store, raw) for raw in raws]
        if not self.lists_referrers:
            entries = [
                {**node.to_dict(), "artifactType": json.loads(raw)["artifactType"]}
                for node, raw in zip(nodes[:3], raws[:3], strict=True)
            ]
            listing = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
            tag = f"sha256-{subject.digest.hex}"
            push_manifest(store, json.dumps(listing).encode(), tag, media_type=OCI_INDEX)
        assert digests(store.referrers(subject)) == {node.digest for node in nodes[:3]}
        signatures = store.referrers(subject, "application/x.signature")
        assert digests(signatures) == {node.digest for node in nodes[:2]}
        assert {node.artifact_type for node in signatures} == {"application/x.signature"}
        assert {node.media_type for node in signatures} == {OCI_MANIFEST}
        assert list(store.referrers(subject, "application/x.none")) == []

    def test_a_subject_may_be_missing(self, store: Store) -> None:
        absent = Descriptor.of(b"{}", OCI_MANIFEST)
        node = push_manifest(store, manifest_of(store, subject=absent.to_dict(), artifactType="application/x.s"))
        if self.lists_referrers:
            assert digests(store.referrers(absent)) == {node.digest}

    def test_one_blob_pushed_by_several_at_once(self, store: Store) -> None:
        data = bytes(range(256)) * 4096
        node = Descriptor.of(data, BLOB)
        others = [Descriptor.of(data + bytes([number]), BLOB) for number in range(4)]
        start = threading.Barrier(8)

        def push(number: int) -> None:
            start.wait(20)
            store.push(node, opener(data))
            if number < len(others):
                store.push(others[number], opener(data + bytes([number])))

        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(push, number) for number in range(8)]:
                done.result()
        assert get(store, node) == data
        assert all(store.exists(other) for other in others)

    def test_several_taggers_at_once(self, store: Store) -> None:
        node = push_manifest(store, manifest_of(store))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: store.tag(node, f"v{number:02}"), range(24)))
        assert list(store.tags()) == [f"v{number:02}" for number in range(24)]

    def test_sha512(self, store: Store) -> None:
        data = b"weights"
        node = Descriptor(media_type=BLOB, digest=Digest.of(data, "sha512"), size=len(data))
        store.push(node, opener(data))
        assert get(store, node) == data
        with pytest.raises((IntegrityError, Truncated)):
            store.push(
                Descriptor(media_type=BLOB, digest=Digest.of(b"x", "sha512"), size=len(data)), opener(b"weights")
            )


class Blocks:
    """32 MiB of numbered blocks, which are never all in memory."""

    def __init__(self, block: bytes, offset: int) -> None:
        self._block = block
        self._at = offset

    def readinto(self, buffer: memoryview, /) -> int:
        number, start = divmod(self._at, MIB)
        if number == 32:
            return 0
        data = (number.to_bytes(4, "big") + self._block[4:])[start : start + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        pass


class Failing(BytesReader):
    """Gives some bytes, and then an error."""

    def __init__(self, count: int) -> None:
        super().__init__(bytes(count))

    def readinto(self, buffer: memoryview, /) -> int:
        if count := super().readinto(buffer):
            return count
        raise TonnageError("the cat sits on the keyboard")


def put(store: Store, data: bytes, media_type: str = BLOB) -> Descriptor:
    node = Descriptor.of(data, media_type)
    store.push(node, opener(data))
    return node


def get(store: Store, node: Descriptor) -> bytes:
    return read_all(store.fetch(node), node, limit=node.size)


def ranged(store: Store, node: Descriptor, offset: int, length: int) -> bytes:
    return drain(store.fetch_range(node, offset, length))


def drain(reader: Reader) -> bytes:
    data = bytearray()
    buffer = memoryview(bytearray(1 << 16))
    with closing(reader):
        while count := reader.readinto(buffer):
            data += buffer[:count]
    return bytes(data)


def manifest_of(store: Store, *, indent: int | None = None, **fields: Any) -> bytes:
    """A manifest with an empty config, which is pushed, and no layers."""
    config = put(store, b"{}", OCI_EMPTY)
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config.to_dict(), "layers": [], **fields}
    return json.dumps(document, indent=indent, ensure_ascii=False).encode()


def push_manifest(store: Store, raw: bytes, tag: str = "", *, media_type: str = OCI_MANIFEST) -> Descriptor:
    node = Descriptor.of(raw, media_type)
    store.push(node, opener(raw))
    if tag:
        store.tag(node, tag)
    return node


def digests(nodes: Sequence[Descriptor]) -> set[str]:
    return {node.digest for node in nodes}


__all__ = ["Opener", "Store", "StoreSuite"]
