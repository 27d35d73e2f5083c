"""Archives made by others: every hostile one is refused with an error of ours, and nothing is written outside."""

from __future__ import annotations

import gzip
import io
import os
import random
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from support.archives import (
    END,
    Shelf,
    checksummed,
    contents,
    entry,
    header,
    long_name,
    padded,
    pax_header,
    record,
)
from tonnage.content.verify import BytesReader
from tonnage.errors import (
    DigestMismatch,
    IntegrityError,
    InvalidContent,
    TonnageError,
    UnsafeArchive,
)
from tonnage.pack import codec
from tonnage.pack.artifact import ModelArtifact
from tonnage.pack.folder import FolderTarget
from tonnage.pack.untar import MAX_PAX, TarStream, safe_path
from tonnage.transfer.copy import copy
from tonnage.transfer.retry import NO_RETRY

GOOD = entry("config.json", b"{}")


def pull(shelf: Shelf, artifact: ModelArtifact, path: Path, workers: int = 2) -> None:
    with FolderTarget(path, artifact) as target:
        copy(
            shelf.store,
            artifact.root.digest,
            target,
            ["model"],
            successors=artifact.successors,
            retry=NO_RETRY,
            workers=workers,
        )


def unpack(*layers: bytes, path: Path) -> dict[str, bytes]:
    shelf = Shelf()
    pull(shelf, shelf.tars(*layers), path)
    return contents(path)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that nothing but a pull's target and staging may appear in."""
    (tmp_path / "place").mkdir()
    (tmp_path / "secret").write_text("untouched")
    return tmp_path / "place"


def assert_refused(place: Path, error: type[TonnageError], *layers: bytes) -> TonnageError:
    """The pull fails; no target; nothing but the staging folder, which has no links, no devices and no way out."""
    with pytest.raises(error) as caught:
        unpack(*layers, path=place / "m")
    assert {path.name for path in place.iterdir()} <= {".m.tonnage-partial"}
    assert {path.name for path in place.parent.iterdir()} == {"place", "secret"}
    assert (place.parent / "secret").read_text() == "untouched"
    for path in place.rglob("*"):
        assert path.is_dir() or path.is_file() or "tree" in path.parts
    return caught.value


# --- hostile archives


UNSAFE = {
    "parent": entry("../evil", b"x"),
    "parent inside": entry("a/../../evil", b"x"),
    "parent at the end": entry("a/..", b"x"),
    "parent that stays inside": entry("a/../b", b"x"),
    "parent folder": entry("../", kind=b"5"),
    "absolute": entry("/tmp/evil", b"x"),
    "absolute, twice": entry("//tmp/evil", b"x"),
    "absolute, by pax": entry("ok", b"x", pax={"path": "/tmp/evil"}),
    "parent, by a global pax": pax_header(record("path", "../evil"), b"g") + entry("ok", b"x"),
    "absolute, by gnu": long_name("/tmp/evil") + entry("ok", b"x"),
    "backslash": entry("..\\evil", b"x"),
    "zero byte, by pax": entry("ok", b"x", pax={"path": "a\0b"}),
    "link out": entry("l", kind=b"2", link="../secret"),
    "link out from below": entry("a/b/l", kind=b"2", link="../../../secret"),
    "absolute link": entry("l", kind=b"2", link="/etc/passwd"),
    "link to nothing": entry("l", kind=b"2", link=""),
    "link out, by pax": entry("l", kind=b"2", link="ok", pax={"linkpath": "../secret"}),
    "link out, by gnu": long_name("../secret", b"K") + entry("l", kind=b"2", link="ok"),
    "link out by way of another": entry("a/b", kind=b"2", link="..") + entry("l", kind=b"2", link="a/b/../secret"),
    "link out by way of two": entry("d/e/x", b"x")
    + entry("a", kind=b"2", link="d/e")
    + entry("b", kind=b"2", link="a/../..")
    + entry("c", kind=b"2", link="b/../secret"),
    "entry below a link": entry("l", kind=b"2", link="d") + entry("d/x", b"x") + entry("l/evil", b"x"),
    "entry below a link out": entry("l", kind=b"2", link="..") + entry("l/evil", b"x"),
    "entry below models": entry("models", kind=b"2", link="x") + entry("models/evil", b"x"),
    "hard link out": entry("h", kind=b"1", link="../secret"),
    "absolute hard link": entry("h", kind=b"1", link="/etc/passwd"),
    "hard link to nothing": entry("h", kind=b"1", link="missing"),
    "hard link to itself": entry("h", kind=b"1", link="h"),
    "hard link to a link": entry("l", kind=b"2", link="config.json") + entry("h", kind=b"1", link="l"),
    "hard link to a folder": entry("d", kind=b"5") + entry("h", kind=b"1", link="d"),
    "character device": entry("d", kind=b"3"),
    "block device": entry("d", kind=b"4"),
    "fifo": entry("p", kind=b"6"),
    "unknown type": entry("u", b"x", kind=b"Z"),
    "gnu sparse": entry("s", kind=b"S"),
    "pax sparse": entry("s", b"x", pax={"GNU.sparse.major": "1", "GNU.sparse.name": "s"}),
    "old pax sparse": entry("s", b"x", pax={"GNU.sparse.map": "0,1"}),
    "multi-volume": entry("m", b"x", kind=b"M"),
    "long name": entry("ok", b"x", pax={"path": "n" * 256}),
    "name of 5000 characters": entry("ok", b"x", pax={"path": "/".join(["n" * 100] * 50)}),
    "name of 5000, by gnu": long_name("n" * 5000) + entry("ok", b"x"),
    "not utf-8": entry(b"latin-\xe9", b"x"),
    "link not utf-8": entry("l", kind=b"2", link=b"latin-\xe9"),
    "hard link not utf-8": entry("h", kind=b"1", link=b"latin-\xe9"),
    "our record": entry(".tonnage.json", b"{}"),
    "our record, hidden": entry("./.tonnage.json", b"{}"),
    "our staging": entry(".tonnage-partial/root", b"x"),
    "our record as a link": entry(".tonnage.json", kind=b"2", link="config.json"),
    "our record as a part": entry(f".tonnage.json.tonnage-part.{0:015}.of.{9:015}", b"x"),
    "parent as a part": entry(f"../x.tonnage-part.{0:015}.of.{9:015}", b"x"),
    "file where a folder is": entry("a/b", b"x") + entry("a", b"x"),
    "folder where a file is": entry("a", b"x") + entry("a/b", b"x"),
    "folder far below a file": entry("a", b"x") + entry("a/b/c/d", b"x"),
    "part where a folder is": entry(f"a.tonnage-part.{0:015}.of.{2:015}", b"x")
    + entry(f"a/b.tonnage-part.{0:015}.of.{2:015}", b"x"),
    "link where a folder is": entry("a/b", b"x") + entry("a", kind=b"2", link="config.json"),
}


@pytest.mark.parametrize("archive", UNSAFE.values(), ids=UNSAFE)
def test_unsafe(place: Path, archive: bytes) -> None:
    error = assert_refused(place, UnsafeArchive, GOOD + archive + END)
    assert str(error).isprintable()


def test_conflicts_between_layers(place: Path) -> None:
    assert_refused(place, UnsafeArchive, entry("a", b"x") + END, entry("a/b", b"x") + END)


def test_an_entry_below_a_link_of_a_lower_layer(place: Path) -> None:
    assert_refused(place, UnsafeArchive, entry("l", kind=b"2", link="..") + GOOD + END, entry("l/evil", b"x") + END)


DAMAGED = {
    "empty": b"",
    "no end": GOOD,
    "no end, twice": GOOD + GOOD,
    "half an end": GOOD + bytes(511),
    "header cut": GOOD + header("x", 5)[:300],
    "data cut": GOOD + header("x", 5000) + b"x" * 100,
    "padding cut": GOOD + header("x", 5) + b"12345",
    "bad checksum": GOOD + b"y" + header("x", 5)[1:] + padded(b"12345") + END,
    "not a tar": random.Random(1).randbytes(4096),
    "text": b"hello " * 1000,
    "negative size": GOOD + header("x", -1) + END,
    "very negative size": GOOD + header("x", -(1 << 80)) + END,
    "size of a zettabyte": GOOD + header("x", 1 << 70) + END,
    "size beyond the end": GOOD + header("x", 1 << 45) + END,
    "negative size of a pax header": GOOD + header("p", -5, b"x") + END,
    "negative size, by pax": entry("x", b"x", pax={"size": "-1"}) + END,
    "signed size, by pax": entry("x", b"x", pax={"size": "+1"}) + END,
    "hexadecimal size": entry("x", b"x", pax={"size": "0x1"}) + END,
    "digits of another script": entry("x", b"x", pax={"size": chr(0x661)}) + END,
    "long size, by pax": entry("x", b"x", pax={"size": "0" * 30 + "1"}) + END,
    "huge size, by pax": entry("x", b"x", pax={"size": "9" * 4000}) + END,
    "size beyond the end, by pax": entry("x", b"x", pax={"size": "100000"}) + END,
    "smaller size, by pax": entry("x", b"\1" * 5000, pax={"size": "512"}) + END,
    "huge pax header": pax_header(record("comment", "x" * MAX_PAX)) + GOOD + END,
    "huge gnu name": long_name("n" * (MAX_PAX + 1)) + GOOD + END,
    "pax header cut": GOOD + header("p", 100, b"x"),
    "pax header cut in its data": GOOD + header("p", 1000, b"x") + bytes(512),
    "pax header without entry": GOOD + pax_header(record("path", "x")),
    "gnu name cut": GOOD + header("l", 100, b"L"),
    "pax without length": pax_header(b"path=x\n") + GOOD + END,
    "pax length of zero": pax_header(b"0 path=x\n") + GOOD + END,
    "pax length too small": pax_header(b"3 path=x\n") + GOOD + END,
    "pax length too large": pax_header(b"99 path=x\n") + GOOD + END,
    "pax length huge": pax_header(b"99999999999999999999 path=x\n") + GOOD + END,
    "pax length negative": pax_header(b"-9 path=x\n") + GOOD + END,
    "pax without equals": pax_header(b"7 pathx\n"[:8]) + GOOD + END,
    "pax without line end": pax_header(b"9 path=xx") + GOOD + END,
    "pax of blanks": pax_header(b" " * 20) + GOOD + END,
    "part beyond its file": entry(f"x.tonnage-part.{5:015}.of.{6:015}", b"xxx") + END,
    "part far beyond its file": entry(f"x.tonnage-part.{10**15 - 1:015}.of.{6:015}", b"xxx") + END,
}


@pytest.mark.parametrize("archive", DAMAGED.values(), ids=DAMAGED)
def test_damaged(place: Path, archive: bytes) -> None:
    assert_refused(place, InvalidContent, archive)


INCOMPLETE = {
    "a part is missing": [(0, 3, 9), (6, 3, 9)],
    "the first is missing": [(3, 6, 9)],
    "the last is missing": [(0, 6, 9)],
    "parts overlap": [(0, 5, 9), (4, 5, 9)],
    "a part twice": [(0, 4, 9), (0, 4, 9), (4, 5, 9)],
    "totals differ": [(0, 4, 9), (4, 4, 8)],
}


@pytest.mark.parametrize("parts", INCOMPLETE.values(), ids=INCOMPLETE)
def test_parts_that_do_not_join(place: Path, parts: list[tuple[int, int, int]]) -> None:
    layers = [
        entry(f"x.tonnage-part.{offset:015}.of.{total:015}", bytes([number]) * size) + END
        for number, (offset, size, total) in enumerate(parts)
    ]
    assert_refused(place, IntegrityError, GOOD + END, *layers)


def test_no_files(place: Path) -> None:
    assert_refused(place, InvalidContent, entry("folder/", kind=b"5") + END)
    assert_refused(place, InvalidContent, entry("l", kind=b"2", link="nowhere") + END)


def test_very_many_entries(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tonnage.pack.untar.MAX_FILES", 50)
    unpack(*[b"".join(entry(f"{number}") for number in range(50)) + END], path=place / "m")
    shutil.rmtree(place / "m")
    assert_refused(place, InvalidContent, b"".join(entry(f"{number}") for number in range(51)) + END)


def test_records_are_not_hoarded() -> None:
    """Global and repeated headers hold what we heed, and no more, however many keys come by."""
    records = b"".join(record(f"key{number}", "v" * 100) for number in range(100))
    stream = TarStream(BytesReader((pax_header(records, b"g") + pax_header(records)) * 3 + GOOD + END))
    assert [entry.path for entry in stream] == ["config.json"]
    assert stream._defaults == {}


# --- compressed


def test_compressed_layers(place: Path) -> None:
    one, two = GOOD + END, entry("m.bin", random.Random(1).randbytes(3 << 20)) + END
    members = gzip.compress(one[:700]) + gzip.compress(one[700:])
    frames = zstandard.compress(two[: 1 << 20]) + zstandard.compress(two[1 << 20 :])
    shelf = Shelf()
    pull(shelf, shelf.image((members, "+gzip", one), (frames, "+zstd", two)), place / "m")
    assert contents(place / "m") == {"config.json": b"{}", "m.bin": random.Random(1).randbytes(3 << 20)}


COMPRESSED = entry("m.bin", random.Random(2).randbytes(200_000)) + GOOD + END
BAD_STREAMS: dict[str, tuple[str, bytes]] = {
    "gzip, not at all": ("+gzip", COMPRESSED),
    "zstd, not at all": ("+zstd", COMPRESSED),
    "gzip, empty": ("+gzip", b""),
    "zstd, empty": ("+zstd", b""),
    "gzip, trailing garbage": ("+gzip", gzip.compress(COMPRESSED) + b"garbage"),
    "zstd, trailing garbage": ("+zstd", zstandard.compress(COMPRESSED) + b"garbage"),
    "gzip, cut": ("+gzip", gzip.compress(COMPRESSED)[:-500]),
    "zstd, cut": ("+zstd", zstandard.compress(COMPRESSED)[:-500]),
    "gzip, checksum cut": ("+gzip", gzip.compress(COMPRESSED)[:-4]),
    "gzip, header cut": ("+gzip", gzip.compress(COMPRESSED)[:5]),
    "gzip, checksum wrong": ("+gzip", gzip.compress(COMPRESSED)[:-8] + bytes(8)),
    "gzip, second member cut": ("+gzip", gzip.compress(COMPRESSED) + gzip.compress(b"more")[:15]),
    # RFC 8878: a frame without size, whose window is 256 MiB, and one raw block.
    "zstd, huge window": ("+zstd", b"\x28\xb5\x2f\xfd\x00\x90" + (1 | 2048 << 3).to_bytes(3, "little") + GOOD + END),
}


@pytest.mark.parametrize(("suffix", "data"), BAD_STREAMS.values(), ids=BAD_STREAMS)
@pytest.mark.parametrize("known", [True, False], ids=["diff id", "no diff id"])
def test_damaged_streams(place: Path, suffix: str, data: bytes, known: bool) -> None:
    shelf = Shelf()
    artifact = shelf.image((data, suffix, COMPRESSED)) if known else shelf.folder(data, suffix)
    # Where nothing binds what was compressed, the stream or the archive in it must show the damage.
    with pytest.raises((InvalidContent, DigestMismatch) if known else InvalidContent):
        pull(shelf, artifact, place / "m")
    assert not (place / "m").exists()


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_diff_ids_are_checked(place: Path, compress: Callable[[bytes], bytes]) -> None:
    suffix = "+gzip" if compress is gzip.compress else "+zstd"
    shelf = Shelf()
    with pytest.raises(DigestMismatch):
        pull(shelf, shelf.image((compress(COMPRESSED), suffix, COMPRESSED + bytes(512))), place / "m")
    assert not (place / "m").exists()


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_bombs(place: Path, monkeypatch: pytest.MonkeyPatch, compress: Callable[[bytes], bytes]) -> None:
    suffix = "+gzip" if compress is gzip.compress else "+zstd"
    bomb = entry("zeros", bytes(30 << 20)) + END
    data = compress(bomb)
    monkeypatch.setattr(codec, "FREE_EXPANSION", 20 << 20)
    monkeypatch.setattr(codec, "MAX_EXPANSION", 1)
    shelf = Shelf()
    with pytest.raises(InvalidContent, match="expands"):
        pull(shelf, shelf.image((data, suffix, bomb)), place / "m")
    assert not (place / "m").exists()
    written = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    assert written <= 22 << 20


# --- cut off and mutated


BIG_ENTRY = entry("sub/m.bin", random.Random(3).randbytes(3000), mode=0o755)
VALID = (
    entry("sub/", kind=b"5")
    + GOOD
    + BIG_ENTRY
    + entry("l", kind=b"2", link="sub/m.bin")
    + entry("h", kind=b"1", link="config.json")
    + long_name("g" * 120)
    + entry("g" * 100, b"gnu")
    + entry("short", b"pax", pax={"path": "ü" * 80, "mtime": "1.5"})
    + entry(f"p.tonnage-part.{0:015}.of.{3:015}", b"123"[:3])
    + END
)


def names(stream: TarStream) -> list[str]:
    return [entry.path for entry in stream]


@pytest.mark.parametrize("cut", [*range(0, len(VALID) - 512, 256), len(VALID) - 1023, len(VALID) - 513])
def test_cut_anywhere_before_its_end(cut: int) -> None:
    with pytest.raises(InvalidContent):
        names(TarStream(BytesReader(VALID[:cut])))


@given(st.integers(0, len(VALID) - 513))
def test_cut_at_any_byte(cut: int) -> None:
    with pytest.raises(InvalidContent):
        names(TarStream(BytesReader(VALID[:cut])))


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(st.integers(0, len(VALID) - 1), st.binary(max_size=12), st.integers(0, 12), st.booleans()),
        min_size=1,
        max_size=4,
    )
)
def test_mutations_write_nothing_outside(mutations: list[tuple[int, bytes, int, bool]]) -> None:
    """Some with right checksums, so that they get past the first check."""
    data = bytearray(VALID)
    for position, patch, gone, fix in mutations:
        data[position : position + (len(patch) if fix else gone)] = patch
        start = position - position % 512
        if fix and len(data) >= start + 512:
            data[start : start + 512] = checksummed(bytes(data[start : start + 512]))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "place"
        place.mkdir()
        try:
            unpack(bytes(data), path=place / "m")
        except TonnageError:
            assert not (place / "m").exists()
        else:
            root = os.path.realpath(place / "m")
            for path in (place / "m").rglob("*"):
                assert Path(os.path.realpath(path)).is_relative_to(root)
                assert path.is_symlink() or path.is_file() or path.is_dir()
        assert {path.name for path in place.iterdir()} <= {"m", ".m.tonnage-partial"}
        assert os.listdir(folder) == ["place"]  # noqa: PTH208


@given(st.text(max_size=20) | st.lists(st.sampled_from(["..", ".", "", "a", "/", "b c"]), max_size=6).map("/".join))
def test_safe_paths_stay_inside(name: str) -> None:
    try:
        path = safe_path(name)
    except UnsafeArchive:
        return
    except UnicodeEncodeError:  # pragma: no cover
        pytest.fail("a name that is no text must be refused")
    assert not path.startswith("/")
    assert ".." not in path.split("/")
    assert os.path.normpath(os.path.join("/root", path)).startswith("/root")  # noqa: PTH118


# --- good archives


def test_a_valid_archive(place: Path) -> None:
    found = unpack(VALID, path=place / "m")
    assert found == {
        "config.json": b"{}",
        "h": b"{}",
        "l": random.Random(3).randbytes(3000),
        "sub/m.bin": random.Random(3).randbytes(3000),
        "g" * 120: b"gnu",
        "ü" * 80: b"pax",
        "p": b"123",
    }
    assert (place / "m" / "l").readlink() == Path("sub/m.bin")
    assert (place / "m" / "h").samefile(place / "m" / "config.json")
    assert os.access(place / "m" / "sub" / "m.bin", os.X_OK)
    assert (place / "m" / "sub" / "m.bin").stat().st_mode & 0o111
    assert not (place / "m" / "config.json").stat().st_mode & 0o111
    assert {path.name for path in place.iterdir()} == {"m"}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_pythons_tarfile_writes(place: Path, form: int) -> None:
    files = {"a": b"x", "d/" * 20 + "e": b"y" * 1000, "ü.txt": b""}
    if form != tarfile.USTAR_FORMAT:
        files["n/" * 80 + "x" * 200] = b"long"
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=form) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1.5 if form == tarfile.PAX_FORMAT else 1
            archive.addfile(info, io.BytesIO(data))
    assert unpack(output.getvalue(), path=place / "m") == files


def test_what_gnu_tar_writes(place: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / ("n" * 150)).write_bytes(b"x" * 10_000)
    (source / "run.sh").write_bytes(b"#!/bin/sh")
    (source / "run.sh").chmod(0o755)
    (source / "link").symlink_to("run.sh")
    (source / "hard").hardlink_to(source / "run.sh")
    done = subprocess.run(["tar", "-cf", "-", "-C", source, "."], check=True, capture_output=True, timeout=60)
    found = unpack(done.stdout, path=place / "m")
    assert found == contents(source)
    assert os.access(place / "m" / "run.sh", os.X_OK)


def test_later_layers_override(place: Path) -> None:
    found = unpack(
        entry("a", b"one") + entry("b", b"one") + entry("l", b"file") + END,
        entry("b", b"two") + entry("l", kind=b"2", link="a") + END,
        entry("c", b"three") + END,
        path=place / "m",
    )
    assert found == {"a": b"one", "b": b"two", "c": b"three", "l": b"one"}


def test_names_twice_in_a_layer(place: Path) -> None:
    found = unpack(
        entry("a", b"a longer first")
        + entry("./a", b"second")
        + entry("l", kind=b"2", link="a")
        + entry("l", b"f")
        + END,
        path=place / "m",
    )
    assert found == {"a": b"second", "l": b"f"}


def test_whiteouts(place: Path) -> None:
    found = unpack(
        b"".join(entry(name, b"1") for name in ("keep", "gone", "d/gone", "d/keep", "o/a", "o/b/c", "gone-not")) + END,
        # The new file stands before the whiteout that empties its folder, and must survive it.
        entry(".wh.gone") + entry("d/.wh.gone") + entry("o/new", b"2") + entry("o/.wh..wh..opq") + END,
        path=place / "m",
    )
    assert found == {"keep": b"1", "d/keep": b"1", "gone-not": b"1", "o/new": b"2"}


def test_whiteout_of_a_folder_and_of_everything(place: Path) -> None:
    lower = entry("d/a", b"1") + entry("d/b/c", b"1") + entry("dd", b"1") + END
    assert unpack(lower, entry(".wh.d") + END, path=place / "m") == {"dd": b"1"}
    assert unpack(lower, entry(".wh..wh..opq") + entry("x", b"2") + END, path=place / "n") == {"x": b"2"}
    # A file again, where a folder was.
    assert unpack(lower, entry(".wh.d") + entry("d", b"2") + END, path=place / "o") == {"dd": b"1", "d": b"2"}


def test_whiteout_of_a_split_file(place: Path) -> None:
    parts = [entry(f"x.tonnage-part.{at:015}.of.{4:015}", b"ab") + END for at in (0, 2)]
    assert unpack(*parts, GOOD + entry(".wh.x") + END, path=place / "m") == {"config.json": b"{}"}


def test_hard_link_across_layers(place: Path) -> None:
    assert unpack(GOOD + END, entry("h", kind=b"1", link="./config.json") + END, path=place / "m") == {
        "config.json": b"{}",
        "h": b"{}",
    }


def test_the_link_models_is_not_made(place: Path) -> None:
    assert unpack(GOOD + END, entry("models", kind=b"2", link=".") + END, path=place / "m") == {"config.json": b"{}"}
    assert not (place / "m" / "models").is_symlink()


def test_links_that_stay_inside(place: Path) -> None:
    archive = (
        entry("a/b/x", b"x")
        + entry("a/up", kind=b"2", link="../config.json")
        + entry("here", kind=b"2", link="a/b")
        + entry("dangling", kind=b"2", link="nowhere")
        + entry("loop", kind=b"2", link="loop")
        + GOOD
        + END
    )
    unpack(archive, path=place / "m")
    assert (place / "m" / "here" / "x").read_bytes() == b"x"
    assert (place / "m" / "a" / "up").read_bytes() == b"{}"
    assert (place / "m" / "dangling").readlink() == Path("nowhere")


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_parts_join_in_any_order(place: Path, order: tuple[int, ...]) -> None:
    data = random.Random(4).randbytes(10_000)
    cuts = [0, 4096, 4097, 8192, 10_000]
    layers = [
        entry(f"sub/x.tonnage-part.{cuts[number]:015}.of.{10_000:015}", data[cuts[number] : cuts[number + 1]]) + END
        for number in order
    ]
    assert unpack(GOOD + END, *layers, path=place / "m") == {"config.json": b"{}", "sub/x": data}


def test_a_file_overrides_a_split_one(place: Path) -> None:
    parts = [entry(f"x.tonnage-part.{at:015}.of.{4:015}", b"ab") + END for at in (0, 2)]
    assert unpack(*parts, entry("x", b"whole") + END, path=place / "m") == {"x": b"whole"}
    assert unpack(entry("x", b"whole") + END, *parts, path=place / "n") == {"x": b"abab"}


def test_empty_files_and_exact_blocks(place: Path) -> None:
    files = {"empty": b"", "block": b"b" * 512, "two": b"t" * 1024, "more": b"m" * 513}
    assert unpack(b"".join(entry(name, data) for name, data in files.items()) + END, path=place / "m") == files


def test_one_zero_block_and_what_follows_the_end(place: Path) -> None:
    assert unpack(GOOD + bytes(512), path=place / "m") == {"config.json": b"{}"}
    assert unpack(GOOD + END + bytes(10_240), path=place / "n") == {"config.json": b"{}"}
    # Other tars stop at the end too; it was hashed, and is not looked at.
    assert unpack(GOOD + END + b"junk" * 100, path=place / "o") == {"config.json": b"{}"}


def test_pax_records_that_take_back(place: Path) -> None:
    globals_ = pax_header(record("path", "everywhere") + record("comment", "git"), b"g")
    archive = globals_ + entry("a", b"1", pax={"path": ""}) + entry("b", b"2", pax={"path": "c", "size": ""}) + END
    assert unpack(archive, path=place / "m") == {"a": b"1", "c": b"2"}


def test_pax_size_wins(place: Path) -> None:
    archive = pax_header(record("size", "5")) + header("a", 0) + padded(b"12345") + END
    assert unpack(archive, path=place / "m") == {"a": b"12345"}


def test_base_256_sizes(place: Path) -> None:
    block = bytearray(header("a", 5))
    block[124:136] = b"\x80" + bytes(10) + b"\x05"
    assert unpack(checksummed(bytes(block)) + padded(b"12345") + END, path=place / "m") == {"a": b"12345"}


# --- raw layers


def test_raw_layers(place: Path) -> None:
    shelf = Shelf()
    files = {"config.json": b"{}", "sub/m.safetensors": b"x" * 5000, "empty": b"", "odd.tar": GOOD + END}
    pull(shelf, shelf.files(*files.items()), place / "m")
    assert contents(place / "m") == files


def test_raw_layers_of_the_same_bytes(place: Path) -> None:
    """One blob, several files: each must appear."""
    shelf = Shelf()
    files = {"a.json": b"{}", "sub/b.json": b"{}", "c.json": b"{}", "other": b"x"}
    pull(shelf, shelf.files(*files.items()), place / "m")
    assert contents(place / "m") == files
    assert not (place / "m" / "a.json").samefile(place / "m" / "c.json")


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "a/../../evil", ".tonnage.json", ".tonnage-partial/root", ".", "a\\b", "n" * 300]
)
def test_unsafe_names_of_raw_layers(place: Path, name: str) -> None:
    shelf = Shelf()
    with pytest.raises(UnsafeArchive):
        pull(shelf, shelf.files(("config.json", b"{}"), (name, b"x")), place / "m")
    assert not (place / "m").exists()
    assert {path.name for path in place.iterdir()} <= {".m.tonnage-partial"}


def test_raw_layers_in_conflict(place: Path) -> None:
    shelf = Shelf()
    with pytest.raises(UnsafeArchive):
        pull(shelf, shelf.files(("a", b"1"), ("a/b", b"2")), place / "m")
    with pytest.raises(UnsafeArchive):
        pull(shelf, shelf.files(("a", b"1"), ("a/b", b"1")), place / "m")
    assert not (place / "m").exists()
