"""`tonnage serve`: a model behind the API."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tonnage.cli import delivery
from tonnage.cli.output import Json, Output, Quiet
from tonnage.cli.target import CacheOption, PlainHttp, node_cache, parse_any_target
from tonnage.content.reference import Folder, Layout, Target
from tonnage.errors import LocalError, UsageError
from tonnage.pack.folder import holds

if TYPE_CHECKING:
    from tonnage.gateway.server import Server

Context = Annotated[
    int, typer.Option("--context", min=1, help="Tokens of a conversation, question and answer together.")
]
Slots = Annotated[int, typer.Option("--slots", min=1, help="Conversations generated at a time.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, show_default="all processors")]
Name = Annotated[
    str | None, typer.Option("--name", help="Name that clients ask for.", show_default="the repository's or folder's")
]
ApiKeyFile = Annotated[
    Path | None, typer.Option("--api-key-file", help="File of API keys, one a line; $TONNAGE_API_KEY holds one, too.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the engine's messages.")]

MAX_KEYS_FILE = 1 << 20


def serve(
    target_text: Annotated[
        str, typer.Argument(metavar="TARGET|DIR", help="HOST/REPOSITORY:TAG, oci:DIR:TAG, or a folder or GGUF file.")
    ],
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Port 0 picks a free one.")
    ] = "127.0.0.1:8080",
    name: Name = None,
    context: Context = 8192,
    slots: Slots = 2,
    threads: Threads = None,
    api_key_file: ApiKeyFile = None,
    cache: CacheOption = None,
    plain_http: PlainHttp = None,
    verbose: Verbose = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Serve a model with OpenAI's API: pull it into the node cache if it is not there, start the engine, answer.

    Example: tonnage serve registry.example/models/llama:v1
    """
    from tonnage.cli.serving import listening, parse_listen, run

    output = Output(json=json, quiet=quiet)
    host, port = parse_listen(listen)
    keys = api_keys(api_key_file)
    target = parse_any_target(target_text)
    model = name or model_name(target)
    folder = local_model(target, output, cache=cache, plain_http=plain_http)
    server = build_server(folder, model, keys=keys, context=context, slots=slots, threads=threads, verbose=verbose)
    if not keys and host not in ("127.0.0.1", "::1", "localhost"):
        output.warn(f"{listen} can be reached from other machines, and no API key is asked for; see --api-key-file")
    output.say(f"starting the engine on {folder}")

    def ready(url: str) -> None:
        output.result(
            {"url": url, "model": model, "folder": str(folder)},
            lambda console: console.print(f"serving {model} at {url}/v1; Ctrl-C stops it", markup=False),
        )

    run(listening(server.app(), host, port, on_stop=server.drain), ready)


def local_model(target: Target, output: Output, *, cache: Path | None = None, plain_http: bool | None = None) -> Path:
    """The folder (or file) of a model on this machine; pulls it into the node cache if it is not there.

    Raises:
        TonnageError: as `find_artifact` and `bring`.
    """
    if isinstance(target, Folder):
        return Path(target.path).expanduser()
    if target.digest and holds(folder := node_cache(cache).model_folder(target.digest), target.digest):
        # Named by digest, it is known without asking the registry, which may be down.
        output.say(f"{target} was in the cache")
        return folder
    with delivery.find_artifact(target, output, plain_http=plain_http) as (store, artifact):
        folder = node_cache(cache).model_folder(artifact.root.digest)
        transfer = delivery.bring(store, artifact, folder, output, source=str(target), wait=True)
    output.say(f"{target} is in the cache, verified: {transfer}" if transfer.moved else f"{target} was in the cache")
    return folder


def model_name(target: Target) -> str:
    """What clients call a model, if the user does not say."""
    if isinstance(target, Folder | Layout):
        return Path(target.path).expanduser().resolve().name.removesuffix(".gguf") or "model"
    return target.name.rpartition("/")[2]


def build_server(
    folder: Path,
    model: str,
    *,
    keys: Sequence[str] = (),
    context: int = 8192,
    slots: int = 2,
    threads: int | None = None,
    verbose: bool = False,
) -> Server:
    """The gateway over the embedded engine."""
    from tonnage.gateway.engines.embedded import EmbeddedEngine
    from tonnage.gateway.options import with_api_keys, with_engine, with_metrics
    from tonnage.gateway.server import Server

    engine = EmbeddedEngine(folder, model=model, context=context, slots=slots, threads=threads, verbose=verbose)
    options = [with_engine(engine), with_metrics()]
    if keys:
        options.append(with_api_keys(keys))
    return Server(*options)


def api_keys(file: Path | None) -> list[str]:
    """The keys that the user wants: from a file and from the environment, never from the command line, where other
    users of the machine could read them.

    Raises:
        LocalError: the file cannot be read.
        UsageError: it holds no key.
    """
    keys = [key] if (key := os.environ.get("TONNAGE_API_KEY")) else []
    if file is not None:
        try:
            with file.open(encoding="utf-8") as stream:
                lines = stream.read(MAX_KEYS_FILE).splitlines()
        except OSError as error:
            raise LocalError.from_os(error, "read the API keys in", file) from error
        except UnicodeDecodeError:
            raise UsageError(f"{file} is not a text file", hint="write one API key a line") from None
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise UsageError(f"{file} holds no API key", hint="write one a line")
        keys += found
    return keys
