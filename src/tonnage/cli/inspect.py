"""`tonnage inspect`: what a target holds, without fetching its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.tree import Tree

from tonnage.cli import delivery
from tonnage.cli.output import Json, Output, Quiet, plain, size
from tonnage.cli.target import PlainHttp, parse_artifact_target
from tonnage.content.mediatype import MODELPACK_MANIFEST, TITLE, is_index
from tonnage.content.reference import Target
from tonnage.pack.artifact import Layer, ModelArtifact


def inspect(
    target_text: Annotated[
        str, typer.Argument(metavar="TARGET", help="HOST/REPOSITORY:TAG or @DIGEST, or oci:DIR:TAG.")
    ],
    plain_http: PlainHttp = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show a model's manifests, layers, files and sizes, and what can consume it. Reads only its documents.

    Example: tonnage inspect registry.example/models/llama:v1
    """
    output = Output(json=json, quiet=quiet)
    target = parse_artifact_target(target_text)
    with delivery.find_artifact(target, output, plain_http=plain_http) as (_, artifact):
        output.result(_data(target, artifact), lambda console: _print(console, target, artifact))


def consumers(artifact: ModelArtifact) -> list[str]:
    """What can read an artifact as it is."""
    found = ["tonnage"]
    manifests = [artifact.manifest.descriptor, *artifact.also]
    index = is_index(artifact.root.media_type)
    if any(node.artifact_type == MODELPACK_MANIFEST for node in manifests):
        found.append("ModelPack readers: modctl, KitOps, Harbor" + (" (by the tag TAG-modelpack)" if index else ""))
    if artifact.format == "image" or any(node.platform and node.artifact_type is None for node in artifact.also):
        found.append("image readers: containerd and CRI-O image volumes, KServe modelcar, skopeo, crane")
    if all(TITLE in layer.node.annotations for layer in artifact.layers):
        found.append("oras pull" + (" (archives, to be unpacked with tar)" if artifact.format == "modelpack" else ""))
    return found


def _data(target: Target, artifact: ModelArtifact) -> Mapping[str, Any]:
    files = artifact.files
    return {
        "target": str(target),
        "digest": artifact.root.digest,
        "mediaType": artifact.root.media_type,
        "format": artifact.format,
        "manifest": artifact.manifest.descriptor.digest,
        "otherManifests": [node.to_dict() for node in artifact.also],
        "config": artifact.config,
        "size": sum(layer.node.size for layer in artifact.layers),
        "layers": [
            {
                "digest": layer.node.digest,
                "mediaType": layer.node.media_type,
                "size": layer.node.size,
                "files": None if layer.pieces is None else [piece.path for piece in layer.pieces],
            }
            for layer in artifact.layers
        ],
        "files": None if files is None else [{"path": path, "size": count} for path, count in files.items()],
        "consumers": consumers(artifact),
        "warnings": list(artifact.warnings),
    }


def _print(console: Console, target: Target, artifact: ModelArtifact) -> None:
    total = sum(layer.node.size for layer in artifact.layers)
    tree = Tree(f"[bold]{plain(str(target))}[/]  {size(total)}  {artifact.format}")
    tree.add(f"digest    {artifact.root.digest}")
    tree.add(f"manifest  {artifact.manifest.descriptor.digest}")
    for node in artifact.also:
        platform = node.platform or {}
        named = plain(f"{platform.get('os', '')}/{platform.get('architecture', '')}")
        tree.add(f"also      {node.digest}  {named}".rstrip(" /"))
    model = tree.add("model")
    for section in ("descriptor", "config"):
        values = artifact.config.get(section)
        if isinstance(values, dict):
            for key, text in values.items():
                shown = ", ".join(map(str, text)) if isinstance(text, list) else str(text)
                model.add(f"{plain(str(key))}: {plain(shown)}")
    layers = tree.add(f"{len(artifact.layers)} layers")
    for layer in artifact.layers:
        _add_layer(layers, layer)
    reads = tree.add("can be read by")
    for consumer in consumers(artifact):
        reads.add(consumer)
    for warning in artifact.warnings:
        tree.add(f"[yellow]warning:[/] {plain(warning)}")
    console.print(tree)


def _add_layer(tree: Tree, layer: Layer) -> None:
    branch = tree.add(f"{layer.node.digest.short}  {size(layer.node.size):>10}  {plain(layer.node.media_type)}")
    if layer.packaging == "raw":
        branch.add(f"{size(layer.node.size):>10}  {plain(layer.path)}")
    elif layer.pieces is None:
        branch.add("(does not say which files it holds)")
    else:
        for piece in layer.pieces:
            part = f"  from byte {piece.offset:,} of {piece.total:,}" if piece.is_part else ""
            branch.add(f"{size(piece.size):>10}  {plain(piece.path)}{part}")
