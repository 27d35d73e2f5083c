"""Artifacts to copy, and stores that watch or disturb the copy. Each is a real store inside."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tonnage.content.descriptor import Descriptor
from tonnage.content.mediatype import OCI_EMPTY, OCI_INDEX, OCI_MANIFEST
from tonnage.content.storage import Opener, Reader
from tonnage.content.verify import opener
from tonnage.stores.memory import MemoryStore

BLOB = "application/vnd.cncf.model.weight.v1.raw"


@dataclass(frozen=True)
class Artifact:
    """An index of two manifests that share a layer."""

    root: Descriptor
    manifests: tuple[Descriptor, ...]
    blobs: tuple[Descriptor, ...]

    @property
    def nodes(self) -> tuple[Descriptor, ...]:
        return (*self.blobs, *self.manifests, self.root)

    @property
    def size(self) -> int:
        return sum(node.size for node in self.nodes)


def artifact(store: MemoryStore, tag: str = "v1", *, sizes: tuple[int, ...] = (0, 1, 5000, 3_000_000)) -> Artifact:
    """Put an artifact with blobs of these sizes into a store."""
    random = Random(7)

    def put(data: bytes, media_type: str) -> Descriptor:
        node = Descriptor.of(data, media_type)
        store.push(node, opener(data))
        return node

    blobs = [put(random.randbytes(size), BLOB) for size in sizes]
    config = put(b"{}", OCI_EMPTY)
    manifests = []
    for layers in (blobs, blobs[-1:]):
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config.to_dict(),
            "layers": [node.to_dict() for node in layers],
        }
        manifests.append(put(json.dumps(document).encode(), OCI_MANIFEST))
    listing = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [node.to_dict() for node in manifests]}
    root = put(json.dumps(listing).encode(), OCI_INDEX)
    store.tag(root, tag)
    return Artifact(root, tuple(manifests), (config, *blobs))


class Recording(MemoryStore):
    """Remembers what was written, in order, and what was read."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []
        self.read: list[tuple[str, int]] = []
        self._writing = threading.Lock()

    def push(self, node: Descriptor, open: Opener) -> None:
        super().push(node, open)
        with self._writing:
            self.written.append(node.digest)

    def tag(self, node: Descriptor, reference: str) -> None:
        super().tag(node, reference)
        self.written.append(reference)

    def fetch(self, node: Descriptor) -> Reader:
        self.read.append((node.digest, 0))
        return super().fetch(node)

    def fetch_range(self, node: Descriptor, offset: int, length: int) -> Reader:
        self.read.append((node.digest, offset))
        return super().fetch_range(node, offset, length)


class Disturbed(Recording):
    """Lets a test come between: `on_push` and `on_read` may raise, wait, or wrap."""

    def __init__(
        self,
        *,
        on_push: Callable[[Descriptor], None] = lambda _: None,
        on_read: Callable[[Descriptor, Reader], Reader] = lambda _, reader: reader,
    ) -> None:
        super().__init__()
        self.on_push = on_push
        self.on_read = on_read

    def push(self, node: Descriptor, open: Opener) -> None:
        self.on_push(node)
        super().push(node, open)

    def fetch(self, node: Descriptor) -> Reader:
        return self.on_read(node, super().fetch(node))

    def fetch_range(self, node: Descriptor, offset: int, length: int) -> Reader:
        return self.on_read(node, super().fetch_range(node, offset, length))
