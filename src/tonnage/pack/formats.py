"""The universal format: one set of blobs, named twice.

    index
    |- ModelPack manifest    artifactType application/vnd.cncf.model.manifest.v1+json      modctl, KitOps, oras, Harbor
    '- OCI image manifests   one a platform, which differ in that alone      containerd, CRI-O, KServe, skopeo, crane
         same layers, and one tiny layer more: the link `models -> .`

The layers are uncompressed tars, so each is its own diff id; the paths in them are the model's own. KServe's modelcar
looks for `/models` in an image, which the link provides without a second copy. A model that has a `models` of its own
goes without: in an image, the link would hide it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tonnage.content.descriptor import Descriptor
from tonnage.content.digest import Digest
from tonnage.content.manifest import JSON_ERRORS, MAX_MANIFEST_SIZE, Manifest, canonical
from tonnage.content.mediatype import (
    CNAI_FILEPATH,
    MODELPACK_CONFIG,
    MODELPACK_FILEPATH,
    MODELPACK_LAYER,
    MODELPACK_MANIFEST,
    OCI_IMAGE_CONFIG,
    OCI_INDEX,
    OCI_LAYER_TAR,
    OCI_MANIFEST,
    TITLE,
    TONNAGE_FILES,
)
from tonnage.errors import InvalidContent
from tonnage.pack.plan import Kind, PreviousLayer
from tonnage.pack.tar import Piece, TarLayout, symlink

LINK_NAME, LINK_TARGET = "models", "."
LINK_LAYER = symlink(LINK_NAME, LINK_TARGET)
"""The layer that makes `/models` in an image; of no use in a folder, so a pull leaves it out."""

LINK_DIGEST = Digest.of(LINK_LAYER)

PLATFORMS = (("linux", "amd64"), ("linux", "arm64"))
"""Weights run anywhere, but runtimes choose a manifest by platform: there is one for each, of the same layers."""

FORMAT_LABEL, UNIVERSAL = "dev.tonnage.format", "universal"
"""Label of our images: their layers were published uncompressed, so compressed ones were rewritten since."""

MAX_LISTING = 1 << 20
"""Bytes of a manifest that may go into listing files; the listing of a layer with very many is left out."""


@dataclass(frozen=True)
class PackedLayer:
    """A layer whose bytes are known."""

    kind: Kind
    layout: TarLayout
    pieces: tuple[Piece, ...]
    digest: Digest

    @property
    def size(self) -> int:
        """Bytes of the blob."""
        return self.layout.size


@dataclass(frozen=True)
class Artifact:
    """The documents of a packed model.

    Args:
        index: descriptor of the index: the root of the artifact.
        modelpack: descriptor of the ModelPack manifest.
        image: descriptor of the OCI image manifest for the first of `PLATFORMS`.
        documents: bytes of every document and small blob, by digest.
    """

    index: Descriptor
    modelpack: Descriptor
    image: Descriptor
    documents: Mapping[Digest, bytes]


def universal(layers: Sequence[PackedLayer], *, descriptor: Mapping[str, Any], config: Mapping[str, Any]) -> Artifact:
    """Build the universal format.

    Args:
        layers: in manifest order.
        descriptor: ModelPack's `descriptor` object.
        config: ModelPack's `config` object.

    Raises:
        InvalidContent: there are so many layers that a manifest would exceed what registries accept.
    """
    documents: dict[Digest, bytes] = {}

    def add(data: bytes, media_type: str, **fields: Any) -> Descriptor:
        node = Descriptor.of(data, media_type, **fields)
        if node.size > MAX_MANIFEST_SIZE:
            raise InvalidContent(f"the manifest would have {node.size} bytes", hint="use fewer layers")
        documents[node.digest] = data
        return node

    diff_ids = [str(layer.digest) for layer in layers]
    modelpack_config = add(
        canonical({"config": config, "descriptor": descriptor, "modelfs": {"diffIds": diff_ids, "type": "layers"}}),
        MODELPACK_CONFIG,
    )
    annotations = _annotations(layers)
    modelpack_layers = [
        Descriptor(
            media_type=MODELPACK_LAYER.format(kind=layer.kind, packaging="tar"),
            digest=layer.digest,
            size=layer.size,
            annotations=extra,
        )
        for layer, extra in zip(layers, annotations, strict=True)
    ]
    modelpack = add(
        _manifest(modelpack_config, modelpack_layers, artifactType=MODELPACK_MANIFEST),
        OCI_MANIFEST,
        # No artifactType here, though the specification would like one: skopeo before 1.14 drops it from an index, and
        # so cannot copy the whole of one with its digests preserved. The manifest itself has it.
        platform={"architecture": "unknown", "os": "unknown"},
    )
    taken = any(piece.path.partition("/")[0] == LINK_NAME for layer in layers for piece in layer.pieces)
    links = [] if taken else [add(LINK_LAYER, OCI_LAYER_TAR)]
    # No titles here: a client that pulls every titled layer of an index (oras) would meet each name twice.
    image_layers = [
        Descriptor(
            media_type=OCI_LAYER_TAR,
            digest=layer.digest,
            size=layer.size,
            annotations={key: text for key, text in extra.items() if key == TONNAGE_FILES},
        )
        for layer, extra in zip(layers, annotations, strict=True)
    ]
    images = []
    for os, architecture in PLATFORMS:
        platform = {"architecture": architecture, "os": os}
        rootfs = {"diff_ids": [*diff_ids, *(str(link.digest) for link in links)], "type": "layers"}
        labels = {"Labels": {FORMAT_LABEL: UNIVERSAL}}
        image_config = add(canonical({**platform, "config": labels, "rootfs": rootfs}), OCI_IMAGE_CONFIG)
        images.append(add(_manifest(image_config, [*image_layers, *links]), OCI_MANIFEST, platform=platform))
    # Images first: a client that takes the first manifest of an index expects one.
    index = add(
        canonical(
            {
                "manifests": [node.to_dict() for node in [*images, modelpack]],
                "mediaType": OCI_INDEX,
                "schemaVersion": 2,
            }
        ),
        OCI_INDEX,
    )
    return Artifact(index, modelpack, images[0], documents)


def previous_layers(manifest: Manifest) -> list[PreviousLayer]:
    """What each layer of an earlier version held, from the listings in its ModelPack manifest; a layer without a
    listing is left out."""
    found = []
    for node in manifest.layers:
        kind = _kind(node.media_type)
        files = listing(node)
        if kind and files is not None:
            found.append(PreviousLayer(kind, frozenset((piece.path, piece.offset) for piece in files)))
    return found


class _Entry(msgspec.Struct, omit_defaults=True):
    path: str
    size: int
    offset: int
    part: tuple[int, int] | None = None


class _Listing(msgspec.Struct):
    layer: str
    files: list[_Entry]


def listing(node: Descriptor) -> list[Piece] | None:
    """The pieces that a layer's annotation lists; None without one, or with one that describes another layer (a copy
    that compressed the layer on the way has kept the annotation, and its offsets no longer hold)."""
    entries = _entries(node)
    if entries is None or entries.layer != node.digest:
        return None
    return [
        Piece(entry.path, entry.size, *entry.part) if entry.part else Piece.whole(entry.path, entry.size)
        for entry in entries.files
    ]


def is_stale(node: Descriptor) -> bool:
    """Whether a layer carries a listing that describes other bytes: it was rewritten on the way here."""
    entries = _entries(node)
    return entries is not None and entries.layer != node.digest


def _entries(node: Descriptor) -> _Listing | None:
    try:
        return msgspec.json.decode(node.annotations.get(TONNAGE_FILES, ""), type=_Listing)
    except JSON_ERRORS:
        return None


def _annotations(layers: Sequence[PackedLayer]) -> list[dict[str, str]]:
    room = MAX_LISTING
    numbers: dict[Kind, int] = {}
    result = []
    for layer in layers:
        number = numbers[layer.kind] = numbers.get(layer.kind, -1) + 1
        title = f"{layer.kind}-{number:03}.tar"
        path = layer.pieces[0].path if len(layer.pieces) == 1 else title
        annotations = {TITLE: title, MODELPACK_FILEPATH: path, CNAI_FILEPATH: path}
        text = _list(layer)
        length = len(text.encode())
        if length <= room:
            room -= length
            annotations[TONNAGE_FILES] = text
        result.append(annotations)
    return result


def _list(layer: PackedLayer) -> str:
    offsets = layer.layout.data_offsets()
    entries = [
        _Entry(
            piece.path,
            piece.size,
            offsets.get(piece, 0),
            (piece.offset, piece.total) if piece.is_part else None,
        )
        for piece in layer.pieces
    ]
    return msgspec.json.encode(_Listing(str(layer.digest), entries)).decode()


def _manifest(config: Descriptor, layers: Sequence[Descriptor], **fields: Any) -> bytes:
    return canonical(
        {
            **fields,
            "config": config.to_dict(),
            "layers": [layer.to_dict() for layer in layers],
            "mediaType": OCI_MANIFEST,
            "schemaVersion": 2,
        }
    )


def _kind(media_type: str) -> Kind | None:
    kinds: tuple[Kind, ...] = ("weight.config", "weight", "doc", "code")
    return next((kind for kind in kinds if media_type == MODELPACK_LAYER.format(kind=kind, packaging="tar")), None)
