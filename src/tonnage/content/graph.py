"""An artifact is a graph: an index names manifests, a manifest names its config, its layers and its subject."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tonnage.content.descriptor import Descriptor
from tonnage.content.manifest import MAX_MANIFEST_SIZE, Index, Manifest, parse
from tonnage.content.storage import Fetcher
from tonnage.content.verify import read_all
from tonnage.errors import InvalidContent

MAX_DEPTH = 8
"""Indexes within indexes; artifacts in the field have two levels."""

MAX_NODES = 100_000
"""Nodes of one artifact; the largest models have some hundred, and every node is remembered during a walk."""

Successors = Callable[[Fetcher, Descriptor], Sequence[Descriptor]]
"""What must be in a store before a node may be."""


def read_manifest(fetcher: Fetcher, node: Descriptor) -> Manifest | Index:
    """Fetch, verify and parse a manifest or index.

    Raises:
        InvalidContent: it is malformed or too large.
    """
    if node.size > MAX_MANIFEST_SIZE:
        raise InvalidContent(
            f"manifest {node.digest} has {node.size} bytes, more than the limit of {MAX_MANIFEST_SIZE}",
            hint="this is not a model; check the reference",
        )
    return parse(read_all(fetcher.fetch(node), node, limit=MAX_MANIFEST_SIZE), node.media_type)


def successors(fetcher: Fetcher, node: Descriptor) -> list[Descriptor]:
    """The direct successors of a node: none for a blob."""
    if not node.is_manifest:
        return []
    document = read_manifest(fetcher, node)
    return [*document.children, *([document.subject] if document.subject else [])]


def walk(fetcher: Fetcher, root: Descriptor, find: Successors = successors) -> Iterator[Descriptor]:
    """Every node below and including `root`, once each, successors before what needs them.

    Raises:
        InvalidContent: nested deeper than `MAX_DEPTH`, or of more than `MAX_NODES` nodes.
    """
    seen: set[str] = set()

    def visit(node: Descriptor, depth: int) -> Iterator[Descriptor]:
        if node.digest in seen:
            return
        seen.add(node.digest)
        if depth > MAX_DEPTH:
            raise InvalidContent(f"manifest {root.digest} nests indexes more than {MAX_DEPTH} deep")
        if len(seen) > MAX_NODES:
            raise InvalidContent(f"manifest {root.digest} names more than {MAX_NODES} nodes")
        for child in find(fetcher, node):
            yield from visit(child, depth + 1)
        yield node

    return visit(root, 0)
