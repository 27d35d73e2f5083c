"""Errors in OpenAI's shape, so that every client library raises its own exception for them.

`{"error": {"message", "type", "param", "code"}}`, all four always there
(https://platform.openai.com/docs/guides/error-codes). Engines differ (llama.cpp puts the status in `code`, vLLM and
SGLang have sent the fields without the `error` around them, FastAPI sends `detail`); `from_engine` makes them alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web

MAX_MESSAGE = 4096
"""Characters of an engine's own words that are passed on."""

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """A request is answered with an error.

    Args:
        status: the HTTP status.
        message: one sentence for the developer who reads it.
        param: the field at fault, such as `messages[0].content`.
        code: a stable word for programs, such as `model_not_found`.
        headers: such as `Retry-After`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.type = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """The JSON document."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})

    def response(self) -> web.Response:
        """The whole answer."""
        return web.Response(
            status=self.status, body=self.body(), headers={**self.headers, "Content-Type": "application/json"}
        )

    def event(self) -> bytes:
        """The same as an event of a stream whose status is long sent; OpenAI's clients raise on it."""
        return b"data: " + self.body() + b"\n\n"


def from_http(error: web.HTTPException) -> Refusal:
    """What aiohttp itself refuses: unknown paths, wrong methods, bodies over the limit."""
    keep = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
    if error.status == 413:
        return Refusal(413, "The request body is larger than this server accepts.", code="request_too_large")
    if error.status == 404:
        return Refusal(404, "There is no such page; the API is below /v1.", code="unknown_url")
    if error.status == 405:
        return Refusal(405, "This page does not take that method.", code="method_not_supported", headers=keep)
    return Refusal(error.status, error.reason, headers=keep)


def from_engine(status: int, body: bytes, headers: Mapping[str, str], *, engine: str) -> Refusal:
    """What an engine refused, in its own words where it has any.

    Statuses that speak of the engine rather than of the request (401, 403, redirects) become 502: the client's key is
    not the key that the engine refused.
    """
    if status in (401, 403):
        return Refusal(502, f"engine {engine} refuses the gateway's API key", code="engine_failed")
    if status < 400:
        return Refusal(502, f"engine {engine} answered with status {status}", code="engine_failed")
    if status == 422:
        status = 400
    fields = _fields(body)
    message = _text(fields.get("message")) or _text(fields.get("detail")) or f"engine {engine}: status {status}"
    retry = headers.get("Retry-After")
    # Engines name their types after their own classes; what they say beyond OpenAI's types goes where codes go.
    code = _text(fields.get("code")) or _text(fields.get("type"))
    if code == "exceed_context_size_error" or "maximum context length" in message:
        code = "context_length_exceeded"
    return Refusal(
        status,
        message[:MAX_MESSAGE],
        param=_text(fields.get("param")),
        code=code,
        headers={"Retry-After": retry} if retry else None,
    )


def _fields(body: bytes) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    if not isinstance(document, dict):
        return {}
    inner = document.get("error", document)
    return inner if isinstance(inner, dict) else {"message": inner}


def _text(value: object) -> str | None:
    if value is None or isinstance(value, int):
        return None
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
