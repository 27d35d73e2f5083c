"""Descriptors: read strictly, and written as they were read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tonnage.content.descriptor import MAX_SIZE, Descriptor
from tonnage.content.digest import Digest
from tonnage.content.mediatype import OCI_INDEX, OCI_LAYER_TAR, OCI_MANIFEST
from tonnage.errors import InvalidContent

GOOD: dict[str, Any] = {"mediaType": OCI_LAYER_TAR, "digest": str(Digest.of(b"x")), "size": 1}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def test_of_bytes() -> None:
    node = Descriptor.of(b"x", OCI_LAYER_TAR, annotations={"a": "b"})
    assert node.to_dict() == {**GOOD, "annotations": {"a": "b"}}
    assert Descriptor.from_dict(node.to_dict()) == node


@given(
    st.integers(0, MAX_SIZE),
    st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=8), min_size=1, max_size=3) | st.none(),
    st.dictionaries(st.sampled_from(["urls", "data", "x-new", ""]), JSON, max_size=3),
    st.none() | st.text(max_size=8),
    st.none() | st.fixed_dictionaries({"os": st.text(max_size=4), "variant": JSON}),
)
def test_round_trip_keeps_every_field(
    size: int,
    annotations: dict[str, str] | None,
    unknown: dict[str, Any],
    artifact_type: str | None,
    platform: dict[str, Any] | None,
) -> None:
    known = {"annotations": annotations, "artifactType": artifact_type, "platform": platform}
    obj = {**GOOD, **unknown, "size": size, **{key: value for key, value in known.items() if value is not None}}
    node = Descriptor.from_dict(obj)
    assert node.to_dict() == obj
    assert Descriptor.from_dict(node.to_dict()) == node
    assert hash(node) == hash(Descriptor.from_dict(obj))


@pytest.mark.parametrize("obj", [None, [], "x", 1, {}, [GOOD]])
def test_not_a_descriptor(obj: object) -> None:
    with pytest.raises(InvalidContent):
        Descriptor.from_dict(obj)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", None),
        ("size", "1"),
        ("size", 1.0),
        ("size", True),
        ("size", -1),
        ("size", MAX_SIZE + 1),
        ("size", 1 << 200),
        ("mediaType", None),
        ("mediaType", 1),
        ("digest", None),
        ("digest", 5),
        ("digest", "sha256:short"),
        ("digest", ["sha256"]),
        ("annotations", []),
        ("annotations", "x"),
        ("annotations", {"a": 1}),
        ("annotations", {"a": None}),
        ("artifactType", 1),
        ("artifactType", {}),
        ("platform", "linux"),
        ("platform", []),
    ],
)
def test_bad_field_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidContent, match=r"layers\[3\]|digest"):
        Descriptor.from_dict({**GOOD, field: value}, "layers[3]")


@pytest.mark.parametrize("field", GOOD)
def test_required_fields(field: str) -> None:
    with pytest.raises(InvalidContent):
        Descriptor.from_dict({key: value for key, value in GOOD.items() if key != field})


@given(JSON)
def test_any_json_is_a_descriptor_or_refused(obj: object) -> None:
    with pytest.raises(InvalidContent):
        Descriptor.from_dict(obj)


@pytest.mark.parametrize(("media_type", "expected"), [(OCI_INDEX, True), (OCI_MANIFEST, True), (OCI_LAYER_TAR, False)])
def test_is_manifest(media_type: str, expected: bool) -> None:
    assert Descriptor.of(b"", media_type).is_manifest is expected
