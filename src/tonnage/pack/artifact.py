"""What an artifact in a store holds, and how each of its layers becomes files again.

Reads the universal format, any other ModelPack artifact, OCI images that carry a model, and what ORAS clients push.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from tonnage.content.descriptor import Descriptor
from tonnage.content.digest import Digest
from tonnage.content.graph import read_manifest
from tonnage.content.manifest import JSON_ERRORS, MAX_MANIFEST_SIZE, Index, Manifest
from tonnage.content.mediatype import (
    CNAI_FILEPATH,
    IMAGE_CONFIG_TYPES,
    MODELPACK_CONFIG,
    MODELPACK_FILEPATH,
    MODELPACK_MANIFEST,
    ORAS_DIGEST,
    ORAS_UNPACK,
    TITLE,
    compression,
)
from tonnage.content.storage import Fetcher
from tonnage.content.verify import read_all
from tonnage.errors import InvalidContent
from tonnage.pack.formats import FORMAT_LABEL, LINK_DIGEST, UNIVERSAL, is_stale, listing
from tonnage.pack.tar import Piece

Packaging = Literal["tar", "raw"]
Format = Literal["modelpack", "image", "oras"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """How to read one layer.

    Args:
        node: the blob.
        packaging: an archive of files, or one file as it is.
        compression: `none`, `gzip` or `zstd`.
        path: for a raw layer, the file's path in the model.
        diff_id: digest of the uncompressed bytes, where the artifact binds it.
        pieces: what is in it, where the artifact says so.
    """

    node: Descriptor
    packaging: Packaging
    compression: str = "none"
    path: str = ""
    diff_id: Digest | None = None
    pieces: Sequence[Piece] | None = None


@dataclass(frozen=True, kw_only=True)
class ModelArtifact:
    """A model in a store.

    Args:
        root: what the reference resolved to: an index or a manifest.
        manifest: the manifest whose layers are read.
        format: which format that manifest has.
        layers: how to read each.
        config: the ModelPack configuration, or the labels of an image.
        also: the other manifests of the index.
        warnings: what a user should know, one sentence each.
    """

    root: Descriptor
    manifest: Manifest
    format: Format
    layers: Sequence[Layer]
    config: Mapping[str, object] = field(default_factory=dict)
    also: Sequence[Descriptor] = ()
    warnings: Sequence[str] = ()

    def successors(self, _: Fetcher, node: Descriptor) -> list[Descriptor]:
        """What a pull needs: below the root, only the layers of the chosen manifest."""
        return [layer.node for layer in self.layers] if node.digest == self.root.digest else []

    @property
    def files(self) -> dict[str, int] | None:
        """Path to size in bytes of every file; None if some layer does not say what it holds."""
        found: dict[str, int] = {}
        for layer in self.layers:
            if layer.packaging == "raw":
                found[layer.path] = layer.node.size
            elif layer.pieces is None:
                return None
            else:
                found.update((piece.path, piece.total) for piece in layer.pieces)
        return dict(sorted(found.items()))


def read_artifact(fetcher: Fetcher, root: Descriptor) -> ModelArtifact:
    """Read what a reference resolved to.

    Raises:
        InvalidContent: it is not a model, or contradicts itself.
    """
    document = read_manifest(fetcher, root)
    also: list[Descriptor] = []
    if isinstance(document, Index):
        index, document = document, _choose(fetcher, document)
        also = [node for node in index.manifests if node.digest != document.descriptor.digest]
    kind = _format(document)
    diff_ids, config = _read_config(fetcher, document, kind)
    layers, warnings = _layers(document, kind, diff_ids)
    if _label(config) == UNIVERSAL and any(layer.compression != "none" for layer in layers):
        warnings.append(
            "the layers were compressed on their way here, so their digests are not those that were published; their "
            "content is verified against the digests that were (to keep digests: skopeo copy --preserve-digests)"
        )
    if not layers:
        raise InvalidContent(f"{root.digest} has no layers that hold files", hint="it is not a model")
    return ModelArtifact(
        root=root,
        manifest=document,
        format=kind,
        layers=layers,
        config=config,
        also=also,
        warnings=warnings,
    )


def _choose(fetcher: Fetcher, index: Index) -> Manifest:
    """The manifest of an index that says most about the model: ModelPack, else the first that is for a platform."""
    images = []
    for node in index.manifests:
        if node.artifact_type != MODELPACK_MANIFEST and (node.platform or {}).get("os", "unknown") != "unknown":
            images.append(node)
            continue
        document = read_manifest(fetcher, node)
        if isinstance(document, Manifest) and _format(document) == "modelpack":
            return document
    for node in images:
        document = read_manifest(fetcher, node)
        if isinstance(document, Manifest):
            return document
    raise InvalidContent(f"index {index.descriptor.digest} names no manifest that could be a model")


def _format(manifest: Manifest) -> Format:
    if manifest.artifact_type == MODELPACK_MANIFEST or manifest.config.media_type == MODELPACK_CONFIG:
        return "modelpack"
    if manifest.config.media_type in IMAGE_CONFIG_TYPES:
        return "image"
    return "oras"


class _RootFs(msgspec.Struct):
    diff_ids: list[str]


class _Runtime(msgspec.Struct):
    labels: dict[str, str] | None = msgspec.field(name="Labels", default=None)


class _ImageConfig(msgspec.Struct):
    rootfs: _RootFs
    config: _Runtime | None = None


class _ModelFs(msgspec.Struct):
    diff_ids: list[str] = msgspec.field(name="diffIds")


class _ModelPackConfig(msgspec.Struct):
    modelfs: _ModelFs


def _read_config(
    fetcher: Fetcher, manifest: Manifest, format: Format
) -> tuple[Sequence[Digest | None], Mapping[str, object]]:
    """The diff id of each layer, and ModelPack's configuration."""
    unknown: list[Digest | None] = [None] * len(manifest.layers)
    if format == "oras":
        return unknown, {}
    raw = read_all(fetcher.fetch(manifest.config), manifest.config, limit=MAX_MANIFEST_SIZE)
    try:
        if format == "image":
            image = msgspec.json.decode(raw, type=_ImageConfig)
            texts = image.rootfs.diff_ids
            config: dict[str, object] = {"labels": (image.config and image.config.labels) or {}}
        else:
            config = msgspec.json.decode(raw, type=dict[str, object])
            texts = msgspec.convert(config, _ModelPackConfig).modelfs.diff_ids
    except JSON_ERRORS as error:
        raise InvalidContent(f"the configuration {manifest.config.digest} is malformed: {error}") from error
    if len(texts) != len(manifest.layers):
        raise InvalidContent(
            f"the configuration names {len(texts)} layers, the manifest has {len(manifest.layers)}",
            hint="the artifact is damaged; ask its publisher",
        )
    return [Digest(text) for text in texts], config


def _label(config: Mapping[str, object]) -> object:
    labels = config.get("labels")
    return labels.get(FORMAT_LABEL) if isinstance(labels, dict) else None


def _layers(manifest: Manifest, format: Format, diff_ids: Sequence[Digest | None]) -> tuple[list[Layer], list[str]]:
    layers: list[Layer] = []
    warnings: list[str] = []
    for node, diff_id in zip(manifest.layers, diff_ids, strict=True):
        if diff_id == LINK_DIGEST:
            continue
        if is_stale(node):
            warnings.append(
                f"layer {node.digest.short} was rewritten on its way here (compressed, it seems): "
                "its list of files no longer matches and is not used"
            )
        layers.append(_oras_layer(node) if format == "oras" else _layer(node, format, diff_id))
    return layers, warnings


def _layer(node: Descriptor, format: Format, diff_id: Digest | None) -> Layer:
    packed = compression(node.media_type)
    if packed == "none" and diff_id is not None and diff_id != node.digest:
        raise InvalidContent(
            f"layer {node.digest} is not compressed, but the configuration says its content is {diff_id}",
            hint="the artifact is damaged; ask its publisher",
        )
    if format == "modelpack" and node.media_type.endswith(".raw"):
        path = node.annotations.get(MODELPACK_FILEPATH) or node.annotations.get(CNAI_FILEPATH)
        return _raw(node, path or node.annotations.get(TITLE, ""))
    if ".tar" not in node.media_type:
        raise InvalidContent(f"layer {node.digest} has the type {node.media_type!r}, which is not one we read")
    return Layer(node=node, packaging="tar", compression=packed, diff_id=diff_id, pieces=listing(node))


def _oras_layer(node: Descriptor) -> Layer:
    """A file is its own layer. A folder is a tar+gzip, whose entries start with the folder's name: oras-go marks it to
    be unpacked (content/file), oras-py does not (oras/provider.py), so there only the title tells it from a file."""
    title = node.annotations.get(TITLE, "")
    archive = node.media_type.endswith(".tar+gzip") and not title.endswith((".tar.gz", ".tgz"))
    if node.annotations.get(ORAS_UNPACK) != "true" and not archive:
        return _raw(node, title)
    digest = node.annotations.get(ORAS_DIGEST)
    return Layer(
        node=node,
        packaging="tar",
        compression=compression(node.media_type),
        diff_id=Digest(digest) if digest else None,
    )


def _raw(node: Descriptor, path: str) -> Layer:
    if not path:
        raise InvalidContent(
            f"layer {node.digest} of type {node.media_type!r} does not say which file it is",
            hint="it is not a model artifact, or was pushed without file names",
        )
    return Layer(node=node, packaging="raw", path=posixpath.normpath(path))
