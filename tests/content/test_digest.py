"""Digests: what is accepted, and what they say of themselves."""

from __future__ import annotations

import hashlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tonnage.content.digest import Digest
from tonnage.errors import InvalidContent

A, B = "a" * 64, "b" * 128


@pytest.mark.parametrize("text", [f"sha256:{A}", f"sha512:{B}"])
def test_registered_algorithms(text: str) -> None:
    digest = Digest(text)
    assert digest == text
    assert f"{digest.algorithm}:{digest.hex}" == text
    assert digest.short == text.partition(":")[2][:12]
    assert digest.hasher().name == digest.algorithm


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        f":{A}",
        A,
        f"sha256:{A[1:]}",
        f"sha256:{A}a",
        f"sha256:{A.upper()}",
        f"sha256:{'g' * 64}",
        f"sha256:{A}\n",
        f" sha256:{A}",
        f"sha512:{A}",
        f"SHA256:{A}",
        f"md5:{'a' * 32}",
        f"blake3:{A}",
        f"sha256:../../{A[6:]}",
        f"sha256:{chr(0x661) * 64}",
        "sha256:" + "a" * 1_000_000,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidContent) as caught:
        Digest(text)
    assert len(str(caught.value)) < 500


@given(st.binary(max_size=300), st.sampled_from(["sha256", "sha512"]))
def test_of_bytes(data: bytes, algorithm: str) -> None:
    digest = Digest.of(data, algorithm)
    assert digest == f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
    state = digest.hasher()
    state.update(data)
    assert Digest.from_hash(state) == digest == Digest(digest)


@given(st.text(max_size=90))
def test_any_text_is_a_digest_or_refused(text: str) -> None:
    with suppress(InvalidContent):
        assert Digest(text) == text
