"""What the commands that move models share: a folder goes into a store, and comes out of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from tonnage.cli.output import Output, Transfer, parse_size
from tonnage.cli.target import Store, open_store, parse_artifact_target, reference_of, tags_of
from tonnage.content.descriptor import Descriptor
from tonnage.content.mediatype import OCI_LAYER_TAR
from tonnage.content.reference import Layout, Repository, Target
from tonnage.errors import Unreachable, UsageError
from tonnage.pack.artifact import ModelArtifact, read_artifact
from tonnage.pack.folder import FolderTarget
from tonnage.pack.formats import LINK_LAYER, previous_layers
from tonnage.pack.model import PackedModel, pack, plan_folder
from tonnage.pack.plan import PlanOptions, PreviousLayer
from tonnage.stores.names import check_tag
from tonnage.transfer.copy import WORKERS as DEFAULT_WORKERS
from tonnage.transfer.copy import copy
from tonnage.transfer.retry import Retry

Base = Annotated[
    str | None,
    typer.Option("--base", metavar="TARGET", help="Keep unchanged files in the layers that this version has."),
]
MaxLayer = Annotated[
    str, typer.Option("--max-layer", metavar="SIZE", help="No layer is larger; larger files are split.")
]
TargetLayer = Annotated[str, typer.Option("--target-layer", metavar="SIZE", help="Size of a bin of weights, about.")]
MaxLayers = Annotated[int, typer.Option("--max-layers", min=2, max=120, help="No manifest has more layers.")]
Workers = Annotated[int, typer.Option("--workers", min=1, max=64, help="Layers moved at a time.")]
PeerTags = Annotated[
    bool,
    typer.Option(
        "--peer-tags/--no-peer-tags",
        help="Also tag the two manifests as TAG-modelpack and TAG-image, for clients that cannot follow an index.",
    ),
]

MAX_LAYER, TARGET_LAYER, MAX_LAYERS, WORKERS = "9.5GB", "4GiB", PlanOptions().max_layers, DEFAULT_WORKERS

FIRST_CONTACT = Retry(attempts=4, base=0.25, unless=(Unreachable,))
"""A wrong address is told at once; a registry that answers, but fails, is asked again."""

LINK = Descriptor.of(LINK_LAYER, OCI_LAYER_TAR)
"""A blob that every push needs: asking for it shows whether the target answers, and lets us in."""


@dataclass(frozen=True)
class Published:
    """A packed model in a store, under its tags."""

    model: PackedModel
    tags: Sequence[str]
    transfer: Transfer

    def to_dict(self, target: Target) -> dict[str, Any]:
        """For a command's JSON."""
        artifact = self.model.artifact
        return {
            "target": str(target),
            "digest": artifact.index.digest,
            "tags": list(self.tags),
            "manifests": {"modelpack": artifact.modelpack.digest, "image": artifact.image.digest},
            "layers": [
                {"kind": layer.kind, "digest": layer.digest, "size": layer.size, "files": len(layer.pieces)}
                for layer in self.model.layers
            ],
            **self.transfer.summary(),
        }


def plan_options(*, target_layer: str, max_layer: str, max_layers: int) -> PlanOptions:
    """The limits that the user wants.

    Raises:
        UsageError: a size cannot be read, or is too small for any layer.
    """
    options = PlanOptions(target=parse_size(target_layer), cap=parse_size(max_layer), max_layers=max_layers)
    if options.cap < 1 << 16:
        raise UsageError(f"--max-layer {max_layer} is too small", hint="use 64KiB or more")
    if options.target <= 0:
        raise UsageError(f"--target-layer {target_layer} is too small", hint="use 1MiB or more")
    return options


def base_layers(base: str | None, output: Output, *, plain_http: bool | None = None) -> Sequence[PreviousLayer]:
    """The layers of an earlier version, of which only manifests are read."""
    if base is None:
        return ()
    with find_artifact(parse_artifact_target(base), output, plain_http=plain_http) as (_, artifact):
        return previous_layers(artifact.manifest)


def publish(
    folder: Path,
    target: Layout | Repository,
    output: Output,
    *,
    options: PlanOptions | None = None,
    previous: Sequence[PreviousLayer] = (),
    peer_tags: bool = True,
    plain_http: bool | None = None,
    workers: int = DEFAULT_WORKERS,
) -> Published:
    """Pack a folder and copy it to a target; nothing is staged.

    Raises:
        TonnageError: as `pack` and `copy`.
    """
    tags = tags_of(target)
    peers = [(f"{tag}-{suffix}", suffix) for tag in tags for suffix in ("modelpack", "image")] if peer_tags else []
    for tag, _ in peers:
        check_tag(tag)
    # Before anything is made, or hashed for minutes: the folder can be packed, and the target answers.
    plan_folder(folder, options=options, previous=previous)
    with open_store(target, plain_http=plain_http, create=True) as store:
        FIRST_CONTACT.call("target", lambda: store.exists(LINK), on_retry=output.retrying)
        with output.progress("hashing") as hashing:
            model = pack(folder, options=options, previous=previous, on_progress=hashing.add)
        check_digest(target, model.artifact.index)
        output.say(f"{len(model.files)} files in {len(model.layers)} layers: {model.artifact.index.digest}")
        with output.progress("pushing") as pushing:
            copy(model, "", store, tags, on_event=pushing.on_event, workers=workers)
        for tag, suffix in peers:
            node = model.artifact.modelpack if suffix == "modelpack" else model.artifact.image
            Retry().call("target", partial(store.tag, node, tag), on_retry=output.retrying)
    return Published(model, [*tags, *(tag for tag, _ in peers)], pushing)


def check_digest(target: Layout | Repository, root: Descriptor) -> None:
    """Check, before anything is moved, that what is to be copied is what the target's digest names.

    Raises:
        UsageError: it is not.
    """
    if target.digest and target.digest != root.digest:
        raise UsageError(f"what is to be copied is {root.digest}, not {target.digest}", hint="leave the digest out")


@contextmanager
def find_artifact(
    target: Layout | Repository, output: Output, *, plain_http: bool | None = None
) -> Iterator[tuple[Store, ModelArtifact]]:
    """Open a target while the block runs, and read what it names.

    Raises:
        NotFound: there is nothing of that name.
        InvalidContent: it is not a model.
    """
    with open_store(target, plain_http=plain_http) as store:
        reference = reference_of(target)
        yield (
            store,
            FIRST_CONTACT.call(
                "source", lambda: read_artifact(store, store.resolve(reference)), on_retry=output.retrying
            ),
        )


def bring(
    store: Store,
    artifact: ModelArtifact,
    folder: Path,
    output: Output,
    *,
    source: str,
    workers: int = DEFAULT_WORKERS,
    wait: bool = False,
) -> Transfer:
    """Copy a model from a store into a folder, where it appears when all of it is verified.

    Args:
        store: where from.
        artifact: what was read of it.
        folder: where to.
        output: told about the progress.
        source: the target string, for the folder's record.
        workers: layers moved at a time.
        wait: wait for another pull into the same folder.

    Raises:
        TonnageError: as `copy` and `FolderTarget`.
    """
    for warning in artifact.warnings:
        output.warn(warning)
    with (
        FolderTarget(folder, artifact, source=source, wait=wait) as target,
        output.progress("pulling") as pulling,
    ):
        copy(
            store,
            artifact.root.digest,
            target,
            ["model"],
            successors=artifact.successors,
            on_event=pulling.on_event,
            workers=workers,
        )
    return pulling
