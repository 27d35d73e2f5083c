"""`tonnage pack`: a folder becomes an OCI image layout, or only a plan of one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tonnage.cli import delivery
from tonnage.cli.output import Json, Output, Quiet, size
from tonnage.cli.target import PlainHttp, parse_artifact_target
from tonnage.content.reference import Layout
from tonnage.errors import UsageError
from tonnage.pack.model import plan_folder
from tonnage.pack.plan import PlannedLayer


def pack(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the model's files.")],
    output_target: Annotated[
        str | None, typer.Option("--output", "-o", metavar="oci:OUT:TAG", help="The layout to write, and the tag.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only show the layers that would be made.")] = False,
    base: delivery.Base = None,
    max_layer: delivery.MaxLayer = delivery.MAX_LAYER,
    target_layer: delivery.TargetLayer = delivery.TARGET_LAYER,
    max_layers: delivery.MaxLayers = delivery.MAX_LAYERS,
    peer_tags: delivery.PeerTags = True,
    plain_http: PlainHttp = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Pack a model folder into an OCI image layout.

    Example: tonnage pack ./llama -o oci:./out:v1
    """
    output = Output(json=json, quiet=quiet)
    options = delivery.plan_options(target_layer=target_layer, max_layer=max_layer, max_layers=max_layers)
    if plan:
        files, layers = plan_folder(
            folder, options=options, previous=delivery.base_layers(base, output, plain_http=plain_http)
        )
        total = sum(file.size for file in files)
        output.result(
            {
                "files": len(files),
                "bytes": total,
                "layers": [
                    {
                        "kind": layer.kind,
                        "bytes": layer.size,
                        "files": [
                            {"path": piece.path, "size": piece.size, "offset": piece.offset} for piece in layer.pieces
                        ],
                    }
                    for layer in layers
                ],
            },
            lambda console: _print_plan(console, len(files), total, layers),
        )
        return
    if output_target is None:
        raise UsageError("no place to write to", hint="add -o oci:OUT:TAG, or --plan to only see the layers")
    target = parse_artifact_target(output_target)
    if not isinstance(target, Layout):
        raise UsageError(f"{output_target!r} is not a layout", hint=f"use: tonnage push {folder} {output_target}")
    previous = delivery.base_layers(base, output, plain_http=plain_http)
    done = delivery.publish(folder, target, output, options=options, previous=previous, peer_tags=peer_tags)
    output.result(
        done.to_dict(target), lambda console: console.print(f"packed {target}: {done.transfer}", markup=False)
    )


def _print_plan(console: Console, files: int, total: int, layers: tuple[PlannedLayer, ...]) -> None:
    console.print(f"{files} files, {size(total)}, in {len(layers)} layers")
    for layer in layers:
        console.print(f"  {layer.kind:<14} {size(layer.size):>10}  {len(layer.pieces)} files")
        for piece in layer.pieces:
            part = f"  from byte {piece.offset:,} of {piece.total:,}" if piece.is_part else ""
            console.print(f"    {size(piece.size):>10}  {piece.path}{part}", markup=False)
