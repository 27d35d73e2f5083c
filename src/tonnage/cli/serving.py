"""Runs an aiohttp application until it is told to stop."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Callable

from aiohttp import web

from tonnage.errors import LocalError, UsageError

GRACE = 30.0
"""Seconds that requests under way get when the server stops."""


def parse_listen(text: str) -> tuple[str, int]:
    """`HOST:PORT`, as a pair; port 0 lets the system pick one.

    Raises:
        UsageError: it is not of that form.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise UsageError(f"{text!r} is no address to listen on", hint="write HOST:PORT, such as 127.0.0.1:8080")
    return host.strip("[]") or "::", int(port)


def run(app: web.Application, listen: str, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, then let requests finish.

    Args:
        app: what to serve.
        listen: `HOST:PORT`.
        on_ready: told the URL once the server accepts connections.

    Raises:
        LocalError: the address cannot be listened on.
    """
    host, port = parse_listen(listen)
    asyncio.run(_run(app, host, port, on_ready))


async def _run(app: web.Application, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop.set)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=GRACE)
    try:
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", "") or error
            raise LocalError(
                f"cannot listen on {host}:{port}: {reason}", hint="choose another --listen, or port 0"
            ) from error
        on_ready(_url(runner))
        await stop.wait()
    finally:
        await runner.cleanup()


def _url(runner: web.AppRunner) -> str:
    host, port = runner.addresses[0][:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
