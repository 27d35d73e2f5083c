"""Layers as tars: any reader understands them, data is aligned, and the bytes depend on the files alone."""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tonnage.pack.files import ModelFile, TarReader, scan
from tonnage.pack.model import pack
from tonnage.pack.plan import PlanOptions
from tonnage.pack.tar import ALIGNMENT, BLOCK, END, Piece, TarLayout, footprint, symlink

GIB = 1 << 30

NAMES = st.one_of(
    st.text("ab/", min_size=1, max_size=20),
    st.text("xyé漢😀", min_size=1, max_size=60),
    st.integers(1, 600).map(lambda length: "/".join(["n" * 99] * 9)[:length]),
).map(lambda name: "f" + name.replace("//", "/").strip("/"))
PIECES = st.lists(
    st.tuples(NAMES, st.integers(0, 20_000)), min_size=1, max_size=12, unique_by=lambda named: named[0]
).map(lambda files: [Piece.whole(path, size) for path, size in files])


def content(piece: Piece) -> bytes:
    return random.Random(f"{piece.path} {piece.offset}").randbytes(piece.size)


def assemble(layout: TarLayout) -> bytes:
    return b"".join(content(segment.piece) if segment.piece else segment.data for segment in layout.segments)


@given(PIECES)
def test_pythons_tarfile_reads_it(pieces: list[Piece]) -> None:
    layout = TarLayout(pieces)
    raw = assemble(layout)
    assert len(raw) == layout.size
    assert raw.endswith(END)
    with tarfile.open(fileobj=io.BytesIO(raw), errorlevel=2) as archive:
        members = archive.getmembers()
        assert [(member.name, member.size) for member in members] == [(piece.path, piece.size) for piece in pieces]
        for member, piece in zip(members, pieces, strict=True):
            assert member.isreg()
            assert (member.mode, member.uid, member.gid, member.mtime) == (0o644, 0, 0, 0)
            extracted = archive.extractfile(member)
            assert extracted is not None
            assert extracted.read() == content(piece)
            if piece.size:
                assert member.offset_data == layout.data_offsets()[piece]


@given(PIECES)
def test_data_is_aligned_and_footprints_are_enough(pieces: list[Piece]) -> None:
    layout = TarLayout(pieces)
    offsets = layout.data_offsets()
    assert set(offsets) == {piece for piece in pieces if piece.size}
    assert all(offset % ALIGNMENT == 0 for offset in offsets.values())
    assert layout.size <= sum(map(footprint, pieces)) + len(END)
    assert layout.size % BLOCK == 0
    position = 0
    for segment in layout.segments:
        assert segment.offset == position
        assert segment.piece is not None or len(segment.data) == segment.size
        position += segment.size
    assert position == layout.size


@pytest.mark.parametrize("before", range(0, 4096, 512))
def test_padding_of_every_length(before: int) -> None:
    """The comment that pads a header counts its own digits; each length up to a page is met here."""
    for length in [*range(101, 140), *range(380, 560), *range(900, 1024), 3000]:
        name = "/".join(["n" * 99] * 40)[:length].rstrip("/")
        layout = TarLayout([Piece.whole("a", 4096 + before), Piece.whole(name, 10)])
        raw = assemble(layout)
        with tarfile.open(fileobj=io.BytesIO(raw), errorlevel=2) as archive:
            assert [member.name for member in archive] == ["a", name]
        assert all(offset % ALIGNMENT == 0 for offset in layout.data_offsets().values())


@pytest.mark.parametrize("size", [8 * GIB - 1, 8 * GIB, 8 * GIB + 1, 9_500_000_000, 1 << 43])
def test_sizes_beyond_eleven_octal_digits(tmp_path: Path, size: int) -> None:
    """Read from a sparse file: only headers are written."""
    layout = TarLayout([Piece.whole("large.gguf", size), Piece.whole("small", 3)])
    path = tmp_path / "layer.tar"
    with path.open("wb") as file:
        try:
            file.truncate(layout.size)
        except OSError:
            pytest.skip("the file system has no room for a sparse file of that size")
        for segment in layout.segments:
            if segment.piece is None:
                file.seek(segment.offset)
                file.write(segment.data)
    with tarfile.open(path, errorlevel=2) as archive:
        assert [(member.name, member.size) for member in archive] == [("large.gguf", size), ("small", 3)]
        assert [member.offset_data for member in archive] == list(layout.data_offsets().values())


@given(PIECES, st.data())
@settings(max_examples=30)
def test_a_read_from_any_offset_equals_that_part_of_the_whole(pieces: list[Piece], draw: st.DataObject) -> None:
    layout = TarLayout(pieces)
    raw = assemble(layout)
    offset = draw.draw(st.integers(0, layout.size))
    parts = [
        (content(segment.piece) if segment.piece else segment.data)[max(0, offset - segment.offset) :]
        for segment in layout.from_offset(offset)
    ]
    assert b"".join(parts) == raw[offset:]


def test_nothing_follows_the_end() -> None:
    layout = TarLayout([Piece.whole("a", 5)])
    assert list(layout.from_offset(layout.size)) == []
    assert TarLayout([]).size == len(END)


@given(st.text(min_size=1, max_size=30).filter(lambda text: "\0" not in text), st.integers(0, 10**15 - 1), st.data())
def test_the_name_of_a_part_says_its_place(path: str, offset: int, draw: st.DataObject) -> None:
    size = draw.draw(st.integers(0, 10**12))
    total = draw.draw(st.integers(0, 10**15 - 1).filter(lambda total: total != size))
    piece = Piece(path, size, offset, total)
    assert Piece.from_name(piece.name, size) == piece


@pytest.mark.parametrize(
    "name",
    [
        "x",
        "x.tonnage-part",
        "x.tonnage-part.1.of.2",
        "x.tonnage-part.00000000000000.of.000000000000002",
        "x.tonnage-part.-00000000000001.of.000000000000002",
        f"x.tonnage-part.{chr(0x661) * 15}.of.000000000000002",
        ".tonnage-part.000000000000000.of.000000000000002",
        "x.tonnage-part.000000000000000.of.000000000000002.bak",
    ],
)
def test_other_names_are_whole_files(name: str) -> None:
    assert Piece.from_name(name, 7) == Piece.whole(name, 7)


def test_the_link_layer() -> None:
    with tarfile.open(fileobj=io.BytesIO(symlink("models", "."))) as archive:
        (member,) = archive.getmembers()
    assert (member.name, member.linkname, member.issym()) == ("models", ".", True)


# --- with real files


def model(folder: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


FILES = {
    "config.json": b"{}",
    "empty.safetensors": b"",
    "model-00001.safetensors": random.Random(1).randbytes(70_000),
    "a b/ünï 漢😀.gguf": random.Random(2).randbytes(5_000),
    "d/" * 60 + "deep" + "p" * 150 + ".bin": random.Random(3).randbytes(513),
    "-dash": b"x",
    "  spaces  ": b"y",
    "quote\"'$(x)`": b"z",
}


def read_all(reader: TarReader, size: int = 4096) -> bytes:
    data, buffer = bytearray(), memoryview(bytearray(size))
    while count := reader.readinto(buffer):
        data += buffer[:count]
    reader.close()
    return bytes(data)


def layer_of(folder: Path) -> tuple[TarLayout, dict[str, ModelFile]]:
    files = scan(folder)
    return TarLayout([Piece.whole(file.path, file.size) for file in files]), {file.path: file for file in files}


@pytest.mark.parametrize("tool", ["tar", "bsdtar", "busybox"])
def test_other_peoples_tars_extract_it(tmp_path: Path, tool: str) -> None:
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    layout, files = layer_of(model(tmp_path / "m", FILES))
    archive = tmp_path / "layer.tar"
    archive.write_bytes(read_all(TarReader(layout, files)))
    command = ["busybox", "tar"] if tool == "busybox" else [tool]
    out = tmp_path / "out"
    out.mkdir()
    listing = subprocess.run([*command, "-tvf", archive], check=True, capture_output=True, timeout=60)
    assert listing.stderr == b""
    assert len(listing.stdout.splitlines()) == len(FILES)
    extract = subprocess.run([*command, "-xf", archive, "-C", out], check=True, capture_output=True, timeout=60)
    assert extract.stderr == b""
    assert {path: (out / path).read_bytes() for path in FILES} == FILES
    assert sum(path.is_file() for path in out.rglob("*")) == len(FILES)


def test_any_range_of_a_layer_equals_that_part_of_the_whole(tmp_path: Path) -> None:
    layout, files = layer_of(model(tmp_path, FILES))
    whole = read_all(TarReader(layout, files))
    assert len(whole) == layout.size

    @settings(max_examples=60)
    @given(st.integers(0, layout.size), st.integers(0, layout.size), st.integers(1, 9000))
    def check(one: int, other: int, size: int) -> None:
        start, end = sorted((one, other))
        assert read_all(TarReader(layout, files, start, end), size) == whole[start:end]

    check()


def test_the_same_files_give_the_same_digests_anywhere(tmp_path: Path) -> None:
    options = PlanOptions(target=64 << 10, cap=128 << 10)
    one = pack(model(tmp_path / "one", FILES), options=options)
    mask = os.umask(0o077)
    try:
        two_folder = model(tmp_path / "elsewhere" / "two", dict(reversed(FILES.items())))
    finally:
        os.umask(mask)
    for number, path in enumerate(two_folder.rglob("*")):
        os.utime(path, (number, number))
        path.chmod(0o700)
    (two_folder / "empty folder").mkdir()
    two = pack(two_folder, options=options, workers=1)
    assert two.artifact.index.digest == one.artifact.index.digest
    assert two.artifact.documents == one.artifact.documents
    assert [layer.digest for layer in two.layers] == [layer.digest for layer in one.layers]


def test_a_known_digest() -> None:
    """A change of these bytes re-uploads every model there is: it must be meant."""
    layout = TarLayout([Piece.whole("config.json", 2), Piece.whole("ü" * 70, 5000), Piece("m.gguf", 4096, 4096, 9000)])
    assert hashlib.sha256(assemble(layout)).hexdigest() == (
        "0db8656f1cfa3ddc198652997f75b5c2b161e5d1fea301da8dd64fbc1b46f873"
    )
