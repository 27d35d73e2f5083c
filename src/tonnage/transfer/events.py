"""What a copy tells about itself while it runs: for progress bars, logs and metrics, which it does not import."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tonnage.content.descriptor import Descriptor
from tonnage.errors import TonnageError


@dataclass(frozen=True)
class Planned:
    """The graph is known: these nodes are in it, manifests included."""

    nodes: tuple[Descriptor, ...]


@dataclass(frozen=True)
class Started:
    """A node is being copied."""

    node: Descriptor


@dataclass(frozen=True)
class Moved:
    """Some bytes of a node were read from the source; negative when a retry starts the node again."""

    node: Descriptor
    count: int


@dataclass(frozen=True)
class Skipped:
    """The target has the node already."""

    node: Descriptor


@dataclass(frozen=True)
class Retrying:
    """Something failed, for this node if there is one, and is tried again after a delay in seconds."""

    node: Descriptor | None
    error: TonnageError
    delay: float


@dataclass(frozen=True)
class Copied:
    """The target has the node now, verified."""

    node: Descriptor


Event = Planned | Started | Moved | Skipped | Retrying | Copied

OnEvent = Callable[[Event], None]
"""Called from several threads at once."""
