"""Manifests and indexes. They keep their bytes: digests are over bytes, and unknown fields survive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tonnage.content.descriptor import Descriptor, annotations_from
from tonnage.content.mediatype import INDEX_TYPES, MANIFEST_TYPES, OCI_INDEX, OCI_MANIFEST, is_index
from tonnage.errors import InvalidContent

MAX_MANIFEST_SIZE = 4 << 20
"""Bytes; what distribution, zot, ACR and oras-go accept."""

JSON_ERRORS = (msgspec.MsgspecError, UnicodeError, RecursionError)
"""What msgspec raises for bytes that are not the JSON that was asked for: damaged, not UTF-8, or nested without end."""

MAX_CHILDREN = 10_000
"""Layers of a manifest, or manifests of an index; 4 MiB has no room for many more."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """An image manifest (OCI image-spec, manifest.md) and the bytes it was read from."""

    raw: bytes
    media_type: str
    config: Descriptor
    layers: Sequence[Descriptor]
    artifact_type: str | None
    subject: Descriptor | None
    annotations: Mapping[str, str]

    @property
    def descriptor(self) -> Descriptor:
        """Names these bytes."""
        return Descriptor.of(self.raw, self.media_type, artifact_type=self.artifact_type)

    @property
    def children(self) -> list[Descriptor]:
        """What must be in a store before this manifest may be."""
        return [self.config, *self.layers]


@dataclass(frozen=True, kw_only=True)
class Index:
    """An image index (OCI image-spec, image-index.md) and the bytes it was read from."""

    raw: bytes
    media_type: str
    manifests: Sequence[Descriptor]
    artifact_type: str | None
    subject: Descriptor | None
    annotations: Mapping[str, str]

    @property
    def descriptor(self) -> Descriptor:
        """Names these bytes."""
        return Descriptor.of(self.raw, self.media_type, artifact_type=self.artifact_type)

    @property
    def children(self) -> list[Descriptor]:
        """What must be in a store before this index may be."""
        return list(self.manifests)


def parse(raw: bytes, media_type: str = "") -> Manifest | Index:
    """Read the bytes of a manifest or an index.

    Args:
        raw: the bytes, at most `MAX_MANIFEST_SIZE` of them.
        media_type: what the store or the parent says they are; the document's own `mediaType` must agree, and is
            required when this is empty.

    Raises:
        InvalidContent: not JSON, not a manifest, or over a limit.
    """
    if len(raw) > MAX_MANIFEST_SIZE:
        raise InvalidContent(f"the manifest has {len(raw)} bytes, more than the limit of {MAX_MANIFEST_SIZE}")
    try:
        obj = msgspec.json.decode(raw)
    except JSON_ERRORS as error:
        raise InvalidContent(f"the manifest is not JSON: {error}") from error
    if not isinstance(obj, dict):
        raise InvalidContent("the manifest is not a JSON object")
    kind = _media_type(obj, media_type)
    artifact_type = obj.get("artifactType")
    if artifact_type is not None and not isinstance(artifact_type, str):
        raise InvalidContent("the manifest's artifactType is not a string")
    subject = obj.get("subject")
    common: dict[str, Any] = {
        "raw": raw,
        "media_type": kind,
        "artifact_type": artifact_type,
        "subject": None if subject is None else Descriptor.from_dict(subject, "subject"),
        "annotations": annotations_from(obj.get("annotations"), "manifest"),
    }
    if is_index(kind):
        return Index(manifests=_descriptors(obj, "manifests"), **common)
    return Manifest(
        config=Descriptor.from_dict(obj.get("config"), "config"), layers=_descriptors(obj, "layers"), **common
    )


def referrer(document: Manifest | Index) -> Descriptor:
    """The entry of a referrers list for a manifest: with its annotations, and an artifact type that may fall back to
    the config's (distribution-spec, "Listing Referrers")."""
    fallback = document.config.media_type if isinstance(document, Manifest) else None
    return Descriptor.of(
        document.raw,
        document.media_type,
        artifact_type=document.artifact_type or fallback,
        annotations=document.annotations,
    )


def canonical(obj: Mapping[str, Any]) -> bytes:
    """The bytes we write for a JSON document: compact, keys sorted, so the same content has the same digest."""
    return msgspec.json.encode(obj, order="sorted")


def _media_type(obj: Mapping[str, Any], told: str) -> str:
    own = obj.get("mediaType", "")
    if not isinstance(own, str):
        raise InvalidContent("the manifest's mediaType is not a string")
    kind = told or own
    if not kind:
        # OCI 1.0 left mediaType out; the two documents differ in their lists.
        kind = OCI_INDEX if "manifests" in obj else OCI_MANIFEST
    if own and told and own != told:
        raise InvalidContent(f"the manifest says it is {own!r}, but was delivered as {told!r}")
    if kind not in INDEX_TYPES and kind not in MANIFEST_TYPES:
        raise InvalidContent(f"{kind!r} is not a manifest type that we read")
    if is_index(kind) and ("layers" in obj or "config" in obj):
        # OCI image-spec, "ambiguous documents" (CVE-2021-41190).
        raise InvalidContent("the document is both an index and a manifest")
    if not is_index(kind) and "manifests" in obj:
        raise InvalidContent("the document is both a manifest and an index")
    return kind


def _descriptors(obj: Mapping[str, Any], key: str) -> list[Descriptor]:
    items = obj.get(key)
    if not isinstance(items, list):
        raise InvalidContent(f"the manifest has no list of {key}")
    if len(items) > MAX_CHILDREN:
        raise InvalidContent(f"the manifest has {len(items)} {key}, more than the limit of {MAX_CHILDREN}")
    return [Descriptor.from_dict(item, f"{key}[{number}]") for number, item in enumerate(items)]
