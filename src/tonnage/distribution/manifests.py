"""Pushing, pulling and deleting manifests (distribution-spec), by tag and by digest.

A manifest is stored as the bytes that came, under the type that it came with, and only when the repository has what it
names: a tag that can be pulled is a promise. Its `subject` may be missing, as the specification wants.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from tonnage.content.digest import Digest
from tonnage.content.manifest import MAX_MANIFEST_SIZE, parse
from tonnage.distribution.blobs import unchanged
from tonnage.distribution.errors import Disconnected, Refusal, require_identity
from tonnage.distribution.storage import Storage, digest_of


class Manifests:
    """Handlers of the manifests of a registry."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def get(self, request: web.Request) -> web.StreamResponse:
        """GET and HEAD `/v2/NAME/manifests/REFERENCE`."""
        repository, reference = _where(request)
        stored = await asyncio.to_thread(self._storage.manifest, repository, reference)
        headers = {"Docker-Content-Digest": str(stored.digest), "ETag": f'"{stored.digest}"'}
        if unchanged(request, stored.digest):
            return web.Response(status=304, headers=headers)
        headers["Content-Type"] = stored.media_type
        if request.method == "HEAD":
            return web.Response(headers={**headers, "Content-Length": str(stored.size)})
        return web.Response(headers=headers, body=await asyncio.to_thread(stored.path.read_bytes))

    async def put(self, request: web.Request) -> web.StreamResponse:
        """PUT `/v2/NAME/manifests/REFERENCE`; with a digest, `?tag=` may name tags, any number of them."""
        repository, reference = _where(request)
        raw = await _read(request)
        by_digest = ":" in reference
        promised = digest_of(reference) if by_digest else Digest.of(raw)
        found = Digest.of(raw, promised.algorithm)
        if found != promised:
            raise Refusal("DIGEST_INVALID", f"the manifest hashes to {found}, not to {promised}")
        document = parse(raw, request.content_type if "Content-Type" in request.headers else "")
        tags = request.query.getall("tag", []) if by_digest else [reference]
        await asyncio.to_thread(self._storage.put_manifest, repository, document, promised, tags)
        reply = web.Response(
            status=201,
            headers={"Location": f"/v2/{repository}/manifests/{promised}", "Docker-Content-Digest": promised},
        )
        if document.subject is not None:
            reply.headers["OCI-Subject"] = document.subject.digest
        for tag in tags if by_digest else ():
            reply.headers.add("OCI-Tag", tag)
        return reply

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """DELETE `/v2/NAME/manifests/REFERENCE`: of a digest, the manifest and its tags; of a tag, only the tag."""
        repository, reference = _where(request)
        if ":" in reference:
            await asyncio.to_thread(self._storage.delete_manifest, repository, digest_of(reference))
        else:
            await asyncio.to_thread(self._storage.delete_tag, repository, reference)
        return web.Response(status=202)


def _where(request: web.Request) -> tuple[str, str]:
    return request.match_info["name"], request.match_info["reference"]


async def _read(request: web.Request) -> bytes:
    require_identity(request)
    data = bytearray()
    try:
        if (request.content_length or 0) <= MAX_MANIFEST_SIZE:
            async for chunk in request.content.iter_any():
                data += chunk
                if len(data) > MAX_MANIFEST_SIZE:
                    break
    except ConnectionError as error:
        raise Disconnected("the manifest ended early") from error
    if max(len(data), request.content_length or 0) > MAX_MANIFEST_SIZE:
        raise Refusal("MANIFEST_INVALID", f"a manifest may have {MAX_MANIFEST_SIZE} bytes", status=413)
    return bytes(data)
