"""Streams that cannot reach their end unverified."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tonnage.content.descriptor import Descriptor
from tonnage.content.digest import Digest
from tonnage.content.verify import BytesReader, VerifyingReader, describe, opener, read_all
from tonnage.errors import DigestMismatch, InvalidContent, SizeMismatch, TonnageError, Truncated, Unavailable

TYPE = "application/octet-stream"


class OddReader:
    """Gives chunks of the given sizes, over and over; then fails if told to."""

    def __init__(self, data: bytes, sizes: list[int], error: TonnageError | None = None) -> None:
        self._data = data
        self._sizes = sizes
        self._error = error
        self._turn = 0
        self.closed = False

    def readinto(self, buffer: memoryview, /) -> int:
        size = self._sizes[self._turn % len(self._sizes)]
        self._turn += 1
        count = min(len(buffer), size, len(self._data))
        if not count and self._error:
            raise self._error
        buffer[:count] = self._data[:count]
        self._data = self._data[count:]
        return count

    def close(self) -> None:
        self.closed = True


def node(data: bytes, **fields: object) -> Descriptor:
    return Descriptor.of(data, TYPE, **fields)


SIZES = st.lists(st.integers(1, 70), min_size=1, max_size=5)


@given(st.binary(max_size=300), SIZES, st.sampled_from(["sha256", "sha512"]))
def test_right_bytes_in_any_chunks(data: bytes, sizes: list[int], algorithm: str) -> None:
    reader = OddReader(data, sizes)
    what = Descriptor(media_type=TYPE, digest=Digest.of(data, algorithm), size=len(data))
    assert read_all(reader, what, limit=1000) == data
    assert reader.closed


@given(st.binary(min_size=1, max_size=300), SIZES, st.data())
def test_truncated(data: bytes, sizes: list[int], draw: st.DataObject) -> None:
    cut = draw.draw(st.integers(0, len(data) - 1))
    reader = OddReader(data[:cut], sizes)
    with pytest.raises(Truncated):
        read_all(reader, node(data), limit=1000)
    assert reader.closed


@given(st.binary(max_size=300), st.binary(min_size=1, max_size=5), SIZES)
def test_too_long(data: bytes, more: bytes, sizes: list[int]) -> None:
    with pytest.raises(SizeMismatch):
        read_all(OddReader(data + more, sizes), node(data), limit=1000)


@given(st.binary(min_size=1, max_size=300), SIZES, st.data())
def test_wrong_bytes(data: bytes, sizes: list[int], draw: st.DataObject) -> None:
    position = draw.draw(st.integers(0, len(data) - 1))
    wrong = bytearray(data)
    wrong[position] ^= 1
    with pytest.raises(DigestMismatch) as caught:
        read_all(OddReader(bytes(wrong), sizes), node(data), limit=1000)
    assert str(Digest.of(bytes(wrong))) in str(caught.value)


def test_empty_content() -> None:
    assert read_all(BytesReader(b""), node(b""), limit=0) == b""
    with pytest.raises(SizeMismatch):
        read_all(BytesReader(b"x"), node(b""), limit=0)
    lie = Descriptor(media_type=TYPE, digest=Digest.of(b"x"), size=0)
    with pytest.raises(DigestMismatch):
        read_all(BytesReader(b""), lie, limit=0)


def test_a_consumer_that_knows_the_size_need_not_read_on() -> None:
    """The last byte is not given out before the digest is right."""
    reader = VerifyingReader(BytesReader(b"abX"), node(b"abc"))
    buffer = memoryview(bytearray(1))
    assert [reader.readinto(buffer), reader.readinto(buffer)] == [1, 1]
    with pytest.raises(DigestMismatch):
        reader.readinto(buffer)


def test_the_end_stays_the_end() -> None:
    reader = VerifyingReader(BytesReader(b"abc"), node(b"abc"))
    buffer = memoryview(bytearray(10))
    assert [reader.readinto(buffer) for _ in range(4)] == [3, 0, 0, 0]


def test_errors_of_the_stream_pass_and_it_is_closed() -> None:
    reader = OddReader(b"abc", [2], Unavailable("the line went dead"))
    with pytest.raises(Unavailable, match="dead"):
        read_all(reader, node(b"abcdef"), limit=10)
    assert reader.closed


def test_above_the_limit_nothing_is_read() -> None:
    reader = OddReader(b"abc", [1])
    with pytest.raises(InvalidContent, match="limit of 2"):
        read_all(reader, node(b"abc"), limit=2)
    assert reader.closed
    assert reader.readinto(memoryview(bytearray(3))) == 1


def test_opener_opens_at_any_offset_and_again() -> None:
    open_at = opener(b"abcdef")
    buffer = bytearray(10)
    for offset in (0, 2, 6, 0):
        count = open_at(offset).readinto(memoryview(buffer))
        assert buffer[:count] == b"abcdef"[offset:]
    closed = open_at(0)
    closed.close()
    closed.close()
    assert closed.readinto(memoryview(buffer)) == 0


def test_describe_names_the_file_if_there_is_one() -> None:
    title = {"org.opencontainers.image.title": "model.gguf"}
    assert "model.gguf" in describe(node(b"x", annotations=title))
    assert str(Digest.of(b"x")) in describe(node(b"x"))
