"""The API as the real `openai` SDK sees it, and byte for byte."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from support.gateways import gateway
from tonnage.gateway.engines.engine import Engine
from tonnage.gateway.engines.http import HttpEngine
from tonnage.gateway.engines.scripted import Script, ScriptedEngine, echo
from tonnage.gateway.options import (
    with_api_keys,
    with_body_limit,
    with_concurrency_limit,
    with_engine,
    with_model_aliases,
    with_timeouts,
)
from tonnage.gateway.server import Option

HELLO: list[Any] = [{"role": "user", "content": "one two three"}]


@contextmanager
def client(engine: Engine, *options: Option, key: str = "none") -> Iterator[openai.OpenAI]:
    with (
        gateway(with_engine(engine), *options) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=30) as sdk,
    ):
        yield sdk


def saying(**script: Any) -> ScriptedEngine:
    return ScriptedEngine(play=lambda _: Script(**script))


def ask(url: str, body: bytes, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)) as connection:
        sent = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        connection.request("POST", "/v1/chat/completions", body, sent)
        response = connection.getresponse()
        return response, response.read()


class TestTheSdk:
    def test_whole_answer(self) -> None:
        with client(ScriptedEngine()) as sdk:
            answer = sdk.chat.completions.create(model="scripted", messages=HELLO)
            assert answer.choices[0].message.content == "one two three"
            assert answer.choices[0].finish_reason == "stop"
            assert answer.usage is not None
            assert answer.usage.completion_tokens == 3
            assert (answer._request_id or "").startswith("req_")

    def test_stream(self) -> None:
        with client(ScriptedEngine()) as sdk:
            chunks = list(
                sdk.chat.completions.create(
                    model="scripted", messages=HELLO, stream=True, stream_options={"include_usage": True}
                )
            )
        texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
        assert texts == ["one", " two", " three", ""]
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 3

    def test_completions(self) -> None:
        with client(ScriptedEngine()) as sdk:
            whole = sdk.completions.create(model="scripted", prompt="a b")
            assert whole.choices[0].text == "a b"
            stream = sdk.completions.create(model="scripted", prompt="a b", stream=True)
            assert "".join(chunk.choices[0].text for chunk in stream) == "a b"

    def test_models(self) -> None:
        engine = ScriptedEngine(models=["org/base", "small"])
        with client(engine, with_model_aliases({"gpt-4o": "small"})) as sdk:
            assert [model.id for model in sdk.models.list()] == ["org/base", "small", "gpt-4o"]
            assert sdk.models.retrieve("org/base").owned_by == "tonnage"
            with pytest.raises(openai.NotFoundError) as caught:
                sdk.models.retrieve("large")
            assert caught.value.code == "model_not_found"

    def test_many_streams_at_once(self) -> None:
        with client(ScriptedEngine()) as sdk, ThreadPoolExecutor(20) as pool:

            def tell(number: int) -> str:
                messages: list[Any] = [{"role": "user", "content": f"stream {number} of many"}]
                stream = sdk.chat.completions.create(model="scripted", messages=messages, stream=True)
                return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

            assert list(pool.map(tell, range(60))) == [f"stream {number} of many" for number in range(60)]

    def test_unknown_model(self) -> None:
        with client(ScriptedEngine()) as sdk, pytest.raises(openai.NotFoundError) as caught:
            sdk.chat.completions.create(model="huge", messages=HELLO)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")

    def test_wrong_request(self) -> None:
        with client(ScriptedEngine()) as sdk, pytest.raises(openai.BadRequestError) as caught:
            sdk.chat.completions.create(model="scripted", messages=HELLO, temperature=3)
        assert (caught.value.type, caught.value.param) == ("invalid_request_error", "temperature")


class TestKeys:
    def test_the_right_ones_get_in(self) -> None:
        for key in ("first-key", "second-key"):
            with client(ScriptedEngine(), with_api_keys(["first-key", "second-key"]), key=key) as sdk:
                assert sdk.chat.completions.create(model="scripted", messages=HELLO).choices

    @pytest.mark.parametrize("key", ["wrong", "first-ke", "first-keyy"])
    def test_wrong_ones_do_not(self, key: str) -> None:
        engine = ScriptedEngine()
        with client(engine, with_api_keys(["first-key"]), key=key) as sdk:
            with pytest.raises(openai.AuthenticationError) as caught:
                sdk.chat.completions.create(model="scripted", messages=HELLO)
            with pytest.raises(openai.AuthenticationError):
                sdk.models.list()
        assert caught.value.code == "invalid_api_key"
        assert engine.received == []

    def test_health_needs_none_and_clients_keys_stay_here(self) -> None:
        engine = ScriptedEngine()
        with gateway(with_engine(engine), with_api_keys(["secret"])) as url:
            with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)) as connection:
                for page in ("/healthz", "/readyz"):
                    connection.request("GET", page)
                    response = connection.getresponse()
                    assert response.status == 200, page
                    response.read()
            body = json.dumps({"model": "scripted", "messages": HELLO}).encode()
            response, _ = ask(url, body)
            assert response.status == 401
            assert response.getheader("WWW-Authenticate") == "Bearer"
            response, _ = ask(url, body, Authorization="Bearer secret")
            assert response.status == 200
        assert "Authorization" not in engine.received[0].headers


class TestBytes:
    def test_the_clients_own_bytes_reach_the_engine(self) -> None:
        engine = ScriptedEngine()
        body = (
            b'{ "model" : "scripted",\t"messages":[{"role":"user","content":"h\\u00e9","x":1e40}],\n'
            b'"top_k": 40, "seed":9007199254740993, "nested":{"b":1,"a":[1.10, null]},"min_p":0.050 }'
        )
        with gateway(with_engine(engine)) as url:
            response, _ = ask(url, body)
        assert response.status == 200
        assert engine.received[0].body == body

    def test_an_alias_changes_the_model_and_nothing_else(self) -> None:
        engine = ScriptedEngine()
        body = b'{"z":1.10,"model":"%s","messages":[{"content":"h\\u00e9 \xc3\xa9", "role":"user"}],"b":{ "y":1e2}}'
        with gateway(with_engine(engine), with_model_aliases({"gpt-4o": "scripted"})) as url:
            response, _ = ask(url, body % b"gpt-4o")
        assert response.status == 200
        assert engine.received[0].body == body % b"scripted"

    @pytest.mark.parametrize(
        "chunks",
        [
            [b'data: {"a":1}\n\n', b"data: [DONE]\n\n"],
            [b'data: {"a', b'":1}\n', b"\ndata: [DO", b"NE]\n\n"],
            [b": ping\n\n", b'event: x\r\ndata: {"a":1}\r\n\r\n', b"data: [DONE]\r\n\r\n"],
            [b'data: {"a":"' + b"x" * 3_000_000, b'"}\n\ndata: [DONE]\n\n'],
            [b"data: [DONE]\n"],
        ],
    )
    def test_streams_come_out_as_they_went_in(self, chunks: list[bytes]) -> None:
        with gateway(with_engine(saying(raw=chunks))) as url:
            response, body = ask(url, json.dumps({"model": "scripted", "messages": HELLO, "stream": True}).encode())
        assert response.getheader("Content-Type") == "text/event-stream"
        assert body == b"".join(chunks)

    def test_request_ids_pass_or_are_made(self) -> None:
        engine = ScriptedEngine()
        body = json.dumps({"model": "scripted", "messages": HELLO}).encode()
        with gateway(with_engine(engine)) as url:
            response, _ = ask(url, body, X_Request_Id="mine-1", traceparent="00-ab-cd-01")
            assert response.getheader("X-Request-Id") == "mine-1"
            response, _ = ask(url, body, X_Request_Id="not a good id")
            made = response.getheader("X-Request-Id") or ""
            response, _ = ask(url, b"{")
            assert response.status == 400
            assert (response.getheader("X-Request-Id") or "").startswith("req_")
        assert made.startswith("req_")
        assert [received.headers["X-Request-Id"] for received in engine.received] == ["mine-1", made]
        assert engine.received[0].headers["traceparent"] == "00-ab-cd-01"


class TestEngineFailures:
    def test_cut_in_the_middle_of_a_stream_ends_in_an_error_event(self) -> None:
        with client(saying(pieces=["one", " two", " three"], cut_after=2)) as sdk:
            texts = []
            with pytest.raises(openai.APIError, match="broke off") as caught:
                for chunk in sdk.chat.completions.create(model="scripted", messages=HELLO, stream=True):
                    texts.append(chunk.choices[0].delta.content)
        assert texts == ["one", " two"]
        assert caught.value.code == "engine_failed"

    def test_a_stream_without_its_end_marker_ends_in_an_error_event(self) -> None:
        with client(saying(raw=[b'data: {"choices":[]}\n\n'])) as sdk, pytest.raises(openai.APIError, match="early"):
            list(sdk.chat.completions.create(model="scripted", messages=HELLO, stream=True))

    def test_cut_before_an_answer(self) -> None:
        with client(saying(cut_after=0)) as sdk, pytest.raises(openai.InternalServerError) as caught:
            sdk.chat.completions.create(model="scripted", messages=HELLO)
        assert caught.value.status_code == 502
        assert caught.value.type == "server_error"

    def test_silence_before_and_within_an_answer(self) -> None:
        with client(saying(pieces=["one", "two"], stall_after=1), with_timeouts(silence=0.2)) as sdk:
            with pytest.raises(openai.InternalServerError) as caught:
                sdk.chat.completions.create(model="scripted", messages=HELLO)
            assert caught.value.status_code == 504
            with pytest.raises(openai.APIError, match="silent"):
                list(sdk.chat.completions.create(model="scripted", messages=HELLO, stream=True))

    def test_down(self) -> None:
        down = HttpEngine("http://127.0.0.1:1", models=["m"])
        with client(down) as sdk, pytest.raises(openai.InternalServerError) as caught:
            sdk.chat.completions.create(model="m", messages=HELLO)
        assert caught.value.status_code == 503
        assert caught.value.code == "engine_unavailable"
        assert caught.value.response.headers["Retry-After"] == "1"

    @pytest.mark.parametrize(
        ("status", "error", "seen", "kind", "message"),
        [
            (400, b'{"error":{"code":400,"message":"llama","type":"x"}}', 400, "invalid_request_error", "llama"),
            (400, b'{"object":"error","message":"vllm","code":400}', 400, "invalid_request_error", "vllm"),
            (422, b'{"detail":[{"loc":["body"]}]}', 400, "invalid_request_error", "loc"),
            (404, b"not JSON", 404, "invalid_request_error", "status 404"),
            (429, b'{"error":"slow down"}', 429, "rate_limit_error", "slow down"),
            (500, b'{"error":{"message":"CUDA"}}', 500, "server_error", "CUDA"),
            (503, b"[]", 503, "server_error", "status 503"),
            (401, b'{"error":{"message":"key sk-123 is wrong"}}', 502, "server_error", "refuses the gateway's"),
            (302, b"", 502, "server_error", "status 302"),
        ],
    )
    def test_refusals_get_one_shape(self, status: int, error: bytes, seen: int, kind: str, message: str) -> None:
        with client(saying(status=status, error=error)) as sdk, pytest.raises(openai.APIStatusError) as caught:
            sdk.chat.completions.create(model="scripted", messages=HELLO, stream=True)
        assert caught.value.status_code == seen
        assert isinstance(caught.value.body, dict)
        assert set(caught.value.body) == {"message", "type", "param", "code"}
        assert caught.value.type == kind
        assert message in caught.value.body["message"]
        assert "sk-123" not in str(caught.value.body)

    def test_too_long_a_prompt_has_openais_code(self) -> None:
        error = b'{"error":{"code":400,"message":"request exceeds","type":"exceed_context_size_error"}}'
        with client(saying(status=400, error=error)) as sdk, pytest.raises(openai.BadRequestError) as caught:
            sdk.chat.completions.create(model="scripted", messages=HELLO)
        assert caught.value.code == "context_length_exceeded"


class TestEndlessAnswers:
    @pytest.mark.parametrize("script", [{"pieces": ["x" * 5000]}, {"status": 400, "error": b"x" * 5000}])
    def test_are_not_held_in_memory(self, script: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tonnage.gateway.engines.http.MAX_ANSWER", 4000)
        with client(saying(**script)) as sdk, pytest.raises(openai.APIStatusError) as caught:
            sdk.chat.completions.create(model="scripted", messages=HELLO)
        assert caught.value.status_code == 502
        assert "more than 4000 bytes" in caught.value.message

    def test_streams_may_be_longer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tonnage.gateway.engines.http.MAX_ANSWER", 4000)
        with client(saying(pieces=["x" * 3000] * 3)) as sdk:
            stream = sdk.chat.completions.create(model="scripted", messages=HELLO, stream=True)
            assert sum(len(chunk.choices[0].delta.content or "") for chunk in stream if chunk.choices) == 9000


class TestDisconnects:
    @pytest.mark.parametrize("stream", [True, False])
    def test_a_client_that_leaves_cancels_the_generation(self, stream: bool) -> None:
        engine = saying(pieces=["one", " two"], stall_after=1)
        with gateway(with_engine(engine)) as url:
            with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)) as connection:
                body = json.dumps({"model": "scripted", "messages": HELLO, "stream": stream})
                connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
                if stream:
                    response = connection.getresponse()
                    assert b"one" in response.readline()
                    response.close()
                else:
                    assert engine.wait_received(1)
                assert engine.cancelled == 0
            assert engine.wait_cancelled(1)

    def test_so_does_the_sdk(self) -> None:
        engine = saying(pieces=["one", " two"], stall_after=1)
        with client(engine) as sdk:
            stream = sdk.chat.completions.create(model="scripted", messages=HELLO, stream=True)
            assert next(iter(stream)).choices[0].delta.content == "one"
            stream.close()
            assert engine.wait_cancelled(1)

    def test_a_slow_reader_holds_the_engine_back(self) -> None:
        piece = "x" * 100_000
        engine = saying(pieces=[piece] * 1000)
        with gateway(with_engine(engine)) as url:
            with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)) as connection:
                body = json.dumps({"model": "scripted", "messages": HELLO, "stream": True})
                connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                assert piece in response.readline().decode()
                response.close()
            # 100 MB do not fit into the buffers on the way: the engine was still writing when the reader left.
            assert engine.wait_cancelled(1)


class TestLimits:
    def test_body(self) -> None:
        engine = ScriptedEngine()
        with client(engine, with_body_limit(1000)) as sdk:
            assert sdk.chat.completions.create(model="scripted", messages=HELLO).choices
            with pytest.raises(openai.APIStatusError) as caught:
                sdk.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "x" * 2000}])
        assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")
        assert len(engine.received) == 1

    def test_requests_at_a_time(self) -> None:
        def play(request: dict[str, Any]) -> Script:
            return Script(pieces=["a", "b"], stall_after=1) if request.get("stream") else echo(request)

        engine = ScriptedEngine(play=play)
        with client(engine, with_concurrency_limit(1)) as sdk:
            stream = sdk.chat.completions.create(model="scripted", messages=HELLO, stream=True)
            assert next(iter(stream)).choices
            with pytest.raises(openai.RateLimitError) as caught:
                sdk.chat.completions.create(model="scripted", messages=HELLO)
            stream.close()
            assert engine.wait_cancelled(1)
        assert caught.value.code == "rate_limit_exceeded"
        assert caught.value.response.headers["Retry-After"] == "1"

    @pytest.mark.parametrize(
        ("method", "page", "kind", "status", "code"),
        [
            ("GET", "/v2/chat", "", 404, "unknown_url"),
            ("GET", "/", "", 404, "unknown_url"),
            ("GET", "/metrics", "", 404, "unknown_url"),
            ("GET", "/v1/chat/completions", "", 405, "method_not_supported"),
            ("POST", "/v1/chat/completions", "text/plain", 415, "unsupported_content_type"),
            ("POST", "/v1/chat/completions", "application/json", 400, "invalid_json"),
        ],
    )
    def test_wrong_pages_and_methods(self, method: str, page: str, kind: str, status: int, code: str) -> None:
        with (
            gateway(with_engine(ScriptedEngine())) as url,
            closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)) as connection,
        ):
            connection.request(method, page, headers={"Content-Type": kind} if kind else {})
            response = connection.getresponse()
            error = json.loads(response.read())["error"]
        assert (response.status, error["code"]) == (status, code)
        assert set(error) == {"message", "type", "param", "code"}
