"""Deterministic tars whose file data starts on a 4 KiB boundary, described before a byte of them is written.

A layer is never built on disk. Its `TarLayout` says which bytes of the tar are header and which are file data, so a
reader can start at any offset, twice, in parallel, and the same files give the same bytes on any machine.

Each entry is a PAX extended header ("x"), its records, a ustar header and the data (POSIX.1-2001 pax, "ustar
Interchange Format"). A `comment` record, which the standard tells readers to ignore, pads the records so that the data
lands on the boundary: there, a range of a blob can be read straight into page-aligned memory, and file systems can
share blocks between a blob and the file. Owner, time and mode are constants (ModelPack model-spec, "Reproducibility").
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BLOCK = 512
ALIGNMENT = 4096
"""Bytes; file data starts at a multiple of it."""

END = bytes(2 * BLOCK)
"""Two zero blocks end an archive."""

MAX_NAME = 255
"""Bytes of one part of a path; what file systems allow."""

_MODE = 0o644
_USTAR_SIZE_LIMIT = 8 << 30
"""Eleven octal digits; larger sizes go into a PAX record."""

_PART = re.compile(r"(?P<path>.+)\.tonnage-part\.(?P<offset>[0-9]{15})\.of\.(?P<total>[0-9]{15})", re.DOTALL)


@dataclass(frozen=True)
class Piece:
    """A file, or one range of a file that is split over several layers.

    Args:
        path: of the file within the model, with `/` between its parts.
        size: bytes of this piece.
        offset: where in the file the piece starts.
        total: bytes of the whole file; equal to `size` unless the file is split.
    """

    path: str
    size: int
    offset: int
    total: int

    @classmethod
    def whole(cls, path: str, size: int) -> Piece:
        """A file that is not split."""
        return cls(path, size, 0, size)

    @property
    def is_part(self) -> bool:
        """Whether the file continues elsewhere."""
        return self.size != self.total

    @property
    def name(self) -> str:
        """The entry's name in the tar. A part says its place in its name, so that it can be joined from that alone."""
        if not self.is_part:
            return self.path
        return f"{self.path}.tonnage-part.{self.offset:015}.of.{self.total:015}"

    @classmethod
    def from_name(cls, name: str, size: int) -> Piece:
        """The piece that a tar entry holds."""
        match = _PART.fullmatch(name)
        if not match:
            return cls.whole(name, size)
        return cls(match["path"], size, int(match["offset"]), int(match["total"]))


@dataclass(frozen=True)
class Segment:
    """A stretch of a tar: the `data` of `piece` if there is one, else literal `data`."""

    offset: int
    size: int
    data: bytes
    piece: Piece | None


class TarLayout:
    """The tar of some pieces, in the order given.

    Attributes:
        size: bytes of the whole tar.
        segments: what it consists of, contiguous, from offset 0.
    """

    def __init__(self, pieces: Iterable[Piece]) -> None:
        segments: list[Segment] = []
        offset = 0
        literal = b""
        for piece in pieces:
            head = literal + _entry_header(piece, offset + len(literal))
            segments.append(Segment(offset, len(head), head, None))
            offset += len(head)
            if piece.size:
                segments.append(Segment(offset, piece.size, b"", piece))
            offset += piece.size
            literal = bytes(-piece.size % BLOCK)
        segments.append(Segment(offset, len(literal + END), literal + END, None))
        self.segments: Sequence[Segment] = tuple(segments)
        self.size = offset + len(literal + END)
        self._starts = [segment.offset for segment in segments]

    def from_offset(self, offset: int) -> Iterable[Segment]:
        """The segments from the one that holds `offset`; none at the end."""
        if offset >= self.size:
            return ()
        first = bisect.bisect_right(self._starts, offset) - 1
        return itertools.islice(self.segments, first, None)

    def data_offsets(self) -> dict[Piece, int]:
        """Where in the tar the data of each piece that has any starts."""
        return {segment.piece: segment.offset for segment in self.segments if segment.piece}


def footprint(piece: Piece) -> int:
    """Bytes that a piece adds to a tar, at most, wherever in the tar it stands."""
    head = 2 * BLOCK + _round_up(len(_records(piece)) + _MIN_COMMENT, BLOCK)
    return _round_up(piece.size, BLOCK) + head + ALIGNMENT - BLOCK


def symlink(name: str, target: str) -> bytes:
    """A whole tar that holds one symbolic link."""
    return _ustar(name.encode(), 0, b"2", target.encode()) + END


_MIN_COMMENT = len("999 comment=\n")


def _entry_header(piece: Piece, offset: int) -> bytes:
    """Everything before the data of an entry that starts at `offset`, so long that the data is aligned."""
    records = _records(piece)
    least = 2 * BLOCK + _round_up(len(records) + _MIN_COMMENT, BLOCK)
    area = least + (-(offset + least) % ALIGNMENT)
    records += _comment(area - 2 * BLOCK - len(records))
    name = piece.name.encode()
    size = piece.size if piece.size < _USTAR_SIZE_LIMIT else 0
    return _ustar(b"PaxHeaders/tonnage", len(records), b"x") + records + _ustar(name[:100], size, b"0")


def _records(piece: Piece) -> bytes:
    """The PAX records an entry needs: none for a short name and a small file."""
    name = piece.name.encode()
    records = b""
    if len(name) > 100 or not name.isascii():
        records += _record("path", name)
    if piece.size >= _USTAR_SIZE_LIMIT:
        records += _record("size", str(piece.size).encode())
    return records


def _record(key: str, value: bytes) -> bytes:
    """`LENGTH key=value\\n`, where LENGTH counts itself."""
    rest = b" " + key.encode() + b"=" + value + b"\n"
    length = len(rest) + len(str(len(rest)))
    length = len(rest) + len(str(length))
    return str(length).encode() + rest


def _comment(length: int) -> bytes:
    """A comment record of exactly `length` bytes."""
    # Not `_record`, which finds the shortest: at 100, 1000, ... a record of one byte less is as consistent.
    head = f"{length} comment="
    return f"{head:{length - 1}}\n".encode()


def _ustar(name: bytes, size: int, kind: bytes, link: bytes = b"") -> bytes:
    header = bytearray(BLOCK)
    for start, field in (
        (0, name),
        (100, b"%07o\0" % _MODE),
        (108, b"%07o\0" % 0),
        (116, b"%07o\0" % 0),
        (124, b"%011o\0" % size),
        (136, b"%011o\0" % 0),
        (148, b" " * 8),
        (156, kind),
        (157, link),
        (257, b"ustar\x0000"),
    ):
        header[start : start + len(field)] = field
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _round_up(size: int, unit: int) -> int:
    return size + -size % unit
