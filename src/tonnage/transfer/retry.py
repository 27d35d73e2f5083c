"""Trying again: what, how often, and after how long."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from tonnage.errors import Side, TonnageError, TooManyRequests

_T = TypeVar("_T")


class Stopped(TonnageError):
    """Another part of the work failed, so this one ends too; never seen by callers."""


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Exponential back-off with full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter").

    Args:
        attempts: how often something is tried in all.
        base: seconds; the first delay is at most this, each further one at most twice the one before.
        limit: seconds that no delay exceeds, unless the server asks for more.
        patience: seconds; a server that asks for a longer wait is not asked again.
        unless: errors that are not worth another try here.
        sleep: waits; replaced by tests. By default a wait ends early when the copy does.
        random: between 0 and 1; replaced by tests.
    """

    attempts: int = 5
    base: float = 0.5
    limit: float = 20.0
    patience: float = 300.0
    unless: tuple[type[TonnageError], ...] = ()
    sleep: Callable[[float], object] | None = field(default=None, repr=False)
    random: Callable[[], float] = field(default=random.random, repr=False)

    def wait(self, delay: float, stop: threading.Event) -> None:
        """Wait that many seconds, or until `stop` is set."""
        (self.sleep or stop.wait)(delay)

    def delay(self, failures: int, error: TonnageError) -> float | None:
        """Seconds to wait after the given number of failures; None when it is not worth another try."""
        if not error.retryable or isinstance(error, self.unless) or failures >= self.attempts:
            return None
        if isinstance(error, TooManyRequests) and error.retry_after is not None:
            return error.retry_after if error.retry_after <= self.patience else None
        return min(self.limit, self.base * 2.0 ** min(failures - 1, 60)) * self.random()

    def call(
        self,
        side: Side,
        action: Callable[[], _T],
        *,
        on_retry: Callable[[TonnageError, float], None] = lambda *_: None,
        stop: threading.Event | None = None,
    ) -> _T:
        """Do something with one of two stores, again while that may help; its errors say which store it was.

        Args:
            side: the store that `action` asks.
            action: what to do.
            on_retry: told what failed, and the seconds until it is tried again.
            stop: set when there is no use in going on.
        """
        stop = stop or threading.Event()
        failures = 0
        while True:
            try:
                return action()
            except TonnageError as error:
                failures += 1
                # What reads the source within an action on the target has tried again itself, before it gave up.
                mended = side == "target" and error.side == "source"
                delay = None if mended else self.delay(failures, error)
                error.side = error.side or side
                if delay is None:
                    raise
                on_retry(error, delay)
                self.wait(delay, stop)
                if stop.is_set():
                    raise Stopped("stopped") from None


NO_RETRY = Retry(attempts=1)
