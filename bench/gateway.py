"""What the gateway costs: beside a bare aiohttp pass-through, and beside the engine asked directly.

    python bench/gateway.py --rounds 5

Three processes at a time on loopback: an engine with a fixed answer, a server before it, and a load generator, both
ends written on bare `asyncio` protocols so that the server between them is what is measured. Each server is asked for
a plain answer (about 700 bytes) three ways: as fast as it can on 32 connections; at a fixed rate, where the latency is
counted from the moment a request was due; and, as streams of 50 events, as fast as it can on 8 connections. Rounds are
interleaved, after one that is not counted, and medians are printed. The CPU time that the server's process took a
request is the figure that other work on the machine disturbs least; its inverse is requests a second on one core.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

KEY = "bench-key"
MODEL = "bench"
PATH = "/v1/chat/completions"
EVENTS = 50
CONNECTIONS = 32
STREAMS = 8

TEXT = "Ships carry most of what the world trades, and a few people on each of them keep it moving. " * 4
ANSWER = json.dumps(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 30, "completion_tokens": 80, "total_tokens": 110},
    }
).encode()
EVENT = b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","choices":[{"delta":{"content":" word"}}]}\n\n'


def main() -> None:
    """Run what the arguments ask for."""
    options = _options()
    if options.serve:
        _run(_SERVERS[options.serve](options.engine), options.loop)
    elif options.load:
        print(json.dumps(asyncio.run(_load(options))))
    else:
        _measure(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default: 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default: 2)")
    parser.add_argument("--rate", type=float, default=500.0, help="requests a second at the fixed rate (default: 500)")
    parser.add_argument("--serve", choices=sorted(_SERVERS), help=argparse.SUPPRESS)
    parser.add_argument("--engine", default="", help=argparse.SUPPRESS)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio", help=argparse.SUPPRESS)
    parser.add_argument("--load", choices=("closed", "open", "stream"), help=argparse.SUPPRESS)
    parser.add_argument("--url", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


# --- the measurement ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """A server to measure."""

    name: str
    url: str
    pid: int


def _measure(options: argparse.Namespace) -> None:
    loops = ["asyncio", *(["uvloop"] if importlib.util.find_spec("uvloop") else [])]
    with contextlib.ExitStack() as stack:
        engine, pid = stack.enter_context(_server("engine", "", loops[-1]))
        candidates = [Candidate("engine, direct", engine, pid)]
        for kind, name in (("bare", "bare aiohttp"), ("gateway", "tonnage gateway")):
            for loop in loops:
                url, pid = stack.enter_context(_server(kind, engine, loop))
                candidates.append(Candidate(f"{name}, {loop}", url, pid))
        results: dict[str, list[dict[str, float]]] = {candidate.name: [] for candidate in candidates}
        for number in range(options.rounds + 1):
            for candidate in candidates:
                found = _round(candidate, options)
                if number:
                    results[candidate.name].append(found)
    _print({name: _medians(rounds) for name, rounds in results.items()}, options)


def _round(candidate: Candidate, options: argparse.Namespace) -> dict[str, float]:
    found: dict[str, float] = {}
    for kind in ("closed", "open", "stream"):
        before = _cpu(candidate.pid)
        command = [sys.executable, __file__, "--load", kind, "--url", candidate.url]
        command += ["--seconds", str(options.seconds), "--rate", str(options.rate)]
        load = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        found |= {f"{kind} {key}": value for key, value in load.items()}
        found[f"{kind} cpu"] = (_cpu(candidate.pid) - before) / load["requests"] * 1e6
    return found


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(found[key] for found in rounds) for key in rounds[0]}


def _print(medians: dict[str, dict[str, float]], options: argparse.Namespace) -> None:
    direct = medians["engine, direct"]
    bare = medians["bare aiohttp, asyncio"]
    rate = f"{options.rate:g}/s"
    print(
        f"medians of {options.rounds} rounds of {options.seconds:g} s; p50 and p99 are latency added to the engine's\n"
    )
    print(
        f"{'':26}{'req/s':>8}{'ratio':>7}{'CPU us':>8}{'1/CPU':>8}{'ratio':>7}"
        f"{'p50 ms @' + rate:>16}{'p99 ms @' + rate:>16}{'streams/s':>11}{'us/event':>10}"
    )
    for name, found in medians.items():
        print(
            f"{name:26}{found['closed rate']:8.0f}{found['closed rate'] / bare['closed rate']:7.2f}"
            f"{found['closed cpu']:8.0f}{1e6 / found['closed cpu']:8.0f}{bare['closed cpu'] / found['closed cpu']:7.2f}"
            f"{(found['open p50'] - direct['open p50']) * 1e3:16.2f}"
            f"{(found['open p99'] - direct['open p99']) * 1e3:16.2f}"
            f"{found['stream rate']:11.0f}{found['stream cpu'] / EVENTS:10.1f}"
        )


def _cpu(pid: int) -> float:
    """Seconds of processor time that a process has taken (proc(5), `/proc/PID/stat`, fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def _server(kind: str, engine: str, loop: str) -> Iterator[tuple[str, int]]:
    command = [sys.executable, __file__, "--serve", kind, "--engine", engine, "--loop", loop]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield (process.stdout.readline().strip() if process.stdout else ""), process.pid
        finally:
            process.kill()


# --- the servers -------------------------------------------------------------------------------------------------


def _run(serving: Coroutine[Any, Any, None], loop: str) -> None:
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serving)


class Engine(asyncio.Protocol):
    """Answers every request with the same bytes."""

    whole = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    event = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
    end = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"

    def __init__(self) -> None:
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, mark, body = self.data.partition(b"\r\n\r\n")
        if not mark:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if len(body) < length:
            return
        self.data = body[length:]
        if b'"stream":true' not in body:
            self.transport.write(self.whole)
            return
        self.transport.write(self.head)
        self.streaming = asyncio.ensure_future(self.stream())

    async def stream(self) -> None:
        for _ in range(EVENTS):
            self.transport.write(self.event)
            # Each event is sent on its own, as tokens are.
            await asyncio.sleep(0)
        self.transport.write(self.end)


async def _serve_engine(_: str) -> None:
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


async def _serve_bare(engine: str) -> None:
    """The least that can be done with aiohttp: no checks, no keys, no counts."""
    import aiohttp
    from aiohttp import web
    from yarl import URL

    url = URL(engine + PATH)

    async def forward(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:
            kind = {"Content-Type": answer.headers["Content-Type"]}
            if "stream" not in kind["Content-Type"]:
                return web.Response(body=await answer.read(), headers=kind)
            response = web.StreamResponse(headers=kind)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    app = web.Application()
    app.router.add_post(PATH, forward)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
        await asyncio.Event().wait()


async def _serve_gateway(engine: str) -> None:
    from tonnage.cli.serving import listening
    from tonnage.gateway.engines.http import HttpEngine
    from tonnage.gateway.options import with_api_keys, with_engine, with_metrics
    from tonnage.gateway.server import Server

    options = [with_engine(HttpEngine(engine, models=[MODEL])), with_metrics(), with_api_keys([KEY, "another"])]
    async with listening(Server(*options).app()) as url:
        print(url, flush=True)
        await asyncio.Event().wait()


_SERVERS = {"engine": _serve_engine, "bare": _serve_bare, "gateway": _serve_gateway}


# --- the load ----------------------------------------------------------------------------------------------------


class Client(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self, request: bytes, stream: bool) -> None:
        self.request = request
        self.stream = stream

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.data = bytearray()
        self.done: asyncio.Future[None] | None = None

    def connection_lost(self, error: Exception | None) -> None:
        if self.done and not self.done.done():
            self.done.set_exception(error or ConnectionError("closed"))

    def data_received(self, data: bytes) -> None:
        self.data += data
        if not self.done or not self.complete():
            return
        if not self.data.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(self.data[:300].decode()))
            return
        self.data.clear()
        self.done.set_result(None)

    def complete(self) -> bool:
        if self.stream:
            return self.data.endswith(b"\r\n0\r\n\r\n")
        head, mark, body = self.data.partition(b"\r\n\r\n")
        return bool(mark) and len(body) >= int(
            bytes(head).lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        )

    async def ask(self) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(self.request)
        await self.done


async def _load(options: argparse.Namespace) -> dict[str, float]:
    stream = options.load == "stream"
    address = urlsplit(options.url)
    body = b'{"model":"bench","messages":[{"role":"system","content":"Answer briefly."},{"role":"user","content":'
    body += b'"What do ships carry?"}],"temperature":0.5,"stream":%s}' % (b"true" if stream else b"false")
    request = (
        f"POST {PATH} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    loop = asyncio.get_running_loop()

    async def connect() -> Client:
        _, client = await loop.create_connection(partial(Client, request, stream), address.hostname, address.port)
        return client

    clients = [await connect() for _ in range(STREAMS if stream else CONNECTIONS)]
    work = _at_rate(clients, options) if options.load == "open" else _as_fast_as_it_goes(clients, options)
    began = time.perf_counter()
    latencies = sorted(await work)
    elapsed = time.perf_counter() - began
    cuts = statistics.quantiles(latencies, n=100)
    return {"requests": len(latencies), "rate": len(latencies) / elapsed, "p50": cuts[49], "p99": cuts[98]}


async def _as_fast_as_it_goes(clients: list[Client], options: argparse.Namespace) -> list[float]:
    end = time.perf_counter() + options.seconds
    latencies: list[float] = []

    async def repeat(client: Client) -> None:
        while (began := time.perf_counter()) < end:
            await client.ask()
            latencies.append(time.perf_counter() - began)

    await asyncio.gather(*(repeat(client) for client in clients))
    return latencies


async def _at_rate(clients: list[Client], options: argparse.Namespace) -> list[float]:
    free: asyncio.Queue[Client] = asyncio.Queue()
    for client in clients:
        free.put_nowait(client)
    latencies: list[float] = []

    async def one(due: float) -> None:
        client = await free.get()
        await client.ask()
        latencies.append(time.perf_counter() - due)
        free.put_nowait(client)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(options.rate * options.seconds)):
            due = began + number / options.rate
            await asyncio.sleep(due - time.perf_counter())
            tasks.create_task(one(due))
    return latencies


if __name__ == "__main__":
    main()
