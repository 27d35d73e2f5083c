"""A model appears in a folder whole or not at all, and what was fetched is not fetched again."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.archives import Shelf, contents
from tonnage.content.descriptor import Descriptor
from tonnage.content.storage import Reader
from tonnage.errors import LocalError, NotFound, StorageFull, TargetOccupied, Truncated
from tonnage.pack.artifact import ModelArtifact, read_artifact
from tonnage.pack.files import RECORD, STAGING
from tonnage.pack.folder import FolderTarget, read_record
from tonnage.pack.model import PackedModel, pack
from tonnage.pack.plan import PlanOptions
from tonnage.transfer.copy import copy
from tonnage.transfer.retry import NO_RETRY

KIB = 1 << 10

FILES = {
    "config.json": b"{}",
    "README.md": b"hello",
    "sub/empty": b"",
    **{f"m-{number}.safetensors": random.Random(number).randbytes(60 * KIB) for number in range(4)},
    "large.gguf": random.Random(9).randbytes(300 * KIB),
}
OPTIONS = PlanOptions(target=100 * KIB, cap=128 * KIB)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> PackedModel:
    return pack(write(tmp_path / "source", FILES), options=OPTIONS)


@pytest.fixture
def other(tmp_path: Path) -> PackedModel:
    """Another version."""
    return pack(write(tmp_path / "source2", {**FILES, "config.json": b"[]", "new.bin": b"n"}), options=OPTIONS)


class Counted:
    """A source that counts the blobs it gives, and breaks when told to.

    Args:
        model: what to give.
        blobs: how many; then it has no more.
        cut: bytes after which the blob that is one too many ends early.
    """

    def __init__(self, model: PackedModel, *, blobs: int = 1000, cut: int = -1) -> None:
        self._model = model
        self._blobs = blobs
        self._cut = cut
        self._lock = threading.Lock()
        self.fetched: list[str] = []

    def resolve(self, reference: str) -> Descriptor:
        return self._model.resolve(reference)

    def fetch(self, node: Descriptor) -> Reader:
        if node.is_manifest or node.media_type.endswith("config.v1+json"):
            return self._model.fetch(node)
        with self._lock:
            if len(self.fetched) == self._blobs:
                if self._cut < 0:
                    raise NotFound("the line was cut")
                return self._model.fetch_range(node, 0, self._cut)
            self.fetched.append(node.digest)
        return self._model.fetch(node)


def artifact_of(model: PackedModel) -> ModelArtifact:
    return read_artifact(model, model.artifact.index)


def pull(
    model: PackedModel, path: Path, *, source: Counted | None = None, workers: int = 1, wait: bool = False
) -> Sequence[str]:
    """Pull, and say which blobs were fetched."""
    artifact = artifact_of(model)
    source = source or Counted(model)
    with FolderTarget(path, artifact, source="host/m:1", wait=wait) as target:
        copy(
            source,
            artifact.root.digest,
            target,
            ["model"],
            successors=artifact.successors,
            retry=NO_RETRY,
            workers=workers,
        )
    return source.fetched


def interrupt(model: PackedModel, path: Path, *, blobs: int, cut: int = -1) -> Sequence[str]:
    source = Counted(model, blobs=blobs, cut=cut)
    with pytest.raises((NotFound, Truncated)):
        pull(model, path, source=source)
    return source.fetched


def visible(path: Path) -> list[str]:
    """What anyone sees in the folder above a target, and in the target."""
    names = [entry.name for entry in path.parent.iterdir() if STAGING not in entry.name and "source" not in entry.name]
    return names + ([entry.name for entry in path.iterdir() if entry.name != STAGING] if path.is_dir() else [])


def assert_whole(path: Path, files: dict[str, bytes] | None = None) -> None:
    files = FILES if files is None else files
    assert contents(path) == files
    record = read_record(path)
    assert record is not None
    assert record.files == {name: len(data) for name, data in sorted(files.items())}
    assert not (path / STAGING).exists()
    assert not (path.parent / f".{path.name}{STAGING}").exists()


# --- where a model may appear


def test_a_new_folder(tmp_path: Path, model: PackedModel) -> None:
    fetched = pull(model, tmp_path / "m", workers=4)
    assert_whole(tmp_path / "m")
    assert sorted(fetched) == sorted(layer.digest for layer in model.layers)
    record = read_record(tmp_path / "m")
    assert record is not None
    assert (record.root, record.manifest) == (model.artifact.index.digest, model.artifact.modelpack.digest)
    assert record.source == "host/m:1"


def test_an_empty_folder(tmp_path: Path, model: PackedModel) -> None:
    (tmp_path / "m").mkdir()
    pull(model, tmp_path / "m")
    assert_whole(tmp_path / "m")


def test_missing_parents(tmp_path: Path, model: PackedModel) -> None:
    pull(model, tmp_path / "a" / "b" / "m")
    assert_whole(tmp_path / "a" / "b" / "m")


def test_a_relative_path(tmp_path: Path, model: PackedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    pull(model, Path("m"))
    assert_whole(tmp_path / "here" / "m")
    pull(model, Path("../n"))
    assert_whole(tmp_path / "n")


@pytest.mark.parametrize("absolute", [True, False])
def test_the_current_folder(
    tmp_path: Path, model: PackedModel, monkeypatch: pytest.MonkeyPatch, absolute: bool
) -> None:
    """A shell stands in it: it may not be replaced by another."""
    here = tmp_path / "here"
    here.mkdir()
    before = here.stat().st_ino
    monkeypatch.chdir(here)
    interrupt(model, here if absolute else Path(), blobs=2)
    assert visible(here) == ["here"]
    pull(model, here if absolute else Path())
    assert_whole(here)
    assert here.stat().st_ino == before


def test_by_way_of_a_link(tmp_path: Path, model: PackedModel) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "m").symlink_to("real")
    pull(model, tmp_path / "m")
    assert (tmp_path / "m").is_symlink()
    assert_whole(tmp_path / "real")


def test_a_folder_of_somebody_else(tmp_path: Path, model: PackedModel) -> None:
    path = tmp_path / "m"
    path.mkdir()
    (path / "thesis.txt").write_text("years of work")
    with pytest.raises(TargetOccupied, match="not empty") as caught:
        pull(model, path)
    assert caught.value.hint
    assert visible(path) == ["m", "thesis.txt"]
    assert [entry.name for entry in path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("kind", ["file", "dangling link", "link to a file"])
def test_no_folder_at_all(tmp_path: Path, model: PackedModel, kind: str) -> None:
    path = tmp_path / "m"
    if kind != "dangling link":
        (tmp_path / "file").write_text("x")
    if kind == "file":
        path.write_text("x")
    else:
        path.symlink_to("file")
    source = Counted(model)
    with pytest.raises(TargetOccupied, match="not a folder"):
        pull(model, path, source=source)
    assert source.fetched == []


@pytest.mark.parametrize("text", ["", "{}", "not json", "[" * 100_000, '{"root": "x"}'])
def test_a_damaged_record_is_none(tmp_path: Path, model: PackedModel, text: str) -> None:
    pull(model, tmp_path / "m")
    (tmp_path / "m" / RECORD).write_text(text)
    assert read_record(tmp_path / "m") is None
    with pytest.raises(TargetOccupied):
        pull(model, tmp_path / "m")


def test_another_version(tmp_path: Path, model: PackedModel, other: PackedModel) -> None:
    path = tmp_path / "m"
    pull(model, path)
    source = Counted(other)
    with pytest.raises(TargetOccupied, match="another model: host/m:1"):
        pull(other, path, source=source)
    assert source.fetched == []
    assert_whole(path)


def test_a_folder_that_fills_up_meanwhile(tmp_path: Path, model: PackedModel) -> None:
    path = tmp_path / "m"
    artifact = artifact_of(model)
    with FolderTarget(path, artifact) as target:
        for layer in artifact.layers:
            target.push(layer.node, lambda offset, node=layer.node: model.fetch_range(node, offset, node.size))  # type: ignore[misc]
        path.mkdir()
        (path / "thesis.txt").write_text("years of work")
        with pytest.raises(LocalError, match="not empty"):
            target.tag(artifact.root, "model")
    assert contents(path) == {"thesis.txt": b"years of work"}
    (path / "thesis.txt").unlink()
    assert pull(model, path) == []
    assert_whole(path)


# --- again


def test_the_same_model_again(tmp_path: Path, model: PackedModel) -> None:
    path = tmp_path / "m"
    pull(model, path)
    before = {file: file.stat().st_ino for file in path.rglob("*")}
    assert pull(model, path) == []
    assert {file: file.stat().st_ino for file in path.rglob("*")} == before
    assert_whole(path)


def test_the_users_own_files_are_left(tmp_path: Path, model: PackedModel) -> None:
    path = tmp_path / "m"
    pull(model, path)
    (path / "notes.txt").write_text("mine")
    (path / "large.gguf").unlink()
    pull(model, path)
    assert contents(path) == {**FILES, "notes.txt": b"mine"}


@pytest.mark.parametrize("damage", ["missing", "short", "long", "all missing"])
def test_a_damaged_pull_is_repaired(tmp_path: Path, model: PackedModel, damage: str) -> None:
    path = tmp_path / "m"
    pull(model, path)
    file = path / "m-1.safetensors"
    if damage == "missing":
        file.unlink()
    elif damage == "short":
        os.truncate(file, 10)
    elif damage == "long":
        file.write_bytes(FILES[file.name] + b"x")
    else:
        for name in FILES:
            (path / name).unlink()
    interrupt(model, path, blobs=3)
    pull(model, path)
    assert_whole(path)


def test_a_missing_hard_link_is_damage(tmp_path: Path) -> None:
    from support.archives import END, entry

    shelf = Shelf()
    artifact = shelf.tars(entry("a", b"data") + entry("b", kind=b"1", link="a") + END)
    path = tmp_path / "m"
    for _ in range(2):
        with FolderTarget(path, artifact) as target:
            copy(shelf.store, artifact.root.digest, target, ["x"], successors=artifact.successors)
        assert contents(path) == {"a": b"data", "b": b"data"}
        (path / "b").unlink()


# --- interrupted


@pytest.mark.parametrize("blobs", range(8))
def test_what_was_fetched_is_not_fetched_again(tmp_path: Path, model: PackedModel, blobs: int) -> None:
    path = tmp_path / "m"
    first = interrupt(model, path, blobs=blobs)
    assert visible(path) == []
    second = pull(model, path)
    assert sorted([*first, *second]) == sorted(layer.digest for layer in model.layers)
    assert_whole(path)


def test_an_interrupted_layer_starts_again(tmp_path: Path, model: PackedModel) -> None:
    path = tmp_path / "m"
    for cut in (10_000, 50_000, 0, 90_000):
        interrupt(model, path, blobs=0, cut=cut)
        assert visible(path) == []
    pull(model, path)
    assert_whole(path)


def test_a_damaged_note_is_no_note(tmp_path: Path, model: PackedModel) -> None:
    """As after a power failure: the file is there, and what it held is not."""
    path = tmp_path / "m"
    interrupt(model, path, blobs=3)
    notes = sorted((tmp_path / f".m{STAGING}" / "layers").glob("*.json"))
    assert len(notes) == 3
    notes[0].write_bytes(b"")
    notes[1].write_bytes(b"\0" * 50)
    assert len(pull(model, path)) == len(model.layers) - 1
    assert_whole(path)


@pytest.mark.parametrize("size", [0, 7])
def test_a_note_whose_file_was_lost_is_no_note(tmp_path: Path, model: PackedModel, size: int) -> None:
    """As after a power failure, on a disk that lies about what it has written."""
    interrupt(model, tmp_path / "out", blobs=5)
    staging = tmp_path / f".out{STAGING}"
    staged = [path for path in staging.rglob("*.[gs]*[fs]") if path.is_file()]
    assert {path.relative_to(staging).parts[0] for path in staged} == {"layers", "parts"}
    for path in staged:
        os.truncate(path, size)
    pull(model, tmp_path / "out")
    assert_whole(tmp_path / "out")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's folder")
def test_the_staging_folder_of_another_user_is_refused(tmp_path: Path, model: PackedModel) -> None:
    """Its tree says that it is the whole model, and is not."""
    staging = tmp_path / f".out{STAGING}"
    record = {"root": model.artifact.index.digest, "manifest": "x", "source": "x", "files": {"config.json": 4}}
    write(staging, {"tree/config.json": b"evil", f"tree/{RECORD}": json.dumps(record).encode()})
    staging.chmod(0o777)
    os.chown(staging, 65534, 65534)
    with pytest.raises(LocalError, match="belongs to another user"):
        pull(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_others_cannot_look_into_the_staging_folder(tmp_path: Path, model: PackedModel) -> None:
    interrupt(model, tmp_path / "out", blobs=1)
    assert (tmp_path / f".out{STAGING}").stat().st_mode & 0o077 == 0
    pull(model, tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_pull_can_wait_for_another(tmp_path: Path, model: PackedModel) -> None:
    artifact = artifact_of(model)
    with ThreadPoolExecutor(1) as pool:
        with FolderTarget(tmp_path / "out", artifact) as first:
            second = pool.submit(pull, model, tmp_path / "out", wait=True)
            copy(model, "", first, ["model"], successors=artifact.successors)
        assert second.result(60) == []
    assert_whole(tmp_path / "out")


def test_a_pull_that_is_over_takes_no_more_layers(tmp_path: Path, model: PackedModel) -> None:
    artifact = artifact_of(model)
    with FolderTarget(tmp_path / "out", artifact) as target:
        pass
    node = artifact.layers[0].node
    with pytest.raises(LocalError, match="is over"):
        target.push(node, lambda offset: model.fetch_range(node, offset, node.size - offset))


def test_the_leftovers_of_another_artifact_are_dropped(tmp_path: Path, model: PackedModel, other: PackedModel) -> None:
    path = tmp_path / "m"
    interrupt(other, path, blobs=4)
    fetched = pull(model, path)
    assert len(fetched) == len(model.layers)
    assert_whole(path)


def test_only_one_pull_at_a_time(tmp_path: Path, model: PackedModel) -> None:
    path = tmp_path / "m"
    with (
        FolderTarget(path, artifact_of(model)),
        pytest.raises(TargetOccupied, match="at work"),
        FolderTarget(path, artifact_of(model)),
    ):
        pytest.fail("entered")
    pull(model, path)
    assert_whole(path)


def test_many_pulls_at_once(tmp_path: Path, model: PackedModel) -> None:
    def attempt(path: Path) -> bool:
        try:
            pull(model, path)
        except TargetOccupied:
            return False
        return True

    for number in range(10):
        path = tmp_path / f"m{number}"
        with ThreadPoolExecutor(6) as pool:
            assert any(pool.map(attempt, [path] * 12))
        pull(model, path)
        assert_whole(path)


def test_an_error_leaves_no_lock_and_no_open_file(tmp_path: Path, model: PackedModel) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    interrupt(model, tmp_path / "m", blobs=1)
    (tmp_path / "f").write_text("x")
    with pytest.raises(TargetOccupied):
        pull(model, tmp_path / "f")
    pull(model, tmp_path / "m")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


KILLED = Path(__file__).with_name("killed.py")
SMALL = {"config.json": b"{}", "sub/a.bin": b"a" * 5000, "b.bin": b"b" * 100, "large.gguf": b"c" * 130_000}


@pytest.mark.parametrize("mode", ["fresh", "inside", "removed", "again", "signal"])
def test_killed_at_any_step(tmp_path: Path, mode: str) -> None:
    """See `killed.py`."""
    (tmp_path / "work").mkdir()
    files = SMALL if mode != "signal" else {f"{number}.bin": b"x" * 5000 for number in range(60)}
    folders = [str(write(tmp_path / "source", files)), str(tmp_path / "work")]
    command = [sys.executable, str(KILLED), mode, *folders]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 20


# --- volumes


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own, such as a volume in Kubernetes."""
    path = tmp_path / "volume"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path], capture_output=True, text=True, timeout=60
    )
    if done.returncode:
        pytest.skip(f"mount is not permitted here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", path], check=True, timeout=60)


def resize(volume: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", volume], check=True, timeout=60)


def test_a_mount_point(volume: Path, model: PackedModel) -> None:
    (volume / "lost+found").mkdir()
    interrupt(model, volume, blobs=3)
    assert sorted(entry.name for entry in volume.iterdir()) == [STAGING, "lost+found"]
    assert len(pull(model, volume)) == len(model.layers) - 3
    assert_whole(volume)
    assert volume.is_mount()
    assert pull(model, volume) == []


def test_a_folder_in_a_volume(volume: Path, model: PackedModel) -> None:
    pull(model, volume / "m")
    assert_whole(volume / "m")


@pytest.mark.parametrize("folder", [".", "m"])
def test_too_small_a_volume(volume: Path, tmp_path: Path, folder: str) -> None:
    """Refused before a byte is fetched."""
    source = write(tmp_path / "source", {"m.bin": random.Random(1).randbytes(5 << 20)})
    counted = Counted(large := pack(source))
    with pytest.raises(StorageFull, match="needs"):
        pull(large, volume / folder, source=counted)
    assert counted.fetched == []
    resize(volume, "8m")
    pull(large, volume / folder)
    assert contents(volume / folder) == {"m.bin": (source / "m.bin").read_bytes()}


@pytest.mark.parametrize("folder", [".", "m"])
def test_a_volume_that_fills_up(volume: Path, model: PackedModel, folder: str) -> None:
    path = volume / folder
    artifact = artifact_of(model)
    with FolderTarget(path, artifact) as target:
        (volume / STAGING / "filler" if folder == "." else volume / "filler").write_bytes(bytes((4 << 20) - 350 * KIB))
        with pytest.raises(StorageFull) as caught:
            copy(model, artifact.root.digest, target, ["x"], successors=artifact.successors, workers=1)
    assert caught.value.side == "target"
    assert {entry.name for entry in volume.iterdir()} <= {STAGING, f".m{STAGING}", "filler"}
    notes = len(list(volume.rglob("layers/*.json")))
    assert 1 < notes < len(model.layers)
    (volume / STAGING / "filler" if folder == "." else volume / "filler").unlink()
    resize(volume, "6m")
    second = pull(model, path)
    assert len(second) == len(model.layers) - notes
    assert contents(path) == FILES


@pytest.mark.parametrize("split", [False, True])
def test_room_for_one_copy_is_enough_after_a_break(volume: Path, tmp_path: Path, split: bool) -> None:
    """What the broken pull has written is written over, not beside."""
    source = write(tmp_path / "source", {"m.bin": random.Random(1).randbytes(3 << 20)})
    large = pack(source, options=PlanOptions(target=2 << 20, cap=(2 if split else 4) << 20))
    interrupt(large, volume, blobs=0, cut=(3 << 19) if split else (5 << 19))
    pull(large, volume)
    assert contents(volume) == {"m.bin": (source / "m.bin").read_bytes()}


READ_ONLY_PARENT = """
import os, sys
from pathlib import Path
from tonnage.errors import LocalError
from tonnage.pack.artifact import read_artifact
from tonnage.pack.folder import FolderTarget
from tonnage.pack.model import pack
from tonnage.transfer.copy import copy
source, *targets = map(Path, sys.argv[1:])
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
model = pack(source)
artifact = read_artifact(model, model.artifact.index)
for path in targets:
    try:
        with FolderTarget(path, artifact) as target:
            copy(model, artifact.root.digest, target, ["x"], successors=artifact.successors)
        print("pulled")
    except LocalError as error:
        print(error)
"""


def test_a_parent_that_cannot_be_written() -> None:
    """An existing folder of one's own will do; a new one is refused. Without root's rights, in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        parent = Path(name)
        source = write(parent / "source", {"config.json": b"{}"})
        (parent / "m").mkdir()
        (parent / "m").chmod(0o777)
        parent.chmod(0o555)
        command = [sys.executable, "-c", READ_ONLY_PARENT, *map(str, (source, parent / "m", parent / "n"))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        parent.chmod(0o755)
        assert done.returncode == 0, done.stderr
        first, second = done.stdout.splitlines()
        assert first == "pulled"
        assert "Permission denied" in second
        assert contents(parent / "m") == {"config.json": b"{}"}
        assert not (parent / "n").exists()
