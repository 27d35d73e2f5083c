"""A store in memory: for tests, for small artifacts, and the shortest answer to what a store is."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from tonnage.content import manifest
from tonnage.content.descriptor import Descriptor
from tonnage.content.storage import Opener, Reader
from tonnage.content.verify import BytesReader, read_all
from tonnage.errors import NotFound
from tonnage.stores.names import check_tag


class MemoryStore:
    """Holds blobs, manifests and tags in dictionaries.

    Args:
        limit: bytes; a larger blob is refused.
    """

    def __init__(self, *, limit: int = 1 << 30) -> None:
        self._limit = limit
        self._content: dict[str, tuple[Descriptor, bytes]] = {}
        self._tags: dict[str, Descriptor] = {}
        self._lock = threading.Lock()

    def fetch(self, node: Descriptor) -> Reader:
        """See `Fetcher.fetch`."""
        return BytesReader(self._data(node))

    def fetch_range(self, node: Descriptor, offset: int, length: int) -> Reader:
        """See `RangeFetcher.fetch_range`."""
        return BytesReader(memoryview(self._data(node))[offset : offset + length])

    def resolve(self, reference: str) -> Descriptor:
        """See `Resolver.resolve`."""
        if reference in self._tags:
            return self._tags[reference]
        if reference in self._content:
            return self._content[reference][0]
        raise NotFound(f"{reference!r} is not in the memory store")

    def exists(self, node: Descriptor) -> bool:
        """See `Pusher.exists`."""
        return node.digest in self._content

    def push(self, node: Descriptor, open: Opener) -> None:
        """See `Pusher.push`."""
        data = read_all(open(0), node, limit=self._limit)
        if node.is_manifest:
            manifest.parse(data, node.media_type)
        with self._lock:
            self._content.setdefault(node.digest, (node, data))

    def tag(self, node: Descriptor, reference: str) -> None:
        """See `Tagger.tag`."""
        check_tag(reference)
        self._data(node)
        with self._lock:
            self._tags[reference] = node

    def tags(self) -> Sequence[str]:
        """See `TagLister.tags`."""
        return sorted(self._tags)

    def delete(self, node: Descriptor) -> None:
        """See `Deleter.delete`."""
        with self._lock:
            self._data(node)
            del self._content[node.digest]
            self._tags = {tag: named for tag, named in self._tags.items() if named.digest != node.digest}

    def referrers(self, node: Descriptor, artifact_type: str | None = None) -> Sequence[Descriptor]:
        """See `ReferrerLister.referrers`."""
        found = []
        for held, data in list(self._content.values()):
            if not held.is_manifest:
                continue
            document = manifest.parse(data, held.media_type)
            if document.subject is None or document.subject.digest != node.digest:
                continue
            referrer = manifest.referrer(document)
            if artifact_type in (None, referrer.artifact_type):
                found.append(referrer)
        return found

    def _data(self, node: Descriptor) -> bytes:
        try:
            return self._content[node.digest][1]
        except KeyError:
            raise NotFound(f"{node.digest} is not in the memory store") from None
