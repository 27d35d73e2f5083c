"""Whole events pass, halves wait, and no byte is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tonnage.gateway.relay import MAX_HELD, EventFramer, usage


@given(st.lists(st.sampled_from([b"data: x", b"\n", b"\r\n", b"\n\n", b"[DONE]", b": ping", b"\r\n\r\n"])))
def test_what_passes_is_a_prefix_that_ends_with_an_event(chunks: list[bytes]) -> None:
    framer = EventFramer()
    passed = b"".join(framer.feed(chunk) for chunk in chunks)
    sent = b"".join(chunks)
    assert sent.startswith(passed)
    assert passed == b"" or passed.endswith((b"\n\n", b"\r\n\r\n"))
    left = sent[len(passed) :]
    assert b"\n\n" not in left
    assert framer.tail == passed[-4096:]


def test_an_event_without_end_is_not_held_for_ever() -> None:
    framer = EventFramer()
    assert framer.feed(b"data: " + b"x" * MAX_HELD)


@pytest.mark.parametrize(
    ("chunks", "done", "rest"),
    [
        ([b"data: 1\n\n", b"data: [DONE]\n\n"], True, b""),
        ([b"data: 1\n\n", b"data: [DONE]"], True, b"data: [DONE]"),
        ([b"data: 1\n\n", b"data: [DO"], False, b""),
        ([b"data: 1\n\n"], False, b""),
        ([], False, b""),
    ],
)
def test_the_end(chunks: list[bytes], done: bool, rest: bytes) -> None:
    framer = EventFramer()
    for chunk in chunks:
        framer.feed(chunk)
    assert framer.end() == rest
    assert framer.done is done


def test_usage_is_found_at_the_end_and_not_in_the_text() -> None:
    assert usage(b'{"usage":{"prompt_tokens": 12,"completion_tokens":3},"timings":{}}') == {
        "prompt": 12,
        "completion": 3,
    }
    assert usage(b'{"text":"\\"prompt_tokens\\": 99"}') == {}
    assert usage(b'{"usage":null}') == {}
