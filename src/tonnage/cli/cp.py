"""`tonnage cp`: between a folder, a layout and a registry, in any direction."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tonnage.cli import delivery
from tonnage.cli.output import Json, Output, Quiet
from tonnage.cli.target import PlainHttp, open_store, parse_any_target, reference_of, tags_of
from tonnage.content.reference import Folder, Layout, Repository
from tonnage.errors import UsageError
from tonnage.transfer.copy import copy


def cp(
    source_text: Annotated[str, typer.Argument(metavar="SOURCE", help="./DIR, oci:DIR:TAG or HOST/REPOSITORY:TAG.")],
    target_text: Annotated[str, typer.Argument(metavar="TARGET", help="Likewise.")],
    workers: delivery.Workers = delivery.WORKERS,
    plain_http: PlainHttp = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Copy a model: between registries, into or out of a layout, from or to a folder.

    Between registries and layouts everything below the reference is copied as it is, so digests stay the same.

    Example: tonnage cp registry.example/models/llama:v1 oci:./usb:v1
    """
    output = Output(json=json, quiet=quiet)
    source, target = parse_any_target(source_text), parse_any_target(target_text)
    match source, target:
        case Folder(), Folder():
            raise UsageError("both SOURCE and TARGET are folders", hint="one must be a layout or a registry")
        case Folder(), (Layout() | Repository()):
            done = delivery.publish(
                Path(source.path).expanduser(), target, output, plain_http=plain_http, workers=workers
            )
            digest, transfer = done.model.artifact.index.digest, done.transfer
        case ((Layout() | Repository()), Folder()):
            folder = Path(target.path).expanduser()
            with delivery.find_artifact(source, output, plain_http=plain_http) as (store, artifact):
                transfer = delivery.bring(store, artifact, folder, output, source=str(source), workers=workers)
            digest = artifact.root.digest
        case ((Layout() | Repository()), (Layout() | Repository())):
            with open_store(source, plain_http=plain_http) as origin:
                # Before a layout is made: there is something to copy, and it is what the target's digest names.
                reference = reference_of(source)
                root = delivery.FIRST_CONTACT.call(
                    "source", lambda: origin.resolve(reference), on_retry=output.retrying
                )
                delivery.check_digest(target, root)
                with (
                    open_store(target, plain_http=plain_http, create=True) as destination,
                    output.progress("copying") as transfer,
                ):
                    copy(
                        origin,
                        root.digest,
                        destination,
                        tags_of(target),
                        on_event=transfer.on_event,
                        workers=workers,
                    )
            digest = root.digest
    output.result(
        {"source": str(source), "target": str(target), "digest": digest, **transfer.summary()},
        lambda console: console.print(f"copied {source} to {target}: {transfer}\n{digest}", markup=False),
    )
