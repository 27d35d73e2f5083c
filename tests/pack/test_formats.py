"""The universal format: one set of blobs, and what each reader of it looks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tonnage.content.descriptor import Descriptor
from tonnage.content.digest import Digest
from tonnage.content.graph import walk
from tonnage.content.manifest import MAX_MANIFEST_SIZE, Index, Manifest, parse
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
from tonnage.errors import InvalidContent, NotFound
from tonnage.pack.formats import (
    LINK_LAYER,
    MAX_LISTING,
    PLATFORMS,
    Artifact,
    PackedLayer,
    is_stale,
    listing,
    previous_layers,
    universal,
)
from tonnage.pack.model import PackedModel, pack
from tonnage.pack.plan import PlanOptions, plan
from tonnage.pack.tar import Piece, TarLayout

FILES = {
    "config.json": b"{}",
    "README.md": b"# hello",
    "modeling.py": b"pass",
    "tokenizer.json": b"[]",
    "a.safetensors": b"a" * 60_000,
    "b.safetensors": b"b" * 50_000,
    "large.gguf": b"c" * 300_000,
    "sub/empty.bin": b"",
}
OPTIONS = PlanOptions(target=128 << 10, cap=160 << 10)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> PackedModel:
    return pack(write(tmp_path, FILES), options=OPTIONS)


def manifest_of(artifact: Artifact, node: Descriptor) -> Manifest:
    found = parse(artifact.documents[node.digest], node.media_type)
    assert isinstance(found, Manifest)
    return found


def index_of(artifact: Artifact) -> Index:
    found = parse(artifact.documents[artifact.index.digest], OCI_INDEX)
    assert isinstance(found, Index)
    return found


def config_of(artifact: Artifact, manifest: Manifest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(artifact.documents[manifest.config.digest])
    return found


def test_the_index(model: PackedModel) -> None:
    index = index_of(model.artifact)
    assert [node.media_type for node in index.manifests] == [OCI_MANIFEST] * (len(PLATFORMS) + 1)
    platforms = [(node.platform or {}) for node in index.manifests]
    assert [(platform["os"], platform["architecture"]) for platform in platforms] == [
        *PLATFORMS,
        ("unknown", "unknown"),
    ]
    assert index.manifests[0].digest == model.artifact.image.digest
    assert index.manifests[-1].digest == model.artifact.modelpack.digest


def test_both_manifests_name_the_same_blobs(model: PackedModel) -> None:
    digests = [layer.digest for layer in model.layers]
    modelpack = manifest_of(model.artifact, model.artifact.modelpack)
    assert modelpack.artifact_type == MODELPACK_MANIFEST
    assert modelpack.config.media_type == MODELPACK_CONFIG
    assert [layer.digest for layer in modelpack.layers] == digests
    assert config_of(model.artifact, modelpack)["modelfs"] == {"type": "layers", "diffIds": digests}
    link = Descriptor.of(LINK_LAYER, OCI_LAYER_TAR)
    for node, (os, architecture) in zip(index_of(model.artifact).manifests, PLATFORMS, strict=False):
        image = manifest_of(model.artifact, node)
        assert image.config.media_type == OCI_IMAGE_CONFIG
        assert [layer.digest for layer in image.layers] == [*digests, link.digest]
        assert {layer.media_type for layer in image.layers} == {OCI_LAYER_TAR}
        config = config_of(model.artifact, image)
        assert config["rootfs"] == {"type": "layers", "diff_ids": [*digests, link.digest]}
        assert (config["os"], config["architecture"]) == (os, architecture)


def test_media_types_by_kind(model: PackedModel) -> None:
    modelpack = manifest_of(model.artifact, model.artifact.modelpack)
    assert [layer.media_type for layer in modelpack.layers] == [
        MODELPACK_LAYER.format(kind=layer.kind, packaging="tar") for layer in model.layers
    ]
    assert {layer.kind for layer in model.layers} == {"weight", "weight.config", "doc", "code"}


def test_names_that_peers_look_for(model: PackedModel) -> None:
    modelpack = manifest_of(model.artifact, model.artifact.modelpack)
    titles = [layer.annotations[TITLE] for layer in modelpack.layers]
    assert len(set(titles)) == len(titles)
    for packed_layer, node in zip(model.layers, modelpack.layers, strict=True):
        pieces = packed_layer.pieces
        path = pieces[0].path if len(pieces) == 1 else node.annotations[TITLE]
        assert node.annotations[MODELPACK_FILEPATH] == node.annotations[CNAI_FILEPATH] == path
    for layer in manifest_of(model.artifact, model.artifact.image).layers:
        assert TITLE not in layer.annotations


def test_listings(model: PackedModel) -> None:
    modelpack = manifest_of(model.artifact, model.artifact.modelpack)
    for layer, node in zip(model.layers, modelpack.layers, strict=True):
        assert listing(node) == list(layer.pieces)
        assert not is_stale(node)
        entries = json.loads(node.annotations[TONNAGE_FILES])
        assert entries["layer"] == node.digest
        for entry, piece in zip(entries["files"], layer.pieces, strict=True):
            if piece.size:
                with_data = model.fetch_range(node, entry["offset"], piece.size)
                buffer = bytearray(piece.size)
                assert with_data.readinto(memoryview(buffer)) == piece.size
                assert buffer == FILES[piece.path][piece.offset : piece.offset + piece.size]


def test_a_listing_of_other_bytes_is_stale(model: PackedModel) -> None:
    node = manifest_of(model.artifact, model.artifact.modelpack).layers[0]
    other = Descriptor.of(b"compressed", node.media_type, annotations=node.annotations)
    assert listing(other) is None
    assert is_stale(other)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "{}",
        "[]",
        '{"layer": 1, "files": []}',
        '{"layer": "x", "files": [{"path": 1}]}',
        '{"layer": "x", "files": [{"path": "a", "size": 1}]}',
        '{"layer": "x", "files": [], "more": ' + "[" * 100_000,
        "[" * 100_000,
    ],
    ids=range(9),
)
def test_a_damaged_listing_is_none(text: str) -> None:
    node = Descriptor.of(b"x", OCI_LAYER_TAR, annotations={TONNAGE_FILES: text})
    assert listing(node) is None
    assert not is_stale(node)


def test_previous_layers_round_trip(model: PackedModel) -> None:
    modelpack = manifest_of(model.artifact, model.artifact.modelpack)
    found = previous_layers(modelpack)
    assert [(layer.kind, layer.pieces) for layer in found] == [
        (layer.kind, frozenset((piece.path, piece.offset) for piece in layer.pieces)) for layer in model.layers
    ]
    files = [(file.path, file.size) for file in model.files]
    assert [layer.pieces for layer in plan(files, OPTIONS, found)] == [layer.pieces for layer in model.layers]


def test_an_update_keeps_the_digests_of_what_did_not_change(tmp_path: Path, model: PackedModel) -> None:
    (tmp_path / "config.json").write_text('{"changed": true}')
    (tmp_path / "new.safetensors").write_bytes(b"n" * 1000)
    modelpack = manifest_of(model.artifact, model.artifact.modelpack)
    update = pack(tmp_path, options=OPTIONS, previous=previous_layers(modelpack))
    before, after = ({layer.digest: layer for layer in each.layers} for each in (model, update))
    gone = [layer for digest, layer in before.items() if digest not in after]
    assert [layer.kind for layer in gone] == ["weight.config"]
    fresh = [layer for digest, layer in after.items() if digest not in before]
    assert sorted(layer.kind for layer in fresh) == ["weight", "weight.config"]


def test_the_graph_is_whole(model: PackedModel) -> None:
    nodes = list(walk(model, model.artifact.index))
    assert nodes[-1] == model.artifact.index
    named = {node.digest for node in nodes}
    assert named == {*model.artifact.documents, *(layer.digest for layer in model.layers)}
    for node in nodes:
        reader, size = model.fetch(node), 0
        state = node.digest.hasher()
        buffer = memoryview(bytearray(5000))
        while count := reader.readinto(buffer):
            state.update(buffer[:count])
            size += count
        reader.close()
        assert (size, Digest.from_hash(state)) == (node.size, node.digest)


def test_a_packed_model_is_one_artifact(model: PackedModel) -> None:
    assert model.resolve("any") == model.resolve(model.artifact.index.digest) == model.artifact.index
    with pytest.raises(NotFound):
        model.resolve(Digest.of(b"other"))
    with pytest.raises(NotFound):
        model.fetch(Descriptor.of(b"other", OCI_LAYER_TAR))


@pytest.mark.parametrize("path", ["models", "models/a/config.json"])
def test_no_link_over_the_models_own_folder(tmp_path: Path, path: str) -> None:
    model = pack(write(tmp_path, {**FILES, path: b"x"}), options=OPTIONS)
    image = manifest_of(model.artifact, model.artifact.image)
    digests = [layer.digest for layer in model.layers]
    assert [layer.digest for layer in image.layers] == digests
    assert config_of(model.artifact, image)["rootfs"]["diff_ids"] == digests


def test_a_similar_name_keeps_the_link(tmp_path: Path) -> None:
    model = pack(write(tmp_path, {**FILES, "models.json": b"x", "sub/models/x": b"x"}), options=OPTIONS)
    assert manifest_of(model.artifact, model.artifact.image).layers[-1].digest == Digest.of(LINK_LAYER)


# --- limits


def packed(*names: list[str]) -> list[PackedLayer]:
    layers = []
    for number, paths in enumerate(names):
        pieces = tuple(Piece.whole(path, 1) for path in sorted(paths))
        layers.append(PackedLayer("weight.config", TarLayout(pieces), pieces, Digest.of(str(number).encode())))
    return layers


@pytest.mark.parametrize(
    ("name", "files", "layers"),
    [
        ("sub/folder/file-{}.json", 20_000, 1),
        ("sub/folder/file-{}.json", 50_000, 90),
        ("😀" * 40 + "{}", 8_000, 90),
        ('"' * 100 + "{}", 8_000, 90),
        ("\x01" * 50 + "{}", 8_000, 90),
    ],
    ids=["one layer", "many layers", "wide characters", "quotes", "control characters"],
)
def test_any_number_of_files_fits_a_manifest(name: str, files: int, layers: int) -> None:
    """The listing of a layer is left out when it would take too much room, as a whole."""
    groups: list[list[str]] = [[] for _ in range(layers)]
    for number in range(files):
        groups[number % layers].append(name.format(number))
    artifact = universal(packed(*groups), descriptor={}, config={})
    for node in index_of(artifact).manifests:
        assert node.size <= MAX_MANIFEST_SIZE
        listed = [layer for layer in manifest_of(artifact, node).layers if TONNAGE_FILES in layer.annotations]
        assert sum(len(layer.annotations[TONNAGE_FILES].encode()) for layer in listed) <= MAX_LISTING
        assert (layers == 90) == bool(listed)
    modelpack = manifest_of(artifact, artifact.modelpack)
    assert len(previous_layers(modelpack)) < layers


def test_too_many_layers_are_refused() -> None:
    with pytest.raises(InvalidContent, match="layers"):
        universal(packed(*([f"{number}" * 99] for number in range(7000))), descriptor={}, config={})
