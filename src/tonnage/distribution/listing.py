"""What a registry holds: repositories, their tags, and who refers to a manifest (distribution-spec).

Tags and repositories come sorted and, with `n`, in pages; a `Link` header leads to the next page.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from urllib.parse import quote, urlencode

import msgspec
from aiohttp import web

from tonnage.content.mediatype import OCI_INDEX
from tonnage.distribution.errors import Refusal
from tonnage.distribution.storage import Storage, digest_of


class Listing:
    """Handlers of the lists of a registry."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def tags(self, request: web.Request) -> web.StreamResponse:
        """GET `/v2/NAME/tags/list`."""
        repository = request.match_info["name"]
        tags, headers = _page(request, await asyncio.to_thread(self._storage.tags, repository))
        return _json({"name": repository, "tags": tags}, headers=headers)

    async def catalog(self, request: web.Request) -> web.StreamResponse:
        """GET `/v2/_catalog`, an extension that distribution made common."""
        names, headers = _page(request, await asyncio.to_thread(self._storage.repositories))
        return _json({"repositories": names}, headers=headers)

    async def referrers(self, request: web.Request) -> web.StreamResponse:
        """GET `/v2/NAME/referrers/DIGEST`, perhaps of one `artifactType`."""
        digest = digest_of(request.match_info["digest"])
        found = await asyncio.to_thread(self._storage.referrers, request.match_info["name"], digest)
        wanted = request.query.get("artifactType")
        headers = {} if wanted is None else {"OCI-Filters-Applied": "artifactType"}
        kept = [node.to_dict() for node in found if wanted in (None, node.artifact_type)]
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": kept}
        return _json(index, headers=headers, content_type=OCI_INDEX)


def page(items: Sequence[str], *, last: str, count: int | None) -> tuple[Sequence[str], bool]:
    """The items of a sorted list that come after `last`, at most `count`, and whether there are more."""
    after = [item for item in items if item > last]
    if count is None:
        return after, False
    return after[:count], 0 < count < len(after)


def _page(request: web.Request, items: Sequence[str]) -> tuple[Sequence[str], dict[str, str]]:
    text = request.query.get("n")
    if text is not None and not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Refusal("PAGINATION_NUMBER_INVALID", f"n={text[:50]!r} is not a number of entries")
    found, more = page(items, last=request.query.get("last", ""), count=None if text is None else int(text))
    if not more:
        return found, {}
    query = urlencode({"n": text, "last": found[-1]})
    return found, {"Link": f'<{quote(request.path)}?{query}>; rel="next"'}


def _json(body: object, *, headers: dict[str, str], content_type: str = "application/json") -> web.Response:
    return web.Response(body=msgspec.json.encode(body), headers=headers, content_type=content_type)
