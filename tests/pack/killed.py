"""Kills pulls at every step: run by `test_folder`, in a process of its own that has no threads, so that it may fork.

    killed.py MODE SOURCE WORK

Each pull runs in a child that kills itself just before its n-th change of the file system (an audit hook counts them),
for every n until one comes through. After each, the target must be absent or whole; then a pull that is not disturbed
must complete it, whatever was left. MODE says how: `fresh` (a new folder), `inside` (the staging lies in the target, as
in a mount point), `removed` (as fresh, but the user removes a target that appeared), `again` (each is killed several
times over), `signal` (killed by a clock, not at a step).
"""

from __future__ import annotations

import filecmp
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from tonnage.pack.artifact import read_artifact
from tonnage.pack.files import RECORD
from tonnage.pack.folder import FolderTarget, read_record
from tonnage.pack.model import PackedModel, pack
from tonnage.pack.plan import PlanOptions
from tonnage.transfer.copy import copy

CHANGES = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"})
OPTIONS = PlanOptions(target=8 << 10, cap=64 << 10)


def pull(model: PackedModel, path: Path, workers: int = 1) -> None:
    """One worker, so that the steps have an order."""
    artifact = read_artifact(model, model.artifact.index)
    with FolderTarget(path, artifact) as target:
        copy(model, artifact.root.digest, target, ["model"], successors=artifact.successors, workers=workers)


def killed_at(model: PackedModel, path: Path, step: int) -> bool:
    """Pull in a child; whether it was killed before it came through."""
    child = os.fork()
    if child == 0:
        left = step

        def count(event: str, args: tuple[object, ...]) -> None:
            nonlocal left
            writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if event in CHANGES or writes:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                    time.sleep(60)

        sys.addaudithook(count)
        pull(model, path)
        os._exit(0)
    return ended(child)


def killed_after(model: PackedModel, path: Path, seconds: float) -> bool:
    child = os.fork()
    if child == 0:
        pull(model, path, workers=4)
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return ended(child)


def ended(child: int) -> bool:
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        return True
    assert status == 0, status
    return False


def check_whole(source: Path, path: Path) -> None:
    found = {file.relative_to(path) for file in path.rglob("*") if file.is_file() and file.name != RECORD}
    wanted = {file.relative_to(source) for file in source.rglob("*") if file.is_file()}
    assert found == wanted, found ^ wanted
    for file in wanted:
        assert filecmp.cmp(path / file, source / file, shallow=False), file
    assert read_record(path) is not None


def check_absent_or_whole(source: Path, path: Path, inside: bool) -> None:
    if not inside and path.exists():
        check_whole(source, path)
    elif inside and read_record(path):
        shutil.rmtree(path / ".tonnage-partial", ignore_errors=True)
        check_whole(source, path)


def main(mode: str, source: Path, work: Path) -> int:
    model = pack(source, options=OPTIONS)
    chance = random.Random(7)
    started = time.monotonic()
    pull(model, work / "first")
    usual = time.monotonic() - started
    step = 0
    while True:
        base = work / str(step)
        base.mkdir()
        path = base / "m"
        inside = mode == "inside"
        if inside:
            (base / "real").mkdir()
            path.symlink_to("real")
        if mode == "signal":
            killed_after(model, path, chance.uniform(0, usual))
            killed = step < 25
        else:
            killed = killed_at(model, path, step)
        check_absent_or_whole(source, path, inside)
        if mode == "removed" and path.exists():
            shutil.rmtree(path)
        if mode == "again":
            for _ in range(30):
                if not killed_at(model, path, chance.randrange(30)):
                    break
                check_absent_or_whole(source, path, inside)
        pull(model, path)
        check_whole(source, path)
        assert {entry.name for entry in base.iterdir()} <= {"m", "real"}, list(base.iterdir())
        shutil.rmtree(base)
        if not killed:
            return step
        step += 3 if mode == "again" else 1


if __name__ == "__main__":
    print(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
