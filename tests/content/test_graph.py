"""The graph of an artifact: everything once, and never before what it needs."""

from __future__ import annotations

import json

import pytest

from tonnage.content.descriptor import Descriptor
from tonnage.content.digest import Digest
from tonnage.content.graph import MAX_DEPTH, read_manifest, successors, walk
from tonnage.content.manifest import MAX_MANIFEST_SIZE
from tonnage.content.mediatype import OCI_EMPTY, OCI_INDEX, OCI_LAYER_TAR, OCI_MANIFEST
from tonnage.content.storage import Reader
from tonnage.content.verify import BytesReader
from tonnage.errors import DigestMismatch, InvalidContent, NotFound


class Shelf:
    """A fetcher over a dictionary, which counts."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.fetched: list[str] = []

    def fetch(self, node: Descriptor) -> Reader:
        self.fetched.append(node.digest)
        try:
            return BytesReader(self.data[node.digest])
        except KeyError:
            raise NotFound(node.digest) from None

    def blob(self, data: bytes, media_type: str = OCI_LAYER_TAR) -> Descriptor:
        node = Descriptor.of(data, media_type)
        self.data[node.digest] = data
        return node

    def manifest(self, *layers: Descriptor, subject: Descriptor | None = None) -> Descriptor:
        obj = {"config": self.blob(b"{}", OCI_EMPTY).to_dict(), "layers": [layer.to_dict() for layer in layers]}
        return self.blob(json.dumps(obj | ({"subject": subject.to_dict()} if subject else {})).encode(), OCI_MANIFEST)

    def index(self, *manifests: Descriptor) -> Descriptor:
        return self.blob(json.dumps({"manifests": [node.to_dict() for node in manifests]}).encode(), OCI_INDEX)


def test_successors_come_first_and_once() -> None:
    shelf = Shelf()
    shared, own = shelf.blob(b"shared"), shelf.blob(b"own")
    one = shelf.manifest(shared, shared)
    two = shelf.manifest(shared, own, subject=one)
    root = shelf.index(two, one, two, shelf.index(one))
    nodes = list(walk(shelf, root))
    assert nodes[-1] == root
    assert len({node.digest for node in nodes}) == len(nodes) == 7
    order = {node.digest: number for number, node in enumerate(nodes)}
    for node in nodes:
        assert all(order[child.digest] < order[node.digest] for child in successors(shelf, node))


def test_only_manifests_are_fetched_each_once() -> None:
    shelf = Shelf()
    layer = shelf.blob(b"large")
    manifests = [shelf.manifest(layer), shelf.manifest(layer, layer)]
    root = shelf.index(*manifests)
    list(walk(shelf, root))
    assert sorted(shelf.fetched) == sorted([root.digest, *(node.digest for node in manifests)])


def test_a_blob_has_no_successors() -> None:
    shelf = Shelf()
    layer = shelf.blob(b"x")
    assert successors(shelf, layer) == []
    assert list(walk(shelf, layer)) == [layer]


def test_a_part_of_the_graph() -> None:
    shelf = Shelf()
    layer = shelf.blob(b"x")
    root = shelf.index(shelf.manifest(layer))
    assert list(walk(shelf, root, lambda _, node: [layer] if node == root else [])) == [layer, root]


def nested(shelf: Shelf, indexes: int) -> Descriptor:
    node = shelf.manifest(shelf.blob(b"deep"))
    for _ in range(indexes):
        node = shelf.index(node)
    return node


def test_depth() -> None:
    shelf = Shelf()
    assert len(list(walk(shelf, nested(shelf, MAX_DEPTH - 1)))) == MAX_DEPTH + 2
    with pytest.raises(InvalidContent, match="deep"):
        list(walk(shelf, nested(shelf, MAX_DEPTH)))


def test_number_of_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf()
    layers = [shelf.blob(bytes([number])) for number in range(8)]
    root = shelf.index(shelf.manifest(*layers[:4]), shelf.manifest(*layers))
    monkeypatch.setattr("tonnage.content.graph.MAX_NODES", 12)
    assert len(list(walk(shelf, root))) == 12
    monkeypatch.setattr("tonnage.content.graph.MAX_NODES", 11)
    with pytest.raises(InvalidContent, match="names more than 11 nodes"):
        list(walk(shelf, root))


def test_missing_and_damaged_manifests() -> None:
    shelf = Shelf()
    child = shelf.manifest(shelf.blob(b"x"))
    root = shelf.index(child)
    raw = shelf.data.pop(child.digest)
    with pytest.raises(NotFound):
        list(walk(shelf, root))
    shelf.data[child.digest] = raw.replace(b"layers", b"mayers")
    with pytest.raises(DigestMismatch):
        list(walk(shelf, root))


def test_a_huge_manifest_is_not_fetched() -> None:
    shelf = Shelf()
    huge = Descriptor(media_type=OCI_MANIFEST, digest=Digest.of(b"x"), size=MAX_MANIFEST_SIZE + 1)
    with pytest.raises(InvalidContent, match="limit"):
        read_manifest(shelf, huge)
    assert shelf.fetched == []
