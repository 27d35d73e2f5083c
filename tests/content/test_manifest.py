"""Manifests and indexes: they keep their bytes, and nothing ambiguous or oversized is read."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tonnage.content.descriptor import Descriptor
from tonnage.content.digest import Digest
from tonnage.content.manifest import MAX_CHILDREN, MAX_MANIFEST_SIZE, Index, Manifest, canonical, parse, referrer
from tonnage.content.mediatype import (
    DOCKER_MANIFEST,
    DOCKER_MANIFEST_LIST,
    OCI_EMPTY,
    OCI_INDEX,
    OCI_LAYER_TAR,
    OCI_MANIFEST,
)
from tonnage.errors import InvalidContent

EMPTY = Descriptor.of(b"{}", OCI_EMPTY).to_dict()
LAYER = Descriptor.of(b"x", OCI_LAYER_TAR).to_dict()
CHILD = Descriptor.of(b"y", OCI_MANIFEST).to_dict()


def manifest(**fields: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": EMPTY, "layers": [LAYER], **fields}


def index(**fields: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [CHILD], **fields}


def dump(obj: object) -> bytes:
    return json.dumps(obj).encode()


def test_manifest() -> None:
    raw = dump(manifest(artifactType="a/b", annotations={"k": "v"}, subject=CHILD))
    found = parse(raw)
    assert isinstance(found, Manifest)
    assert found.children == [Descriptor.from_dict(EMPTY), Descriptor.from_dict(LAYER)]
    assert (found.artifact_type, found.annotations) == ("a/b", {"k": "v"})
    assert found.subject == Descriptor.from_dict(CHILD)


def test_index() -> None:
    found = parse(dump(index(artifactType="a/b", annotations={"k": "v"})))
    assert isinstance(found, Index)
    assert found.children == [Descriptor.from_dict(CHILD)]
    assert (found.artifact_type, found.annotations, found.subject) == ("a/b", {"k": "v"}, None)


@pytest.mark.parametrize("obj", [manifest(), index()])
def test_bytes_are_kept(obj: dict[str, Any]) -> None:
    raw = json.dumps({**obj, "unknown": [1, {"a": None}]}, indent=3).encode() + b"\n \n"
    found = parse(raw)
    assert found.raw == raw
    assert found.descriptor.digest == Digest.of(raw)
    assert found.descriptor.size == len(raw)
    assert found.descriptor.media_type == obj["mediaType"]


@pytest.mark.parametrize(
    ("obj", "told", "expected"),
    [
        (manifest(), "", OCI_MANIFEST),
        (manifest(), OCI_MANIFEST, OCI_MANIFEST),
        (manifest(mediaType=DOCKER_MANIFEST), DOCKER_MANIFEST, DOCKER_MANIFEST),
        (index(mediaType=DOCKER_MANIFEST_LIST), "", DOCKER_MANIFEST_LIST),
        ({"config": EMPTY, "layers": []}, "", OCI_MANIFEST),
        ({"config": EMPTY, "layers": []}, DOCKER_MANIFEST, DOCKER_MANIFEST),
        ({"manifests": []}, "", OCI_INDEX),
    ],
)
def test_media_type(obj: dict[str, Any], told: str, expected: str) -> None:
    assert parse(dump(obj), told).media_type == expected


@pytest.mark.parametrize(
    ("obj", "told"),
    [
        (manifest(), OCI_INDEX),
        (manifest(), DOCKER_MANIFEST),
        (index(), OCI_MANIFEST),
        (manifest(), "application/json"),
        (manifest(mediaType="application/json"), ""),
        (manifest(mediaType=5), ""),
        (manifest(mediaType={}), OCI_MANIFEST),
    ],
)
def test_media_types_that_disagree(obj: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidContent):
        parse(dump(obj), told)


@pytest.mark.parametrize("told", ["", OCI_MANIFEST, OCI_INDEX])
@pytest.mark.parametrize(
    "obj",
    [
        manifest(manifests=[CHILD]),
        index(layers=[LAYER]),
        index(config=EMPTY),
        {"config": EMPTY, "layers": [LAYER], "manifests": [CHILD]},
        {"config": EMPTY, "layers": [LAYER], "manifests": []},
    ],
)
def test_ambiguous_documents(obj: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidContent):
        parse(dump(obj), told)


@pytest.mark.parametrize(
    "obj",
    [
        manifest(config=None),
        manifest(config=[]),
        manifest(layers=None),
        manifest(layers={}),
        manifest(layers=[None]),
        manifest(layers=[{**LAYER, "size": -1}]),
        manifest(artifactType=1),
        manifest(annotations=[]),
        manifest(annotations={"a": 1}),
        manifest(subject=[]),
        manifest(subject={}),
        index(manifests=None),
        index(manifests="x"),
        index(manifests=[LAYER | {"digest": "x"}]),
    ],
)
def test_malformed(obj: dict[str, Any]) -> None:
    with pytest.raises(InvalidContent):
        parse(dump(obj))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b"not json",
        b"\x1f\x8b\x08\x00",
        b"\xff\xfe{\x00}\x00",
        b'{"mediaType": "\xff"}',
        b'{"\xff": 1}',
        b'{"mediaType": "\\ud800"}',
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"layers": 1e999}',
        b'{"layers": ' + b"9" * 5000 + b"}",
        dump(manifest())[:-1],
        dump(manifest()) + b"{}",
    ],
    ids=lambda raw: repr(raw[:12]),
)
def test_not_json(raw: bytes) -> None:
    with pytest.raises(InvalidContent):
        parse(raw)


def test_limits() -> None:
    padded = dump(manifest(padding=""))
    most = dump(manifest(padding="x" * (MAX_MANIFEST_SIZE - len(padded))))
    assert len(parse(most).raw) == MAX_MANIFEST_SIZE
    with pytest.raises(InvalidContent, match="limit"):
        parse(most + b" ")
    with pytest.raises(InvalidContent, match="limit"):
        parse(json.dumps(manifest(layers=[{}] * (MAX_CHILDREN + 1))).encode())


@given(st.binary(max_size=60), st.sampled_from(["", OCI_MANIFEST, OCI_INDEX]))
def test_any_bytes_are_a_manifest_or_refused(raw: bytes, told: str) -> None:
    with pytest.raises(InvalidContent):
        parse(raw, told)


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=3), st.booleans())
def test_damaged_bytes_are_a_manifest_or_refused(position: int, patch: bytes, of_index: bool) -> None:
    raw = bytearray(dump(index() if of_index else manifest()))
    position %= len(raw)
    raw[position : position + len(patch)] = patch
    with suppress(InvalidContent):
        assert parse(bytes(raw)).raw == raw


def test_canonical_is_the_same_for_the_same_content() -> None:
    keys = [f"k{number}" for number in range(50)]
    obj = {key: {"b": [1, 2], "a": "ü"} for key in keys}
    random.Random(1).shuffle(keys)
    shuffled = {key: {"a": "ü", "b": [1, 2]} for key in keys}
    assert canonical(obj) == canonical(shuffled)
    assert canonical({"b": 1, "a": "ü"}) == '{"a":"ü","b":1}'.encode()
    assert json.loads(canonical(obj)) == obj


def test_referrer_takes_the_type_of_the_config() -> None:
    plain = parse(dump(manifest(annotations={"k": "v"})))
    named = parse(dump(manifest(artifactType="a/b")))
    listing = parse(dump(index()))
    assert referrer(plain).artifact_type == OCI_EMPTY
    assert referrer(plain).annotations == {"k": "v"}
    assert referrer(named).artifact_type == "a/b"
    assert referrer(listing).artifact_type is None
    assert referrer(named).digest == named.descriptor.digest
