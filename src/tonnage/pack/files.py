"""The files of a model folder: found, measured, and read on the promise that they have not changed since."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tonnage.errors import InvalidContent, LocalError, SourceChanged
from tonnage.pack.tar import Piece, Segment, TarLayout

MAX_FILES = 1_000_000

RECORD = ".tonnage.json"
"""Says in a pulled folder what was pulled; not part of the model."""

STAGING = ".tonnage-partial"
"""Where a pull works until everything is verified; not part of the model."""

WHITEOUT = ".wh."
"""Starts the name of what an image layer removes (OCI image-spec, layer.md, "Whiteouts"); no file can have it."""

_IGNORED_NAMES = frozenset(
    {".git", ".gitattributes", ".gitignore", ".DS_Store", ".cache", "__pycache__", RECORD, STAGING}
)


@dataclass(frozen=True)
class ModelFile:
    """A file of a model, as it was when the folder was read.

    Args:
        path: within the folder, with `/` between its parts.
        source: where it is read from.
        size: bytes.
        identity: changes when the file is written to or replaced.
    """

    path: str
    source: Path
    size: int
    identity: tuple[int, int, int]


def scan(folder: Path) -> list[ModelFile]:
    """All files of a model folder, sorted by path; version control and caches are left out, empty folders too.

    Links are followed as long as they stay in the folder.

    Raises:
        LocalError: the folder or a file in it cannot be read, or a link leads out of it.
        InvalidContent: it holds something that is neither a file nor a folder, or a name that is not UTF-8.
    """
    try:
        root = folder.resolve(strict=True)
    except OSError as error:
        raise LocalError.from_os(error, "open the model folder", folder) from error
    if not root.is_dir():
        raise LocalError(f"{folder} is not a folder", hint="name the folder that holds the model's files")
    files = sorted(_files(root, root, ()), key=lambda file: file.path)
    if not files:
        raise LocalError(f"{folder} holds no files", hint="name the folder that holds the model's files")
    return files


def _files(folder: Path, root: Path, above: tuple[Path, ...]) -> Iterator[ModelFile]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise LocalError.from_os(error, "read the folder", folder) from error
    for entry in entries:
        if entry.name in _IGNORED_NAMES or entry.name.endswith(STAGING):
            continue
        path = Path(entry.path)
        if entry.is_symlink():
            _check_link(path, root)
        try:
            info = path.stat()
        except OSError as error:
            raise LocalError.from_os(error, "read", path) from error
        if stat.S_ISDIR(info.st_mode):
            real = path.resolve()
            if real == root or real in above:
                continue  # a link to a folder that holds it, such as `models -> .`: nothing new is in there
            yield from _files(path, root, (*above, real))
        elif stat.S_ISREG(info.st_mode):
            yield ModelFile(_name(path, root), path, info.st_size, _identity(info))
        else:
            raise InvalidContent(f"{path} is neither a file nor a folder", hint="remove it from the model folder")


def _check_link(path: Path, root: Path) -> None:
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise LocalError(f"{path} is a link to nothing", hint="remove it, or restore what it points to") from error
    if not target.is_relative_to(root):
        raise LocalError(
            f"{path} is a link out of the model folder, to {target}",
            hint="copy the file into the folder, so that only what you mean to publish is published",
        )


def _name(path: Path, root: Path) -> str:
    name = path.relative_to(root).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InvalidContent(f"the name of {name!r} is not UTF-8", hint="rename the file") from None
    if "\n" in name or "\\" in name:
        raise InvalidContent(f"the name {name!r} has a line break or a backslash", hint="rename the file")
    if f"/{WHITEOUT}" in f"/{name}" or Piece.from_name(name, 0).path != name:
        raise InvalidContent(f"the name {name!r} would mean something else in a layer", hint="rename the file")
    return name


def _identity(info: os.stat_result) -> tuple[int, int, int]:
    return (info.st_ino, info.st_size, info.st_mtime_ns)


class TarReader:
    """Reads the tar of a layout, or the part of it from `offset` to `end`, straight from the model's files.

    Raises (from `readinto`):
        LocalError: a file cannot be read.
        SourceChanged: a file is not what it was when the folder was scanned.
    """

    def __init__(
        self, layout: TarLayout, files: Mapping[str, ModelFile], offset: int = 0, end: int | None = None
    ) -> None:
        self._files = files
        self._end = layout.size if end is None else end
        self._segments = iter(layout.from_offset(offset))
        self._segment: Segment | None = next(self._segments, None)
        self._position = offset
        self._fd = -1

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of `buffer`; 0 at the end."""
        segment = self._segment
        buffer = buffer[: self._end - self._position]
        if segment is None or not buffer:
            return 0
        start = self._position - segment.offset
        if segment.piece is None:
            count = min(len(buffer), segment.size - start)
            buffer[:count] = segment.data[start : start + count]
        else:
            count = self._read_file(segment.piece, start, buffer[: segment.size - start])
        self._position += count
        if start + count == segment.size:
            self._next()
        return count

    def close(self) -> None:
        """Close the file being read."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _next(self) -> None:
        segment = self._segment
        if segment is not None and segment.piece is not None:
            self._check_unchanged(self._files[segment.piece.path])
            self.close()
        self._segment = next(self._segments, None)

    def _read_file(self, piece: Piece, start: int, buffer: memoryview) -> int:
        file = self._files[piece.path]
        try:
            if self._fd < 0:
                # Non-blocking, lest a pipe that has taken the file's place is waited for.
                self._fd = os.open(file.source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                self._check_unchanged(file)
                os.posix_fadvise(self._fd, piece.offset, piece.size, os.POSIX_FADV_SEQUENTIAL)
            count = os.preadv(self._fd, [buffer], piece.offset + start)
        except OSError as error:
            raise LocalError.from_os(error, "read", file.source) from error
        if not count:
            raise SourceChanged(f"{file.source} became shorter while it was read", hint="wait until it is written")
        return count

    def _check_unchanged(self, file: ModelFile) -> None:
        if _identity(os.fstat(self._fd)) != file.identity:
            raise SourceChanged(
                f"{file.source} changed while it was read", hint="run the command again when nothing writes to it"
            )
