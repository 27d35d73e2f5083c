"""Runs an aiohttp application, the gateway's or the registry's, until it is told to stop."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

from aiohttp import web

from tonnage.errors import LocalError, UsageError

GRACE = 30.0
"""Seconds that answers under way may take after a request to stop; what Kubernetes grants before it kills."""


def parse_listen(text: str) -> tuple[str, int]:
    """`HOST:PORT`, as a pair; port 0 lets the system pick one.

    Raises:
        UsageError: it is not of that form.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise UsageError(f"{text!r} is no address to listen on", hint="write HOST:PORT, such as 127.0.0.1:8080")
    return host.strip("[]") or "::", int(port)


@asynccontextmanager
async def listening(
    app: web.Application,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    grace: float = GRACE,
    on_stop: Callable[[], None] = lambda: None,
) -> AsyncIterator[str]:
    """Serve while the block runs; yields `http://HOST:PORT`.

    Args:
        app: what to serve; it is started before the address accepts connections.
        host: the address to listen on.
        port: the port; 0 for a free one.
        grace: seconds that answers under way may take when the block ends.
        on_stop: called when the block ends, before that.

    Raises:
        LocalError: the address cannot be listened on.
        TonnageError: what starting the application raises, such as `EngineError`.
    """
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=grace)
    try:
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", "") or error
            raise LocalError(
                f"cannot listen on {host}:{port}: {reason}", hint="choose another --listen, or port 0"
            ) from error
        yield _url(runner)
    finally:
        on_stop()
        await runner.cleanup()


def run(serving: AbstractAsyncContextManager[str], on_ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, then let answers under way end; a second signal ends that, too.

    Args:
        serving: what `listening` returned.
        on_ready: told the URL once connections are accepted.

    Raises:
        TonnageError: as `listening`.
    """

    async def serve() -> None:
        async with serving as url:
            on_ready(url)
            await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(serve())
        for number in (signal.SIGINT, signal.SIGTERM):
            # The first signal ends the wait, or the start of an engine; a second one ends the grace.
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        await task

    with suppress(asyncio.CancelledError):
        asyncio.run(main())


def _url(runner: web.AppRunner) -> str:
    host, port = runner.addresses[0][:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
