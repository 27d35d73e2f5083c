"""Pulling blobs (distribution-spec, "Pulling blobs"), whole and in ranges, and deleting them.

`BlobResponse` is aiohttp's `FileResponse` for content that never changes: the kernel copies from file to socket
(sendfile), the digest is the entity tag, so `If-None-Match` and `If-Range` mean what they say, a refused range has an
OCI body, and where sendfile is not to be had (TLS, uvloop) blocks are large instead of asyncio's 16 KiB.
"""

from __future__ import annotations

import asyncio
import os
import re
from io import FileIO

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.web_request import BaseRequest

from tonnage.distribution.errors import Refusal
from tonnage.distribution.storage import Storage, Stored, digest_of

BLOCK = 1 << 20
"""Bytes copied at once when the kernel cannot do it."""

_RANGE = re.compile(r"bytes=\s*(\d{0,19})-(\d{0,19})\s*")


class Blobs:
    """Handlers of the blobs of a registry."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def get(self, request: web.Request) -> web.StreamResponse:
        """GET and HEAD `/v2/NAME/blobs/DIGEST`, perhaps a range of it."""
        digest = digest_of(request.match_info["digest"])
        blob = await asyncio.to_thread(self._storage.blob, request.match_info["name"], digest)
        if unchanged(request, digest):
            return web.Response(status=304, headers={"ETag": f'"{digest}"', "Docker-Content-Digest": digest})
        text = request.headers.get("Range")
        if text is None or request.headers.get("If-Range", f'"{digest}"') != f'"{digest}"':
            return BlobResponse(blob, None)
        return BlobResponse(blob, parse_range(text, blob.size))

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """DELETE `/v2/NAME/blobs/DIGEST`."""
        digest = digest_of(request.match_info["digest"])
        await asyncio.to_thread(self._storage.delete_blob, request.match_info["name"], digest)
        return web.Response(status=202)


class BlobResponse(web.StreamResponse):
    """Sends a blob, or a range of it.

    Args:
        blob: which.
        part: first byte and the one after the last; None for all, with status 200.
    """

    def __init__(self, blob: Stored, part: tuple[int, int] | None) -> None:
        super().__init__(status=200 if part is None else 206)
        self._blob = blob
        self._offset, stop = part or (0, blob.size)
        self._count = stop - self._offset
        self.content_type = blob.media_type
        self.content_length = self._count
        self.headers.update(
            {"Accept-Ranges": "bytes", "Docker-Content-Digest": blob.digest, "ETag": f'"{blob.digest}"'}
        )
        if part is not None:
            self.headers["Content-Range"] = f"bytes {self._offset}-{stop - 1}/{blob.size}"

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter | None:
        """Send headers and content; the file is open before the headers go, so a deletion cannot come between."""
        if request.method == "HEAD" or not self._count:
            return await super().prepare(request)
        try:
            file = await asyncio.to_thread(FileIO, self._blob.path)
        except FileNotFoundError:
            return await self._gone(request)
        with file:
            writer = await super().prepare(request)
            await self._send(request, file)
            await self.write_eof()
            return writer

    async def _send(self, request: BaseRequest, file: FileIO) -> None:
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        if transport.get_extra_info("sslcontext") is None:
            try:
                await asyncio.get_running_loop().sendfile(transport, file, self._offset, self._count, fallback=False)
                return
            except NotImplementedError:
                pass
        await self._copy(file)

    async def _copy(self, file: FileIO) -> None:
        position, end = self._offset, self._offset + self._count
        while position < end:
            block = await asyncio.to_thread(os.pread, file.fileno(), min(BLOCK, end - position), position)
            if not block:
                raise ConnectionResetError("the blob's file ends early")
            await self.write(block)
            position += len(block)

    async def _gone(self, request: BaseRequest) -> AbstractStreamWriter | None:
        self.set_status(404)
        self.content_length = 0
        return await super().prepare(request)


def parse_range(text: str, size: int) -> tuple[int, int] | None:
    """Read a `Range` header (RFC 9110, section 14.2).

    Returns:
        First byte and the one after the last; None if all is to be sent: several ranges, or another unit.

    Raises:
        Refusal: RANGE_INVALID, when nothing of the content is in the range.
    """
    match = _RANGE.fullmatch(text)
    if not match or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first:
        start, stop = int(first), min(int(last) + 1, size) if last else size
    else:
        start, stop = max(size - int(last), 0), size
    if start >= stop:
        headers = {"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"}
        raise Refusal("RANGE_INVALID", f"{text[:60]!r} has nothing of {size} bytes", headers=headers)
    return start, stop


def unchanged(request: web.Request, digest: str) -> bool:
    """Whether the client has this content already (`If-None-Match`)."""
    tags = request.if_none_match or ()
    return any(tag.value in (digest, "*") for tag in tags)
