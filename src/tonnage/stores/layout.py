"""An OCI image layout: a folder of blobs with an `index.json` that names the tagged manifests (image-layout.md)."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec

from tonnage.content import manifest
from tonnage.content.descriptor import Descriptor
from tonnage.content.digest import HEX_LENGTH, Digest
from tonnage.content.manifest import MAX_MANIFEST_SIZE, canonical
from tonnage.content.mediatype import OCI_INDEX, REF_NAME
from tonnage.content.storage import Opener, Reader
from tonnage.content.verify import BUFFER_SIZE, VerifyingReader
from tonnage.errors import InvalidContent, LocalError, NotFound, Truncated
from tonnage.stores.names import check_tag

DEFAULT_TAG = "latest"
MAX_INDEX = 64 << 20
"""Bytes of an `index.json`; a layout can hold many models."""

_MAX_MARKER = 4096
_INGEST = ".ingest-"
"""Begins the name of a blob that is being written; its writer holds a lock on it as long as it lives."""


class LayoutStore:
    """Reads and writes one image layout. Safe for several processes at once.

    Args:
        root: the layout's folder.
        create: make it, if it is not there yet.

    Raises:
        NotFound: there is no layout, and `create` is not set.
        InvalidContent: the folder is a layout of a version that we do not know.
    """

    def __init__(self, root: Path, *, create: bool = False) -> None:
        self.root = root
        self._swept = False
        with LocalError.translated("open the layout", root):
            if not (root / "oci-layout").exists():
                if not create:
                    raise NotFound(f"{root} is not an OCI layout", hint="check the path; `tonnage pack` makes one")
                self._create()
            self._check_version()
            if create:
                self._sweep()

    def fetch(self, node: Descriptor) -> Reader:
        """See `Fetcher.fetch`."""
        return self.fetch_range(node, 0, node.size)

    def fetch_range(self, node: Descriptor, offset: int, length: int) -> Reader:
        """See `RangeFetcher.fetch_range`."""
        path = self._path(node.digest)
        try:
            return _FileReader(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path, offset, length)
        except FileNotFoundError:
            raise NotFound(f"{node.digest} is not in the layout {self.root}") from None
        except OSError as error:
            raise LocalError.from_os(error, "read", path) from error

    def resolve(self, reference: str) -> Descriptor:
        """See `Resolver.resolve`; an empty reference names the layout's only entry, or `latest` of several."""
        entries = self._index()
        if ":" in reference:
            return self._resolve_digest(Digest(reference), entries)
        names = {node.annotations.get(REF_NAME, ""): node for node in entries}
        if not reference and len({node.digest for node in entries}) == 1:
            return entries[0]
        if (reference or DEFAULT_TAG) in names:
            return names[reference or DEFAULT_TAG]
        known = ", ".join(sorted(filter(None, names))) or "none"
        if not reference:
            raise NotFound(f"{self.root} holds {len(entries)} entries", hint=f"name one; its tags are: {known}")
        raise NotFound(f"tag {reference!r} is not in the layout {self.root}", hint=f"its tags are: {known}")

    def exists(self, node: Descriptor) -> bool:
        """See `Pusher.exists`."""
        try:
            return self._path(node.digest).stat().st_size == node.size
        except OSError:
            return False

    def push(self, node: Descriptor, open: Opener) -> None:
        """See `Pusher.push`."""
        with LocalError.translated("write to the layout", self.root), closing(open(0)) as reader:
            if node.is_manifest and node.size > MAX_MANIFEST_SIZE:
                raise InvalidContent(f"manifest {node.digest} has {node.size} bytes")
            self._sweep()
            self._ingest(node, VerifyingReader(reader, node))

    def tag(self, node: Descriptor, reference: str) -> None:
        """See `Tagger.tag`."""
        check_tag(reference)
        if not self.exists(node):
            raise NotFound(f"{node.digest} is not in the layout {self.root}")
        entry = replace(node, annotations={**node.annotations, REF_NAME: reference})

        def edit(entries: list[Descriptor]) -> list[Descriptor]:
            return [known for known in entries if known.annotations.get(REF_NAME) != reference] + [entry]

        self._edit(edit)

    def tags(self) -> Sequence[str]:
        """See `TagLister.tags`."""
        return sorted({name for node in self._index() if (name := node.annotations.get(REF_NAME))})

    def delete(self, node: Descriptor) -> None:
        """See `Deleter.delete`."""
        self._edit(lambda entries: [known for known in entries if known.digest != node.digest])
        try:
            self._path(node.digest).unlink()
        except FileNotFoundError:
            raise NotFound(f"{node.digest} is not in the layout {self.root}") from None
        except OSError as error:
            raise LocalError.from_os(error, "remove", self._path(node.digest)) from error

    def referrers(self, node: Descriptor, artifact_type: str | None = None) -> Sequence[Descriptor]:
        """See `ReferrerLister.referrers`; reads every small blob, since a layout keeps no list of them."""
        found = []
        for data in self._small_blobs():
            try:
                document = manifest.parse(data)
            except InvalidContent:
                continue
            if document.subject is not None and document.subject.digest == node.digest:
                referrer = manifest.referrer(document)
                if artifact_type in (None, referrer.artifact_type):
                    found.append(referrer)
        return found

    # --- blobs

    def _path(self, digest: Digest) -> Path:
        return self.root / "blobs" / digest.algorithm / digest.hex

    def _ingest(self, node: Descriptor, reader: VerifyingReader) -> None:
        """Write beside the blobs, and rename when verified."""
        path = self._path(node.digest)
        with _ingest_file(self.root) as (temporary, fd):
            buffer = memoryview(bytearray(BUFFER_SIZE))
            while count := reader.readinto(buffer):
                written = 0
                while written < count:
                    written += os.write(fd, buffer[written:count])
            os.fsync(fd)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(path)

    def _sweep(self) -> None:
        """Once, remove what writers that were killed have left: files of blobs that nobody holds any more."""
        if not self._swept:
            for path in self.root.glob(f"{_INGEST}*"):
                _remove_abandoned(path)
            self._swept = True

    def _small_blobs(self) -> Iterator[bytes]:
        for algorithm in HEX_LENGTH:
            for path in sorted((self.root / "blobs" / algorithm).glob("*")):
                with suppress(FileNotFoundError):
                    if path.stat().st_size <= MAX_MANIFEST_SIZE:
                        data = path.read_bytes()
                        if data.lstrip()[:1] == b"{":
                            yield data

    # --- index.json

    def _create(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        with _locked(self.root):
            if (self.root / "oci-layout").exists():
                return  # another process was quicker
            if any(self.root.iterdir()):
                raise LocalError(f"{self.root} is not empty, and not an OCI layout", hint="name an empty or new folder")
            (self.root / "blobs" / "sha256").mkdir(parents=True)
            index = {"manifests": [], "mediaType": OCI_INDEX, "schemaVersion": 2}
            _write_atomic(self.root / "index.json", canonical(index))
            # Last: it is what marks the folder as a layout.
            _write_atomic(self.root / "oci-layout", canonical({"imageLayoutVersion": "1.0.0"}))

    def _check_version(self) -> None:
        with (self.root / "oci-layout").open("rb") as file:
            raw = file.read(_MAX_MARKER)
        try:
            marker = msgspec.json.decode(raw, type=dict[str, Any])
        except (ValueError, RecursionError) as error:
            raise InvalidContent(f"{self.root}/oci-layout is damaged: {error}") from error
        if marker.get("imageLayoutVersion") != "1.0.0":
            raise InvalidContent(f"{self.root} is a layout of version {marker.get('imageLayoutVersion')!r}, not 1.0.0")

    def _index(self) -> list[Descriptor]:
        return [
            Descriptor.from_dict(entry, f"{self.root}/index.json: manifests[{number}]")
            for number, entry in enumerate(self._document()["manifests"])
        ]

    def _document(self) -> dict[str, Any]:
        path = self.root / "index.json"
        with LocalError.translated("read", path):
            if path.stat().st_size > MAX_INDEX:
                raise InvalidContent(f"{path} is larger than the limit of {MAX_INDEX} bytes")
            raw = path.read_bytes()
        try:
            obj: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
        except (ValueError, RecursionError) as error:
            raise InvalidContent(f"{path} is damaged: {error}") from error
        if not isinstance(obj.get("manifests"), list):
            raise InvalidContent(f"{path} has no list of manifests")
        return obj

    def _resolve_digest(self, digest: Digest, entries: list[Descriptor]) -> Descriptor:
        for node in entries:
            if node.digest == digest:
                return node
        path = self._path(digest)
        try:
            with path.open("rb") as file:
                raw = file.read(MAX_MANIFEST_SIZE + 1)
        except FileNotFoundError:
            raise NotFound(f"{digest} is not in the layout {self.root}") from None
        except OSError as error:
            raise LocalError.from_os(error, "read", path) from error
        # Not by digest.of: the bytes are verified by whoever fetches them.
        document = manifest.parse(raw)
        return Descriptor(
            media_type=document.media_type, digest=digest, size=len(raw), artifact_type=document.artifact_type
        )

    def _edit(self, change: Callable[[list[Descriptor]], list[Descriptor]]) -> None:
        with LocalError.translated("write to the layout", self.root), _locked(self.root):
            entries = [entry.to_dict() for entry in change(self._index())]
            # What others wrote beside the list stays.
            document = {"mediaType": OCI_INDEX, **self._document(), "manifests": entries}
            _write_atomic(self.root / "index.json", canonical(document))


class _FileReader:
    def __init__(self, fd: int, path: Path, offset: int, length: int) -> None:
        self._fd = fd
        self._path = path
        self._left = length
        if offset:
            os.lseek(fd, offset, os.SEEK_SET)

    def readinto(self, buffer: memoryview, /) -> int:
        if not self._left:
            return 0
        try:
            count = os.readv(self._fd, [buffer[: self._left]])
        except OSError as error:
            raise LocalError.from_os(error, "read", self._path) from error
        if not count:
            raise Truncated(f"{self._path} ended {self._left} bytes early", hint="the layout is damaged")
        self._left -= count
        return count

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@contextmanager
def _ingest_file(root: Path) -> Iterator[tuple[Path, int]]:
    """A new file to write a blob to, locked so that nobody takes it for abandoned; removed if it is still there."""
    path, fd = _new_locked(root)
    try:
        yield path, fd
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(fd)  # last: the lock ends with it


def _new_locked(root: Path) -> tuple[Path, int]:
    """Between its creation and its lock a file looks abandoned; if it was removed in that moment, take another."""
    while True:
        path = root / f"{_INGEST}{uuid4().hex}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            removed = not os.fstat(fd).st_nlink
        except BaseException:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        if not removed:
            return path, fd
        os.close(fd)


def _remove_abandoned(path: Path) -> None:
    """Remove a file that nobody holds a lock on. One that cannot be removed stays: it costs space, nothing else."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(fd)


def _write_atomic(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Hold the layout's folder, so that two writers of `index.json` do not lose each other's entry."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
