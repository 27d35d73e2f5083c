"""Decompression of layers that others compressed, with a limit on what they may expand to."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from typing import Protocol

import zstandard

from tonnage.content.digest import Digest
from tonnage.content.storage import Reader
from tonnage.content.verify import BUFFER_SIZE
from tonnage.errors import DigestMismatch, InvalidContent

MAX_EXPANSION = 256
"""Weights shrink by a third at best; beyond this ratio (and `FREE_EXPANSION`) a layer is a decompression bomb."""

FREE_EXPANSION = 1 << 30
"""Bytes that any layer may expand to."""

ZSTD_WINDOW = 128 << 20
"""Bytes of memory a zstd frame may ask for; the reference implementation's own limit."""


class _Stream(Protocol):
    def readinto(self, buffer: memoryview, /) -> int: ...
    def close(self) -> None: ...


class _RawReader(io.RawIOBase):
    """A `Reader` as the standard library's kind of stream."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object, /) -> int:
        return self._reader.readinto(memoryview(buffer).cast("B"))  # type: ignore[arg-type]


class Decompressed:
    """The uncompressed content of a compressed stream.

    Args:
        reader: the compressed stream; verified, so that its end is its right end.
        compression: `gzip` or `zstd`.
        size: bytes of the compressed stream.
        diff_id: what the uncompressed bytes must hash to, if known.

    Raises (from `readinto`):
        InvalidContent: the stream is damaged, or expands beyond reason.
        DigestMismatch: the uncompressed bytes are not what `diff_id` says.
    """

    def __init__(self, reader: Reader, compression: str, size: int, diff_id: Digest | None) -> None:
        self._reader = reader
        raw = io.BufferedReader(_RawReader(reader), BUFFER_SIZE)
        self._stream: _Stream
        if compression == "gzip":
            self._stream = gzip.GzipFile(fileobj=raw, mode="rb")
        else:
            decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
            self._stream = decompressor.stream_reader(raw, read_across_frames=True, closefd=False)
        self._left = FREE_EXPANSION + size * MAX_EXPANSION
        self._diff_id = diff_id
        self._hash = diff_id.hasher() if diff_id else hashlib.sha256()

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of `buffer` with uncompressed bytes; 0 at the end."""
        try:
            count = self._stream.readinto(buffer)
        except (zlib.error, gzip.BadGzipFile, EOFError, zstandard.ZstdError) as error:
            raise InvalidContent(f"a compressed layer is damaged: {error}", hint="ask its publisher") from error
        self._left -= count
        if self._left < 0:
            raise InvalidContent(
                f"a compressed layer expands to more than {MAX_EXPANSION} times its size",
                hint="it is not a model, or is meant to fill your disk",
            )
        if self._diff_id is not None:
            self._hash.update(buffer[:count])
            if not count and self._hash.hexdigest() != self._diff_id.hex:
                raise DigestMismatch(
                    f"a compressed layer's content hashes to {self._hash.hexdigest()}, not to {self._diff_id}",
                    hint="the artifact is damaged; ask its publisher",
                )
        return count

    def close(self) -> None:
        """Close the compressed stream."""
        self._stream.close()
        self._reader.close()
