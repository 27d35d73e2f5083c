"""The registry as an application; the list of routes is the table of contents of this package.

One process writes to a folder; it may be served read-only by any number. There is no authentication here: the proxy in
front of it, or who runs the application, decides who may ask.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from aiohttp import web

from tonnage.content.descriptor import MAX_SIZE
from tonnage.distribution.blobs import Blobs
from tonnage.distribution.errors import Refusal, refusal, response
from tonnage.distribution.listing import Listing
from tonnage.distribution.manifests import Manifests
from tonnage.distribution.storage import Storage
from tonnage.distribution.uploads import Uploads
from tonnage.errors import TonnageError

UPLOAD_EXPIRY = 7 * 24 * 3600.0
"""Seconds; what distribution's purge allows. A slow link may need days for a large layer."""

SWEEP_INTERVAL = 3600.0
"""Seconds between searches for expired uploads."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_log = logging.getLogger(__name__)


def create_app(
    root: Path,
    *,
    read_only: bool = False,
    max_blob_size: int = MAX_SIZE,
    upload_expiry: float = UPLOAD_EXPIRY,
    clock: Callable[[], float] = time.time,
) -> web.Application:
    """The registry over a folder.

    Args:
        root: the folder; made when the application starts, if it is not there.
        read_only: refuse every change, and do not write to the folder.
        max_blob_size: bytes.
        upload_expiry: seconds after which an upload that does not grow is forgotten.
        clock: says the time, in seconds of the epoch.
    """
    storage = Storage(root)
    uploads = Uploads(storage, max_blob_size=max_blob_size, expiry=upload_expiry)
    blobs, manifests, listing = Blobs(storage), Manifests(storage), Listing(storage)
    app = web.Application(middlewares=[refuse, *([keep] if read_only else [])])
    app.add_routes(
        [
            web.get("/v2", version),
            web.get("/v2/", version),
            web.get("/v2/_catalog", listing.catalog),
            web.get("/v2/{name:.+}/tags/list", listing.tags),
            web.get("/v2/{name:.+}/referrers/{digest}", listing.referrers),
            web.post("/v2/{name:.+}/blobs/uploads/", uploads.start),
            web.post("/v2/{name:.+}/blobs/uploads", uploads.start),
            web.get("/v2/{name:.+}/blobs/uploads/{upload}", uploads.status),
            web.patch("/v2/{name:.+}/blobs/uploads/{upload}", uploads.patch),
            web.put("/v2/{name:.+}/blobs/uploads/{upload}", uploads.put),
            web.delete("/v2/{name:.+}/blobs/uploads/{upload}", uploads.cancel),
            web.get("/v2/{name:.+}/blobs/{digest}", blobs.get),
            web.delete("/v2/{name:.+}/blobs/{digest}", blobs.delete),
            web.get("/v2/{name:.+}/manifests/{reference}", manifests.get),
            web.put("/v2/{name:.+}/manifests/{reference}", manifests.put),
            web.delete("/v2/{name:.+}/manifests/{reference}", manifests.delete),
        ]
    )
    app.on_response_prepare.append(_sign)
    if not read_only:
        app.cleanup_ctx.append(_writing(storage, uploads, clock))
    return app


async def version(_request: web.Request) -> web.StreamResponse:
    """GET `/v2/`: a registry is here (distribution-spec, "Determining Support")."""
    return web.json_response({})


@web.middleware
async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what a handler raises into an OCI error."""
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed as error:
        allow = {"Allow": ", ".join(sorted(error.allowed_methods))}
        return response(Refusal("UNSUPPORTED", f"{request.method} is not allowed here", headers=allow))
    except web.HTTPException as error:
        code = "NAME_UNKNOWN" if error.status == 404 else "UNSUPPORTED"
        return response(Refusal(code, f"{request.method} {request.path[:200]}: {error.reason}", status=error.status))
    except TonnageError as error:
        said = refusal(error)
        if said.status >= 500:
            _log.error("%s %s: %s", request.method, request.path, error, exc_info=said.code == "UNKNOWN")
        return response(said)
    except Exception:
        _log.exception("%s %s failed", request.method, request.path)
        return response(Refusal("UNKNOWN", "the registry failed; its log says more"))


@web.middleware
async def keep(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse every change."""
    if request.method in ("GET", "HEAD"):
        return await handler(request)
    raise Refusal("UNSUPPORTED", "this registry is read-only", headers={"Allow": "GET, HEAD"})


def _writing(
    storage: Storage, uploads: Uploads, clock: Callable[[], float]
) -> Callable[[web.Application], AsyncIterator[None]]:
    async def context(_app: web.Application) -> AsyncIterator[None]:
        await asyncio.to_thread(storage.open)
        sweeping = asyncio.create_task(_sweep(uploads, clock))
        yield
        sweeping.cancel()
        with suppress(asyncio.CancelledError):
            await sweeping
        await asyncio.to_thread(uploads.close)
        storage.close()

    return context


async def _sweep(uploads: Uploads, clock: Callable[[], float]) -> None:
    while True:
        try:
            await uploads.expire(clock())
        except TonnageError:
            _log.exception("could not sweep; trying again later")
        await asyncio.sleep(SWEEP_INTERVAL)


async def _sign(_request: web.Request, reply: web.StreamResponse) -> None:
    reply.headers["Docker-Distribution-API-Version"] = "registry/2.0"
