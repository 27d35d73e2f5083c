"""Passes a stream of server-sent events on, whole events at a time, without reading them.

A client never sees half an event: what follows the last blank line is held back until its end arrives. So when an
engine dies in the middle of one, the half is dropped, and the error that takes its place can be read. Everything else
goes through byte for byte.
"""

from __future__ import annotations

import re

MAX_HELD = 1 << 20
"""Bytes of an unfinished event; a longer one is passed on in pieces."""

_TAIL = 4096
_USAGE = re.compile(rb'"(prompt|completion)_tokens"\s*:\s*(\d{1,15})')


class EventFramer:
    """Cuts a byte stream after whole events."""

    def __init__(self) -> None:
        self._held = b""
        self.tail = b""
        """The last bytes that were passed on: the end marker and the usage are in there."""

    def feed(self, chunk: bytes) -> bytes:
        """What may be passed on now; may be nothing."""
        data = self._held + chunk if self._held else chunk
        if data.endswith(b"\n\n"):
            self._held = b""
            return self._pass(data)
        end = max(_after(data, b"\n\n"), _after(data, b"\r\n\r\n"))
        if len(data) - end > MAX_HELD:
            end = len(data)
        self._held = data[end:]
        return self._pass(data[:end])

    def end(self) -> bytes:
        """What is left when the engine closed the stream properly: an end marker without its blank line counts."""
        held, self._held = self._held, b""
        return self._pass(held) if b"[DONE]" in held else b""

    @property
    def done(self) -> bool:
        """Whether the end marker, `data: [DONE]`, was passed on."""
        return b"[DONE]" in self.tail[-32:]

    def _pass(self, data: bytes) -> bytes:
        if len(data) >= _TAIL:
            self.tail = data[-_TAIL:]
        elif data:
            self.tail = self.tail[len(data) - _TAIL :] + data
        return data


def _after(data: bytes, mark: bytes) -> int:
    at = data.rfind(mark)
    return at + len(mark) if at >= 0 else 0


def usage(tail: bytes) -> dict[str, int]:
    """The tokens that an engine reports at the end of an answer: `prompt` and `completion`, if they are there.

    A match on bytes is enough: within the text of an answer these quotation marks would be escaped.
    """
    return {kind.decode(): int(count) for kind, count in _USAGE.findall(tail[-_TAIL:])}
