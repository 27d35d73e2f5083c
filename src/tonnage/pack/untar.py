"""Reads a tar as a stream, and trusts nothing in it.

The header blocks are decoded by the standard library; the data goes from the caller's reader to the file in one step.
Understood are ustar, PAX and GNU long names. Refused is whatever could write outside the model's folder, or is neither
a file, a folder nor a link: absolute paths, `..`, devices, pipes, sparse files.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tonnage.content.descriptor import MAX_SIZE
from tonnage.content.storage import Reader
from tonnage.content.verify import BUFFER_SIZE
from tonnage.errors import InvalidContent, UnsafeArchive
from tonnage.pack.files import MAX_FILES, RECORD, STAGING
from tonnage.pack.tar import BLOCK, MAX_NAME

MAX_PATH = 4096
MAX_PAX = 1 << 20
"""Bytes of one entry's PAX records or GNU long name."""

_SPARSE = "GNU.sparse"
_RECORDS = ("path", "linkpath", "size")
"""The PAX records that we heed, beside those of sparse files; the rest is not kept, however much there is."""

EntryKind = Literal["file", "folder", "symlink", "hardlink"]

_KINDS: dict[bytes, EntryKind] = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink",
}


@dataclass(frozen=True)
class Entry:
    """One entry of a tar.

    Args:
        path: safe, relative, without `.` and `..`.
        kind: file, folder or link.
        size: bytes of data; 0 unless it is a file.
        executable: whether its owner may execute it.
        link: for links, where it leads: for a symbolic link as written, for a hard link a safe path.
    """

    path: str
    kind: EntryKind
    size: int
    executable: bool
    link: str = ""


class TarStream:
    """The entries of a tar, in order; iterate, and read each file's `data` before going on.

    Raises (while iterating):
        UnsafeArchive: an entry would write outside the folder, or is of a refused kind.
        InvalidContent: the archive is damaged.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._buffer = memoryview(bytearray(BUFFER_SIZE))
        self._ready = self._buffer[:0]
        self._defaults: dict[str, str] = {}
        self._unread = 0

    def __iter__(self) -> Iterator[Entry]:
        count = 0
        overrides: dict[str, str] = {}
        while (info := self._header()) is not None:
            if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, b"X"):
                records = _pax_records(self._metadata(info))
                (self._defaults if info.type == tarfile.XGLTYPE else overrides).update(records)
                continue
            if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                key = "path" if info.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
                overrides[key] = _text(self._metadata(info).rstrip(b"\0"))
                continue
            entry = _entry(info, {**self._defaults, **overrides})
            overrides = {}
            count += 1
            if count > MAX_FILES:
                raise InvalidContent(f"the archive has more than {MAX_FILES} entries")
            self._unread = entry.size
            if entry.path:
                yield entry
            for _ in self.data():
                pass
            self._take(-entry.size % BLOCK)
        while self._fill():
            self._ready = self._ready[:0]

    def data(self) -> Iterator[memoryview]:
        """The data of the current file, in pieces that are valid until the next one is asked for."""
        while self._unread:
            if not self._ready and not self._fill():
                raise InvalidContent("the archive ends in the middle of a file", hint="ask its publisher")
            piece = self._ready[: self._unread]
            self._ready = self._ready[len(piece) :]
            self._unread -= len(piece)
            yield piece

    def _header(self) -> tarfile.TarInfo | None:
        block = self._take(BLOCK)
        if block.count(0) == BLOCK:
            return None
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            raise InvalidContent(f"the archive is damaged: {error}", hint="ask its publisher") from error

    def _metadata(self, info: tarfile.TarInfo) -> bytes:
        if not 0 <= info.size <= MAX_PAX:
            raise InvalidContent(f"the archive has an extended header of {info.size} bytes")
        data = self._take(info.size)
        self._take(-info.size % BLOCK)
        return data

    def _take(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            if not self._ready and not self._fill():
                # Even between two entries: without its end marker (a block of zeros), an archive has been cut.
                raise InvalidContent("the archive ends early", hint="ask its publisher")
            piece = self._ready[: count - len(data)]
            data += piece
            self._ready = self._ready[len(piece) :]
        return bytes(data)

    def _fill(self) -> bool:
        self._ready = self._buffer[: self._reader.readinto(self._buffer)]
        return len(self._ready) > 0


def safe_path(name: str) -> str:
    """The path of an entry within the model's folder; empty for the folder itself.

    Raises:
        UnsafeArchive: it leads out of the folder, or is not a possible file name.
    """
    if name.startswith("/") or "\0" in name or "\\" in name or ".." in name.split("/"):
        raise UnsafeArchive(f"the archive has an entry {name[:200]!r}, which leads out of the model's folder")
    if not _is_utf8(name):
        raise UnsafeArchive(f"the archive has an entry {name[:200]!r}, whose name is not UTF-8")
    path = posixpath.normpath(name) if name else "."
    if len(path) > MAX_PATH or any(len(part.encode()) > MAX_NAME for part in path.split("/")):
        raise UnsafeArchive(f"the archive has an entry with a name of {len(name)} characters")
    if path.split("/")[0] in (RECORD, STAGING):
        raise UnsafeArchive(f"the archive has an entry {name[:200]!r}, a name that Tonnage keeps for itself")
    return "" if path == "." else path


def _entry(info: tarfile.TarInfo, records: dict[str, str]) -> Entry:
    # An empty record takes a value back (POSIX.1-2001, "pax Extended Header Keyword Precedence").
    name = records.get("path") or info.name
    kind = _KINDS.get(info.type)
    if kind is None or _SPARSE in records:
        raise UnsafeArchive(f"the archive has an entry {name[:200]!r} that is neither a file, a folder nor a link")
    size = _size(records.get("size"), info.size)
    path = safe_path(name)
    link = records.get("linkpath") or info.linkname
    if kind == "symlink":
        check_link(path, link)
    elif kind == "hardlink":
        link = safe_path(link)
    return Entry(
        path=path,
        kind=kind,
        size=size if kind == "file" else 0,
        executable=bool(info.mode & 0o100),
        link=link if kind in ("symlink", "hardlink") else "",
    )


def check_link(path: str, target: str) -> None:
    """Check that a symbolic link at `path` leads to somewhere in the folder.

    Raises:
        UnsafeArchive: it does not.
    """
    if not _is_utf8(target):
        raise UnsafeArchive(f"the archive has a link {path[:200]!r} to {target[:200]!r}, which is not UTF-8")
    landing = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    if not target or "\0" in target or target.startswith("/") or landing == ".." or landing.startswith("../"):
        raise UnsafeArchive(f"the archive has a link {path[:200]!r} to {target[:200]!r}, out of the model's folder")


def _size(text: str | None, default: int) -> int:
    size = default
    if text:
        if not text.isascii() or not text.isdigit() or len(text) > 20:
            raise InvalidContent(f"the archive has an entry of size {text[:50]!r}")
        size = int(text)
    if not 0 <= size <= MAX_SIZE:
        raise InvalidContent(f"the archive has an entry of {size} bytes")
    return size


def _pax_records(data: bytes) -> dict[str, str]:
    """`LENGTH key=value\\n`, repeated (POSIX.1-2001, "pax Extended Header")."""
    records = {}
    start = 0
    data = data.rstrip(b"\0")
    while start < len(data):
        space = data.find(b" ", start, start + 8)
        length = data[start:space] if space > 0 else b""
        end = start + int(length) if length.isdigit() else 0
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not start < end <= len(data) or not equals or data[end - 1] != ord("\n"):
            raise InvalidContent("the archive has a damaged extended header")
        name = _text(key)
        if name.startswith(_SPARSE):
            records[_SPARSE] = ""
        elif name in _RECORDS:
            records[name] = _text(value)
        start = end
    return records


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _is_utf8(text: str) -> bool:
    return text.isascii() or not any("\udc80" <= character <= "\udcff" for character in text)
