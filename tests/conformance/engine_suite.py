"""What every engine must do, whatever runs the model: the tests that each engine's class inherits.

A subclass names its engine in `make`. The engine is started once for the class, on a loop of its own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tonnage.errors import Unavailable
from tonnage.gateway.engines.engine import Engine, Timeouts

CHAT = "/v1/chat/completions"
TIMEOUTS = Timeouts(silence=60)


class EngineSuite:
    """Inherit, and define `make`."""

    @classmethod
    def make(cls) -> Engine:
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def runner(cls) -> Iterator[asyncio.Runner]:
        with asyncio.Runner() as runner:
            yield runner

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, runner: asyncio.Runner) -> Iterator[Engine]:
        engine = cls.make()
        runner.run(engine.start())
        yield engine
        runner.run(engine.stop())

    def chat(self, engine: Engine, **fields: Any) -> bytes:
        request = {
            "model": engine.models[0],
            "messages": [{"role": "user", "content": "Say a few words about ships and the sea"}],
            "max_tokens": 12,
            "temperature": 0,
        }
        return json.dumps({**request, **fields}).encode()

    def test_has_a_name_and_models(self, engine: Engine) -> None:
        assert engine.name
        assert engine.models
        assert all(engine.models)

    def test_is_healthy_once_started(self, runner: asyncio.Runner, engine: Engine) -> None:
        health = runner.run(engine.health(TIMEOUTS))
        assert health.ready, health.reason
        assert health.reason == ""

    def test_starting_again_changes_nothing(self, runner: asyncio.Runner, engine: Engine) -> None:
        runner.run(engine.start())
        assert runner.run(engine.health(TIMEOUTS)).ready

    def test_before_the_start_it_is_unavailable_and_says_so(self, runner: asyncio.Runner) -> None:
        engine = self.make()
        health = runner.run(engine.health(TIMEOUTS))
        assert not health.ready
        assert "not started" in health.reason
        with pytest.raises(Unavailable):
            runner.run(whole(engine, CHAT, b"{}"))
        runner.run(engine.stop())
        runner.run(engine.stop())

    def test_answers_a_chat(self, runner: asyncio.Runner, engine: Engine) -> None:
        status, kind, body = runner.run(whole(engine, CHAT, self.chat(engine)))
        assert (status, kind.partition(";")[0]) == (200, "application/json")
        answer = json.loads(body)
        assert answer["object"] == "chat.completion"
        assert answer["choices"][0]["message"]["role"] == "assistant"
        assert answer["choices"][0]["message"]["content"]
        assert answer["usage"]["completion_tokens"] > 0

    def test_answers_a_completion(self, runner: asyncio.Runner, engine: Engine) -> None:
        request = {"model": engine.models[0], "prompt": "Once upon a time", "max_tokens": 8}
        status, _, body = runner.run(whole(engine, "/v1/completions", json.dumps(request).encode()))
        assert status == 200
        assert json.loads(body)["choices"][0]["text"]

    def test_streams_a_chat_up_to_the_end_marker(self, runner: asyncio.Runner, engine: Engine) -> None:
        request = self.chat(engine, stream=True, stream_options={"include_usage": True})
        status, kind, body = runner.run(whole(engine, CHAT, request))
        assert (status, kind.partition(";")[0]) == (200, "text/event-stream")
        assert body.endswith(b"data: [DONE]\n\n")
        chunks = events(body)
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert text_of(chunks)
        assert chunks[-1]["usage"]["completion_tokens"] > 0

    def test_the_stream_says_what_the_whole_answer_says(self, runner: asyncio.Runner, engine: Engine) -> None:
        _, _, body = runner.run(whole(engine, CHAT, self.chat(engine)))
        _, _, stream = runner.run(whole(engine, CHAT, self.chat(engine, stream=True)))
        assert text_of(events(stream)) == json.loads(body)["choices"][0]["message"]["content"]

    def test_fields_it_does_not_know_do_no_harm(self, runner: asyncio.Runner, engine: Engine) -> None:
        status, _, _ = runner.run(whole(engine, CHAT, self.chat(engine, nobody_knows_this={"a": [1]})))
        assert status == 200

    def test_a_refusal_is_an_answer(self, runner: asyncio.Runner, engine: Engine) -> None:
        status, _, body = runner.run(whole(engine, CHAT, self.chat(engine, messages="not a list")))
        assert status == 400
        assert json.loads(body)["error"]["message"]

    def test_answers_several_at_once(self, runner: asyncio.Runner, engine: Engine) -> None:
        async def several() -> list[tuple[int, str, bytes]]:
            request = self.chat(engine, stream=True)
            return await asyncio.gather(*(whole(engine, CHAT, request) for _ in range(5)))

        answers = runner.run(several())
        assert [status for status, _, _ in answers] == [200] * 5
        assert all(body.endswith(b"data: [DONE]\n\n") for _, _, body in answers)

    def test_goes_on_after_answers_that_nobody_read(self, runner: asyncio.Runner, engine: Engine) -> None:
        async def abandon() -> None:
            request = self.chat(engine, stream=True, max_tokens=2000)
            async with engine.open(CHAT, request, headers={}, timeouts=TIMEOUTS) as answer:
                async for _ in answer.chunks():
                    return

        for _ in range(4):
            runner.run(abandon())
        status, _, _ = runner.run(whole(engine, CHAT, self.chat(engine)))
        assert status == 200


async def whole(engine: Engine, path: str, body: bytes) -> tuple[int, str, bytes]:
    async with engine.open(path, body, headers={"X-Request-Id": "suite"}, timeouts=TIMEOUTS) as answer:
        kind = answer.headers.get("Content-Type", "")
        return answer.status, kind, b"".join([chunk async for chunk in answer.chunks()])


def events(body: bytes) -> list[dict[str, Any]]:
    lines = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
