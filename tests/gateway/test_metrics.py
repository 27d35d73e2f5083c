"""What is counted, with which labels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from prometheus_client import CollectorRegistry

from support.gateways import gateway
from tonnage.gateway.engines.http import HttpEngine
from tonnage.gateway.engines.scripted import Script, ScriptedEngine, echo
from tonnage.gateway.options import with_engine, with_metrics, with_model_aliases
from tonnage.gateway.server import Option

HELLO: list[Any] = [{"role": "user", "content": "one two three"}]
CHAT = "/v1/chat/completions"


@contextmanager
def client(*options: Option) -> Iterator[openai.OpenAI]:
    with (
        gateway(*options) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30) as sdk,
    ):
        yield sdk


def play(request: dict[str, Any]) -> Script:
    if request.get("user") == "cut":
        return Script(pieces=["a", "b"], cut_after=1)
    if request.get("user") == "stall":
        return Script(pieces=["a", "b"], stall_after=1)
    if request.get("user") == "refuse":
        return Script(status=500, error=b"{}")
    return echo(request)


def test_values() -> None:
    registry = CollectorRegistry()
    engine = ScriptedEngine(play=play)
    down = HttpEngine("http://127.0.0.1:1", models=["gone"], name="down")

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"tonnage_gateway_{name}", labels)

    options = [with_engine(engine), with_engine(down), with_metrics(registry)]
    with client(*options, with_model_aliases({"alias": "scripted"})) as sdk:
        sdk.models.list()
        sdk.chat.completions.create(model="scripted", messages=HELLO)
        for _ in sdk.chat.completions.create(
            model="alias", messages=HELLO, stream=True, stream_options={"include_usage": True}
        ):
            pass
        with pytest.raises(openai.NotFoundError):
            sdk.chat.completions.create(model="made up by a client", messages=HELLO)
        with pytest.raises(openai.InternalServerError):
            sdk.chat.completions.create(model="gone", messages=HELLO)
        with pytest.raises(openai.InternalServerError):
            sdk.chat.completions.create(model="scripted", messages=HELLO, user="refuse")
        with pytest.raises(openai.APIError):
            list(sdk.chat.completions.create(model="scripted", messages=HELLO, user="cut", stream=True))
        stream = sdk.chat.completions.create(model="scripted", messages=HELLO, user="stall", stream=True)
        next(iter(stream))
        assert value("requests_in_flight", model="scripted") == 1
        stream.close()
        assert engine.wait_cancelled(1)
    assert value("requests_total", route="/v1/models", model="", status="200") == 1
    assert value("requests_total", route=CHAT, model="scripted", status="200") == 3
    assert value("requests_total", route=CHAT, model="", status="404") == 1
    assert value("requests_total", route=CHAT, model="gone", status="503") == 1
    assert value("requests_total", route=CHAT, model="scripted", status="500") == 1
    assert value("requests_total", route=CHAT, model="scripted", status="499") == 1
    assert value("client_disconnects_total", route=CHAT, model="scripted") == 1
    assert value("requests_in_flight", model="scripted") == 0
    assert value("request_duration_seconds_count", route=CHAT, model="scripted") == 5
    assert value("time_to_first_token_seconds_count", route=CHAT, model="scripted") == 3
    assert value("tokens_total", model="scripted", kind="completion") == 6
    assert value("engine_errors_total", engine="scripted", failure="broken") == 1
    assert value("engine_errors_total", engine="scripted", failure="refused") == 1
    assert value("engine_errors_total", engine="down", failure="unavailable") == 1


def test_labels_do_not_grow_with_what_clients_write() -> None:
    registry = CollectorRegistry()
    with client(with_engine(ScriptedEngine()), with_metrics(registry)) as sdk:
        for number in range(5):
            with pytest.raises(openai.NotFoundError):
                sdk.chat.completions.create(model=f"model-{number}", messages=HELLO)
            with pytest.raises(openai.NotFoundError):
                sdk.models.retrieve(f"model-{number}")
            with pytest.raises(openai.NotFoundError):
                sdk.get(f"/page-{number}", cast_to=object)
    totals = [
        sample
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "tonnage_gateway_requests_total"
    ]
    assert {(sample.labels["route"], sample.labels["model"]) for sample in totals} == {
        (CHAT, ""),
        ("/v1/models/{model}", ""),
        ("", ""),
    }
