"""Runs a gateway as its users do, on a free loopback port, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tonnage.gateway.server import Option, Server, listening


@contextmanager
def gateway(*options: Option) -> Iterator[str]:
    """Serve while the block runs; yields `http://127.0.0.1:PORT`."""
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        serving = listening(Server(*options), drain=2)
        url = loop.run_until_complete(serving.__aenter__())
        thread = threading.Thread(target=loop.run_forever, name="gateway")
        thread.start()
        try:
            yield url
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(30)
            loop.run_until_complete(serving.__aexit__(None, None, None))
