"""Any engine that speaks OpenAI's HTTP: vLLM, SGLang, llama.cpp's server, OpenAI itself, or another gateway.

Bytes are passed, not parsed. Connections are pooled, which has one snare: an engine may close an idle connection just
when a request is sent on it. uvicorn (vLLM, SGLang) closes after 5 seconds; llama.cpp does too, and at once after every
stream, while its headers promise to keep the connection. So connections idle for `KEEP_ALIVE` are dropped, and a
request that was lost on a used connection, before a byte of an answer, is sent once more on a new one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from types import SimpleNamespace

import aiohttp
from yarl import URL

from tonnage.errors import EngineError, Unavailable, UsageError
from tonnage.gateway.engines.engine import Health, Timeouts

KEEP_ALIVE = 4.0
"""Seconds; below the 5 of uvicorn's `timeout_keep_alive` and of cpp-httplib."""

MAX_ANSWER = 64 << 20
"""Bytes of an answer that is not a stream: it is held in memory whole, and the engine may be anybody's."""


class HttpEngine:
    """An engine at a URL.

    Args:
        url: scheme, host and port, with or without a final `/v1`.
        models: the model names it serves, as it knows them.
        name: names it in metrics and logs; host and port unless given.
        api_key: sent as bearer token. Clients' own keys are never forwarded.

    Raises:
        UsageError: the URL is not one of HTTP.
    """

    def __init__(self, url: str, *, models: Sequence[str], name: str = "", api_key: str = "") -> None:
        base = URL(url)
        if base.scheme not in ("http", "https") or not base.host:
            raise UsageError(f"{url!r} is not the address of an engine", hint="expected http://HOST:PORT")
        text = str(base).rstrip("/").removesuffix("/v1")
        self._base = text
        self._name = name or base.authority
        self._models = tuple(models)
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._pooled: aiohttp.ClientSession | None = None
        self._fresh: aiohttp.ClientSession | None = None
        self._urls: dict[str, URL] = {}

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
        """Scheme, host and port."""
        return self._base

    async def start(self) -> None:
        """See `Engine.start`; the engine at the other end need not be up yet."""
        if self._pooled is None:
            self._pooled = self._session(aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE))
            self._fresh = self._session(aiohttp.TCPConnector(limit=0, force_close=True))

    async def stop(self) -> None:
        """See `Engine.stop`."""
        sessions = (self._pooled, self._fresh)
        self._pooled = self._fresh = None
        for session in sessions:
            if session is not None:
                await session.close()

    async def health(self, timeouts: Timeouts) -> Health:
        """See `Engine.health`: `/health`, or the list of models where there is no such page, as at OpenAI."""
        try:
            status = await self._get("/health", timeouts)
            if status in (401, 403, 404, 405):
                status = await self._get("/v1/models", timeouts)
        except TimeoutError:
            return Health(ready=False, reason=f"{self._base} did not answer within {timeouts.health:g} s")
        except (aiohttp.ClientError, Unavailable) as error:
            return Health(ready=False, reason=f"cannot reach {self._base}: {error}")
        if status in (401, 403):
            return Health(ready=False, reason=f"{self._base} refuses our API key")
        if status != 200:
            return Health(ready=False, reason=f"{self._base} answers its health check with status {status}")
        return Health(ready=True)

    @asynccontextmanager
    async def open(
        self, path: str, body: bytes, *, headers: Mapping[str, str], timeouts: Timeouts
    ) -> AsyncIterator[HttpAnswer]:
        """See `Engine.open`."""
        response = await self._post(path, body, headers, timeouts)
        try:
            yield HttpAnswer(response, self._name)
        finally:
            # A no-op when the body was read to its end; else it must not go back to the pool, and the engine must
            # see the connection close.
            response.close()

    async def _post(
        self, path: str, body: bytes, headers: Mapping[str, str], timeouts: Timeouts
    ) -> aiohttp.ClientResponse:
        if self._pooled is None or self._fresh is None:
            raise Unavailable(f"engine {self._name} is not started")
        sent = _Sent()
        send = partial(
            aiohttp.ClientSession.post,
            url=self._url(path),
            data=body,
            headers=headers,
            allow_redirects=False,
            timeout=_client_timeout(timeouts),
            trace_request_ctx=sent,
        )
        try:
            try:
                return await send(self._pooled)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if not sent.on_used_connection:
                    raise
                return await send(self._fresh)
        except aiohttp.ConnectionTimeoutError as error:
            raise Unavailable(f"engine {self._name} accepts no connection in {timeouts.connect:g} s") from error
        except TimeoutError as error:
            raise TimeoutError(f"engine {self._name} did not answer in {timeouts.silence:g} s") from error
        except aiohttp.ClientConnectorError as error:
            raise Unavailable(f"engine {self._name} cannot be reached") from error
        except (aiohttp.ClientError, OSError) as error:
            raise EngineError(f"engine {self._name} hung up without an answer") from error

    async def _get(self, path: str, timeouts: Timeouts) -> int:
        if self._fresh is None:
            raise Unavailable(f"engine {self._name} is not started")
        timeout = aiohttp.ClientTimeout(total=timeouts.health)
        async with self._fresh.get(self._url(path), timeout=timeout, allow_redirects=False) as response:
            return response.status

    def _session(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        trace = aiohttp.TraceConfig()
        trace.on_connection_reuseconn.append(_note_reuse)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers=self._headers,
            skip_auto_headers=("User-Agent",),
            trace_configs=[trace],
        )

    def _url(self, path: str) -> URL:
        # Parsing a URL costs more than sending a small request.
        if path not in self._urls:
            self._urls[path] = URL(self._base + path)
        return self._urls[path]


@lru_cache(maxsize=16)
def _client_timeout(timeouts: Timeouts) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect, sock_read=timeouts.silence)


@dataclass
class _Sent:
    on_used_connection: bool = False


async def _note_reuse(_: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
    if isinstance(context.trace_request_ctx, _Sent):
        context.trace_request_ctx.on_used_connection = True


class HttpAnswer:
    """An answer on its way in; see `Answer`."""

    def __init__(self, response: aiohttp.ClientResponse, name: str) -> None:
        self._response = response
        self._name = name

    @property
    def status(self) -> int:
        """See `Answer.status`."""
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        """See `Answer.headers`."""
        return self._response.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        """See `Answer.chunks`."""
        try:
            while chunk := await self._response.content.readany():
                yield chunk
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise self._broken(error) from error

    async def read(self) -> bytes:
        """See `Answer.read`."""
        chunks: list[bytes] = []
        size = 0
        async for chunk in self.chunks():
            size += len(chunk)
            if size > MAX_ANSWER:
                raise EngineError(f"engine {self._name} gives an answer of more than {MAX_ANSWER} bytes")
            chunks.append(chunk)
        return b"".join(chunks)

    def _broken(self, error: Exception) -> Exception:
        if isinstance(error, TimeoutError):
            return TimeoutError(f"engine {self._name} fell silent in the middle of its answer")
        return EngineError(f"engine {self._name} broke off in the middle of its answer")
