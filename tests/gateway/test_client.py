"""The small client, against our own gateway."""

from __future__ import annotations

from typing import Any

import pytest

from support.gateways import gateway
from tonnage.errors import (
    AccessDenied,
    EngineError,
    NotFound,
    TonnageError,
    TooManyRequests,
    Truncated,
    Unavailable,
    UsageError,
)
from tonnage.gateway.client import ChatClient
from tonnage.gateway.engines.http import HttpEngine
from tonnage.gateway.engines.scripted import Script, ScriptedEngine
from tonnage.gateway.options import with_api_keys, with_engine, with_model_aliases

HELLO = [{"role": "user", "content": "one two"}]


def saying(**script: Any) -> ScriptedEngine:
    return ScriptedEngine(play=lambda _: Script(**script))


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_pieces_come_one_by_one(suffix: str) -> None:
    engine = ScriptedEngine()
    with gateway(with_engine(engine)) as url:
        assert list(ChatClient(url + suffix).stream(HELLO, model="scripted", temperature=0)) == ["one", " two"]
    assert b'"temperature":0' in engine.received[0].body


def test_models() -> None:
    with gateway(with_engine(ScriptedEngine()), with_model_aliases({"a": "scripted"})) as url:
        assert ChatClient(url).models() == ["scripted", "a"]


def test_leaving_early_cancels_the_generation() -> None:
    engine = saying(pieces=["one", " two"], stall_after=1)
    with gateway(with_engine(engine)) as url:
        pieces = ChatClient(url).stream(HELLO, model="scripted")
        assert next(iter(pieces)) == "one"
        pieces.close()  # type: ignore[attr-defined]
        assert engine.wait_cancelled(1)


@pytest.mark.parametrize(
    ("script", "kind", "says"),
    [
        ({"status": 400, "error": b'{"error":{"message":"too long"}}'}, UsageError, "too long"),
        ({"status": 429, "error": b'{"error":{"message":"busy"}}'}, TooManyRequests, "busy"),
        ({"status": 500, "error": b"oops"}, Unavailable, "status 500"),
        ({"pieces": ["a", "b"], "cut_after": 1}, EngineError, "broke off"),
    ],
)
def test_errors(script: dict[str, Any], kind: type[TonnageError], says: str) -> None:
    with gateway(with_engine(saying(**script))) as url, pytest.raises(kind, match=says):
        list(ChatClient(url).stream(HELLO, model="scripted"))


def test_keys_and_names() -> None:
    with gateway(with_engine(ScriptedEngine()), with_api_keys(["k"])) as url:
        assert ChatClient(url, api_key="k").models() == ["scripted"]
        with pytest.raises(AccessDenied, match="API key"):
            ChatClient(url).models()
        with pytest.raises(NotFound, match="'other' does not exist"):
            list(ChatClient(url, api_key="k").stream(HELLO, model="other"))


def test_nobody_there() -> None:
    with pytest.raises(Unavailable, match=r"cannot reach http://127\.0\.0\.1:1"):
        ChatClient("http://127.0.0.1:1").models()


def test_a_connection_that_ends_early_is_not_an_answer() -> None:
    engine = saying(raw=[b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'])

    with gateway(with_engine(engine)), pytest.raises(Truncated, match="early"):
        list(ChatClient(engine.url).stream(HELLO, model="scripted"))


def test_what_is_not_openai_is_said_so() -> None:
    with gateway(with_engine(saying(raw=[b"data: hello\n\n"]))) as url, pytest.raises(EngineError, match="not JSON"):
        list(ChatClient(url).stream(HELLO, model="scripted"))


@pytest.mark.parametrize("url", ["localhost", "ftp://x", "http://", "http://x:y"])
def test_wrong_addresses(url: str) -> None:
    with pytest.raises(UsageError, match="not the address"):
        ChatClient(url)


def test_an_engine_that_is_down_says_so() -> None:
    down = HttpEngine("http://127.0.0.1:1", models=["m"])
    with gateway(with_engine(down)) as url, pytest.raises(Unavailable, match="cannot be reached"):
        list(ChatClient(url).stream(HELLO, model="m"))
