"""`tonnage registry serve`: the embedded OCI registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tonnage.cli.output import Json, Output, Quiet

app = typer.Typer(help="The embedded OCI registry.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """The embedded OCI registry."""


@app.command()
def serve(
    root: Annotated[Path, typer.Option("--root", metavar="DIR", help="Folder that holds the registry's content.")],
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Port 0 picks a free one.")
    ] = "127.0.0.1:5000",
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Refuse everything that would change content.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Serve an OCI registry from a folder, until it is interrupted.

    Example: tonnage registry serve --root ./registry
    """
    from tonnage.cli.serving import listening, parse_listen, run
    from tonnage.distribution.app import create_app

    output = Output(json=json, quiet=quiet)

    def ready(url: str) -> None:
        output.result(
            {"url": url, "root": str(root)},
            lambda console: console.print(f"registry at {url}, content in {root}; Ctrl-C stops it", markup=False),
        )

    host, port = parse_listen(listen)
    run(listening(create_app(root, read_only=read_only), host, port), ready)
