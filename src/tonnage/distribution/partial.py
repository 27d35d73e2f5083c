"""An upload that is under way: a file that grows, and the hash of what is in it.

Receiving, hashing and writing overlap. The event loop takes what the connection has and hands it, a batch at a time, to
a thread that writes and hashes (both release the interpreter lock) while the next batch arrives. Two batches bound the
memory of an upload, whatever its size.

Whatever has arrived is kept, so that a client continues instead of starting again: when the connection breaks, what
was received is written before the upload is let go; after a restart the hash is made anew from the file. A client that
comes back before its broken connection was noticed takes the upload over.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import aiohttp
from aiohttp import StreamReader

from tonnage.content.digest import Digest
from tonnage.distribution.errors import Disconnected, Refusal, local_errors
from tonnage.errors import TonnageError

if TYPE_CHECKING:
    from hashlib import _Hash

BATCH = 1 << 20
"""Bytes handed to a thread at once: enough that the hand-over costs little beside the hashing."""

T = TypeVar("T")


class Partial:
    """One upload, used from the event loop only.

    Args:
        path: its file, which exists.
        executor: where it writes and hashes.
        max_size: bytes; more is refused.

    Attributes:
        size: bytes that have arrived and are in the file.
    """

    def __init__(self, path: Path, *, executor: Executor, max_size: int) -> None:
        self.path = path
        self.size = path.stat().st_size
        self._executor = executor
        self._max_size = max_size
        self._hash: _Hash | None = None if self.size else hashlib.sha256()
        self._turn = asyncio.Lock()
        self._receiving: asyncio.Timeout | None = None
        self._behind = _Behind(lambda batch: self._run(lambda: self._write(batch)))

    @property
    def busy(self) -> bool:
        """Whether a request is using this upload."""
        return self._turn.locked()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Be the only one to change this upload; a request that is still receiving gives way."""
        if self._receiving is not None:
            self._receiving.reschedule(asyncio.get_running_loop().time())
        async with self._turn:
            # Whoever had the turn may have been cancelled twice, so that it did not wait for its last writes.
            with suppress(TonnageError):
                await self._behind.drained()
            yield

    async def receive(self, body: StreamReader) -> int:
        """Append a request body; returns its length.

        Raises:
            Disconnected: the body ended early; what had arrived is kept.
            Refusal: the upload is larger than `max_size`, or another request took it over.
            StorageFull: the disk is full.
        """
        before = self.size
        self._behind.clear()
        try:
            async with asyncio.timeout(None) as self._receiving:
                async for chunk, _ in body.iter_chunks():
                    self._behind.add(chunk)
                    await self._behind.room()
        except TimeoutError as error:
            raise Refusal("BLOB_UPLOAD_INVALID", "another request continues this upload", status=409) from error
        except (ConnectionError, aiohttp.ClientPayloadError) as error:
            raise Disconnected("the connection broke in the middle of the body") from error
        finally:
            # Also when the client is gone and this task is cancelled: what has arrived counts.
            self._receiving = None
            await self._behind.drained()
        return self.size - before

    async def digest(self, algorithm: str) -> Digest:
        """The digest of all that has arrived."""
        return await self._run(lambda: Digest.from_hash(self._state(algorithm)))

    def _write(self, batch: list[bytes]) -> None:
        if self.size + sum(map(len, batch)) > self._max_size:
            raise Refusal("SIZE_INVALID", f"a blob may have {self._max_size} bytes", status=413)
        # Taken away while file and hash may differ: after an error, the hash is made anew from the file.
        state, self._hash = self._state("sha256"), None
        with local_errors("store the upload"), _appending(self.path) as file:
            for chunk in batch:
                _write_all(file, chunk)
                state.update(chunk)
                self.size += len(chunk)
        self._hash = state

    def _state(self, algorithm: str) -> _Hash:
        with local_errors("read the upload"):
            size = self.path.stat().st_size
            if self._hash is not None and self._hash.name == algorithm and size == self.size:
                return self._hash
            self.size = size
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, algorithm)

    def _run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._executor, work)


class _Behind:
    """Writes while more is read: a batch is under way, the next one gathers, and goes as soon as it can.

    What waits here is shielded: a cancelled reader must not take the file away from a thread that writes to it.
    """

    def __init__(self, start: Callable[[list[bytes]], asyncio.Future[None]]) -> None:
        self._start = start
        self._writing: asyncio.Future[None] | None = None
        self._batch: list[bytes] = []
        self._held = 0

    def clear(self) -> None:
        """Forget a write that failed."""
        self._writing, self._batch, self._held = None, [], 0

    def add(self, chunk: bytes) -> None:
        self._batch.append(chunk)
        self._held += len(chunk)
        if self._writing is None:
            self._next()

    async def room(self) -> None:
        while self._held >= BATCH and self._writing is not None:
            await self._written(self._writing)

    async def drained(self) -> None:
        while self._writing is not None:
            await self._written(self._writing)

    async def _written(self, writing: asyncio.Future[None]) -> None:
        await asyncio.shield(writing)
        # Waiting for what is done already does not let callbacks run.
        self._done(writing)

    def _next(self) -> None:
        self._writing = self._start(self._batch)
        self._batch, self._held = [], 0
        self._writing.add_done_callback(self._done)

    def _done(self, written: asyncio.Future[None]) -> None:
        # A failed write stays, so that whoever waits next raises it.
        if self._writing is written and written.exception() is None:
            self._writing = None
            if self._batch:
                self._next()


@contextmanager
def _appending(path: Path) -> Iterator[int]:
    # Not created: an upload that was removed meanwhile must not come back with a hole at its start.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
