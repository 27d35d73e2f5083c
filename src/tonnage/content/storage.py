"""What is asked of a store: one small Protocol for each verb, so that an operation asks for no more than it uses.

Every store is a `Fetcher`; most are a `Source` (read from) and a `Target` (write to). The Protocols marked
`runtime_checkable` are abilities that a store may lack: test with `isinstance` before use.

The rules that every store keeps, held by `tests/conformance`:

- Blobs and manifests are named by digest. `push` of content that is there already changes nothing.
- Nothing unverified becomes visible: `push` either stores exactly the bytes that `node` names, or raises
  `IntegrityError` and leaves no trace.
- A manifest is pushed after what it refers to.
- `fetch` promises the right length, not the right bytes: whoever consumes them verifies (`content.verify`), since only
  the consumer knows when it has seen all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from tonnage.content.descriptor import Descriptor


class Reader(Protocol):
    """A stream of bytes, read once, into memory that the caller owns: weights never become Python `bytes`."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of `buffer`, and say how many bytes; 0 only at the end.

        Raises:
            Unavailable: the stream broke; `Truncated` when it ended early.
        """
        ...

    def close(self) -> None:
        """Give up the stream and what it holds; safe to call twice."""
        ...


Opener = Callable[[int], Reader]
"""Opens some content at an offset, as often as asked: what a retry, or a resumed upload, needs of its source."""


class Fetcher(Protocol):
    """Reads content."""

    def fetch(self, node: Descriptor) -> Reader:
        """Open the content that `node` names.

        Raises:
            NotFound: the store does not have it.
        """
        ...


@runtime_checkable
class RangeFetcher(Fetcher, Protocol):
    """Reads a part of some content."""

    def fetch_range(self, node: Descriptor, offset: int, length: int) -> Reader:
        """Open `length` bytes from `offset`, both within `node.size`.

        Raises:
            NotFound: the store does not have the content.
            RangeNotServed: the store does not serve this range exactly as asked.
        """
        ...


class Resolver(Protocol):
    """Turns a reference into a descriptor."""

    def resolve(self, reference: str) -> Descriptor:
        """The manifest that a tag or digest names.

        Raises:
            NotFound: there is none.
        """
        ...


class Pusher(Protocol):
    """Writes content."""

    def exists(self, node: Descriptor) -> bool:
        """Whether the store holds this content, whole and verified."""
        ...

    def push(self, node: Descriptor, open: Opener) -> None:
        """Store the content that `node` names, reading it from `open(0)` (again, or from further on, after a break).

        Raises:
            IntegrityError: the content is not what `node` says; nothing was stored.
        """
        ...


class Tagger(Protocol):
    """Gives content a name."""

    def tag(self, node: Descriptor, reference: str) -> None:
        """Let the tag `reference` name `node`, a manifest that the store holds."""
        ...


@runtime_checkable
class TagLister(Protocol):
    """Lists the tags of a store."""

    def tags(self) -> Sequence[str]:
        """All tags, sorted."""
        ...


@runtime_checkable
class Deleter(Protocol):
    """Removes content."""

    def delete(self, node: Descriptor) -> None:
        """Remove the content, and the tags that name it.

        Raises:
            NotFound: the store does not have it.
        """
        ...


@runtime_checkable
class ReferrerLister(Protocol):
    """Finds what refers to a manifest by its `subject` (distribution-spec, "Listing Referrers")."""

    def referrers(self, node: Descriptor, artifact_type: str | None = None) -> Sequence[Descriptor]:
        """Descriptors of the manifests whose subject is `node`; none if `node` is unknown."""
        ...


class Source(Fetcher, Resolver, Protocol):
    """What a copy reads from."""


class Target(Pusher, Tagger, Protocol):
    """What a copy writes to."""
