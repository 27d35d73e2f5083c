"""A descriptor: what a piece of content is, how long, and which digest it has (OCI image-spec, descriptor.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tonnage.content.digest import Digest
from tonnage.content.mediatype import is_manifest
from tonnage.errors import InvalidContent

MAX_SIZE = 1 << 50
"""Bytes. No single blob is a pebibyte; a larger number is an attack or a mistake."""

_KNOWN = ("mediaType", "digest", "size", "annotations", "artifactType", "platform")


@dataclass(frozen=True, kw_only=True)
class Descriptor:
    """Names one node of an artifact.

    Args:
        media_type: type of the content.
        digest: its digest.
        size: its length in bytes.
        annotations: string to string.
        artifact_type: type of the artifact, when the content is a manifest.
        platform: `os` and `architecture`, when the content is an image manifest in an index.
        extra: fields of the JSON object that we do not know; kept so that read-then-write changes nothing.
    """

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    artifact_type: str | None = None
    platform: Mapping[str, Any] | None = field(default=None, hash=False)
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def of(cls, data: bytes, media_type: str, **fields: Any) -> Descriptor:
        """The descriptor of `data`."""
        return cls(media_type=media_type, digest=Digest.of(data), size=len(data), **fields)

    @classmethod
    def from_dict(cls, obj: object, where: str = "descriptor") -> Descriptor:
        """Read a JSON object.

        Raises:
            InvalidContent: a required field is missing, or has the wrong type or an absurd value.
        """
        fields = _object(obj, where)
        size = fields.get("size")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_SIZE:
            raise InvalidContent(f"{where}: size {size!r} is not a length in bytes")
        artifact_type = fields.get("artifactType")
        platform = fields.get("platform")
        return cls(
            media_type=_text(fields.get("mediaType"), f"{where}: mediaType"),
            digest=Digest(_text(fields.get("digest"), f"{where}: digest")),
            size=size,
            annotations=annotations_from(fields.get("annotations"), where),
            artifact_type=None if artifact_type is None else _text(artifact_type, f"{where}: artifactType"),
            platform=None if platform is None else _object(platform, f"{where}: platform"),
            extra={key: value for key, value in fields.items() if key not in _KNOWN},
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, with fields in the order of the specification."""
        obj: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.artifact_type is not None:
            obj["artifactType"] = self.artifact_type
        if self.platform is not None:
            obj["platform"] = dict(self.platform)
        obj.update(self.extra)
        if self.annotations:
            obj["annotations"] = dict(self.annotations)
        return obj

    @property
    def is_manifest(self) -> bool:
        """Whether the content is an index or a manifest, not a blob."""
        return is_manifest(self.media_type)


def annotations_from(value: object, where: str) -> dict[str, str]:
    """Read an `annotations` field, absent or an object of strings."""
    if value is None:
        return {}
    obj = _object(value, f"{where}: annotations")
    for key, text in obj.items():
        _text(text, f"{where}: annotation {key!r}")
    return obj


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidContent(f"{where} is not a JSON object")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidContent(f"{where} is missing or is not a string")
    return value
