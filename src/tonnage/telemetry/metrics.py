"""The gateway's Prometheus metrics.

Names follow https://prometheus.io/docs/practices/naming/. Every label has few values: a route is one of a fixed set, a
model is one that an engine declares (anything else a client writes counts as `""`), a status is an HTTP status. The
registry is passed in, so that two gateways in one process, or two tests, do not share counts.
"""

from __future__ import annotations

from typing import Literal, TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

DURATION_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
"""Seconds; generations last from a refusal's milliseconds to many minutes."""

FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 25, 50, 100, 200)
"""Seconds; finer than durations, since this is what a reader waits for."""

Failure = Literal["unavailable", "timeout", "broken", "refused"]
"""How an engine failed: took no request, fell silent, broke off, or answered with status 5xx or 401/403."""

_M = TypeVar("_M", Counter, Gauge, Histogram)

TokenKind = Literal["prompt", "completion"]


class GatewayMetrics:
    """The metrics of one gateway, on `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._children: dict[tuple[object, tuple[str, ...]], object] = {}
        self._requests = Counter(
            "tonnage_gateway_requests_total",
            "Requests answered, by the status the client got (499: it went away first).",
            ("route", "model", "status"),
            registry=registry,
        )
        self._in_flight = Gauge(
            "tonnage_gateway_requests_in_flight",
            "Requests accepted and not yet answered in full.",
            ("model",),
            registry=registry,
        )
        self._duration = Histogram(
            "tonnage_gateway_request_duration_seconds",
            "From the request's head to the last byte of its answer.",
            ("route", "model"),
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self._first_token = Histogram(
            "tonnage_gateway_time_to_first_token_seconds",
            "From the request's head to the first event of a streamed answer.",
            ("route", "model"),
            buckets=FIRST_TOKEN_BUCKETS,
            registry=registry,
        )
        self._tokens = Counter(
            "tonnage_gateway_tokens_total",
            "Tokens that engines reported; streams report them only when stream_options.include_usage asks.",
            ("model", "kind"),
            registry=registry,
        )
        self._engine_errors = Counter(
            "tonnage_gateway_engine_errors_total",
            "Requests that an engine failed.",
            ("engine", "failure"),
            registry=registry,
        )
        self._disconnects = Counter(
            "tonnage_gateway_client_disconnects_total",
            "Requests whose client went away before the answer ended.",
            ("route", "model"),
            registry=registry,
        )
        self._engine_up = Gauge(
            "tonnage_gateway_engine_up",
            "Whether the engine passed its last health check.",
            ("engine",),
            registry=registry,
        )

    def started(self, model: str) -> None:
        """A request for `model` was accepted."""
        self._labels(self._in_flight, model).inc()

    def first_token(self, route: str, model: str, seconds: float) -> None:
        """The first event of a stream went out, `seconds` after the request came in."""
        self._labels(self._first_token, route, model).observe(seconds)

    def ended(self, model: str) -> None:
        """A request that `started` is over, whichever way."""
        self._labels(self._in_flight, model).dec()

    def answered(self, route: str, model: str, status: int, seconds: float) -> None:
        """A request was answered with `status`, and took `seconds`."""
        self._labels(self._requests, route, model, str(status)).inc()
        self._labels(self._duration, route, model).observe(seconds)

    def disconnected(self, route: str, model: str) -> None:
        """The client went away before its answer ended."""
        self._labels(self._disconnects, route, model).inc()

    def tokens(self, model: str, kind: TokenKind, count: int) -> None:
        """An engine reported `count` tokens."""
        self._labels(self._tokens, model, kind).inc(count)

    def engine_failed(self, engine: str, failure: Failure) -> None:
        """An engine failed a request."""
        self._labels(self._engine_errors, engine, failure).inc()

    def engine_up(self, engine: str, up: bool) -> None:
        """A health check of `engine` ended."""
        self._labels(self._engine_up, engine).set(up)

    def _labels(self, metric: _M, *labels: str) -> _M:
        # Looking up a child costs prometheus_client more than counting in it, and there are only a few.
        child = self._children.get((metric, labels))
        if child is None:
            child = self._children[metric, labels] = metric.labels(*labels)
        return cast(_M, child)

    def exposition(self) -> bytes:
        """All metrics of the registry, in the text format that `CONTENT_TYPE_LATEST` names."""
        return generate_latest(self._registry)
