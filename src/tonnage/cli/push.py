"""`tonnage push`: a folder goes to a registry or a layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tonnage.cli import delivery
from tonnage.cli.output import Json, Output, Quiet
from tonnage.cli.target import PlainHttp, parse_artifact_target


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the model's files.")],
    target_text: Annotated[str, typer.Argument(metavar="TARGET", help="HOST/REPOSITORY:TAG, or oci:DIR:TAG.")],
    base: delivery.Base = None,
    max_layer: delivery.MaxLayer = delivery.MAX_LAYER,
    target_layer: delivery.TargetLayer = delivery.TARGET_LAYER,
    max_layers: delivery.MaxLayers = delivery.MAX_LAYERS,
    peer_tags: delivery.PeerTags = True,
    workers: delivery.Workers = delivery.WORKERS,
    plain_http: PlainHttp = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Push a model folder; layers that the target has are not sent again, and nothing is staged on disk.

    Example: tonnage push ./llama registry.example/models/llama:v1
    """
    output = Output(json=json, quiet=quiet)
    target = parse_artifact_target(target_text)
    done = delivery.publish(
        folder,
        target,
        output,
        options=delivery.plan_options(target_layer=target_layer, max_layer=max_layer, max_layers=max_layers),
        previous=delivery.base_layers(base, output, plain_http=plain_http),
        peer_tags=peer_tags,
        plain_http=plain_http,
        workers=workers,
    )
    output.result(
        done.to_dict(target),
        lambda console: console.print(
            f"pushed {target}: {done.transfer}\n{done.model.artifact.index.digest}", markup=False
        ),
    )
