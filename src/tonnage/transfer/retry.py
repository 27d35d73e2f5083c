"""Trying again: what, how often, and after how long."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from tonnage.errors import TonnageError, TooManyRequests


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Exponential back-off with full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter").

    Args:
        attempts: how often something is tried in all.
        base: seconds; the first delay is at most this, each further one at most twice the one before.
        limit: seconds that no delay exceeds, unless the server asks for more.
        patience: seconds; a server that asks for a longer wait is not asked again.
        sleep: waits; replaced by tests. By default a wait ends early when the copy does.
        random: between 0 and 1; replaced by tests.
    """

    attempts: int = 5
    base: float = 0.5
    limit: float = 20.0
    patience: float = 300.0
    sleep: Callable[[float], object] | None = field(default=None, repr=False)
    random: Callable[[], float] = field(default=random.random, repr=False)

    def wait(self, delay: float, stop: threading.Event) -> None:
        """Wait that many seconds, or until `stop` is set."""
        (self.sleep or stop.wait)(delay)

    def delay(self, failures: int, error: TonnageError) -> float | None:
        """Seconds to wait after the given number of failures; None when it is not worth another try."""
        if not error.retryable or failures >= self.attempts:
            return None
        if isinstance(error, TooManyRequests) and error.retry_after is not None:
            return error.retry_after if error.retry_after <= self.patience else None
        return min(self.limit, self.base * 2.0 ** min(failures - 1, 60)) * self.random()


NO_RETRY = Retry(attempts=1)
