"""`tonnage pull`: a model comes out of a registry or a layout into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tonnage.cli import delivery
from tonnage.cli.output import Json, Output, Quiet
from tonnage.cli.target import PlainHttp, parse_artifact_target
from tonnage.errors import UsageError


def pull(
    target_text: Annotated[
        str, typer.Argument(metavar="TARGET", help="HOST/REPOSITORY:TAG or @DIGEST, or oci:DIR:TAG.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to put the model into: a new or empty one.")],
    workers: delivery.Workers = delivery.WORKERS,
    plain_http: PlainHttp = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Pull a model into a folder, where it appears once every byte is verified.

    A pull that was interrupted goes on when the same command is run again.

    Example: tonnage pull registry.example/models/llama:v1 ./llama
    """
    output = Output(json=json, quiet=quiet)
    target = parse_artifact_target(target_text)
    if str(folder).startswith("oci:"):
        raise UsageError(f"{folder} is a layout, not a folder", hint=f"use: tonnage cp {target} {folder}")
    with delivery.find_artifact(target, output, plain_http=plain_http) as (store, artifact):
        transfer = delivery.bring(store, artifact, folder, output, source=str(target), workers=workers)
    output.result(
        {
            "source": str(target),
            "digest": artifact.root.digest,
            "manifest": artifact.manifest.descriptor.digest,
            "folder": str(folder),
            "warnings": list(artifact.warnings),
            **transfer.summary(),
        },
        lambda console: console.print(
            f"pulled {target} into {folder}: {transfer}\n{artifact.root.digest}", markup=False
        ),
    )
