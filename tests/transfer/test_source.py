"""What a copy remembers of its source."""

from __future__ import annotations

import json

import pytest

from tonnage.content.descriptor import Descriptor
from tonnage.content.mediatype import OCI_MANIFEST
from tonnage.content.storage import Reader
from tonnage.content.verify import BytesReader, read_all
from tonnage.transfer.source import ManifestCache


class Counting:
    """A fetcher over a dictionary, which counts."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.fetched: list[str] = []

    def fetch(self, node: Descriptor) -> Reader:
        self.fetched.append(node.digest)
        return BytesReader(self.data[node.digest])

    def manifest(self, number: int) -> Descriptor:
        raw = json.dumps({"number": number, "padding": "x" * 1000}).encode()
        node = Descriptor.of(raw, OCI_MANIFEST)
        self.data[node.digest] = raw
        return node


def test_what_does_not_fit_is_fetched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tonnage.transfer.source.MAX_KEPT", 2500)
    source = Counting()
    nodes = [source.manifest(number) for number in range(4)]
    cache = ManifestCache(source)
    for _ in range(2):
        for node in nodes:
            assert read_all(cache.fetch(node), node, limit=4000) == source.data[node.digest]
    assert [source.fetched.count(node.digest) for node in nodes] == [1, 1, 2, 2]
