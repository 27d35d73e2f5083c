from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tonnage.errors
from tonnage.errors import (
    DigestMismatch,
    NotFound,
    RangeNotServed,
    TonnageError,
    TooManyRequests,
    Truncated,
    Unavailable,
    Unreachable,
)
from tonnage.transfer.retry import NO_RETRY, Retry

BROKEN = Unavailable("broken")


@given(
    st.integers(1, 30),
    st.floats(0, 1),
    st.floats(0.001, 10),
    st.floats(0.001, 100),
)
def test_delays_grow_to_a_limit_with_full_jitter(failures: int, chance: float, base: float, limit: float) -> None:
    retry = Retry(attempts=31, base=base, limit=limit, random=lambda: chance)
    delay = retry.delay(failures, BROKEN)
    assert delay is not None
    assert 0 <= delay <= min(limit, base * 2 ** (failures - 1)) * chance + 1e-9


def test_the_first_delays() -> None:
    retry = Retry(random=lambda: 1.0)
    assert [retry.delay(failures, BROKEN) for failures in range(1, 6)] == [0.5, 1.0, 2.0, 4.0, None]


def test_attempts_count_the_first() -> None:
    assert NO_RETRY.delay(1, BROKEN) is None
    assert Retry(attempts=2).delay(1, BROKEN) is not None
    assert Retry(attempts=2).delay(2, BROKEN) is None


def test_a_huge_number_of_failures_is_no_overflow() -> None:
    assert Retry(attempts=10**6, limit=20, random=lambda: 1.0).delay(5000, BROKEN) == 20


@pytest.mark.parametrize("error", [NotFound("x"), DigestMismatch("x"), TonnageError("x")])
def test_what_trying_again_does_not_help(error: TonnageError) -> None:
    assert Retry().delay(1, error) is None


@pytest.mark.parametrize("error", [BROKEN, Truncated("x"), TooManyRequests("x")])
def test_what_trying_again_may_help(error: TonnageError) -> None:
    assert Retry().delay(1, error) is not None


def test_only_unavailability_is_retryable() -> None:
    kinds = [
        kind for kind in vars(tonnage.errors).values() if isinstance(kind, type) and issubclass(kind, TonnageError)
    ]
    assert {kind for kind in kinds if kind.retryable} == {
        Unavailable,
        Unreachable,
        Truncated,
        RangeNotServed,
        TooManyRequests,
    }


@pytest.mark.parametrize(("asked", "delay"), [(0.0, 0.0), (17.0, 17.0), (300.0, 300.0), (301.0, None), (1e30, None)])
def test_servers_are_given_the_time_they_ask_for_within_reason(asked: float, delay: float | None) -> None:
    retry = Retry(limit=1, random=lambda: 0.5)
    assert retry.delay(1, TooManyRequests("slow down", retry_after=asked)) == delay


def test_a_wait_ends_with_the_copy() -> None:
    stop = threading.Event()
    stop.set()
    Retry().wait(1e6, stop)


def test_a_given_sleep_is_used() -> None:
    slept: list[float] = []
    Retry(sleep=slept.append).wait(3.5, threading.Event())
    assert slept == [3.5]
