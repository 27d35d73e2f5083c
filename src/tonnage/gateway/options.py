"""The options of the gateway: each a function that returns a function over the `Server`.

Options that add (`with_engine`, `with_model_aliases`) may come several times. Limits and time-outs may too, and the
last one wins, so that a list of options can be tightened by what follows it. Two metrics registries or two sets of keys
are a mistake, and refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from prometheus_client import CollectorRegistry

from tonnage.errors import InvalidComposition
from tonnage.gateway.engines.engine import Engine
from tonnage.gateway.server import Option, Server


def with_engine(engine: Engine) -> Option:
    """Serve the models of `engine`."""

    def apply(server: Server) -> None:
        server.engines.append(engine)

    return apply


def with_model_aliases(aliases: Mapping[str, str]) -> Option:
    """Serve models under further names: `{"gpt-4o": "smollm2"}`. Aliases do not chain."""

    def apply(server: Server) -> None:
        for alias, model in aliases.items():
            if server.aliases.setdefault(alias, model) != model:
                raise InvalidComposition(f"the alias {alias!r} names both {server.aliases[alias]!r} and {model!r}")

    return apply


def with_api_keys(keys: Iterable[str]) -> Option:
    """Ask for one of `keys` as bearer token, except on `/healthz`, `/readyz` and `/metrics`."""

    def apply(server: Server) -> None:
        if server.api_keys is not None:
            raise InvalidComposition("API keys are given twice", hint="give all of them in one with_api_keys")
        if isinstance(keys, str):
            raise InvalidComposition("with_api_keys takes a list of keys, not one string")
        server.api_keys = frozenset(keys)

    return apply


def with_metrics(registry: CollectorRegistry | None = None) -> Option:
    """Show Prometheus metrics at `/metrics`.

    Args:
        registry: where they are registered, beside what is there already; a registry of its own unless given.
    """

    def apply(server: Server) -> None:
        if server.registry is not None:
            raise InvalidComposition("metrics are given twice", hint="leave one with_metrics out")
        server.registry = registry or CollectorRegistry()

    return apply


def with_body_limit(limit: int) -> Option:
    """Refuse request bodies of more than `limit` bytes with status 413."""

    def apply(server: Server) -> None:
        if limit < 1:
            raise InvalidComposition(f"a body limit of {limit} bytes lets no request in")
        server.body_limit = limit

    return apply


def with_concurrency_limit(limit: int) -> Option:
    """Refuse requests with status 429 while `limit` others are being answered."""

    def apply(server: Server) -> None:
        if limit < 1:
            raise InvalidComposition(f"a limit of {limit} requests at a time lets no request in")
        server.concurrency = limit

    return apply


def with_timeouts(*, connect: float | None = None, silence: float | None = None, health: float | None = None) -> Option:
    """Wait this long for engines, in seconds; see `Timeouts`. What is not given stays as it was."""
    given = {"connect": connect, "silence": silence, "health": health}
    changes = {name: seconds for name, seconds in given.items() if seconds is not None}

    def apply(server: Server) -> None:
        for name, seconds in changes.items():
            if not seconds > 0:
                raise InvalidComposition(f"the time-out {name}={seconds:g} is not a time; it must be above 0 s")
        server.timeouts = replace(server.timeouts, **changes)

    return apply
