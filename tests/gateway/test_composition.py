"""Wrong combinations are refused when the server is built; right ones start and stop their engines."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
from prometheus_client import CollectorRegistry, Gauge

from support.gateways import gateway
from tonnage.cli.serving import listening
from tonnage.errors import EngineError, InvalidComposition, LocalError, UsageError
from tonnage.gateway.engines.engine import Timeouts
from tonnage.gateway.engines.http import HttpEngine
from tonnage.gateway.engines.scripted import ScriptedEngine
from tonnage.gateway.options import (
    with_api_keys,
    with_body_limit,
    with_concurrency_limit,
    with_engine,
    with_metrics,
    with_model_aliases,
    with_timeouts,
)
from tonnage.gateway.server import Option, Server

ENGINE = with_engine(ScriptedEngine())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "no engine"),
        ([with_metrics(), with_api_keys(["k"])], "no engine"),
        ([ENGINE, with_engine(ScriptedEngine(models=["other"]))], "two engines are named 'scripted'"),
        ([ENGINE, with_engine(ScriptedEngine(name="b"))], "both claim the model 'scripted'"),
        ([with_engine(ScriptedEngine(models=["a", "a"]))], "both claim"),
        ([with_engine(ScriptedEngine(models=[]))], "serves no model"),
        ([with_engine(ScriptedEngine(models=[""]))], "without a name"),
        ([ENGINE, with_api_keys([])], "API keys is empty"),
        ([ENGINE, with_api_keys(["good", ""])], "an API key is empty"),
        ([ENGINE, with_api_keys(["two words"])], "cannot carry"),
        ([ENGINE, with_api_keys("letters")], "not one string"),
        ([ENGINE, with_api_keys(["a"]), with_api_keys(["b"])], "given twice"),
        ([ENGINE, with_metrics(), with_metrics()], "given twice"),
        ([ENGINE, with_body_limit(0)], "body limit of 0"),
        ([ENGINE, with_concurrency_limit(0)], "limit of 0"),
        ([ENGINE, with_timeouts(silence=0)], "silence=0"),
        ([ENGINE, with_timeouts(connect=float("nan"))], "connect=nan"),
        ([ENGINE, with_model_aliases({"gpt": "missing"})], "no engine serves"),
        ([ENGINE, with_model_aliases({"scripted": "scripted"})], "already the name of a model"),
        ([ENGINE, with_model_aliases({"": "scripted"})], "is empty"),
        ([ENGINE, with_model_aliases({"a": "scripted", "b": "a"})], "no engine serves"),
        (
            [ENGINE, with_model_aliases({"a": "scripted"}), with_model_aliases({"a": "x"})],
            "names both 'scripted' and 'x'",
        ),
    ],
)
def test_refused(options: list[Option], says: str) -> None:
    with pytest.raises(InvalidComposition, match=says):
        Server(*options)


def test_defaults_first_then_options_in_order() -> None:
    assert Server(ENGINE).timeouts == Timeouts()
    target = [ENGINE, with_timeouts(connect=1, silence=10), with_body_limit(10)]
    server = Server(*target, with_timeouts(silence=20), with_body_limit(20))
    assert server.timeouts == Timeouts(connect=1, silence=20)
    assert server.body_limit == 20


def test_options_can_be_used_again() -> None:
    target = [ENGINE, with_metrics(), with_api_keys(["k"]), with_model_aliases({"a": "scripted"})]
    assert Server(*target).models == Server(*target).models == ["scripted", "a"]


def test_an_address_must_be_one() -> None:
    for url in ("localhost:8000", "ftp://host", "http://", ""):
        with pytest.raises(UsageError, match="not the address of an engine"):
            HttpEngine(url, models=["m"])


def get(url: str, page: str) -> tuple[int, bytes]:
    with contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)) as connection:
        connection.request("GET", page)
        response = connection.getresponse()
        return response.status, response.read()


def test_ready_says_why_not() -> None:
    down = HttpEngine("http://127.0.0.1:1", models=["m"], name="down")
    with gateway(with_engine(down)) as url:
        assert get(url, "/healthz")[0] == 200
        status, body = get(url, "/readyz")
    answer = json.loads(body)
    assert (status, answer["status"]) == (503, "unavailable")
    assert "cannot reach http://127.0.0.1:1" in answer["engines"]["down"]["reason"]


def test_one_engine_of_two_makes_it_ready() -> None:
    down = HttpEngine("http://127.0.0.1:1", models=["m"], name="down")
    with gateway(with_engine(down), ENGINE) as url:
        status, body = get(url, "/readyz")
    assert status == 200
    assert {name: engine["ready"] for name, engine in json.loads(body)["engines"].items()} == {
        "down": False,
        "scripted": True,
    }


def test_metrics_share_the_registry_that_is_given() -> None:
    registry = CollectorRegistry()
    Gauge("mine", "Of the application.", registry=registry).set(7)
    with gateway(ENGINE, with_metrics(registry)) as url:
        status, body = get(url, "/metrics")
    assert status == 200
    assert b"mine 7.0" in body
    assert b'tonnage_gateway_engine_up{engine="scripted"} 1.0' in body


class Failing(ScriptedEngine):
    async def start(self) -> None:
        raise EngineError("no such model")


def test_when_one_engine_does_not_start_the_others_stop() -> None:
    good = ScriptedEngine()

    async def main() -> None:
        async with listening(Server(with_engine(good), with_engine(Failing(name="bad", models=["b"]))).app()):
            pytest.fail("it must not start")

    with pytest.raises(EngineError, match="no such model"):
        asyncio.run(main())
    assert good.url == ""


def test_a_port_in_use_is_a_local_error() -> None:
    async def main(port: int) -> None:
        async with listening(Server(ENGINE).app(), port=port):
            pytest.fail("it must not start")

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LocalError, match=f"cannot listen on 127.0.0.1:{port}"):
            asyncio.run(main(port))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_ends_on_a_signal(number: signal.Signals) -> None:
    code = (
        "from tonnage.cli.serving import listening, run\n"
        "from tonnage.gateway.server import Server\n"
        "from tonnage.gateway.options import with_engine\n"
        "from tonnage.gateway.engines.scripted import ScriptedEngine\n"
        "run(listening(Server(with_engine(ScriptedEngine())).app()), lambda url: print(url, flush=True))\n"
        "print('ended')\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert get(url, "/healthz")[0] == 200
        process.send_signal(number)
        assert process.stdout.read().strip() == "ended"
    assert process.returncode == 0
