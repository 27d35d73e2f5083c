"""The gateway, composed from options: `Server(with_engine(...), with_metrics(), ...)`.

Defaults first, then each option in order, then one check of the whole: a combination that cannot work is refused here,
with a sentence, and not by the first request. An option is a plain function over the server (`gateway.options`), so a
deployment target is a list of them.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable
from hashlib import sha256

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry

from tonnage.errors import InvalidComposition
from tonnage.gateway.engines.engine import Engine, Health, Timeouts
from tonnage.gateway.openai import EXCHANGE, REQUEST_ID, Exchange, OpenAIApi
from tonnage.gateway.refusal import Refusal, from_http
from tonnage.gateway.routing import Routes
from tonnage.telemetry.metrics import GatewayMetrics

BODY_LIMIT = 32 << 20
"""Bytes; a few images in base64 fit."""

OPEN_PAGES = ("/healthz", "/readyz", "/metrics")
"""Asked for by kubelets and Prometheus, without a key and without being counted."""

CLIENT_WENT_AWAY = 499
"""What nginx logs for a client that closed its connection; never sent."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

log = logging.getLogger("tonnage.gateway")

Option = Callable[["Server"], None]


class Server:
    """A gateway.

    Args:
        *options: see `gateway.options`; applied in order.

    Raises:
        InvalidComposition: the options do not go together.
    """

    def __init__(self, *options: Option) -> None:
        self.engines: list[Engine] = []
        self.aliases: dict[str, str] = {}
        self.api_keys: frozenset[str] | None = None
        self.registry: CollectorRegistry | None = None
        self.body_limit = BODY_LIMIT
        self.concurrency = 0
        self.timeouts = Timeouts()
        for option in options:
            option(self)
        self._routes = Routes(self.engines, self.aliases)
        self._keys = _hashes(self.api_keys)
        self._metrics = GatewayMetrics(self.registry or CollectorRegistry())
        self._draining = False

    @property
    def models(self) -> list[str]:
        """Every name that a client may ask for."""
        return self._routes.models

    def app(self) -> web.Application:
        """The application; its start and clean-up start and stop the engines.

        Run it with `handler_cancellation=True`, as `cli.serving` does: without it, generations outlive their clients.
        """
        app = web.Application(middlewares=[self._middleware()], client_max_size=self.body_limit)
        api = OpenAIApi(
            self._routes,
            metrics=self._metrics,
            timeouts=self.timeouts,
            limit=self.concurrency,
            created=int(time.time()),
        )
        api.add_to(app.router)
        app.router.add_get("/healthz", self._alive)
        app.router.add_get("/readyz", self._ready)
        if self.registry is not None:
            app.router.add_get("/metrics", self._exposition)
        app.on_response_prepare.append(_name_request)
        app.cleanup_ctx.append(self._running_engines)
        return app

    def drain(self) -> None:
        """Let `/readyz` say no from now on, so that no new requests are sent here."""
        self._draining = True

    async def health(self) -> dict[str, Health]:
        """The health of each engine, by name."""
        checks = await asyncio.gather(*(engine.health(self.timeouts) for engine in self._routes.engines))
        found = {engine.name: health for engine, health in zip(self._routes.engines, checks, strict=True)}
        for name, health in found.items():
            self._metrics.engine_up(name, health.ready)
        return found

    async def _running_engines(self, _: web.Application) -> AsyncIterator[None]:
        started: list[Engine] = []
        try:
            for engine in self._routes.engines:
                started.append(engine)
                await engine.start()
            yield
        finally:
            for engine in reversed(started):
                await engine.stop()

    async def _alive(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _ready(self, _: web.Request) -> web.Response:
        health = await self.health()
        engines = {
            name: {"ready": True} if found.ready else {"ready": False, "reason": found.reason}
            for name, found in health.items()
        }
        # One engine of several suffices: taking the gateway away would take the working ones away too.
        ready = not self._draining and any(found.ready for found in health.values())
        status = "draining" if self._draining else "ok" if ready else "unavailable"
        return web.json_response({"status": status, "engines": engines}, status=200 if ready else 503)

    async def _exposition(self, _: web.Request) -> web.Response:
        await self.health()
        return web.Response(body=self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _middleware(self) -> Middleware:
        @web.middleware
        async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
            exchange = request[EXCHANGE] = Exchange(id=_request_id(request))
            if request.path in OPEN_PAGES:
                return await self._answer(request, handler, exchange)
            resource = request.match_info.route.resource
            exchange.route = resource.canonical if resource else ""
            status = 500
            try:
                response = await self._answer(request, self._guarded(handler), exchange)
                status = response.status
                return response
            except (asyncio.CancelledError, ConnectionError):
                status = CLIENT_WENT_AWAY
                self._metrics.disconnected(exchange.route, exchange.model)
                raise
            finally:
                elapsed = time.perf_counter() - exchange.began
                self._metrics.answered(exchange.route, exchange.model, status, elapsed)

        return answer

    async def _answer(self, request: web.Request, handler: Handler, exchange: Exchange) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refusal as refusal:
            return refusal.response()
        except web.HTTPException as error:
            return from_http(error).response()
        except Exception as error:
            # The head of a stream is sent: what is left is to cut the connection, so that nobody takes it for whole.
            if exchange.streaming:
                raise
            log.exception("request %s failed", exchange.id, exc_info=error)
            return Refusal(500, "The gateway failed; its log says why.", code="internal_error").response()

    def _guarded(self, handler: Handler) -> Handler:
        if not self._keys:
            return handler

        async def guarded(request: web.Request) -> web.StreamResponse:
            self._authorise(request)
            return await handler(request)

        return guarded

    def _authorise(self, request: web.Request) -> None:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _unauthorised("You did not provide an API key; send it as 'Authorization: Bearer KEY'.")
        # Every key is compared, over hashes of equal length: the time says nothing about any of them.
        given = _hash(key.strip())
        if not sum(hmac.compare_digest(given, known) for known in self._keys):
            raise _unauthorised("The API key is wrong.")


async def _name_request(request: web.Request, response: web.StreamResponse) -> None:
    if EXCHANGE in request:
        response.headers[REQUEST_ID] = request[EXCHANGE].id


def _request_id(request: web.Request) -> str:
    given = request.headers.get(REQUEST_ID, "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


def _unauthorised(message: str) -> Refusal:
    return Refusal(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _hashes(keys: frozenset[str] | None) -> tuple[bytes, ...]:
    if keys is None:
        return ()
    if not keys:
        raise InvalidComposition(
            "the list of API keys is empty", hint="give a key, or leave with_api_keys out to let everyone in"
        )
    for key in keys:
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            raise InvalidComposition("an API key is empty, or has characters that a header cannot carry")
    return tuple(_hash(key) for key in sorted(keys))


def _hash(key: str) -> bytes:
    return sha256(key.encode()).digest()
