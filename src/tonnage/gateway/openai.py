"""The handlers of OpenAI's API: check a request, find its engine, and pass the answer on.

What the gateway adds is only what engines disagree about: names of models, checks, error shapes, and an honest end.
A body travels as the client wrote it, unless an alias names the model. An answer that is not a stream is passed in one
piece; a stream event by event, at the speed at which the client reads. If the client goes away, aiohttp cancels the
handler (`handler_cancellation`), which leaves `Engine.open`, which closes the connection to the engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web

from tonnage.errors import EngineError, TonnageError, Unavailable
from tonnage.gateway import schema
from tonnage.gateway.engines.engine import Answer, Timeouts
from tonnage.gateway.refusal import Refusal, from_engine
from tonnage.gateway.relay import EventFramer, usage
from tonnage.gateway.routing import Route, Routes
from tonnage.telemetry.metrics import Failure, GatewayMetrics

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MODELS = "/v1/models"
MODEL = "/v1/models/{model:.+}"

REQUEST_ID = "X-Request-Id"
FORWARDED = ("traceparent", "tracestate")
"""Request headers that go on to the engine beside the request id, so that traces join (W3C Trace Context)."""

STREAM_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""The last one asks nginx not to collect events before it passes them on."""


@dataclass(kw_only=True)
class Exchange:
    """One request on its way through the gateway; lives in the aiohttp request.

    Args:
        id: the request id, the client's own or a new one.
        began: on the clock of `time.perf_counter`.
        route: the path, or its pattern; empty for a page that does not exist.
        model: the label for metrics: empty unless it names a model of ours.
        streaming: whether the head of a stream was sent, after which errors are events.
    """

    id: str
    began: float = field(default_factory=time.perf_counter)
    route: str = ""
    model: str = ""
    streaming: bool = False


EXCHANGE = web.RequestKey("exchange", Exchange)


class OpenAIApi:
    """OpenAI's pages, over `routes`.

    Args:
        routes: the models and their engines.
        metrics: what is counted.
        timeouts: how long to wait for engines.
        limit: requests generated at a time, over all models; 0 for any number.
        created: seconds since 1970, the age that every model claims.
    """

    def __init__(
        self, routes: Routes, *, metrics: GatewayMetrics, timeouts: Timeouts, limit: int = 0, created: int = 0
    ) -> None:
        self._routes = routes
        self._metrics = metrics
        self._timeouts = timeouts
        self._limit = limit
        self._created = created
        self._in_flight = 0

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Register the pages."""
        router.add_post(CHAT, self.chat)
        router.add_post(COMPLETIONS, self.complete)
        router.add_get(MODELS, self.list_models)
        router.add_get(MODEL, self.get_model)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        return await self._generate(request, CHAT, schema.chat_request)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/completions."""
        return await self._generate(request, COMPLETIONS, schema.completion_request)

    async def list_models(self, _: web.Request) -> web.Response:
        """GET /v1/models."""
        models = [self._model(name) for name in self._routes.models]
        return web.json_response({"object": "list", "data": models})

    async def get_model(self, request: web.Request) -> web.Response:
        """GET /v1/models/{id}."""
        name = request.match_info["model"]
        self._routes.find(name)
        return web.json_response(self._model(name))

    def _model(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "tonnage"}

    async def _generate(
        self, request: web.Request, path: str, parse: Callable[[bytes], schema.Request]
    ) -> web.StreamResponse:
        if request.content_type != "application/json":
            raise Refusal(
                415, "Send JSON, and say so with 'Content-Type: application/json'.", code="unsupported_content_type"
            )
        body = await request.read()
        wanted = parse(body)
        route = self._routes.find(wanted.model)
        if wanted.model != route.model:
            body = schema.with_model(body, route.model)
        exchange = request[EXCHANGE]
        exchange.model = route.model
        if self._limit and self._in_flight >= self._limit:
            raise Refusal(
                429,
                f"This server already answers {self._limit} requests at a time.",
                code="rate_limit_exceeded",
                headers={"Retry-After": "1"},
            )
        self._in_flight += 1
        self._metrics.started(route.model)
        try:
            return await self._forward(request, exchange, route, path, body)
        finally:
            self._in_flight -= 1
            self._metrics.ended(route.model)

    async def _forward(
        self, request: web.Request, exchange: Exchange, route: Route, path: str, body: bytes
    ) -> web.StreamResponse:
        headers = _forwarded(request, exchange)
        try:
            async with route.engine.open(path, body, headers=headers, timeouts=self._timeouts) as answer:
                if answer.status != 200:
                    raise await self._refused(answer, route)
                if answer.headers.get("Content-Type", "").startswith("text/event-stream"):
                    return await self._stream(request, exchange, route, answer)
                return await self._whole(route, answer)
        except (TonnageError, TimeoutError) as error:
            raise self._failed(error, route) from error

    async def _refused(self, answer: Answer, route: Route) -> Refusal:
        refusal = from_engine(answer.status, await answer.read(), answer.headers, engine=route.engine.name)
        if refusal.status >= 500:
            self._metrics.engine_failed(route.engine.name, "refused")
        return refusal

    async def _whole(self, route: Route, answer: Answer) -> web.Response:
        body = await answer.read()
        self._count_tokens(route, body)
        kind = answer.headers.get("Content-Type", "application/json")
        return web.Response(body=body, headers={"Content-Type": kind})

    async def _stream(
        self, request: web.Request, exchange: Exchange, route: Route, answer: Answer
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=STREAM_HEADERS)
        exchange.streaming = True
        await response.prepare(request)
        framer = EventFramer()
        first = True
        try:
            async for chunk in answer.chunks():
                events = framer.feed(chunk)
                if not events:
                    continue
                await response.write(events)
                if first and b"data:" in events:
                    first = False
                    elapsed = time.perf_counter() - exchange.began
                    self._metrics.first_token(exchange.route, exchange.model, elapsed)
            if rest := framer.end():
                await response.write(rest)
            if not framer.done:
                raise EngineError(f"engine {route.engine.name} ended its answer early")
        except (EngineError, TimeoutError) as error:
            await response.write(self._failed(error, route).event())
        self._count_tokens(route, framer.tail)
        await response.write_eof()
        return response

    def _failed(self, error: TonnageError | TimeoutError, route: Route) -> Refusal:
        """How a failure of the engine looks to the client; counts it."""
        status, code, failure = _failure(error)
        self._metrics.engine_failed(route.engine.name, failure)
        return Refusal(status, str(error), code=code, headers={"Retry-After": "1"} if status == 503 else None)

    def _count_tokens(self, route: Route, tail: bytes) -> None:
        counts = usage(tail)
        self._metrics.tokens(route.model, "prompt", counts.get("prompt", 0))
        self._metrics.tokens(route.model, "completion", counts.get("completion", 0))


def _failure(error: TonnageError | TimeoutError) -> tuple[int, str, Failure]:
    if isinstance(error, TimeoutError):
        return 504, "engine_timeout", "timeout"
    if isinstance(error, Unavailable):
        return 503, "engine_unavailable", "unavailable"
    return 502, "engine_failed", "broken"


def _forwarded(request: web.Request, exchange: Exchange) -> Mapping[str, str]:
    headers = {REQUEST_ID: exchange.id}
    for name in FORWARDED:
        if name in request.headers:
            headers[name] = request.headers[name]
    return headers
