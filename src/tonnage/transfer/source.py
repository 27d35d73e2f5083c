"""How a copy reads its source: streams that survive a break, count what they read, and stop when the copy stops."""

from __future__ import annotations

import threading
from contextlib import suppress

from tonnage.content.descriptor import Descriptor
from tonnage.content.manifest import MAX_MANIFEST_SIZE
from tonnage.content.storage import Fetcher, RangeFetcher, Reader
from tonnage.content.verify import BUFFER_SIZE, BytesReader, read_all
from tonnage.errors import RangeNotServed, TonnageError, Truncated
from tonnage.transfer.events import Moved, OnEvent, Retrying
from tonnage.transfer.retry import Retry, Stopped

MAX_KEPT = 32 << 20
"""Bytes of manifests that a copy keeps."""


class ManifestCache:
    """A fetcher that fetches each manifest once: a copy walks them, and then pushes them.

    What goes beyond `MAX_KEPT` bytes is fetched again: a hostile artifact costs requests, not memory.
    """

    def __init__(self, source: Fetcher) -> None:
        self._source = source
        self._kept: dict[str, bytes] = {}
        self._room = MAX_KEPT

    def fetch(self, node: Descriptor) -> Reader:
        """See `Fetcher.fetch`."""
        if not node.is_manifest:
            return self._source.fetch(node)
        raw = self._kept.get(node.digest)
        if raw is None:
            raw = read_all(self._source.fetch(node), node, limit=MAX_MANIFEST_SIZE)
            if len(raw) <= self._room:
                self._kept[node.digest] = raw
                self._room -= len(raw)
        return BytesReader(raw)


class SteadyReader:
    """Reads a node from an offset to its end; when the stream breaks, goes on where it broke.

    What was read stays read, so a consumer that hashes the stream notices nothing.

    Args:
        source: where from.
        node: what.
        offset: bytes to leave out at the start.
        retry: how often a break is mended, counted anew after every byte that arrives.
        on_event: told about bytes and retries.
        stop: set when the copy has failed elsewhere.
    """

    def __init__(
        self, source: Fetcher, node: Descriptor, offset: int, *, retry: Retry, on_event: OnEvent, stop: threading.Event
    ) -> None:
        self._source = source
        self._node = node
        self._position = offset
        self._retry = retry
        self._on_event = on_event
        self._stop = stop
        self._reader: Reader | None = None
        self._failures = 0
        self._start = self._reported = offset

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of `buffer`; 0 at the end."""
        while True:
            if self._stop.is_set():
                raise Stopped("stopped")
            try:
                if self._reader is None:
                    self._reader = self._open()
                count = self._reader.readinto(buffer)
                if not count and self._position < self._node.size:
                    raise Truncated(f"{self._node.digest} ended {self._node.size - self._position} bytes early")
            except TonnageError as error:
                self._mend(error)
                continue
            self._failures = 0
            self._position += count
            self._reported = self._position
            if count:
                self._on_event(Moved(self._node, count))
            return count

    def close(self) -> None:
        """Close the current stream."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def rewind(self, offset: int) -> None:
        """Take back what was reported as moved beyond `offset`: the consumer reads that again."""
        kept = max(self._start, offset)
        if kept < self._reported:
            self._on_event(Moved(self._node, kept - self._reported))
            self._reported = kept

    def _open(self) -> Reader:
        if self._position and isinstance(self._source, RangeFetcher):
            # A registry without ranges sends the start once more; better than not to go on.
            with suppress(RangeNotServed):
                return self._source.fetch_range(self._node, self._position, self._node.size - self._position)
        reader = self._source.fetch(self._node)
        try:
            _skip(reader, self._position)
        except BaseException:
            reader.close()
            raise
        return reader

    def _mend(self, error: TonnageError) -> None:
        """Wait, so that the caller can open the stream again; or give up by raising."""
        with suppress(TonnageError):
            self.close()
        self._failures += 1
        delay = self._retry.delay(self._failures, error)
        if delay is None:
            error.side = error.side or "source"
            raise error
        self._on_event(Retrying(self._node, error, delay))
        self._retry.wait(delay, self._stop)


def _skip(reader: Reader, count: int) -> None:
    buffer = memoryview(bytearray(min(count, BUFFER_SIZE)))
    while count:
        read = reader.readinto(buffer[:count])
        if not read:
            raise Truncated(f"a stream ended {count} bytes before its place")
        count -= read
