"""Trying again: what, how often, and after how long."""

from __future__ import annotations

import random
import time
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
        sleep: waits; replaced by tests.
        random: between 0 and 1; replaced by tests.
    """

    attempts: int = 5
    base: float = 0.5
    limit: float = 20.0
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)
    random: Callable[[], float] = field(default=random.random, repr=False)

    def delay(self, failures: int, error: TonnageError) -> float | None:
        """Seconds to wait after the given number of failures; None when it is not worth another try."""
        if not error.retryable or failures >= self.attempts:
            return None
        if isinstance(error, TooManyRequests) and error.retry_after is not None:
            return error.retry_after
        return min(self.limit, self.base * 2.0 ** (failures - 1)) * self.random()


NO_RETRY = Retry(attempts=1)
