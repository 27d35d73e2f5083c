"""A model folder as a store that can be copied from: nothing is staged, blobs are read straight from the files."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from tonnage.content.descriptor import Descriptor
from tonnage.content.digest import Digest
from tonnage.content.storage import Reader
from tonnage.content.verify import BUFFER_SIZE, BytesReader
from tonnage.errors import NotFound
from tonnage.pack.describe import describe
from tonnage.pack.files import ModelFile, TarReader, scan
from tonnage.pack.formats import Artifact, PackedLayer, universal
from tonnage.pack.plan import PlannedLayer, PlanOptions, PreviousLayer, plan
from tonnage.pack.tar import TarLayout

Progress = Callable[[int], None]
"""Told the number of bytes just hashed; called from several threads."""


class PackedModel:
    """A packed model: a `Source` whose layers are read from the model's files whenever they are asked for.

    Attributes:
        artifact: its documents.
        layers: its layers, in manifest order.
        files: its files, sorted by path.
    """

    def __init__(self, artifact: Artifact, layers: Sequence[PackedLayer], files: Sequence[ModelFile]) -> None:
        self.artifact = artifact
        self.layers = layers
        self.files = files
        self._files = {file.path: file for file in files}
        self._layouts = {layer.digest: layer.layout for layer in layers}

    def resolve(self, reference: str) -> Descriptor:
        """The index, whatever the reference: a folder holds one model, and it has no tag yet."""
        if reference.startswith("sha256:") and reference != self.artifact.index.digest:
            raise NotFound(f"the folder does not pack to {reference}, but to {self.artifact.index.digest}")
        return self.artifact.index

    def fetch(self, node: Descriptor) -> Reader:
        """See `Fetcher.fetch`."""
        return self.fetch_range(node, 0, node.size)

    def fetch_range(self, node: Descriptor, offset: int, length: int) -> Reader:
        """See `RangeFetcher.fetch_range`."""
        if node.digest in self._layouts:
            return TarReader(self._layouts[node.digest], self._files, offset, offset + length)
        if node.digest in self.artifact.documents:
            return BytesReader(memoryview(self.artifact.documents[node.digest])[offset : offset + length])
        raise NotFound(f"{node.digest} is not part of the model")


def plan_folder(
    folder: Path, *, options: PlanOptions | None = None, previous: Sequence[PreviousLayer] = ()
) -> tuple[list[ModelFile], tuple[PlannedLayer, ...]]:
    """Read a folder and plan its layers, without reading the weights.

    Raises:
        LocalError: the folder cannot be read.
        UsageError: its files do not fit the limits.
    """
    files = scan(folder)
    return files, plan([(file.path, file.size) for file in files], options, previous)


def pack(
    folder: Path,
    *,
    options: PlanOptions | None = None,
    previous: Sequence[PreviousLayer] = (),
    workers: int | None = None,
    on_progress: Progress = lambda _: None,
) -> PackedModel:
    """Plan a folder's layers and compute their digests, which takes one pass over the files.

    Args:
        folder: the model's files.
        options: limits of the plan.
        previous: layers of the version to stay close to.
        workers: layers hashed at a time, since SHA-256 of one is serial; the number of processors by default.
        on_progress: told about hashed bytes.

    Raises:
        LocalError: a file cannot be read, or changed meanwhile.
        UsageError: the files do not fit the limits.
    """
    files, planned = plan_folder(folder, options=options, previous=previous)
    by_path = {file.path: file for file in files}

    stop = threading.Event()

    def hash_layer(layer: PlannedLayer) -> PackedLayer:
        layout = TarLayout(layer.pieces)
        digest = _digest(TarReader(layout, by_path), on_progress, stop)
        return PackedLayer(layer.kind, layout, layer.pieces, digest)

    # Largest first, so that no long layer is left for the end.
    order = sorted(range(len(planned)), key=lambda number: -planned[number].size)
    with ThreadPoolExecutor(workers or os.cpu_count() or 1, thread_name_prefix="hash") as pool:
        try:
            results = list(pool.map(hash_layer, [planned[number] for number in order]))
        except BaseException:
            # One failed, or the user gave up: the others need not go on for minutes.
            stop.set()
            raise
    hashed = dict(zip(order, results, strict=True))
    layers = [hashed[number] for number in range(len(planned))]
    descriptor, config = describe(files)
    return PackedModel(universal(layers, descriptor=descriptor, config=config), layers, files)


def _digest(reader: TarReader, on_progress: Progress, stop: threading.Event) -> Digest:
    state = hashlib.sha256()
    buffer = memoryview(bytearray(BUFFER_SIZE))
    with closing(reader):
        while not stop.is_set() and (count := reader.readinto(buffer)):
            state.update(buffer[:count])
            on_progress(count)
    return Digest.from_hash(state)
