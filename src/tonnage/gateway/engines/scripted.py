"""An engine that says what a script tells it to: for tests, demos and benchmarks.

It is a real HTTP server on loopback, reached through the same `HttpEngine` as any other, so what works with it works
over sockets. Nothing in it is random, and it waits only where a script says so. It counts what it is asked and which
requests were given up, so that a test can see a cancelled generation from the engine's side.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from tonnage.gateway.engines.engine import Answer, Health, Timeouts
from tonnage.gateway.engines.http import HttpEngine

CREATED = 1_700_000_000
"""Seconds since 1970; the time at which every scripted answer was made."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """What to answer.

    Args:
        pieces: the text, as the tokens it is streamed in.
        delay: seconds before each piece.
        status: an HTTP status; not 200: `error` is the body, and nothing else happens.
        error: the body of a refusal.
        cut_after: pieces after which the connection breaks; with a stream, in the middle of the next event.
        stall_after: pieces after which nothing more is said, until the client goes away.
        raw: bytes to stream instead of events made from `pieces`, cut as they are here.
    """

    pieces: Sequence[str] = ()
    delay: float = 0
    status: int = 200
    error: bytes = b""
    cut_after: int | None = None
    stall_after: int | None = None
    raw: Sequence[bytes] = ()


@dataclass(frozen=True)
class Received:
    """A request that the engine got."""

    path: str
    body: bytes
    headers: Mapping[str, str] = field(repr=False)


Play = Callable[[dict[str, Any]], Script]
"""Chooses the script for a decoded request."""


def echo(request: dict[str, Any]) -> Script:
    """Answers with the words of the last message, or of the prompt; refuses messages that are not a list of objects."""
    messages = request.get("messages", [])
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return Script(status=400, error=b'{"error":{"code":400,"message":"messages","type":"invalid_request_error"}}')
    text = messages[-1].get("content") if messages else request.get("prompt")
    if isinstance(text, list):
        text = "".join(part.get("text", "") if isinstance(part, dict) else str(part) for part in text)
    words = str(text or "").split()
    return Script(pieces=[word if not at else f" {word}" for at, word in enumerate(words)])


class ScriptedEngine:
    """Plays scripts.

    Args:
        models: the model names it answers for.
        play: chooses the script for each request.
        name: names it in metrics and logs.
        keep: how many requests it remembers.
    """

    def __init__(
        self, models: Sequence[str] = ("scripted",), *, play: Play = echo, name: str = "scripted", keep: int = 1000
    ) -> None:
        self._models = tuple(models)
        self._name = name
        self._play = play
        self._keep = keep
        self._http: HttpEngine | None = None
        self._runner: web.AppRunner | None = None
        self._changed = threading.Condition()
        self._cancelled = 0
        self.received: list[Received] = []

    @property
    def name(self) -> str:
        """See `Engine.name`."""
        return self._name

    @property
    def models(self) -> Sequence[str]:
        """See `Engine.models`."""
        return self._models

    @property
    def url(self) -> str:
        """Where it listens; empty before `start`."""
        return self._http.url if self._http else ""

    @property
    def cancelled(self) -> int:
        """How many requests were given up by the other side."""
        return self._cancelled

    def wait_cancelled(self, count: int, timeout: float = 10) -> bool:
        """Block until `count` requests were given up, from any thread but the engine's; False after `timeout` s."""
        with self._changed:
            return self._changed.wait_for(lambda: self._cancelled >= count, timeout)

    def wait_received(self, count: int, timeout: float = 10) -> bool:
        """Block until `count` requests came in, from any thread but the engine's; False after `timeout` s."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.received) >= count, timeout)

    async def start(self) -> None:
        """See `Engine.start`."""
        if self._http is not None:
            return
        self._runner = web.AppRunner(self.app(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self._http = HttpEngine(url, models=self._models, name=self._name)
        await self._http.start()

    async def stop(self) -> None:
        """See `Engine.stop`."""
        http, self._http = self._http, None
        runner, self._runner = self._runner, None
        if http:
            await http.stop()
        if runner:
            await runner.cleanup()

    async def health(self, timeouts: Timeouts) -> Health:
        """See `Engine.health`."""
        if self._http is None:
            return Health(ready=False, reason=f"engine {self._name} is not started")
        return await self._http.health(timeouts)

    def open(
        self, path: str, body: bytes, *, headers: Mapping[str, str], timeouts: Timeouts
    ) -> AbstractAsyncContextManager[Answer]:
        """See `Engine.open`."""
        http = self._http or HttpEngine("http://127.0.0.1", models=self._models, name=self._name)
        return http.open(path, body, headers=headers, timeouts=timeouts)

    def app(self) -> web.Application:
        """The server alone, to run elsewhere."""
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._list)
        app.router.add_post("/v1/{path:chat/completions|completions}", self._generate)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _list(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name} for name in self._models]})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        wanted = msgspec.json.decode(body)
        with self._changed:
            if len(self.received) < self._keep:
                self.received.append(Received(request.path, body, request.headers))
            self._changed.notify_all()
        try:
            return await self._perform(request, wanted, self._play(wanted))
        except (asyncio.CancelledError, ConnectionError):
            with self._changed:
                self._cancelled += 1
                self._changed.notify_all()
            raise

    async def _perform(self, request: web.Request, wanted: dict[str, Any], script: Script) -> web.StreamResponse:
        if script.status != 200:
            return web.Response(status=script.status, body=script.error, content_type="application/json")
        form = _Form(chat=request.path.endswith("chat/completions"), wanted=wanted, script=script)
        if not wanted.get("stream"):
            async for _ in _played(script):
                pass
            if script.cut_after is not None:
                return _cut(request)
            return web.Response(body=form.whole(), content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if script.raw:
            for chunk in script.raw:
                await response.write(chunk)
            return response
        async for piece in _played(script):
            await response.write(form.event(piece))
        if script.cut_after is not None:
            await response.write(form.event("never seen whole")[:-20])
            _cut(request)
            return response
        for event in form.ending():
            await response.write(event)
        return response


@dataclass(frozen=True, kw_only=True)
class _Form:
    """The JSON around the text, for chats and for plain completions."""

    chat: bool
    wanted: dict[str, Any]
    script: Script

    def whole(self) -> bytes:
        """An answer that is not streamed."""
        text = "".join(self.script.pieces)
        body = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return self._document("", body, "stop", usage=self._usage())

    def event(self, piece: str) -> bytes:
        """A piece of a streamed answer."""
        return self._event(self._document(".chunk", self._piece(piece), None))

    def ending(self) -> list[bytes]:
        """What follows the last piece: the reason, the usage if it was asked for, and the mark of the end."""
        events = [self._event(self._document(".chunk", self._piece(""), "stop"))]
        if (self.wanted.get("stream_options") or {}).get("include_usage"):
            events.append(self._event(self._document(".chunk", None, None, usage=self._usage())))
        return [*events, b"data: [DONE]\n\n"]

    def _piece(self, text: str) -> dict[str, Any]:
        return {"delta": {"role": "assistant", "content": text}} if self.chat else {"text": text}

    def _usage(self) -> dict[str, int]:
        prompt = len(str(self.wanted.get("messages") or self.wanted.get("prompt")).split())
        completion = len(self.script.pieces)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _document(self, kind: str, choice: dict[str, Any] | None, reason: str | None, **extra: object) -> bytes:
        choices = [] if choice is None else [{"index": 0, **choice, "finish_reason": reason}]
        return msgspec.json.encode(
            {
                "id": "chatcmpl-scripted" if self.chat else "cmpl-scripted",
                "object": f"chat.completion{kind}" if self.chat else "text_completion",
                "created": CREATED,
                "model": self.wanted.get("model"),
                "choices": choices,
                **extra,
            }
        )

    @staticmethod
    def _event(document: bytes) -> bytes:
        return b"data: " + document + b"\n\n"


async def _played(script: Script) -> AsyncIterator[str]:
    for at, piece in enumerate(script.pieces):
        if at == script.cut_after:
            return
        if at == script.stall_after:
            break
        if script.delay:
            await asyncio.sleep(script.delay)
        yield piece
    if script.stall_after is not None:
        await asyncio.Event().wait()


def _cut(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.close()
    return web.Response()
