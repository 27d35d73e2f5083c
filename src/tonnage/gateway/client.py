"""A small blocking client of the chat API, for `tonnage chat`; any server that speaks OpenAI's API will do.

On `http.client`, as the library is: one conversation, one connection, no thread. Closing a stream, as Ctrl-C does,
closes the connection, which ends the generation at the other side.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

import msgspec

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

TIMEOUT = 600.0
"""Seconds of silence; a long prompt takes that long on a small machine."""

MAX_LINE = 1 << 20
"""Bytes of one line of a stream."""

MAX_BODY = 16 << 20
"""Bytes of an answer that is not a stream."""

Message = Mapping[str, Any]
"""`role` and `content`, as OpenAI's API says."""


class ChatClient:
    """Talks to one server.

    Args:
        url: its address, with or without a final `/v1`.
        api_key: sent as bearer token, if not empty.
        timeout: seconds of silence to bear.

    Raises:
        UsageError: the address is not one of HTTP.
    """

    def __init__(self, url: str, *, api_key: str = "", timeout: float = TIMEOUT) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise UsageError(f"{url!r} is not the address of a server", hint="expected http://HOST:PORT")
        self._host = parts.hostname
        self._port = port
        self._secure = parts.scheme == "https"
        self._path = parts.path.rstrip("/").removesuffix("/v1") + "/v1"
        self._address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout = timeout

    def models(self) -> list[str]:
        """The names of the models that the server has.

        Raises:
            AccessDenied, Unavailable: as usual.
        """
        with closing(self._connection()) as connection:
            answer = _document(_read(self._send(connection, "GET", "/models"), self._address))
        return [str(model.get("id")) for model in answer.get("data", []) if isinstance(model, dict)]

    def stream(self, messages: Sequence[Message], *, model: str, **options: Any) -> Iterator[str]:
        """Answer a conversation; yields the text piece by piece as it is generated.

        Args:
            messages: the conversation so far.
            model: which model answers.
            **options: further fields of the request, such as `temperature`.

        Raises:
            UsageError: the server refuses the request as wrong.
            NotFound: it has no such model.
            AccessDenied: it wants another key.
            TooManyRequests, Unavailable: it cannot answer now.
            EngineError: it failed in the middle of the answer.
            Truncated: the connection broke in the middle of the answer.
        """
        body = msgspec.json.encode({**options, "model": model, "messages": list(messages), "stream": True})
        with closing(self._connection()) as connection:
            response = self._send(connection, "POST", "/chat/completions", body)
            for data in self._events(response):
                if data == b"[DONE]":
                    return
                yield from _pieces(_document(data))
        raise Truncated(f"{self._address} ended its answer early", hint="try again")

    def _connection(self) -> HTTPConnection:
        if self._secure:
            context = ssl.create_default_context()
            return HTTPSConnection(self._host, self._port, timeout=self._timeout, context=context)
        return HTTPConnection(self._host, self._port, timeout=self._timeout)

    def _send(self, connection: HTTPConnection, method: str, page: str, body: bytes | None = None) -> HTTPResponse:
        try:
            connection.request(method, self._path + page, body=body, headers=self._headers)
            response = connection.getresponse()
        except (OSError, HTTPException) as error:
            raise Unavailable(f"cannot reach {self._address}: {error}", hint="is the server running?") from error
        if response.status != 200:
            raise _error(response.status, _read(response, self._address), response.getheader("Retry-After"))
        return response

    def _events(self, response: HTTPResponse) -> Iterator[bytes]:
        while True:
            try:
                line = response.readline(MAX_LINE)
            except (OSError, HTTPException) as error:
                raise Truncated(f"the connection to {self._address} broke: {error}", hint="try again") from error
            if not line:
                return
            if line.startswith(b"data:"):
                yield line[5:].strip()


def _pieces(event: Mapping[str, Any]) -> Iterator[str]:
    if "error" in event:
        raise EngineError(_message(event) or "the engine failed in the middle of its answer")
    for choice in event.get("choices") or ():
        text = (choice.get("delta") or {}).get("content")
        if text:
            yield text


def _read(response: HTTPResponse, address: str) -> bytes:
    try:
        return response.read(MAX_BODY)
    except (OSError, HTTPException) as error:
        raise Truncated(f"the connection to {address} broke: {error}", hint="try again") from error


def _document(data: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EngineError("the server's answer is not JSON", hint="does it speak OpenAI's API?") from error


def _message(document: Mapping[str, Any]) -> str:
    error = document.get("error")
    found = error.get("message") if isinstance(error, dict) else error
    return found if isinstance(found, str) else ""


def _error(status: int, body: bytes, retry_after: str | None) -> TonnageError:
    try:
        message = _message(msgspec.json.decode(body, type=dict[str, Any]))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        message = ""
    message = message.rstrip(".") or f"the server answered with status {status}"
    if status in (401, 403):
        return AccessDenied(message)
    if status == 404:
        return NotFound(message)
    if status == 429:
        seconds = float(retry_after) if retry_after and retry_after.isdigit() else None
        return TooManyRequests(message, retry_after=seconds)
    if status >= 500:
        return Unavailable(message)
    return UsageError(message)
