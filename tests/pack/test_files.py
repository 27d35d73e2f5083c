"""Reading a model folder: what belongs to the model, and files that change meanwhile."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tonnage.errors import InvalidContent, LocalError, SourceChanged
from tonnage.pack.files import ModelFile, TarReader, scan
from tonnage.pack.model import pack
from tonnage.pack.tar import Piece, TarLayout


def names(folder: Path) -> list[str]:
    return [file.path for file in scan(folder)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_sorted_by_path_with_sizes(folder: Path) -> None:
    (folder / "b").mkdir()
    (folder / "b" / "x").write_bytes(b"123")
    (folder / "b.json").write_bytes(b"")
    assert [(file.path, file.size) for file in scan(folder)] == [("b.json", 0), ("b/x", 3), ("config.json", 2)]


def test_ignored_names_at_any_depth(folder: Path) -> None:
    for name in (".git", "__pycache__", ".cache", ".tonnage-partial", ".m.tonnage-partial"):
        for parent in (folder, folder / "sub"):
            (parent / name).mkdir(parents=True)
            (parent / name / "x").write_text("x")
    for name in (".gitattributes", ".gitignore", ".DS_Store", ".tonnage.json"):
        (folder / name).write_text("x")
        (folder / "sub" / name).write_text("x")
    (folder / ".hidden").write_text("kept")
    (folder / "empty").mkdir()
    assert names(folder) == [".hidden", "config.json"]


def test_links_in_the_folder_are_followed(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "x").write_text("x")
    (folder / "file-link").symlink_to("config.json")
    (folder / "folder-link").symlink_to("sub")
    (folder / "absolute").symlink_to(folder / "config.json")
    assert names(folder) == ["absolute", "config.json", "file-link", "folder-link/x", "sub/x"]
    assert not any(file.source.is_dir() for file in scan(folder))


def test_links_that_go_round(folder: Path) -> None:
    (folder / "models").symlink_to(".")
    (folder / "sub").mkdir()
    (folder / "sub" / "up").symlink_to("..")
    (folder / "sub" / "self").symlink_to("../sub")
    (folder / "a").mkdir()
    (folder / "a" / "b").symlink_to("../sub")
    (folder / "sub" / "a").symlink_to("../a")
    assert names(folder) == ["config.json"]


def test_the_folder_itself_may_be_a_link(folder: Path) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    (folder / "same").symlink_to(link / "config.json")
    assert names(link) == names(folder) == ["config.json", "same"]


@pytest.mark.parametrize("target", ["../outside", "/etc/hostname", "..", "sub/../../outside"])
def test_links_out_of_the_folder(folder: Path, target: str) -> None:
    (folder.parent / "outside").write_text("secret")
    (folder / "sub").mkdir()
    (folder / "link").symlink_to(target)
    with pytest.raises(LocalError, match=r"out of the model folder|to nothing"):
        scan(folder)


def test_a_link_by_way_of_another(folder: Path) -> None:
    (folder / "up").mkdir()
    (folder / "up" / "here").symlink_to("..")
    (folder / "link").symlink_to("up/here/../x")
    (folder.parent / "x").write_text("secret")
    with pytest.raises(LocalError, match="out of the model folder"):
        scan(folder)


@pytest.mark.parametrize("target", ["nothing", "loop"])
def test_links_to_nothing(folder: Path, target: str) -> None:
    (folder / "loop").symlink_to(target)
    with pytest.raises(LocalError, match="to nothing"):
        scan(folder)


def test_what_is_neither_file_nor_folder(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(InvalidContent, match="neither a file nor a folder"):
        scan(folder)
    (folder / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(folder)
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
        with pytest.raises(InvalidContent, match="neither a file nor a folder"):
            scan(folder)


@pytest.mark.parametrize(
    "name",
    [
        b"latin-\xe9.bin",
        b"line\nbreak",
        b"back\\slash",
        b".wh.config.json",
        b".wh..wh..opq",
        b"m.tonnage-part.000000000000000.of.000000000000009",
    ],
)
@pytest.mark.parametrize("below", [b".", b"sub"])
def test_names_that_no_layer_could_hold(folder: Path, name: bytes, below: bytes) -> None:
    (folder / "sub").mkdir()
    (folder / os.fsdecode(below) / os.fsdecode(name)).write_bytes(b"x")
    with pytest.raises(InvalidContent, match="name") as caught:
        scan(folder)
    str(caught.value).encode()


def test_whiteout_as_a_folder(folder: Path) -> None:
    (folder / ".wh.sub").mkdir()
    (folder / ".wh.sub" / "x").write_text("x")
    with pytest.raises(InvalidContent):
        scan(folder)


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda _: None], ids=["empty", "file", "missing"])
def test_no_folder_of_files(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "m")
    with pytest.raises(LocalError) as caught:
        scan(tmp_path / "m")
    assert caught.value.hint


UNREADABLE = """
import os, sys
from pathlib import Path
from tonnage.errors import LocalError
from tonnage.pack.model import pack
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
try:
    pack(Path(sys.argv[1]))
except LocalError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["secret.safetensors", "folder"])
def test_unreadable(name: str) -> None:
    """Without root's rights, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "config.json").write_text("{}")
        path = Path(folder) / name
        if "." in name:
            path.write_bytes(b"x" * 100)
        else:
            path.mkdir()
        path.chmod(0)
        command = [sys.executable, "-c", UNREADABLE, folder]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        path.chmod(0o700)
    assert name in done.stdout
    assert "Permission denied" in done.stdout


# --- files that change


SIZE = 40_000


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def shrink(path: Path) -> None:
    os.truncate(path, SIZE // 2)


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"y" * SIZE)
    os.utime(path, ns=(1, 1))


def touch(path: Path) -> None:
    os.utime(path, ns=(5, 5))


def replace(path: Path) -> None:
    info = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"z" * SIZE)
    os.utime(other, ns=(info.st_atime_ns, info.st_mtime_ns))
    other.replace(path)


def become_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


CHANGES = [grow, shrink, rewrite, touch, replace, become_pipe]


def one_file(folder: Path) -> tuple[TarLayout, dict[str, ModelFile], Path]:
    path = folder / "m.safetensors"
    path.write_bytes(b"x" * SIZE)
    (file,) = (file for file in scan(folder) if file.source.name == path.name)
    return TarLayout([Piece.whole(file.path, file.size)]), {file.path: file}, path


@pytest.mark.parametrize("change", CHANGES)
def test_changed_between_scan_and_read(folder: Path, change: Callable[[Path], None]) -> None:
    layout, files, path = one_file(folder)
    change(path)
    reader = TarReader(layout, files)
    with pytest.raises(SourceChanged, match="safetensors"):
        while reader.readinto(memoryview(bytearray(4096))):
            pass
    reader.close()


@pytest.mark.parametrize("change", [grow, shrink, rewrite, touch])
def test_changed_while_read(folder: Path, change: Callable[[Path], None]) -> None:
    layout, files, path = one_file(folder)
    reader = TarReader(layout, files)
    buffer = memoryview(bytearray(4096))
    for _ in range(4):
        assert reader.readinto(buffer)
    change(path)
    with pytest.raises(SourceChanged, match="safetensors"):
        while reader.readinto(buffer):
            pass
    reader.close()


def test_replaced_while_read_is_no_change(folder: Path) -> None:
    """The open file is still the one that was measured."""
    layout, files, path = one_file(folder)
    reader = TarReader(layout, files)
    buffer = memoryview(bytearray(layout.size))
    count = reader.readinto(buffer)
    count += reader.readinto(buffer[count : count + 100])
    replace(path)
    while step := reader.readinto(buffer[count:]):
        count += step
    reader.close()
    assert buffer[4096 : 4096 + SIZE] == b"x" * SIZE


def test_gone_before_it_is_read(folder: Path) -> None:
    layout, files, path = one_file(folder)
    path.unlink()
    with pytest.raises(LocalError, match="No such file"):
        TarReader(layout, files, 4096).readinto(memoryview(bytearray(10)))


def test_a_change_while_packing_is_an_error_of_pack(folder: Path) -> None:
    path = folder / "m.safetensors"
    path.write_bytes(b"x" * (3 << 20))
    changed = False

    def on_progress(_: int) -> None:
        nonlocal changed
        if not changed:
            changed = True
            touch(path)

    with pytest.raises(SourceChanged):
        pack(folder, workers=1, on_progress=on_progress)


def test_no_file_stays_open(folder: Path) -> None:
    layout, files, _ = one_file(folder)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for end in (0, 10, 5000, layout.size):
        reader = TarReader(layout, files, 0, end)
        while reader.readinto(memoryview(bytearray(4096))):
            pass
        reader.close()
        reader.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
