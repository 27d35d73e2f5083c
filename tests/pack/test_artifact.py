"""Reading what other people have pushed: which manifest, which layers, and what contradicts itself."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from support.archives import END, Shelf, entry
from tonnage.content.descriptor import Descriptor
from tonnage.content.digest import Digest
from tonnage.content.mediatype import (
    CNAI_FILEPATH,
    DOCKER_IMAGE_CONFIG,
    MODELPACK_CONFIG,
    MODELPACK_FILEPATH,
    MODELPACK_LAYER,
    MODELPACK_MANIFEST,
    OCI_EMPTY,
    OCI_IMAGE_CONFIG,
    OCI_INDEX,
    OCI_LAYER_TAR,
    ORAS_DIGEST,
    ORAS_UNPACK,
    TITLE,
)
from tonnage.errors import InvalidContent
from tonnage.pack.artifact import ModelArtifact, read_artifact
from tonnage.pack.model import pack
from tonnage.stores.memory import MemoryStore
from tonnage.transfer.copy import copy

TAR = entry("a", b"data") + END


def index(shelf: Shelf, *nodes: dict[str, Any]) -> Descriptor:
    return shelf.blob(json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": nodes}).encode(), OCI_INDEX)


def modelpack(
    shelf: Shelf, *layers: Descriptor, diff_ids: list[str] | None = None, config: object = None, **fields: Any
) -> Descriptor:
    if config is None:
        ids = [str(layer.digest) for layer in layers] if diff_ids is None else diff_ids
        config = {"descriptor": {}, "config": {}, "modelfs": {"type": "layers", "diffIds": ids}}
    node = shelf.blob(config if isinstance(config, bytes) else json.dumps(config).encode(), MODELPACK_CONFIG)
    return shelf.manifest(node, layers, artifactType=MODELPACK_MANIFEST, **fields)


def raw(shelf: Shelf, data: bytes, annotations: dict[str, str]) -> Descriptor:
    media_type = MODELPACK_LAYER.format(kind="weight", packaging="raw")
    return shelf.blob(data, media_type, annotations=annotations)


def read(shelf: Shelf, root: Descriptor) -> ModelArtifact:
    return read_artifact(shelf.store, root)


def test_universal(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "m.bin").write_bytes(b"x" * 300_000)
    model = pack(tmp_path)
    store = MemoryStore()
    copy(model, "", store, ["v1"])
    found = read_artifact(store, store.resolve("v1"))
    assert found.format == "modelpack"
    assert found.manifest.descriptor.digest == model.artifact.modelpack.digest
    assert [node.artifact_type for node in found.also] == [None, None]
    assert found.files == {"config.json": 2, "m.bin": 300_000}
    assert found.warnings == []
    assert [layer.node.digest for layer in found.layers] == found.config["modelfs"]["diffIds"]  # type: ignore[index]
    assert [node.digest for node in found.successors(store, found.root)] == [layer.digest for layer in model.layers]
    assert found.successors(store, found.layers[0].node) == []
    image = read_artifact(store, model.artifact.image)
    assert image.format == "image"
    assert image.files == found.files
    assert len(image.layers) == len(image.manifest.layers) - 1  # the link is of no use in a folder


def test_modelpack_raw_layers_take_their_names_in_order() -> None:
    shelf = Shelf()
    names = {TITLE: "title", CNAI_FILEPATH: "cnai", MODELPACK_FILEPATH: "cncf/x"}
    one = raw(shelf, b"1", names)
    two = raw(shelf, b"2", {TITLE: "title", CNAI_FILEPATH: "cnai"})
    three = raw(shelf, b"3", {TITLE: "./title"})
    found = read(shelf, modelpack(shelf, one, two, three))
    assert [(layer.path, layer.packaging) for layer in found.layers] == [
        ("cncf/x", "raw"),
        ("cnai", "raw"),
        ("title", "raw"),
    ]
    assert found.files == {"cnai": 1, "cncf/x": 1, "title": 1}


@pytest.mark.parametrize("suffix", ["tar+gzip", "tar+zstd"])
def test_modelpack_compressed_layers(suffix: str) -> None:
    shelf = Shelf()
    layer = shelf.blob(gzip.compress(TAR), MODELPACK_LAYER.format(kind="doc", packaging=suffix))
    (read_layer,) = read(shelf, modelpack(shelf, layer, diff_ids=[Digest.of(TAR)])).layers
    assert (read_layer.compression, read_layer.packaging) == (suffix.removeprefix("tar+"), "tar")
    assert read_layer.diff_id == Digest.of(TAR)


@pytest.mark.parametrize("media_type", [OCI_IMAGE_CONFIG, DOCKER_IMAGE_CONFIG])
def test_image(media_type: str) -> None:
    shelf = Shelf()
    layer = shelf.blob(TAR)
    config = shelf.blob(json.dumps({"rootfs": {"diff_ids": [layer.digest]}, "other": 1}).encode(), media_type)
    found = read(shelf, shelf.manifest(config, [layer]))
    assert (found.format, found.files, found.layers[0].diff_id) == ("image", None, layer.digest)


def test_oras() -> None:
    shelf = Shelf()
    folder = shelf.blob(
        gzip.compress(TAR),
        OCI_LAYER_TAR + "+gzip",
        annotations={TITLE: "folder", ORAS_UNPACK: "true", ORAS_DIGEST: Digest.of(TAR)},
    )
    file = shelf.blob(b"x", "application/json", annotations={TITLE: "config.json"})
    config = shelf.blob(b"{}", OCI_EMPTY)
    found = read(shelf, shelf.manifest(config, [folder, file], artifactType="a/b"))
    assert found.format == "oras"
    assert [(layer.packaging, layer.path, layer.compression) for layer in found.layers] == [
        ("tar", "", "gzip"),
        ("raw", "config.json", "none"),
    ]
    assert found.layers[0].diff_id == Digest.of(TAR)


def test_the_modelpack_manifest_of_an_index_is_chosen() -> None:
    shelf = Shelf()
    chosen = modelpack(shelf, raw(shelf, b"data", {TITLE: "m"}))
    other = shelf.tars(TAR).root
    root = index(shelf, other.to_dict(), {**chosen.to_dict(), "artifactType": MODELPACK_MANIFEST})
    found = read(shelf, root)
    assert found.manifest.descriptor.digest == chosen.digest
    assert [node.digest for node in found.also] == [other.digest]
    assert found.root == root


def test_attestations_of_an_index_are_not_chosen() -> None:
    shelf = Shelf()
    image = shelf.tars(TAR).root
    unknown = {"os": "unknown", "architecture": "unknown"}
    attestation = {**shelf.tars(TAR + END).root.to_dict(), "platform": unknown}
    found = read(shelf, index(shelf, attestation, {**image.to_dict(), "platform": {"os": "linux"}}))
    assert found.manifest.descriptor.digest == image.digest
    with pytest.raises(InvalidContent, match="no manifest"):
        read(shelf, index(shelf, attestation))
    with pytest.raises(InvalidContent, match="no manifest"):
        read(shelf, index(shelf))


def test_an_index_of_indexes() -> None:
    shelf = Shelf()
    inner = index(shelf, shelf.tars(TAR).root.to_dict())
    with pytest.raises(InvalidContent, match="no manifest"):
        read(shelf, index(shelf, inner.to_dict()))


def test_a_stale_listing_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(b"x" * 100)
    model = pack(tmp_path)
    store = MemoryStore()
    copy(model, "", store)
    before = read_artifact(store, model.artifact.modelpack)
    shelf = Shelf()
    node = before.manifest.layers[0]
    squeezed = shelf.blob(b"squeezed", node.media_type + "+gzip", annotations=node.annotations)
    found = read(shelf, modelpack(shelf, squeezed, diff_ids=[node.digest]))
    assert len(found.warnings) == 1
    assert squeezed.digest.short in found.warnings[0]
    assert found.files is None


@pytest.mark.parametrize(
    "config",
    [
        b"",
        b"null",
        b"[]",
        b"\xff",
        b"{}",
        b'{"modelfs": {}}',
        b'{"modelfs": {"diffIds": "x"}}',
        b'{"modelfs": {"diffIds": [1]}}',
        b'{"modelfs": {"diffIds": ["md5:x"]}}',
        b'{"modelfs": {"diffIds": []}}',
        b'{"modelfs": {"diffIds": []}, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"[" * 100_000,
    ],
    ids=range(12),
)
def test_malformed_configurations(config: bytes) -> None:
    shelf = Shelf()
    layer = raw(shelf, b"data", {TITLE: "m"})
    with pytest.raises(InvalidContent):
        read(shelf, modelpack(shelf, layer, config=config))
    image = config.replace(b"modelfs", b"rootfs").replace(b"diffIds", b"diff_ids")
    with pytest.raises(InvalidContent):
        read(shelf, shelf.manifest(shelf.blob(image, OCI_IMAGE_CONFIG), [layer]))


def test_diff_ids_must_agree() -> None:
    shelf = Shelf()
    layer = shelf.blob(TAR, MODELPACK_LAYER.format(kind="doc", packaging="tar"))
    with pytest.raises(InvalidContent, match="not compressed"):
        read(shelf, modelpack(shelf, layer, diff_ids=[Digest.of(b"other")]))
    with pytest.raises(InvalidContent, match="names 2 layers"):
        read(shelf, modelpack(shelf, layer, diff_ids=[layer.digest] * 2))


def test_layers_that_say_too_little() -> None:
    shelf = Shelf()
    with pytest.raises(InvalidContent, match="which file"):
        read(shelf, modelpack(shelf, raw(shelf, b"data", {})))
    odd = shelf.blob(b"x", "application/x-odd")
    with pytest.raises(InvalidContent, match="application/x-odd"):
        read(shelf, modelpack(shelf, odd))
    with pytest.raises(InvalidContent, match="which file"):
        read(shelf, shelf.manifest(shelf.blob(b"{}", OCI_EMPTY), [odd]))
    with pytest.raises(InvalidContent, match="no layers"):
        read(shelf, shelf.manifest(shelf.blob(b"{}", OCI_EMPTY), []))
