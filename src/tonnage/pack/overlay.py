"""What a model's folder holds, given what each of its layers holds: later layers count, whiteouts hide, parts join.

Pure: entries in, entries out. Whether a set of layers makes a folder at all, and a safe one, is decided here, before
anything is moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

import msgspec

from tonnage.errors import IntegrityError, InvalidContent, UnsafeArchive
from tonnage.pack.files import WHITEOUT
from tonnage.pack.untar import check_link

_OPAQUE = f"{WHITEOUT}{WHITEOUT}.opq"


class Item(msgspec.Struct, frozen=True):
    """One entry of a layer.

    Args:
        path: within the model, safe.
        kind: `file`, `symlink` or `hardlink`.
        size: bytes of data in this layer.
        link: for links, where they lead.
        offset: where in the file the data belongs; not 0 only for a part of a split file.
        total: bytes of the whole file.
    """

    path: str
    kind: str
    size: int
    link: str = ""
    offset: int = 0
    total: int = 0

    @property
    def is_part(self) -> bool:
        """Whether the file continues in other entries."""
        return self.kind == "file" and self.size != self.total


Placed = tuple[str, Item]
"""The layer that an item comes from, as it was named to `overlay`, and the item."""


def overlay(layers: Iterable[tuple[str, Sequence[Item]]]) -> dict[str, Placed]:
    """The entries of the folder that some layers make, by path.

    Args:
        layers: each layer's name and its items, from the lowest to the highest.

    Raises:
        UnsafeArchive: an entry stands below a file or a link, or a link leads nowhere or out.
        IntegrityError: the parts of a split file do not cover it once.
        InvalidContent: there are no files.
    """
    found: dict[str, Placed] = {}
    parts: dict[str, list[Item]] = {}
    for name, items in layers:
        # A whiteout hides what is in the layers below, wherever in its own layer it stands.
        for item in sorted(items, key=lambda item: not _is_whiteout(item)):
            if _is_whiteout(item):
                _hide(found, item.path)
                continue
            if item.is_part:
                parts.setdefault(item.path, []).append(item)
            found[item.path] = (name, item)
    for path, pieces in parts.items():
        if path in found and found[path][1].is_part:
            _check_joined(path, pieces)
    _check_tree(found)
    if not any(item.kind == "file" for _, item in found.values()):
        raise InvalidContent("the artifact holds no files", hint="it is not a model")
    return found


def sizes(found: Mapping[str, Placed]) -> dict[str, int]:
    """Path to bytes of every file and hard link, sorted."""
    return {
        path: found[item.link][1].total if item.kind == "hardlink" else item.total
        for path, (_, item) in sorted(found.items())
        if item.kind != "symlink"
    }


def _is_whiteout(item: Item) -> bool:
    return item.path.rpartition("/")[2].startswith(WHITEOUT)


def _hide(found: dict[str, Placed], whiteout: str) -> None:
    """Apply a whiteout (OCI image-spec, layer.md, "Whiteouts"): an opaque one hides what is in its folder."""
    folder, slash, name = whiteout.rpartition("/")
    hidden = folder + slash if name == _OPAQUE else folder + slash + name.removeprefix(WHITEOUT) + "/"
    for known in [known for known in found if f"{known}/".startswith(hidden)]:
        del found[known]


def _check_joined(path: str, pieces: Sequence[Item]) -> None:
    """Check that the parts of a split file cover it once, with no gap."""
    position = 0
    for piece in sorted(pieces, key=lambda piece: piece.offset):
        if piece.offset != position or piece.total != pieces[0].total:
            raise IntegrityError(f"the parts of {path} do not fit together", hint="ask the artifact's publisher")
        position += piece.size
    if position != pieces[0].total:
        raise IntegrityError(
            f"{path} has {position} of {pieces[0].total} bytes: a part is missing", hint="ask the artifact's publisher"
        )


def _check_tree(found: Mapping[str, Placed]) -> None:
    """Check that no file or link stands where another entry needs a folder, and that links stay inside."""
    for path, (_, item) in found.items():
        for parent in map(str, PurePosixPath(path).parents):
            if parent in found:
                raise UnsafeArchive(f"the archive has both a file or link {parent!r} and an entry {path!r} below it")
        if item.kind == "symlink":
            check_link(path, item.link)
        elif item.kind == "hardlink" and (item.link not in found or found[item.link][1].kind != "file"):
            raise UnsafeArchive(f"the archive has a hard link {path!r} to {item.link!r}, which is not one of its files")
