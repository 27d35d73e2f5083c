"""What requests may look like, and which field is blamed."""

# ruff: noqa: E501 - the tables have one case a line
from __future__ import annotations

import json
from typing import Any

import pytest

from tonnage.gateway.refusal import Refusal
from tonnage.gateway.schema import chat_request, completion_request, with_model

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [USER], **fields}).encode()


def completion(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "prompt": "p", **fields}).encode()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0},
        {"temperature": 2.0, "top_p": 1, "n": 128, "seed": -1, "stop": ["a", "b", "c", "d"]},
        {"temperature": None, "stop": None, "tools": None, "stream": None, "max_tokens": None},
        {"stop": "\n", "user": "u", "logit_bias": {"50256": -100}, "frequency_penalty": -2, "presence_penalty": 2},
        {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        {"logprobs": True, "top_logprobs": 20},
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "strict": True}}},
        {"response_format": {"type": "structural_tag", "structures": []}},
        {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look_up"}}},
        {"tools": [{"type": "custom", "custom": {"name": "free"}}], "tool_choice": "required"},
        {"tools": [{"type": "web_search", "anything": 1}]},
        {"tool_choice": "none"},
        {"functions": [{"name": "f"}], "function_call": {"name": "f"}},
        {"top_k": 40, "grammar": "root ::= x", "chat_template_kwargs": {"enable_thinking": False}},
        {"messages": [{"role": "system", "content": "s"}, {"role": "developer", "content": "d"}, USER]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "t"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "http://x/"}}]}]},
        {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "c1", "content": "7"}]},
        {"messages": [USER, {"role": "assistant", "content": None, "refusal": "no"}, USER]},
        {"messages": [USER, {"role": "function", "name": "f", "content": None}]},
    ],
)  # fmt: skip
def test_good_chats(fields: dict[str, Any]) -> None:
    assert chat_request(chat(**fields)).model == "m"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": None}, "model", "invalid_type"),
        ({"model": ""}, "model", "invalid_value"),
        ({"model": 7}, "model", "invalid_type"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": [7]}, "messages[0]", "invalid_type"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [USER, {"role": "robot", "content": "x"}]}, "messages[1].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}]}, "messages[0].content[0].image_url", "invalid_type"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u", "detail": "x"}}]}]}, "messages[0].content[0].image_url.detail", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "missing_required_parameter"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].name", "missing_required_parameter"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "type": "function"}]}]}, "messages[0].tool_calls[0].function", "missing_required_parameter"),
        ({"temperature": -0.1}, "temperature", "invalid_value"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"top_p": 1.5}, "top_p", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 129}, "n", "invalid_value"),
        ({"n": 1.5}, "n", "invalid_type"),
        ({"n": True}, "n", "invalid_type"),
        ({"seed": "x"}, "seed", "invalid_type"),
        ({"stop": ["a"] * 5}, "stop", "invalid_value"),
        ({"stop": [1]}, "stop[0]", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": -1}, "max_completion_tokens", "invalid_value"),
        ({"frequency_penalty": 2.5}, "frequency_penalty", "invalid_value"),
        ({"presence_penalty": -3}, "presence_penalty", "invalid_value"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "invalid_value"),
        ({"logprobs": 5}, "logprobs", "invalid_type"),
        ({"top_logprobs": 5}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "invalid_type"),
        ({"response_format": "json"}, "response_format", "invalid_type"),
        ({"response_format": {}}, "response_format.type", "missing_required_parameter"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}}, "response_format.json_schema.name", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
        ({"tools": [{"type": "function", "function": {"name": "a.b"}}]}, "tools[0].function.name", "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters", "invalid_type"),
        ({"tools": [TOOL] * 129}, "tools", "invalid_value"),
        ({"tool_choice": "auto"}, "tool_choice", "invalid_value"),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice", "invalid_value"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function", "missing_required_parameter"),
        ({"metadata": {"a": 1}}, "metadata", "invalid_type"),
        ({"user": 7}, "user", "invalid_type"),
    ],
)  # fmt: skip
def test_wrong_chats(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(Refusal) as caught:
        chat_request(chat(**fields))
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)
    assert caught.value.type == "invalid_request_error"
    assert f"'{param}'" in caught.value.message


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": ["a", "b"]},
        {"prompt": [1, 2]},
        {"prompt": [[1], [2, 3]]},
        {"prompt": None},
        {"max_tokens": 0, "echo": True, "logprobs": 5, "best_of": 3, "n": 2, "suffix": "s"},
    ],
)
def test_good_completions(fields: dict[str, Any]) -> None:
    assert completion_request(completion(**fields)).model == "m"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": 7}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"logprobs": 6}, "logprobs"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"max_tokens": -1}, "max_tokens"),
    ],
)
def test_wrong_completions(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refusal) as caught:
        completion_request(completion(**fields))
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"model":"\xff"}', b"[" * 100_000, b'{"a":1}x'])
def test_bodies_that_are_not_json(body: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        chat_request(body)
    assert caught.value.status == 400


@pytest.mark.parametrize("body", [b"[]", b"7", b'"x"', b"null"])
def test_bodies_that_are_not_objects(body: bytes) -> None:
    with pytest.raises(Refusal, match="not a JSON object") as caught:
        chat_request(body)
    assert caught.value.param is None


def test_missing_fields_are_named() -> None:
    for body, param in ((b"{}", "model"), (b'{"model":"m"}', "messages")):
        with pytest.raises(Refusal, match="Missing required parameter") as caught:
            chat_request(body)
        assert caught.value.param == param


def test_another_model_leaves_the_rest_alone() -> None:
    assert with_model(b'{"a": 1.10,"model":"x", "b":{"model":"x"}}', 'y"') == (
        b'{"a":1.10,"model":"y\\"","b":{"model":"x"}}'
    )
