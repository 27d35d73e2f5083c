"""`tonnage chat`: a conversation in the terminal, with a server or with a model that is served for it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tonnage.cli.output import Json, Output, Quiet
from tonnage.cli.serve import build_server, local_model, model_name
from tonnage.cli.target import CacheOption, PlainHttp, parse_any_target
from tonnage.errors import NotFound

if TYPE_CHECKING:
    from tonnage.gateway.client import ChatClient
    from tonnage.gateway.server import Server

_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
"""The control characters of ASCII and of ISO 8859-1, which terminals obey too; to be dropped."""


def chat(
    place: Annotated[
        str, typer.Argument(metavar="URL|TARGET", help="A server's http://HOST:PORT, or a model to serve.")
    ],
    message: Annotated[str | None, typer.Option("--message", "-m", help="Ask this one thing, and end.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="What the model should keep to.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Which of the server's models.", show_default="its first")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Length of an answer.")] = 512,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, max=2.0)] = 0.7,
    cache: CacheOption = None,
    plain_http: PlainHttp = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Talk to a model. The key of a server that wants one is read from $TONNAGE_API_KEY.

    Example: tonnage chat http://127.0.0.1:8080
    """
    from tonnage.gateway.client import ChatClient

    output = Output(json=json, quiet=quiet)
    options = {"max_tokens": max_tokens, "temperature": temperature}
    history = [{"role": "system", "content": system}] if system else []
    with _server(place, output, cache=cache, plain_http=plain_http) as url:
        client = ChatClient(url, api_key=os.environ.get("TONNAGE_API_KEY", ""))
        chosen = model or _first_model(client, url)
        for question in _questions(message, chosen, output):
            history.append({"role": "user", "content": question})
            answer = ""
            for piece in client.stream(history, model=chosen, **options):
                answer += piece
                if not json:
                    sys.stdout.write(_shown(piece))
                    sys.stdout.flush()
            history.append({"role": "assistant", "content": answer})
            if json:
                output.result({"model": chosen, "question": question, "answer": answer}, lambda _: None)
            else:
                sys.stdout.write("\n")


def _shown(piece: str) -> str:
    """A piece of an answer as standard output may have it.

    A model can be talked into writing what a terminal obeys (a title, a link, the clipboard), so a terminal gets no
    control characters but newline and tab: without them no sequence begins, however it is split over the pieces.
    Anything else gets the text as it is, but for what its encoding has no bytes for.
    """
    if sys.stdout.isatty():
        piece = piece.translate(_CONTROLS)
    encoding = sys.stdout.encoding or "utf-8"
    return piece.encode(encoding, "replace").decode(encoding)


def _questions(message: str | None, model: str, output: Output) -> Iterator[str]:
    """The one message, or what the user types, or the lines of standard input."""
    if message is not None:
        yield message
        return
    terminal = sys.stdin.isatty()
    if terminal:
        output.say(f"talking to {model}; end with Ctrl-D")
    while True:
        if terminal:
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _first_model(client: ChatClient, url: str) -> str:
    models = client.models()
    if not models:
        raise NotFound(f"{url} serves no model", hint="name one with --model")
    return models[0]


@contextmanager
def _server(place: str, output: Output, *, cache: Path | None, plain_http: bool | None) -> Iterator[str]:
    """The URL of a server: the given one, or one that serves the given model while the block runs."""
    if place.startswith(("http://", "https://")):
        yield place
        return
    target = parse_any_target(place)
    folder = local_model(target, output, cache=cache, plain_http=plain_http)
    output.say(f"starting the engine on {folder}")
    with _in_background(build_server(folder, model_name(target))) as url:
        yield url


@contextmanager
def _in_background(server: Server) -> Iterator[str]:
    import asyncio

    from tonnage.cli.serving import listening

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="gateway", daemon=True)
    thread.start()
    running = listening(server.app(), grace=0)
    try:
        yield asyncio.run_coroutine_threadsafe(running.__aenter__(), loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(running.__aexit__(None, None, None), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
