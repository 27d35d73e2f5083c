"""Every engine passes the same suite."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from conformance.engine_suite import EngineSuite
from support.gateways import gateway
from support.models import small_model
from tonnage.gateway.engines.embedded import EmbeddedEngine
from tonnage.gateway.engines.engine import Engine
from tonnage.gateway.engines.http import HttpEngine
from tonnage.gateway.engines.scripted import ScriptedEngine
from tonnage.gateway.options import with_engine


class TestScripted(EngineSuite):
    @classmethod
    def make(cls) -> Engine:
        return ScriptedEngine()


class TestRemote(EngineSuite):
    """A remote server that speaks OpenAI's API: here a gateway, which has no `/health`."""

    url = "http://127.0.0.1:1/v1"

    @classmethod
    def make(cls) -> Engine:
        return HttpEngine(cls.url, models=["scripted"])

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, runner: asyncio.Runner) -> Iterator[Engine]:
        with gateway(with_engine(ScriptedEngine())) as address:
            engine = HttpEngine(f"{address}/v1", models=["scripted"])
            runner.run(engine.start())
            yield engine
            runner.run(engine.stop())


@pytest.mark.engine
class TestEmbedded(EngineSuite):
    @classmethod
    def make(cls) -> Engine:
        return EmbeddedEngine(small_model(), model="smollm2", context=2048, threads=1)
