"""The names that content may have in a store."""

from __future__ import annotations

from tonnage.content.reference import TAG
from tonnage.errors import InvalidReference


def check_tag(name: str) -> None:
    """Check a tag against the distribution specification, which every store keeps to: content moves between them.

    Raises:
        InvalidReference: it is not allowed.
    """
    if not TAG.fullmatch(name):
        raise InvalidReference(
            f"{name[:200]!r} is not a tag", hint="a tag has letters, digits, '.', '_' and '-', at most 128"
        )
