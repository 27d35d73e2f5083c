"""A model folder as a store that can be copied to: layers become files, and the model appears when all are verified.

Everything is written into a staging folder, each layer into a part of its own, so that nothing in one layer can
interfere with another. When a layer is verified to its end, a note beside it says so; a pull that is killed goes on
from those notes. When all are, the files are moved into one tree, in the order of the layers, the record of what was
pulled last: it says that the tree is complete. The tree is then moved to where the user wants it:

- A folder that does not exist yet, or is empty, is replaced by the finished tree in one `rename`: it has the whole
  model or nothing.
- A mount point cannot be replaced (a volume in Kubernetes), and a shell's current folder should not be. There the
  staging folder lies inside it, and the files are moved in one by one at the end, the record last again.

    .NAME.tonnage-partial/  or  NAME/.tonnage-partial/
      root               digest of the artifact that this is part of; gone once the tree is complete
      layers/HEX/...     the files of one layer
      layers/HEX.json    what was in the layer, written when it was verified
      parts/...          files that are split over several layers
      tree/...           the finished model, while it is put together
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path, PurePosixPath

import msgspec

from tonnage.content.descriptor import Descriptor
from tonnage.content.manifest import JSON_ERRORS
from tonnage.content.storage import Opener, Reader
from tonnage.content.verify import BUFFER_SIZE, VerifyingReader
from tonnage.errors import IntegrityError, InvalidContent, LocalError, StorageFull, TargetOccupied, UnsafeArchive
from tonnage.pack.artifact import Layer, ModelArtifact
from tonnage.pack.codec import Decompressed
from tonnage.pack.files import RECORD, STAGING, WHITEOUT
from tonnage.pack.formats import LINK_NAME, LINK_TARGET
from tonnage.pack.tar import Piece
from tonnage.pack.untar import Entry, TarStream, check_link, safe_path

_OPAQUE = f"{WHITEOUT}{WHITEOUT}.opq"


class _Item(msgspec.Struct, frozen=True):
    """One entry of a verified layer."""

    path: str
    kind: str
    size: int
    link: str = ""
    offset: int = 0
    total: int = 0

    @property
    def is_part(self) -> bool:
        return self.kind == "file" and self.size != self.total


class Record(msgspec.Struct, frozen=True):
    """What a pulled folder says of itself, in `.tonnage.json`.

    Args:
        root: digest of the artifact it was pulled from.
        manifest: digest of the manifest whose layers it has.
        source: the target string it was pulled from.
        files: path to size in bytes; symbolic links are not listed.
    """

    root: str
    manifest: str
    source: str
    files: dict[str, int]


class FolderTarget:
    """Receives the layers of one artifact, and shows the model when it is tagged. Use as a context manager.

    Args:
        path: where the model shall appear.
        artifact: what is pulled.
        source: the target string it is pulled from, for the record.

    Raises (on entry):
        TargetOccupied: the folder holds something else, or another pull is at work in it.
        StorageFull: the model does not fit on the disk.
    """

    def __init__(self, path: Path, artifact: ModelArtifact, *, source: str = "") -> None:
        self.path = path
        self._artifact = artifact
        self._source = source
        self._layers: dict[str, list[Layer]] = {}
        for layer in artifact.layers:
            # Several, where two files are the same and each is a raw layer.
            self._layers.setdefault(layer.node.digest, []).append(layer)
        self._staging = path
        self._lock = -1
        self._complete = False
        self._assembled = False

    def __enter__(self) -> FolderTarget:
        with _translated("prepare", self.path):
            if self._look():
                self._tidy()
                return self
            self._staging = self._choose_staging()
            self._staging.mkdir(parents=True, exist_ok=True)
            self._acquire()
            try:
                # Again, now that nobody else is at work: another pull may have finished meanwhile.
                if self._look():
                    _remove(self._staging)
                else:
                    self._bind()
                    self._check_space()
            except BaseException:
                self._release()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def exists(self, node: Descriptor) -> bool:
        """Whether a layer is verified and staged; anything, when the folder has the whole model already."""
        return self._complete or self._assembled or (node.digest in self._layers and self._items(node) is not None)

    def push(self, node: Descriptor, open: Opener) -> None:
        """Unpack a layer into the staging folder. The artifact's own document holds no files and is not kept."""
        layers = self._layers.get(node.digest)
        if layers is None:
            return
        folder = self._staging / "layers" / node.digest.hex
        with _translated("write", self.path):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            with closing(VerifyingReader(open(0), node)) as reader:
                items = self._unpack(layers, reader, folder)
            _write_atomic(self._note(node), msgspec.json.encode(items))

    def tag(self, node: Descriptor, reference: str) -> None:  # noqa: ARG002
        """Show the model; `reference` is not kept, since a folder holds one model."""
        if not self._complete:
            with _translated("put the model into", self.path):
                if not self._assembled:
                    self._assemble()
                self._publish()
            self._complete = True

    # --- staging

    def _look(self) -> bool:
        """Whether the folder has the whole model already.

        Raises:
            TargetOccupied: it holds something else.
        """
        self._complete = _is_complete(self.path, self._artifact.root)
        if not self._complete:
            self._check_occupied()
        return self._complete

    def _check_occupied(self) -> None:
        if not self.path.exists() and not self.path.is_symlink():
            return
        if not self.path.is_dir():
            raise TargetOccupied(f"{self.path} is not a folder", hint="name a folder")
        if not _others(self.path):
            return
        # A pull that was killed while it moved files in has left its record in the staging folder.
        record = read_record(self.path) or read_record(self.path / STAGING / "tree")
        if record is None:
            raise TargetOccupied(
                f"{self.path} is not empty, and does not hold an earlier pull", hint="name an empty or new folder"
            )
        if record.root != self._artifact.root.digest:
            raise TargetOccupied(
                f"{self.path} holds another model: {record.source or 'a pull'} ({record.root})",
                hint="name an empty or new folder, or remove this one",
            )

    def _choose_staging(self) -> Path:
        inside, beside = self._stagings()
        if self.path.exists() and (
            os.path.ismount(self.path)
            or self.path.is_symlink()
            or self.path.samefile(".")
            or any(self.path.iterdir())
            or not os.access(beside.parent, os.W_OK)
        ):
            return inside
        return beside

    def _stagings(self) -> tuple[Path, Path]:
        absolute = self.path.absolute()
        return self.path / STAGING, absolute.parent / f".{absolute.name}{STAGING}"

    def _tidy(self) -> None:
        """Remove what a pull that was killed at its very end has left."""
        for staging in self._stagings():
            if staging.exists():
                self._staging = staging
                with suppress(TargetOccupied):
                    self._acquire()
                    shutil.rmtree(staging, ignore_errors=True)
                self._release()

    def _acquire(self) -> None:
        try:
            self._lock = os.open(self._staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(self._lock), self._staging.stat()):
                raise FileNotFoundError
        except (BlockingIOError, FileNotFoundError):
            # Held, or removed by a pull that has just finished.
            self._release()
            raise TargetOccupied(
                f"another pull is at work in {self._staging}", hint="wait for it, or stop it"
            ) from None

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _bind(self) -> None:
        """Drop what an interrupted pull of another artifact has left."""
        mark = self._staging / "root"
        record = read_record(self._staging / "tree")
        self._assembled = record is not None and record.root == self._artifact.root.digest
        if self._assembled or (mark.exists() and mark.read_bytes() == self._artifact.root.digest.encode()):
            return
        for leftover in self._staging.iterdir():
            _remove(leftover)
        _write_atomic(mark, self._artifact.root.digest.encode())

    def _check_space(self) -> None:
        missing = sum(layer.node.size for layer in self._artifact.layers if not self.exists(layer.node))
        free = shutil.disk_usage(self._staging).free
        if missing > free and missing > free + self._unfinished():
            raise StorageFull(
                f"{self.path} has {free:,} bytes free, the model needs {missing:,} more", hint="free some space"
            )

    def _unfinished(self) -> int:
        """Bytes on disk of layers that were not finished: their second try takes the same room."""
        held = sum(
            Path(folder, name).lstat().st_blocks * 512 for folder, _, names in os.walk(self._staging) for name in names
        )
        verified = sum(item.size for layer in self._artifact.layers for item in self._items(layer.node) or ())
        return max(0, held - verified)

    def _note(self, node: Descriptor) -> Path:
        return self._staging / "layers" / f"{node.digest.hex}.json"

    def _items(self, node: Descriptor) -> list[_Item] | None:
        """What a verified layer holds; None while it is not verified."""
        try:
            return msgspec.json.decode(self._note(node).read_bytes(), type=list[_Item])
        except (FileNotFoundError, *JSON_ERRORS):
            return None

    # --- one layer

    def _unpack(self, layers: Sequence[Layer], reader: Reader, folder: Path) -> list[_Item]:
        layer = layers[0]
        if layer.packaging == "raw":
            paths = list(dict.fromkeys(safe_path(each.path) for each in layers if each.packaging == "raw"))
            if not all(paths):
                raise UnsafeArchive(f"layer {layer.node.digest} has no usable file name", hint="ask its publisher")
            with _create(folder / paths[0], executable=False) as fd:
                for data in _stream(reader):
                    _write(fd, data, None)
            for path in paths[1:]:
                with _create(folder / path, executable=False):
                    shutil.copyfile(folder / paths[0], folder / path)
            return [_Item(path, "file", layer.node.size, total=layer.node.size) for path in paths]
        if layer.compression != "none":
            reader = Decompressed(reader, layer.compression, layer.node.size, layer.diff_id)
        with closing(reader):
            stream = TarStream(reader)
            return [item for entry in stream if (item := self._unpack_entry(entry, stream, folder))]

    def _unpack_entry(self, entry: Entry, stream: TarStream, folder: Path) -> _Item | None:
        if entry.kind == "folder" or (entry.kind == "symlink" and (entry.path, entry.link) == (LINK_NAME, LINK_TARGET)):
            return None
        if entry.kind != "file":
            return _Item(entry.path, entry.kind, 0, link=entry.link)
        piece = Piece.from_name(entry.path, entry.size)
        if piece.offset + piece.size > piece.total:
            raise InvalidContent(f"the archive has a part {entry.path[:300]!r} that reaches beyond its file")
        item = _Item(safe_path(piece.path), "file", piece.size, offset=piece.offset, total=piece.total)
        if item.is_part:
            with _create(self._staging / "parts" / item.path, executable=False, shared=True) as fd:
                offset = item.offset
                for data in stream.data():
                    offset += _write(fd, data, offset)
        else:
            with _create(folder / item.path, executable=entry.executable) as fd:
                for data in stream.data():
                    _write(fd, data, None)
        return item

    # --- the whole model

    def _assemble(self) -> None:
        """Move the files of all layers into `tree`, and the record after them; may be interrupted and done again."""
        found = self._find()
        _check_tree(found)
        files = {path: _size(item, found) for path, (_, item) in sorted(found.items()) if item.kind != "symlink"}
        if not files:
            raise InvalidContent(f"{self._artifact.root.digest} holds no files", hint="it is not a model")
        tree = self._staging / "tree"
        tree.mkdir(exist_ok=True)
        # Links last: no file can then be written through one.
        for rank in ("file", "hardlink", "symlink"):
            for path, (source, item) in found.items():
                if item.kind == rank:
                    _place(tree, path, source, item)
        for path, (_, item) in found.items():
            if item.kind == "symlink":
                _check_landing(tree, path)
        record = Record(
            str(self._artifact.root.digest), str(self._artifact.manifest.descriptor.digest), self._source, files
        )
        _write_atomic(tree / RECORD, msgspec.json.format(msgspec.json.encode(record)) + b"\n")

    def _find(self) -> dict[str, tuple[Path, _Item]]:
        """Where the files of the model are in the staging folder: what a later layer has counts."""
        found: dict[str, tuple[Path, _Item]] = {}
        parts: dict[str, list[_Item]] = {}
        for layer, *_ in self._layers.values():
            items = self._items(layer.node)
            if items is None:
                raise LocalError(f"{self._note(layer.node)} is gone", hint="run the command again")
            # A whiteout hides what is in the layers below, wherever in its own layer it stands.
            for item in sorted(items, key=lambda item: not _is_whiteout(item)):
                if _is_whiteout(item):
                    _forget(found, item.path)
                elif item.is_part:
                    parts.setdefault(item.path, []).append(item)
                    found[item.path] = (self._staging / "parts" / item.path, item)
                else:
                    found[item.path] = (self._staging / "layers" / layer.node.digest.hex / item.path, item)
        for path, pieces in parts.items():
            if path in found and found[path][1].is_part:
                _check_joined(path, pieces)
        return found

    def _publish(self) -> None:
        """Move the tree to its place; what a kill leaves half done is completed by doing it again."""
        tree = self._staging / "tree"
        # The notes describe files that are in the tree now; without a mark, what is left of the staging is dropped.
        (self._staging / "root").unlink(missing_ok=True)
        if self._staging.parent != self.path:
            tree.rename(self.path)
        else:
            for path in sorted(_walk(tree), key=lambda path: (path == Path(RECORD), path)):
                (self.path / path).parent.mkdir(parents=True, exist_ok=True)
                (tree / path).replace(self.path / path)
        _remove(self._staging)


def read_record(folder: Path) -> Record | None:
    """What was pulled into a folder; None if nothing was, or the record is damaged."""
    try:
        return msgspec.json.decode((folder / RECORD).read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError):
        return None


def _is_complete(folder: Path, root: Descriptor) -> bool:
    record = read_record(folder)
    if record is None or record.root != root.digest:
        return False
    for path, size in record.files.items():
        try:
            if (folder / path).stat().st_size != size:
                return False
        except OSError:
            return False
    return True


def _others(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name not in (STAGING, "lost+found")]


def _is_whiteout(item: _Item) -> bool:
    return item.path.rpartition("/")[2].startswith(WHITEOUT)


def _forget(found: dict[str, tuple[Path, _Item]], whiteout: str) -> None:
    """Apply a whiteout (OCI image-spec, layer.md, "Whiteouts"): an opaque one hides what is in its folder."""
    folder, slash, name = whiteout.rpartition("/")
    hidden = folder + slash if name == _OPAQUE else folder + slash + name.removeprefix(WHITEOUT) + "/"
    for known in [known for known in found if f"{known}/".startswith(hidden)]:
        del found[known]


def _size(item: _Item, found: Mapping[str, tuple[Path, _Item]]) -> int:
    return found[item.link][1].total if item.kind == "hardlink" else item.total


def _check_joined(path: str, pieces: list[_Item]) -> None:
    """Check that the parts of a split file cover it once, with no gap."""
    position = 0
    for piece in sorted(pieces, key=lambda piece: piece.offset):
        if piece.offset != position or piece.total != pieces[0].total:
            raise IntegrityError(f"the parts of {path} do not fit together", hint="ask the artifact's publisher")
        position += piece.size
    if position != pieces[0].total:
        raise IntegrityError(
            f"{path} has {position} of {pieces[0].total} bytes: a part is missing", hint="ask the artifact's publisher"
        )


def _check_tree(found: Mapping[str, tuple[Path, _Item]]) -> None:
    """Check that no file or link stands where another entry needs a folder, and that links stay inside."""
    for path, (_, item) in found.items():
        for parent in map(str, PurePosixPath(path).parents):
            if parent in found:
                raise UnsafeArchive(f"the archive has both a file or link {parent!r} and an entry {path!r} below it")
        if item.kind == "symlink":
            check_link(path, item.link)
        elif item.kind == "hardlink" and (item.link not in found or found[item.link][1].kind != "file"):
            raise UnsafeArchive(f"the archive has a hard link {path!r} to {item.link!r}, which is not one of its files")


def _check_landing(tree: Path, path: str) -> None:
    """Check where a link leads through other links, which its own text does not say."""
    landing = Path(os.path.realpath(tree / path))
    if not landing.is_relative_to(os.path.realpath(tree)):
        raise UnsafeArchive(f"the archive has a link {path!r} that leads out of the model's folder, by way of others")


def _place(tree: Path, path: str, source: Path, item: _Item) -> None:
    target = tree / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if item.kind == "file":
        # Gone when an interrupted run has moved it already.
        if source.exists() or not target.exists():
            source.replace(target)
        return
    target.unlink(missing_ok=True)
    if item.kind == "symlink":
        target.symlink_to(item.link)
    else:
        target.hardlink_to(tree / item.link)


def _walk(tree: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(tree):
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for name in (*files, *links):
            yield Path(folder, name).relative_to(tree)


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


def _write_atomic(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(data)
    temporary.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError):
            path.unlink()


@contextmanager
def _translated(action: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LocalError.from_os(error, action, path) from error
