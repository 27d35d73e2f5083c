"""From target strings to stores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Protocol

import typer

from tonnage.content.reference import Folder, Layout, Repository, Target, parse_target
from tonnage.content.storage import Pusher, RangeFetcher, Resolver, Tagger, TagLister
from tonnage.errors import InvalidReference
from tonnage.stores.cache import NodeCache, default_root
from tonnage.stores.layout import DEFAULT_TAG, LayoutStore
from tonnage.stores.registry import RegistryStore, docker_config

PlainHttp = Annotated[
    bool | None,
    typer.Option("--plain-http/--tls", help="Speak HTTP without TLS; by default only to this machine."),
]
CacheOption = Annotated[
    Path | None,
    typer.Option("--cache", help="Folder of the node cache.", envvar="TONNAGE_CACHE", show_default="platform's"),
]


class Store(RangeFetcher, Resolver, Pusher, Tagger, TagLister, Protocol):
    """What a layout and a registry both are."""


@contextmanager
def open_store(target: Target, *, plain_http: bool | None = None, create: bool = False) -> Iterator[Store]:
    """The store that a target names, while the block runs.

    Args:
        target: a layout or a repository.
        plain_http: see `RegistryStore`.
        create: make a layout that is not there yet.

    Raises:
        InvalidReference: the target is a folder, which is not a store of artifacts.
    """
    match target:
        case Layout():
            yield LayoutStore(Path(target.path).expanduser(), create=create)
        case Repository():
            with closing(RegistryStore(target, plain_http=plain_http, credentials=docker_config())) as store:
                yield store
        case Folder():
            raise InvalidReference(
                f"{target} is a folder", hint="name a layout (oci:DIR:TAG) or a registry (HOST/REPOSITORY:TAG)"
            )


def reference_of(target: Target) -> str:
    """What to ask the target's store for."""
    return "" if isinstance(target, Folder) else target.reference or ""


def parse_artifact_target(text: str) -> Layout | Repository:
    """A target that is not a folder.

    Raises:
        InvalidReference: it is one, or cannot be read.
    """
    target = parse_target(text)
    if isinstance(target, Folder):
        raise InvalidReference(
            f"{text!r} is a folder", hint="name a layout (oci:DIR:TAG) or a registry (HOST/REPOSITORY:TAG)"
        )
    return target


def parse_any_target(text: str) -> Target:
    """A target; a plain name of a folder that exists counts as that folder."""
    if not text.startswith(("oci:", "file:")) and Path(text).is_dir():
        return Folder(text)
    return parse_target(text)


def tags_of(target: Layout | Repository) -> list[str]:
    """The tags that a copy to this target gets."""
    if target.tag:
        return [target.tag]
    return [] if target.digest else [DEFAULT_TAG]


def node_cache(option: Path | None) -> NodeCache:
    """The node cache that the user wants."""
    return NodeCache(option or default_root())
