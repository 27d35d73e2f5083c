"""Pushing blobs (distribution-spec, "Pushing blobs"): in one request, in chunks, by mounting, and after a break.

Every answer about an upload carries its `Location` and, as `Range`, what has arrived; a chunk that does not continue
there is refused with 416 and the same two, which is all a client needs to go on.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from aiohttp import web

from tonnage.content.digest import Digest
from tonnage.content.reference import check_repository
from tonnage.distribution.errors import Refusal, require_identity
from tonnage.distribution.partial import Partial
from tonnage.distribution.storage import Storage, digest_of
from tonnage.errors import InvalidReference, StorageFull

_RANGE = re.compile(r"(?:bytes[ =])?(\d{1,19})-(\d{1,19})(?:/(?:\d{1,19}|\*))?")

THREADS = 16
"""Threads that write uploads, apart from those that serve reads: a slow disk sync must not delay a download."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Uploads:
    """Handlers of the uploads of a registry.

    Args:
        storage: where finished blobs go.
        max_blob_size: bytes.
        expiry: seconds after which an upload that does not grow is forgotten.
    """

    def __init__(self, storage: Storage, *, max_blob_size: int, expiry: float) -> None:
        self._storage = storage
        self._max_blob_size = max_blob_size
        self._expiry = expiry
        self._partials: dict[str, Partial] = {}
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="upload")

    def close(self) -> None:
        """Wait for what is being written."""
        self._executor.shutdown()

    async def expire(self, now: float) -> None:
        """Forget uploads that have not grown for `expiry` seconds before `now`, and content that nothing names."""
        for path in await self._run(lambda: self._storage.old_uploads(now - self._expiry)):
            partial = self._partials.get(path.name)
            if partial is not None and partial.busy:
                continue
            await self._forget(path)
            _log.info("upload %s expired", path.name)
        for digest in await self._run(self._storage.sweep):
            _log.info("removed %s, which no repository has", digest)

    async def start(self, request: web.Request) -> web.StreamResponse:
        """POST `/v2/NAME/blobs/uploads/`: start an upload, send a whole blob, or mount one."""
        repository = request.match_info["name"]
        query = request.query
        require_identity(request)
        if "mount" in query and await self._mount(repository, query):
            return self._created(repository, digest_of(query["mount"]))
        if "digest" in query:
            return await self._whole(request, repository, digest_of(query["digest"]))
        upload, partial = await self._new(repository)
        if request.can_read_body:
            async with partial.turn():
                await self._receive(partial, request)
        return self._progress(202, repository, upload, partial)

    async def patch(self, request: web.Request) -> web.StreamResponse:
        """PATCH `/v2/NAME/blobs/uploads/ID`: append to an upload."""
        repository, upload, partial = self._find(request)
        async with partial.turn():
            await self._append(request, partial)
        return self._progress(202, repository, upload, partial)

    async def put(self, request: web.Request) -> web.StreamResponse:
        """PUT `/v2/NAME/blobs/uploads/ID?digest=`: finish an upload, perhaps with a last chunk."""
        repository, _, partial = self._find(request)
        digest = digest_of(request.query.get("digest", ""))
        async with partial.turn():
            await self._append(request, partial)
            await self._finish(partial, repository, digest)
        return self._created(repository, digest)

    async def status(self, request: web.Request) -> web.StreamResponse:
        """GET `/v2/NAME/blobs/uploads/ID`: how much of an upload has arrived."""
        repository, upload, partial = self._find(request)
        return self._progress(204, repository, upload, partial)

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """DELETE `/v2/NAME/blobs/uploads/ID`: give up an upload."""
        _, _, partial = self._find(request)
        async with partial.turn():
            await self._discard(partial)
        return web.Response(status=204)

    async def _mount(self, repository: str, query: Mapping[str, str]) -> bool:
        digest = digest_of(query["mount"])
        check_repository(repository)
        source = query.get("from", repository)
        try:
            return await self._run(lambda: self._storage.mount(repository, digest, source))
        except InvalidReference:
            return False

    async def _whole(self, request: web.Request, repository: str, digest: Digest) -> web.Response:
        _, partial = await self._new(repository)
        async with partial.turn():
            try:
                await self._receive(partial, request)
            except BaseException:
                # The client was not told the id, so nobody can continue this upload.
                await asyncio.shield(self._discard(partial))
                raise
            await self._finish(partial, repository, digest)
        return self._created(repository, digest)

    async def _append(self, request: web.Request, partial: Partial) -> None:
        self._require_open(partial)
        require_identity(request)
        text = request.headers.get("Content-Range")
        length = None if text is None else _continues(text, partial.size, self._headers_of(request, partial))
        if length is not None and request.content_length not in (None, length):
            raise Refusal("SIZE_INVALID", f"Content-Range has {length} bytes, the body {request.content_length}")
        received = await self._receive(partial, request) if request.can_read_body else 0
        if length is not None and received != length:
            raise Refusal(
                "SIZE_INVALID",
                f"Content-Range has {length} bytes, the body had {received}",
                headers=self._headers_of(request, partial),
            )

    async def _receive(self, partial: Partial, request: web.Request) -> int:
        if partial.size + (request.content_length or 0) > self._max_blob_size:
            raise Refusal("SIZE_INVALID", f"a blob may have {self._max_blob_size} bytes", status=413)
        try:
            return await partial.receive(request.content)
        except StorageFull:
            await self._discard(partial)
            raise

    async def _finish(self, partial: Partial, repository: str, digest: Digest) -> None:
        found = await partial.digest(digest.algorithm)
        if found != digest:
            await self._discard(partial)
            raise Refusal("DIGEST_INVALID", f"the bytes hash to {found}, not to {digest}; start again")
        # Shielded: when the client goes away now, the blob is stored all the same, and nothing is left half done.
        await asyncio.shield(self._commit(partial, repository, digest))

    async def _commit(self, partial: Partial, repository: str, digest: Digest) -> None:
        try:
            await self._run(lambda: self._storage.commit(partial.path, repository, digest))
        finally:
            await self._discard(partial)

    async def _new(self, repository: str) -> tuple[str, Partial]:
        upload, path = await self._run(lambda: self._storage.new_upload(repository))
        return upload, self._remember(Partial(path, executor=self._executor, max_size=self._max_blob_size))

    def _find(self, request: web.Request) -> tuple[str, str, Partial]:
        repository, upload = request.match_info["name"], request.match_info["upload"]
        path = self._storage.upload(repository, upload)
        partial = self._partials.get(path.name)
        if partial is None and path.exists():
            partial = self._remember(Partial(path, executor=self._executor, max_size=self._max_blob_size))
        if partial is None:
            raise _unknown(upload)
        return repository, upload, partial

    def _remember(self, partial: Partial) -> Partial:
        return self._partials.setdefault(partial.path.name, partial)

    def _require_open(self, partial: Partial) -> None:
        # Whoever had the turn before us may have finished or cancelled it.
        if self._partials.get(partial.path.name) is not partial:
            raise _unknown(partial.path.name.partition("-")[0])

    async def _discard(self, partial: Partial) -> None:
        await self._forget(partial.path)

    async def _forget(self, path: Path) -> None:
        # In this order: a request that finds the file meanwhile would remember the upload again.
        await self._run(lambda: path.unlink(missing_ok=True))
        self._partials.pop(path.name, None)

    def _headers_of(self, request: web.Request, partial: Partial) -> dict[str, str]:
        return _progress_headers(request.match_info["name"], request.match_info["upload"], partial.size)

    def _progress(self, status: int, repository: str, upload: str, partial: Partial) -> web.Response:
        return web.Response(status=status, headers=_progress_headers(repository, upload, partial.size))

    def _created(self, repository: str, digest: Digest) -> web.Response:
        location = f"/v2/{repository}/blobs/{digest}"
        return web.Response(status=201, headers={"Location": location, "Docker-Content-Digest": digest})

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


def _continues(text: str, size: int, headers: Mapping[str, str]) -> int:
    match = _RANGE.fullmatch(text.strip())
    if not match:
        raise Refusal("BLOB_UPLOAD_INVALID", f"Content-Range {text[:100]!r} is not START-END", headers=headers)
    start, end = int(match[1]), int(match[2])
    if start != size or end < start:
        message = f"the upload has {size} bytes, so a chunk cannot be {start}-{end}"
        raise Refusal("BLOB_UPLOAD_INVALID", message, status=416, headers=headers)
    return end - start + 1


def _progress_headers(repository: str, upload: str, size: int) -> dict[str, str]:
    return {
        "Location": f"/v2/{repository}/blobs/uploads/{upload}",
        # Of an empty upload, distribution says 0-0 too, and clients expect it.
        "Range": f"0-{max(size - 1, 0)}",
        "Docker-Upload-UUID": upload,
    }


def _unknown(upload: str) -> Refusal:
    return Refusal("BLOB_UPLOAD_UNKNOWN", f"there is no upload {upload}; start again", detail={"upload": upload})
