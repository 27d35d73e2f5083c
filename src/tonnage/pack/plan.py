"""Which file goes into which layer: a pure function of the files, the options and the previous version.

What a good plan does:

- Config files, documents and code have layers of their own, so that changing one re-uploads kilobytes.
- Weights lie in balanced bins of at most `target` bytes, so that a client which fetches layers in parallel, one stream
  each, is busy to the end. Only a single larger piece, or the limit on layers, makes a larger bin.
- No layer is over `cap`, which registries impose; a larger file is split.
- Against a previous version, a file stays in the layer that held it, and new weights get new layers: what did not
  change keeps its digest, and is neither sent nor stored again.

Balancing is longest-processing-time first (Graham 1969), over as few bins as the limits allow: the largest is within
4/3 of the best possible one for their number.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tonnage.errors import UsageError
from tonnage.pack.tar import ALIGNMENT, END, MAX_NAME, Piece, footprint

Kind = Literal["weight", "weight.config", "doc", "code"]
KINDS: tuple[Kind, ...] = ("weight", "weight.config", "doc", "code")

GIB = 1 << 30

_WEIGHT = re.compile(
    r"\.(safetensors|gguf|ggml|bin|pt|pth|ckpt|onnx|onnx_data|msgpack|h5|npz|npy|tflite|engine|plan|mlmodel|params|"
    r"pdparams|llamafile)$"
)
_CODE = re.compile(r"\.(py|pyi|sh|ipynb|c|cc|cpp|cu|cuh|h|hpp|js|ts|rs|go|java|so|ptx|cubin)$")
_DOC = re.compile(
    r"((^|/)(readme|license|licence|notice|copying|changelog|use_policy|usage|acceptable_use_policy)[^/]*$)"
    r"|\.(md|rst|pdf|html|png|jpe?g|svg|gif|webp)$"
)
_LARGE_UNKNOWN = 64 << 20
"""Bytes; a file of unknown kind above this is weights, below it config (tokenizer models and the like)."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Limits of a plan.

    Args:
        target: bytes; a bin of weights is at most this large, unless one file is larger. Fewer, larger bins are made
            when `max_layers` asks for it.
        cap: bytes that no layer may exceed; the default suits every registry surveyed (GHCR has the lowest, 10 GB).
        max_layers: layers of a manifest; overlay file systems mount about 127.
    """

    target: int = 4 * GIB
    cap: int = 9_500_000_000
    max_layers: int = 100


@dataclass(frozen=True)
class PlannedLayer:
    """One layer: what kind of files, and which pieces in which order."""

    kind: Kind
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Bytes of file data."""
        return sum(piece.size for piece in self.pieces)


@dataclass(frozen=True)
class PreviousLayer:
    """A layer of the previous version: the kind, and (path, offset) of each piece."""

    kind: Kind
    pieces: frozenset[tuple[str, int]]


def kind_of(path: str, size: int) -> Kind:
    """What a file is, judged by its name and, if that says nothing, its size in bytes."""
    name = path.lower()
    if _WEIGHT.search(name):
        return "weight"
    if _CODE.search(name):
        return "code"
    if _DOC.search(name):
        return "doc"
    return "weight" if size > _LARGE_UNKNOWN else "weight.config"


def plan(
    files: Iterable[tuple[str, int]],
    options: PlanOptions | None = None,
    previous: Sequence[PreviousLayer] = (),
) -> tuple[PlannedLayer, ...]:
    """Divide files into layers.

    Args:
        files: (path, size in bytes) of each file; the order does not matter.
        options: the limits.
        previous: the layers of the version to stay close to, in order.

    Returns:
        Layers by kind, in the order of `KINDS`; each with its pieces in the order of their paths. Every byte of every
        file is in exactly one piece.

    Raises:
        UsageError: the files cannot be divided within the limits.
    """
    options = options or PlanOptions()
    room = options.cap - len(END)
    pieces: dict[Kind, list[Piece]] = {kind: [] for kind in KINDS}
    for path, size in sorted(files):
        pieces[kind_of(path, size)].extend(_split(path, size, room))
    small: list[PlannedLayer] = []
    for kind in KINDS[1:]:
        small += _assign(kind, pieces[kind], room, room, options.max_layers, previous)
    # One layer is left for the link that formats add.
    budget = options.max_layers - len(small) - 1
    weights = _assign("weight", pieces["weight"], options.target, room, budget, previous)
    if len(weights) > budget:
        raise UsageError(
            f"the model needs {len(weights) + len(small) + 1} layers, more than the limit of {options.max_layers}",
            hint="raise --max-layer or --max-layers",
        )
    return (*weights, *small)


def _split(path: str, size: int, room: int) -> list[Piece]:
    """The file as one piece, or as few equal ones as fit `room`."""
    whole = Piece.whole(path, size)
    if footprint(whole) <= room:
        return [whole]
    # A part's name is longer than the file's, and a large part's size needs a record: measure with both.
    longest = Piece(path, room, 0, room + size)
    largest = (room - (footprint(longest) - room)) // ALIGNMENT * ALIGNMENT
    if largest <= 0:
        raise UsageError(f"a layer of {room} bytes has no room for any of {path}", hint="raise --max-layer")
    if len(longest.name.rpartition("/")[2].encode()) > MAX_NAME:
        raise UsageError(f"the name of {path} is too long for a file that is split", hint="shorten it")
    count = -(-size // largest)
    step = -(-size // count)
    step += -step % ALIGNMENT
    return [Piece(path, min(step, size - start), start, size) for start in range(0, size, step)]


class _Bin:
    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.used = 0

    def add(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.used += footprint(piece)


def _assign(
    kind: Kind, pieces: Sequence[Piece], target: int, room: int, budget: int, previous: Sequence[PreviousLayer]
) -> list[PlannedLayer]:
    """Bins for the pieces of one kind: the previous ones first, with what they held, then new ones."""
    kept, homeless = _keep(kind, pieces, room, previous)
    if kind == "weight":
        bins = kept + _pack(homeless, target, room, max(budget - len(kept), 0 if kept else 1), spill=kept)
    else:
        bins = kept + _pack(homeless, target, room, budget, spill=kept, prefer_spill=True)
    return [
        PlannedLayer(kind, tuple(sorted(box.pieces, key=lambda piece: (piece.path, piece.offset))))
        for box in bins
        if box.pieces
    ]


def _keep(
    kind: Kind, pieces: Sequence[Piece], room: int, previous: Sequence[PreviousLayer]
) -> tuple[list[_Bin], list[Piece]]:
    """Put each piece where the previous version had it, as long as it fits; the rest has no home yet."""
    bins = [_Bin() for layer in previous if layer.kind == kind]
    home: dict[tuple[str, int], _Bin] = {}
    for box, layer in zip(bins, (layer for layer in previous if layer.kind == kind), strict=True):
        for key in layer.pieces:
            home.setdefault(key, box)
    homeless = []
    for piece in pieces:
        found = home.get((piece.path, piece.offset))
        if found is not None and found.used + footprint(piece) <= room:
            found.add(piece)
        else:
            homeless.append(piece)
    return [box for box in bins if box.pieces], homeless


def _pack(
    pieces: Sequence[Piece], target: int, room: int, budget: int, *, spill: list[_Bin], prefer_spill: bool = False
) -> list[_Bin]:
    """Balance pieces over as few new bins as `target` allows, or over `budget` of them.

    Pieces go into the bins of `spill` when `prefer_spill` is set, or when there is no budget for new ones. More bins
    than the budget are made rather than break `room`; the caller refuses them.
    """
    if not pieces:
        return []
    order = sorted(pieces, key=lambda piece: (-piece.size, piece.path, piece.offset))
    if spill and (prefer_spill or budget <= 0):
        return _spill(order, room, spill)
    total = sum(footprint(piece) for piece in pieces)
    count = max(1, min(-(-total // min(target, room)), budget))
    for number in range(count, budget + 1):
        bins = _balance(order, number)
        limit = min(target, room) if number < budget else room
        if all(box.used <= limit or len(box.pieces) == 1 for box in bins):
            return bins
    return _spill(order, room, ())


def _balance(order: Iterable[Piece], count: int) -> list[_Bin]:
    """Each piece, longest first, into the emptiest of the bins."""
    bins = [_Bin() for _ in range(count)]
    emptiest = [(0, number) for number in range(count)]
    for piece in order:
        box = bins[emptiest[0][1]]
        box.add(piece)
        heapq.heapreplace(emptiest, (box.used, emptiest[0][1]))
    return bins


def _spill(order: Iterable[Piece], room: int, bins: Sequence[_Bin]) -> list[_Bin]:
    """Each piece into the emptiest of the bins that there are; returns those that had to be added."""
    fresh: list[_Bin] = []
    for piece in order:
        box = min((*bins, *fresh), key=lambda box: box.used, default=None)
        if box is None or box.used + footprint(piece) > room:
            box = _Bin()
            fresh.append(box)
        box.add(piece)
    return fresh
