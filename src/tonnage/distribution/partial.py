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
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import aiohttp
from aiohttp import StreamReader

from tonnage.content.digest import Digest
from tonnage.distribution.errors import Disconnected, Refusal, local_errors

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
            yield

    async def receive(self, body: StreamReader) -> int:
        """Append a request body; returns its length.

        Raises:
            Disconnected: the body ended early; what had arrived is kept.
            Refusal: the upload is larger than `max_size`, or another request took it over.
            StorageFull: the disk is full.
        """
        before = self.size
        body.set_read_chunk_size(BATCH)
        try:
            async with asyncio.timeout(None) as self._receiving:
                await self._append(body)
        except TimeoutError as error:
            raise Refusal("BLOB_UPLOAD_INVALID", "another request continues this upload", status=409) from error
        except (ConnectionError, aiohttp.ClientPayloadError) as error:
            raise Disconnected(f"the body ended after {self.size - before} bytes") from error
        finally:
            self._receiving = None
        return self.size - before

    async def digest(self, algorithm: str) -> Digest:
        """The digest of all that has arrived."""
        return await self._run(lambda: Digest.from_hash(self._state(algorithm)))

    async def _append(self, body: StreamReader) -> None:
        batch: list[bytes] = []
        held = 0
        writing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        writing.set_result(None)
        try:
            async for chunk, _ in body.iter_chunks():
                batch.append(chunk)
                held += len(chunk)
                if held >= BATCH or writing.done():
                    await asyncio.shield(writing)
                    writing = self._start(batch)
                    batch, held = [], 0
        finally:
            # Also when the client is gone and this task is cancelled: what has arrived counts.
            await asyncio.shield(writing)
            if batch:
                await asyncio.shield(self._start(batch))

    def _start(self, batch: list[bytes]) -> asyncio.Future[None]:
        return asyncio.get_running_loop().run_in_executor(self._executor, self._write, batch)

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

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


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
