"""Where a pull works until everything is verified: layers come in, one tree comes out.

Each layer is written into a folder of its own, so that nothing in one layer can interfere with another. When a layer is
verified to its end, a note beside it says so; a pull that is killed goes on from those notes. When all are there, the
files are moved into one tree, in the order of the layers.

    root               digest of the artifact that this is part of; gone once the tree is being moved to its place
    layers/HEX/...     the files of one layer
    layers/HEX.json    what was in the layer, written when it was verified
    parts/...          files that are split over several layers
    tree/...           the finished model; its record, written last, says that it is complete
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import msgspec

from tonnage.content.descriptor import Descriptor
from tonnage.content.manifest import JSON_ERRORS
from tonnage.content.storage import Reader
from tonnage.content.verify import BUFFER_SIZE
from tonnage.errors import InvalidContent, LocalError, UnsafeArchive
from tonnage.pack.artifact import Layer
from tonnage.pack.codec import Decompressed
from tonnage.pack.formats import LINK_NAME, LINK_TARGET
from tonnage.pack.overlay import Item, Placed, overlay, sizes
from tonnage.pack.tar import Piece
from tonnage.pack.untar import Entry, TarStream, safe_path


class Staging:
    """The staging folder of one pull.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree = path / "tree"
        self._mark = path / "root"

    def check_owner(self) -> None:
        """Check that the folder is ours: a file that we make there has its owner (users may be mapped on a volume).

        Raises:
            LocalError: somebody else made it, and could have put anything into it.
        """
        probe = self.path / f".{uuid4().hex}"
        probe.touch(mode=0o600)
        owner = probe.stat().st_uid
        probe.unlink()
        if owner != self.path.stat().st_uid:
            raise LocalError(f"{self.path} belongs to another user", hint="remove it, then run the command again")

    # --- which artifact it is of

    def bind(self, root: Descriptor) -> None:
        """Make this the staging folder of an artifact; what an interrupted pull of another one has left is dropped."""
        if not self._is_of(root):
            for leftover in self.path.iterdir():
                remove(leftover)
            write_atomic(self._mark, root.digest.encode())

    def unbind(self) -> None:
        """Let what is beside the tree count no more: the notes describe files that have been moved into it."""
        self._mark.unlink(missing_ok=True)

    def _is_of(self, root: Descriptor) -> bool:
        with suppress(FileNotFoundError):
            return self._mark.read_bytes() == root.digest.encode()
        return False

    # --- layers

    def items(self, node: Descriptor) -> list[Item] | None:
        """What a verified layer holds; None while it is not verified."""
        try:
            return msgspec.json.decode(self._note(node).read_bytes(), type=list[Item])
        except (FileNotFoundError, *JSON_ERRORS):
            return None

    def holds(self, node: Descriptor) -> bool:
        """Whether a layer is verified, and its files are still there, by their sizes."""
        items = self.items(node)
        return items is not None and all(self._is_there(node, item) for item in items if item.kind == "file")

    def _is_there(self, node: Descriptor, item: Item) -> bool:
        for path in (self._source(node.digest.hex, item), self.tree / item.path):
            with suppress(OSError):
                size = path.lstat().st_size
                return size >= item.offset + item.size if item.is_part else size == item.size
        return False

    def unpack(self, layers: Sequence[Layer], reader: Reader) -> None:
        """Unpack a layer, and note it once `reader`, which verifies, has reached its end.

        Args:
            layers: what to make of the blob; several, where the same blob is more than one file.
            reader: the blob.

        Raises:
            UnsafeArchive, InvalidContent: it is not an archive that can be unpacked safely.
        """
        folder = self._folder(layers[0].node)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        items = self._unpack(layers, reader, folder)
        # In a power failure, the note must not outlive the data that it vouches for.
        for item in items:
            if item.kind == "file":
                _flush(self._source(layers[0].node.digest.hex, item))
        write_atomic(self._note(layers[0].node), msgspec.json.encode(items))

    def unfinished(self, nodes: Sequence[Descriptor]) -> int:
        """Bytes on disk of layers that were not finished: their second try takes the same room."""
        held = sum(
            Path(folder, name).lstat().st_blocks * 512 for folder, _, names in os.walk(self.path) for name in names
        )
        return max(0, held - sum(item.size for node in nodes for item in self.items(node) or ()))

    def _note(self, node: Descriptor) -> Path:
        return self.path / "layers" / f"{node.digest.hex}.json"

    def _folder(self, node: Descriptor) -> Path:
        return self.path / "layers" / node.digest.hex

    def _unpack(self, layers: Sequence[Layer], reader: Reader, folder: Path) -> list[Item]:
        layer = layers[0]
        if layer.packaging == "raw":
            return self._write_raw(layers, reader, folder)
        if layer.compression != "none":
            reader = Decompressed(reader, layer.compression, layer.node.size, layer.diff_id)
        with closing(reader):
            stream = TarStream(reader)
            return [item for entry in stream if (item := self._write_entry(entry, stream, folder))]

    def _write_raw(self, layers: Sequence[Layer], reader: Reader, folder: Path) -> list[Item]:
        """A blob that is a file, or several files with the same content."""
        size = layers[0].node.size
        paths = list(dict.fromkeys(safe_path(layer.path) for layer in layers if layer.packaging == "raw"))
        if not all(paths):
            raise UnsafeArchive(f"layer {layers[0].node.digest} has no usable file name", hint="ask its publisher")
        with _create(folder / paths[0], executable=False) as fd:
            for data in _stream(reader):
                _write(fd, data, None)
        for path in paths[1:]:
            with _create(folder / path, executable=False):
                shutil.copyfile(folder / paths[0], folder / path)
        return [Item(path, "file", size, total=size) for path in paths]

    def _write_entry(self, entry: Entry, stream: TarStream, folder: Path) -> Item | None:
        if entry.kind == "folder" or (entry.kind == "symlink" and (entry.path, entry.link) == (LINK_NAME, LINK_TARGET)):
            return None
        if entry.kind != "file":
            return Item(entry.path, entry.kind, 0, link=entry.link)
        piece = Piece.from_name(entry.path, entry.size)
        if piece.offset + piece.size > piece.total:
            raise InvalidContent(f"the archive has a part {entry.path[:300]!r} that reaches beyond its file")
        item = Item(safe_path(piece.path), "file", piece.size, offset=piece.offset, total=piece.total)
        if item.is_part:
            with _create(self.path / "parts" / item.path, executable=False, shared=True) as fd:
                offset = item.offset
                for data in stream.data():
                    offset += _write(fd, data, offset)
        else:
            with _create(folder / item.path, executable=entry.executable) as fd:
                for data in stream.data():
                    _write(fd, data, None)
        return item

    # --- the whole model

    def assemble(self, nodes: Sequence[Descriptor]) -> dict[str, int]:
        """Move the files of all layers into `tree`; may be interrupted and done again.

        Args:
            nodes: the layers, all unpacked, from the lowest to the highest.

        Returns:
            Path to bytes of every file.

        Raises:
            TonnageError: as `overlay`; or a link leads out by way of others.
        """
        layers = []
        for node in nodes:
            items = self.items(node)
            if items is None:
                raise LocalError(f"{self._note(node)} is gone", hint="run the command again")
            layers.append((node.digest.hex, items))
        found = overlay(layers)
        self.tree.mkdir(exist_ok=True)
        # Links last: no file can then be written through one.
        for rank in ("file", "hardlink", "symlink"):
            for path, placed in found.items():
                if placed[1].kind == rank:
                    self._place(path, placed)
        self._check_landings(found)
        return sizes(found)

    def _place(self, path: str, placed: Placed) -> None:
        name, item = placed
        target = self.tree / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if item.kind == "file":
            source = self._source(name, item)
            # Gone when an interrupted run has moved it already.
            if source.exists() or not target.exists():
                source.replace(target)
            return
        target.unlink(missing_ok=True)
        if item.kind == "symlink":
            target.symlink_to(item.link)
        else:
            target.hardlink_to(self.tree / item.link)

    def _source(self, name: str, item: Item) -> Path:
        """Where the layer of that name has put a file."""
        return self.path / "parts" / item.path if item.is_part else self.path / "layers" / name / item.path

    def _check_landings(self, found: Mapping[str, Placed]) -> None:
        """Check where links lead through other links, which their own text does not say."""
        inside = os.path.realpath(self.tree)
        for path, (_, item) in found.items():
            if item.kind == "symlink" and not Path(os.path.realpath(self.tree / path)).is_relative_to(inside):
                raise UnsafeArchive(
                    f"the archive has a link {path!r} that leads out of the model's folder, by way of others"
                )


def write_atomic(path: Path, data: bytes) -> None:
    """Write a small file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(data)
    temporary.replace(path)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _create(path: Path, *, executable: bool, shared: bool = False) -> Iterator[int]:
    """A new file to write to; `shared` ones are written by several layers."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | (0 if shared else os.O_TRUNC)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, flags, 0o755 if executable else 0o644)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise UnsafeArchive(
            f"the archive has {path.name[:200]!r} both as a file and as a folder, or below one"
        ) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _stream(reader: Reader) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(BUFFER_SIZE))
    while count := reader.readinto(buffer):
        yield buffer[:count]


def _write(fd: int, data: memoryview, offset: int | None) -> int:
    """Write all of `data`, at `offset` or at the end; returns its length."""
    done = 0
    while done < len(data):
        done += os.write(fd, data[done:]) if offset is None else os.pwrite(fd, data[done:], offset + done)
    return done
