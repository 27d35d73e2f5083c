"""Streams that cannot reach their end unverified.

`VerifyingReader` raises instead of reporting the end of a stream whose length or hash is wrong, so a consumer that
reads to the end has verified content, and one that does not has no result.
"""

from __future__ import annotations

from contextlib import closing

from tonnage.content.descriptor import Descriptor
from tonnage.content.storage import Opener, Reader
from tonnage.errors import DigestMismatch, InvalidContent, SizeMismatch, Truncated

BUFFER_SIZE = 1 << 20
"""Bytes read at a time: large enough that hashing and I/O release the interpreter lock for long stretches."""


class VerifyingReader:
    """Passes on what `reader` gives and hashes it; the end is reported only if size and digest match `node`.

    Raises (from `readinto`):
        Truncated: the stream ended early.
        SizeMismatch: the stream is longer than `node.size`.
        DigestMismatch: the bytes are not the right ones.
    """

    def __init__(self, reader: Reader, node: Descriptor) -> None:
        self._reader = reader
        self._node = node
        self._hash = node.digest.hasher()
        self._left = node.size

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of `buffer` with bytes that count towards the digest; 0 when all of them were right."""
        if not self._left:
            return self._end()
        count = self._reader.readinto(buffer[: self._left])
        if not count:
            raise Truncated(f"{describe(self._node)} ended {self._left} bytes early", hint="try again")
        self._hash.update(buffer[:count])
        self._left -= count
        if not self._left:
            # Checked with the last bytes, not after them: a consumer that knows the size may not read on.
            self._check()
        return count

    def close(self) -> None:
        """Close the inner stream."""
        self._reader.close()

    def _end(self) -> int:
        if not self._node.size:
            self._check()
        if self._reader.readinto(memoryview(bytearray(1))):
            raise SizeMismatch(f"{describe(self._node)} is longer than its {self._node.size} bytes")
        return 0

    def _check(self) -> None:
        found = self._hash.hexdigest()
        if found != self._node.digest.hex:
            raise DigestMismatch(
                f"{describe(self._node)} is damaged: its bytes hash to {self._node.digest.algorithm}:{found}",
                hint="fetch it again; if that fails too, the store's copy is damaged",
            )


class BytesReader:
    """A stream over bytes in memory."""

    def __init__(self, data: bytes | memoryview, offset: int = 0) -> None:
        self._data = memoryview(data)[offset:]

    def readinto(self, buffer: memoryview, /) -> int:
        """Copy out as much as fits."""
        count = min(len(buffer), len(self._data))
        buffer[:count] = self._data[:count]
        self._data = self._data[count:]
        return count

    def close(self) -> None:
        """Forget the rest."""
        self._data = self._data[:0]


def opener(data: bytes) -> Opener:
    """Opens `data` at any offset."""
    return lambda offset: BytesReader(data, offset)


def read_all(reader: Reader, node: Descriptor, *, limit: int) -> bytes:
    """All of `node`, verified; closes `reader`.

    Args:
        reader: a stream of the content.
        node: what it must be.
        limit: bytes; content that says it is larger is not read at all.

    Raises:
        InvalidContent: larger than `limit`.
        IntegrityError, Truncated: not what `node` says.
    """
    with closing(reader):
        if node.size > limit:
            raise InvalidContent(f"{describe(node)} has {node.size} bytes, more than the limit of {limit}")
        stream = VerifyingReader(reader, node)
        data = bytearray(node.size)
        view = memoryview(data)
        while count := stream.readinto(view if view.nbytes else memoryview(bytearray(1))):
            view = view[count:]
        return bytes(data)


def describe(node: Descriptor) -> str:
    """Names a node in a message: what it is, its title if it has one, and enough of its digest."""
    title = node.annotations.get("org.opencontainers.image.title")
    kind = "manifest" if node.is_manifest else "blob"
    return f"{kind} {title} ({node.digest.algorithm}:{node.digest.short})" if title else f"{kind} {node.digest}"
