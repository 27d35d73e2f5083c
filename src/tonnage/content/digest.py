"""Digests, as the OCI image specification writes them: `algorithm:hex`."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from tonnage.errors import InvalidContent

if TYPE_CHECKING:
    from hashlib import _Hash

HEX_LENGTH = {"sha256": 64, "sha512": 128}
"""Registered algorithms (OCI image-spec, descriptor.md, "Registered algorithms") that we verify."""

_PATTERN = re.compile(r"([a-z0-9]+(?:[.+_-][a-z0-9]+)*):([a-zA-Z0-9=_-]+)")


class Digest(str):
    """A validated digest; equal to and usable as its string form.

    Raises:
        InvalidContent: the text is not a digest of a registered algorithm.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Digest:
        """Validate `text`."""
        match = _PATTERN.fullmatch(text)
        if not match:
            raise InvalidContent(f"{text[:100]!r} is not a digest", hint="expected sha256: and 64 hex digits")
        algorithm, encoded = match.groups()
        length = HEX_LENGTH.get(algorithm)
        if length is None:
            raise InvalidContent(f"digest algorithm {algorithm!r} is not supported", hint="sha256 and sha512 are")
        if len(encoded) != length or not re.fullmatch(r"[a-f0-9]+", encoded):
            raise InvalidContent(f"{text[:150]!r} is not a {algorithm} digest", hint=f"expected {length} hex digits")
        return super().__new__(cls, text)

    @classmethod
    def of(cls, data: bytes | memoryview, algorithm: str = "sha256") -> Digest:
        """The digest of `data`."""
        return cls.from_hash(hashlib.new(algorithm, data))

    @classmethod
    def from_hash(cls, state: _Hash) -> Digest:
        """The digest that a `hashlib` state has reached."""
        return cls(f"{state.name}:{state.hexdigest()}")

    @property
    def algorithm(self) -> str:
        """`sha256` or `sha512`."""
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        """The encoded part."""
        return self.partition(":")[2]

    @property
    def short(self) -> str:
        """The first twelve hex digits, for people."""
        return self.hex[:12]

    def hasher(self) -> _Hash:
        """A fresh hash of this digest's algorithm."""
        return hashlib.new(self.algorithm)
