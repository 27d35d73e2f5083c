"""Copies over real sockets and files that break, change, or are larger than memory should be."""

# ruff: noqa: SIM117 - servers outside, expectations inside
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from tempfile import mkdtemp

import pytest

from stores.wire import Line, Request, wire
from support.servers import running
from tonnage.content.reference import Repository
from tonnage.content.storage import Fetcher
from tonnage.content.verify import read_all
from tonnage.distribution.app import create_app
from tonnage.errors import NotFound, SourceChanged
from tonnage.pack.model import pack
from tonnage.stores.layout import LayoutStore
from tonnage.stores.memory import MemoryStore
from tonnage.stores.registry import RegistryStore, Timeouts
from tonnage.transfer.copy import copy
from tonnage.transfer.events import Event, Moved, Retrying, Started
from tonnage.transfer.retry import Retry
from transfer.artifacts import Artifact, artifact

EAGER = Retry(sleep=lambda _: None)


@pytest.mark.parametrize("seed", range(4))
def test_connections_that_are_cut_at_random_bytes(seed: int, tmp_path: Path) -> None:
    """Each request gets at most 200 kB; each next one starts at the exact byte where that one ended."""
    random = Random(seed)
    origin = MemoryStore()
    model = artifact(origin, sizes=(1, 700_000, 1_000_003))
    kinds = {str(node.digest): node for node in model.nodes}
    served: dict[str, int] = dict.fromkeys(kinds, 0)

    def play(request: Request, line: Line) -> None:
        name = request.path.rpartition("/")[2]
        node = kinds[model.root.digest if name == "v1" else name]
        data = read_all(origin.fetch(node), node, limit=node.size)
        first, headers, status = 0, {"Content-Type": node.media_type}, 200
        if "range" in request.headers:
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers["range"])
            assert found is not None
            first, last = map(int, found.groups())
            assert last == node.size - 1
            headers["Content-Range"], status = f"bytes {first}-{last}/{node.size}", 206
        if not node.is_manifest:
            assert first == served[name], "neither a byte twice nor a byte left out"
        count = len(data) - first if node.is_manifest else min(len(data) - first, random.randrange(1, 200_000))
        served[name] = first + count
        line.reply(status, data[first : first + count], headers, length=len(data) - first)
        if first + count < len(data):
            line.close()

    target = LayoutStore(tmp_path / "layout", create=True)
    events: list[Event] = []
    with wire(play) as server, closing(RegistryStore(Repository(server.host, "m"))) as source:
        copy(source, "v1", target, ["v1"], retry=EAGER, on_event=events.append)
    assert_same(origin, target, model)
    assert sum(event.count for event in events if isinstance(event, Moved)) == model.size
    assert len([event for event in events if isinstance(event, Retrying)]) >= 5


def test_a_registry_without_ranges_is_read_again_up_to_the_break() -> None:
    origin = MemoryStore()
    model = artifact(origin, sizes=(1, 1_500_000))
    kinds = {str(node.digest): node for node in model.nodes}
    cut: set[str] = set()

    def play(request: Request, line: Line) -> None:
        name = request.path.rpartition("/")[2]
        node = kinds[model.root.digest if name == "v1" else name]
        data = read_all(origin.fetch(node), node, limit=node.size)
        count = len(data) if node.is_manifest or name in cut else len(data) // 2
        cut.add(name)
        line.reply(200, data[:count], {"Content-Type": node.media_type}, length=len(data))
        if count < len(data):
            line.close()

    target = MemoryStore()
    events: list[Event] = []
    with wire(play) as server, closing(RegistryStore(Repository(server.host, "m"))) as source:
        copy(source, "v1", target, ["v1"], retry=EAGER, on_event=events.append)
    assert_same(origin, target, model)
    assert sum(event.count for event in events if isinstance(event, Moved)) == model.size


def test_connections_that_are_reset_and_stall() -> None:
    """Every one of them is, long before a buffer is full: what arrived counts all the same."""
    random = Random(3)
    origin = MemoryStore()
    model = artifact(origin, sizes=(1, 4_000_000))
    kinds = {str(node.digest): node for node in model.nodes}
    stalls = iter([True])

    def play(request: Request, line: Line) -> None:
        node = kinds[request.path.rpartition("/")[2]]
        data = read_all(origin.fetch(node), node, limit=node.size)
        first, status, headers = 0, 200, {"Content-Type": node.media_type}
        if "range" in request.headers:
            first = int(request.headers["range"].removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"], status = f"bytes {first}-{node.size - 1}/{node.size}", 206
        if node.is_manifest or node.size < 10:
            line.reply(status, data, headers)
            return
        line.reply(status, data[first : first + random.randrange(1, 300_000)], headers, length=node.size - first)
        if next(stalls, False):
            line.take(1)
        line.close(reset=True)

    target = MemoryStore()
    with wire(play) as server:
        repository = Repository(server.host, "m")
        with closing(RegistryStore(repository, timeouts=Timeouts(connect=5, stall=0.3))) as source:
            copy(source, model.root.digest, target, retry=EAGER)
    assert_same(origin, target, model)


def test_an_upload_that_breaks_is_sent_again() -> None:
    origin = MemoryStore()
    model = artifact(origin, sizes=(1, 3_000_000))
    taken: dict[str, bytes] = {}
    breaks = iter([100, 1_000_000])

    def play(request: Request, line: Line) -> None:
        size = int(request.headers.get("content-length", 0))
        name = request.path.rpartition("sha256%3A")[2].rpartition("sha256:")[2]
        if request.method == "HEAD":
            line.reply(200 if name in taken else 404, length=None)
        elif request.method == "POST":
            line.reply(202, headers={"Location": "/up"})
        else:
            if size > 1_000_000 and (some := next(breaks, None)):
                line.take(some)
                line.close(reset=True)
            taken[name] = line.take(size)
            line.reply(201)

    events: list[Event] = []
    with wire(play, bodies=False) as server, closing(RegistryStore(Repository(server.host, "m"))) as target:
        copy(origin, "v1", target, ["v1"], retry=EAGER, on_event=events.append)
    for node in model.nodes:
        assert taken[node.digest.hex] == read_all(origin.fetch(node), node, limit=node.size)
    assert sum(event.count for event in events if isinstance(event, Moved)) == model.size


@pytest.mark.parametrize("change", ["content", "shorter", "gone", "replaced"])
def test_a_source_file_that_changes_during_a_push(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    weights = folder / "model.safetensors"
    weights.write_bytes(bytes(8 << 20))
    (folder / "config.json").write_text("{}")
    model = pack(folder)

    def meddle(event: Event) -> None:
        if isinstance(event, Started) and event.node.size > 1 << 20:
            if change == "content":
                with weights.open("r+b") as file:
                    file.seek(4 << 20)
                    file.write(b"x")
            elif change == "shorter":
                os.truncate(weights, 5 << 20)
            elif change == "replaced":
                (tmp_path / "new").write_bytes(bytes(8 << 20))
                (tmp_path / "new").rename(weights)
            else:
                weights.unlink()

    kind = Exception if change == "gone" else SourceChanged
    with running(create_app(tmp_path / "registry")) as host:
        with closing(RegistryStore(Repository(host, "a/b"))) as target:
            with pytest.raises(kind, match=r"^source: .*model\.safetensors"):
                copy(model, "", target, ["v1"], on_event=meddle, retry=EAGER)
            for reference in ("v1", model.artifact.index.digest, model.artifact.modelpack.digest):
                with pytest.raises(NotFound):
                    target.resolve(reference)


def assert_same(origin: Fetcher, copied: Fetcher, model: Artifact) -> None:
    for node in model.nodes:
        data = read_all(origin.fetch(node), node, limit=node.size)
        assert read_all(copied.fetch(node), node, limit=node.size) == data


# --- memory

MIB = 1 << 20
MEASURED = """
import re, sys
from pathlib import Path
from tonnage.cli.main import main
try:
    main()
finally:
    print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1], file=sys.stderr)
"""


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for the model twice, in memory where that is possible."""
    shm = Path("/dev/shm")
    fast = shm.is_dir() and shutil.disk_usage(shm).free > 3 << 30
    folder = Path(mkdtemp(dir=shm if fast else tmp_path, prefix="tonnage-test-"))
    yield folder
    shutil.rmtree(folder)


def run(*arguments: str) -> int:
    """Run the command; returns its peak memory in bytes."""
    done = subprocess.run([sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return int(done.stderr.split()[-1]) << 10


def test_memory_does_not_grow_with_the_model(room: Path) -> None:
    """The budget is 200 MiB; what is left after the interpreter is far less than the model of 512 MiB."""
    folder = room / "model"
    folder.mkdir()
    for number in range(2):
        with (folder / f"model-{number}.safetensors").open("wb") as file:
            file.write(bytes([number]))
            file.truncate(256 * MIB)
    command = [sys.executable, "-m", "tonnage", "registry", "serve", "--root", str(room / "registry")]
    with subprocess.Popen([*command, "--listen", "127.0.0.1:0", "--json"], stdout=subprocess.PIPE) as registry:
        assert registry.stdout is not None
        url = re.search(rb"http://([0-9.:]+)", registry.stdout.readline())
        assert url is not None
        target = f"{url[1].decode()}/models/large:v1"
        try:
            assert run("push", str(folder), target, "--target-layer", "256MiB", "-q") < 200 * MIB
            shutil.rmtree(folder)
            assert run("pull", target, str(room / "pulled"), "-q") < 200 * MIB
            peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{registry.pid}/status").read_text())
            assert peak is not None
            assert int(peak[1]) << 10 < 200 * MIB
        finally:
            registry.terminate()
    files = [room / "pulled" / f"model-{number}.safetensors" for number in range(2)]
    assert [file.stat().st_size for file in files] == [256 * MIB] * 2
    with files[1].open("rb") as pulled:
        assert pulled.read(2) == b"\1\0"
