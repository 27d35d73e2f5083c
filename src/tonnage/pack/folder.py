"""A model folder as a store that can be copied to: layers become files, and the model appears when all are verified.

Layers are unpacked into a staging folder (`pack.staging`), where the finished tree is put together. It is then moved to
where the user wants it:

- A folder that does not exist yet, or is empty, is replaced by the finished tree in one `rename`: it has the whole
  model or nothing. The staging folder is beside it, `.NAME.tonnage-partial`.
- A mount point cannot be replaced (a volume in Kubernetes), and a shell's current folder should not be. There the
  staging folder lies inside it, `NAME/.tonnage-partial`, and the files are moved in one by one at the end, the record
  of what was pulled last.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import msgspec

from tonnage.content.descriptor import Descriptor
from tonnage.content.digest import Digest
from tonnage.content.storage import Opener
from tonnage.content.verify import VerifyingReader
from tonnage.errors import LocalError, StorageFull, TargetOccupied
from tonnage.pack.artifact import Layer, ModelArtifact
from tonnage.pack.files import RECORD, STAGING
from tonnage.pack.staging import Staging, remove, write_atomic


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
        wait: wait for another pull that is at work in the folder, instead of refusing.

    Raises (on entry):
        TargetOccupied: the folder holds something else, or another pull is at work in it.
        LocalError: what an earlier pull has left there belongs to another user.
        StorageFull: the model does not fit on the disk.
    """

    def __init__(self, path: Path, artifact: ModelArtifact, *, source: str = "", wait: bool = False) -> None:
        self.path = path
        self._artifact = artifact
        self._source = source
        self._wait = wait
        self._layers: dict[str, list[Layer]] = {}
        for layer in artifact.layers:
            # Several, where two files are the same and each is a raw layer.
            self._layers.setdefault(layer.node.digest, []).append(layer)
        self._staging = Staging(path)
        self._lock = -1
        self._complete = False
        self._assembled = False

    def __enter__(self) -> FolderTarget:
        with LocalError.translated("prepare", self.path):
            if self._look():
                self._tidy()
                return self
            self._staging = Staging(self._choose_staging())
            self._open_staging()
            try:
                # Again, now that nobody else is at work: another pull may have finished meanwhile.
                if self._look():
                    remove(self._staging.path)
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
        return self._complete or self._assembled or (node.digest in self._layers and self._staging.holds(node))

    def push(self, node: Descriptor, open: Opener) -> None:
        """Unpack a layer into the staging folder. The artifact's own document holds no files and is not kept."""
        layers = self._layers.get(node.digest)
        if layers is None:
            return
        if self._lock < 0:
            raise LocalError(f"the pull into {self.path} is over")
        with LocalError.translated("write", self.path), closing(VerifyingReader(open(0), node)) as reader:
            self._staging.unpack(layers, reader)

    def tag(self, node: Descriptor, reference: str) -> None:  # noqa: ARG002
        """Show the model; `reference` is not kept, since a folder holds one model."""
        if not self._complete:
            with LocalError.translated("put the model into", self.path):
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
        self._complete = holds(self.path, self._artifact.root.digest)
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
                self._staging = Staging(staging)
                with suppress(TargetOccupied):
                    self._acquire()
                    shutil.rmtree(staging, ignore_errors=True)
                self._release()

    def _open_staging(self) -> None:
        self._staging.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with suppress(FileExistsError):
                self._staging.path.mkdir(mode=0o700)
            try:
                self._acquire()
            except TargetOccupied:
                # Removed, while we waited for it, by the pull that held it.
                if not self._wait:
                    raise
                continue
            break
        try:
            self._staging.check_owner()
        except BaseException:
            self._release()
            raise

    def _acquire(self) -> None:
        try:
            self._lock = os.open(self._staging.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX | (0 if self._wait else fcntl.LOCK_NB))
            if not os.path.samestat(os.fstat(self._lock), self._staging.path.stat()):
                raise FileNotFoundError
        except (BlockingIOError, FileNotFoundError):
            # Held, or removed by a pull that has just finished.
            self._release()
            raise TargetOccupied(
                f"another pull is at work in {self._staging.path}", hint="wait for it, or stop it"
            ) from None

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _bind(self) -> None:
        record = read_record(self._staging.tree)
        self._assembled = record is not None and record.root == self._artifact.root.digest
        if not self._assembled:
            self._staging.bind(self._artifact.root)

    def _check_space(self) -> None:
        nodes = [layer.node for layer in self._artifact.layers]
        missing = sum(node.size for node in nodes if not self.exists(node))
        free = shutil.disk_usage(self._staging.path).free
        if missing > free and missing > free + self._staging.unfinished(nodes):
            raise StorageFull(
                f"{self.path} has {free:,} bytes free, the model needs {missing:,} more", hint="free some space"
            )

    # --- the whole model

    def _assemble(self) -> None:
        files = self._staging.assemble([layers[0].node for layers in self._layers.values()])
        root, manifest = self._artifact.root.digest, self._artifact.manifest.descriptor.digest
        record = Record(str(root), str(manifest), self._source, files)
        write_atomic(self._staging.tree / RECORD, msgspec.json.format(msgspec.json.encode(record)) + b"\n")

    def _publish(self) -> None:
        """Move the tree to its place; what a kill leaves half done is completed by doing it again."""
        tree = self._staging.tree
        self._staging.unbind()
        if self._staging.path.parent != self.path:
            tree.rename(self.path)
        else:
            for path in sorted(_walk(tree), key=lambda path: (path == Path(RECORD), path)):
                (self.path / path).parent.mkdir(parents=True, exist_ok=True)
                (tree / path).replace(self.path / path)
        remove(self._staging.path)


def read_record(folder: Path) -> Record | None:
    """What was pulled into a folder; None if nothing was, or the record is damaged."""
    try:
        return msgspec.json.decode((folder / RECORD).read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError):
        return None


def holds(folder: Path, root: Digest) -> bool:
    """Whether a folder has all files of the artifact with that digest, by their sizes."""
    record = read_record(folder)
    if record is None or record.root != root:
        return False
    with suppress(OSError):
        return all((folder / path).stat().st_size == size for path, size in record.files.items())
    return False


def _others(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name not in (STAGING, "lost+found")]


def _walk(tree: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(tree):
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for name in (*files, *links):
            yield Path(folder, name).relative_to(tree)
