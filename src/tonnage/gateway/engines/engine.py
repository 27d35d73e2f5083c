"""What the gateway asks of whatever runs a model: one HTTP exchange, opened and read.

The seam is `open`: a path and the client's own bytes go in, a status and a stream of bytes come out. vLLM, SGLang,
llama.cpp and a remote OpenAI server already speak the same language, so nothing here knows tokens or messages, and
nothing above knows sockets. Foreign errors stop here, as three that the gateway tells apart:

    Unavailable    nothing was generated: the engine is not running, still loading, or refuses connections (503)
    TimeoutError   the engine was silent for too long (504)
    EngineError    the engine broke off in the middle of its answer (502)

A refusal by the engine itself (400, 429, ...) is an `Answer` with that status, not an exception.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long the gateway waits for an engine, in seconds.

    Args:
        connect: for a connection.
        silence: for the first byte of an answer, and between any two pieces of it. A whole answer that is not streamed
            counts as silence until it is complete, so this bounds the longest generation of that kind.
        health: for an answer to a health check.
    """

    connect: float = 5.0
    silence: float = 600.0
    health: float = 2.0


@dataclass(frozen=True, kw_only=True)
class Health:
    """Whether an engine can answer now.

    Args:
        ready: whether it can.
        reason: one line on why not; empty when ready.
    """

    ready: bool
    reason: str = ""


class Answer(Protocol):
    """What an engine answered; valid inside the `open` block that gave it."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The HTTP headers; keys compare without case."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives; the engine is held back while nobody asks for more.

        Raises:
            TimeoutError: silence for too long.
            EngineError: the connection broke.
        """
        ...

    async def read(self) -> bytes:
        """The rest of the body. Raises as `chunks` does, and EngineError if there is no end to it."""
        ...


class Engine(Protocol):
    """Runs one or more models."""

    @property
    def name(self) -> str:
        """Names the engine in metrics, logs and `/readyz`; unique in a gateway."""
        ...

    @property
    def models(self) -> Sequence[str]:
        """The models it answers for."""
        ...

    async def start(self) -> None:
        """Make `open` possible; idempotent.

        Raises:
            EngineError: it cannot start, and trying again will not help.
        """
        ...

    async def stop(self) -> None:
        """Give up everything that `start` took; safe to call twice, or without `start`."""
        ...

    async def health(self, timeouts: Timeouts) -> Health:
        """Whether it can answer now. Never raises: a failing check is the answer."""
        ...

    def open(
        self, path: str, body: bytes, *, headers: Mapping[str, str], timeouts: Timeouts
    ) -> AbstractAsyncContextManager[Answer]:
        """POST `body`, a JSON document, to `path`, such as `/v1/chat/completions`.

        Leaving the block before the body has ended closes the connection, which is how an engine learns to stop
        generating.

        Raises:
            Unavailable: the engine did not take the request.
            TimeoutError: it took the request and did not begin to answer in time.
            EngineError: it took the request and hung up without an answer.
        """
        ...
