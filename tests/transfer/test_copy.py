"""The one verb, between every pair of stores, and what happens when something fails on the way."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Protocol

import pytest

from support.servers import running
from tonnage.content.descriptor import Descriptor
from tonnage.content.reference import Repository
from tonnage.content.storage import Fetcher, Opener, RangeFetcher, Reader, Source, TagLister, Target
from tonnage.content.verify import BytesReader, read_all
from tonnage.distribution.app import create_app
from tonnage.errors import (
    AccessDenied,
    DigestMismatch,
    IntegrityError,
    NotFound,
    TonnageError,
    TooManyRequests,
    Unavailable,
)
from tonnage.stores.layout import LayoutStore
from tonnage.stores.memory import MemoryStore
from tonnage.stores.registry import RegistryStore
from tonnage.transfer.copy import copy
from tonnage.transfer.events import Copied, Event, Moved, Planned, Retrying, Skipped, Started
from tonnage.transfer.retry import NO_RETRY, Retry
from transfer.artifacts import Artifact, Disturbed, Recording, artifact

EAGER = Retry(sleep=lambda _: None)


class Store(Source, Target, RangeFetcher, TagLister, Protocol):
    pass


class Events:
    """Keeps what a copy tells, and adds it up."""

    def __init__(self) -> None:
        self.all: list[Event] = []
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        with self._lock:
            self.all.append(event)

    def moved(self) -> dict[str, int]:
        found: Counter[str] = Counter()
        for event in self.all:
            if isinstance(event, Moved):
                found[event.node.digest] += event.count
        return dict(found)

    def of(self, kind: type[Started | Skipped | Copied]) -> list[str]:
        return [event.node.digest for event in self.all if isinstance(event, kind)]

    @property
    def retries(self) -> list[Retrying]:
        return [event for event in self.all if isinstance(event, Retrying)]


@pytest.fixture
def source() -> Recording:
    return Recording()


@pytest.fixture
def model(source: Recording) -> Artifact:
    found = artifact(source)
    source.written.clear()
    return found


# --- between stores


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(create_app(tmp_path_factory.mktemp("registry"))) as host:
        yield host


@pytest.fixture
def make(host: str, tmp_path: Path) -> Iterator[Callable[[str], Store]]:
    numbers = itertools.count()
    with contextlib.ExitStack() as stack:

        def new(kind: str) -> Store:
            if kind == "memory":
                return MemoryStore()
            if kind == "layout":
                return LayoutStore(tmp_path / f"layout{next(numbers)}", create=True)
            name = f"copies/{tmp_path.name.lower().replace('_', '-').strip('-')}/r{next(numbers)}"
            return stack.enter_context(closing(RegistryStore(Repository(host, name))))

        yield new


@pytest.mark.parametrize("to", ["memory", "layout", "registry"])
@pytest.mark.parametrize("origin", ["memory", "layout", "registry"])
def test_between_every_pair_of_stores(
    make: Callable[[str], Store], model: Artifact, source: MemoryStore, origin: str, to: str
) -> None:
    first, second = make(origin), make(to)
    copy(source, "v1", first, ["v1"])
    events = Events()
    root = copy(first, "v1", second, ["v2", "latest"], on_event=events)
    assert root.digest == model.root.digest
    assert list(second.tags()) == ["latest", "v2"]
    assert second.resolve("v2").digest == model.root.digest
    for node in model.nodes:
        data = read_all(source.fetch(node), node, limit=node.size)
        assert read_all(second.fetch(node), node, limit=node.size) == data
    assert events.moved() == {node.digest: node.size for node in model.nodes if node.size}


def test_blobs_then_manifests_then_tags(model: Artifact, source: Recording) -> None:
    target = Recording()
    copy(source, "v1", target, ["v1", "v2"], workers=3)
    blobs, rest = target.written[: len(model.blobs)], target.written[len(model.blobs) :]
    assert set(blobs) == {node.digest for node in model.blobs}
    assert rest == [*(node.digest for node in model.manifests), model.root.digest, "v1", "v2"]


def test_large_blobs_start_first(model: Artifact, source: Recording) -> None:
    target = Recording()
    copy(source, "v1", target, workers=1)
    sizes = [node.size for node in model.blobs]
    written = [node.size for digest in target.written for node in model.blobs if node.digest == digest]
    assert written == sorted(sizes, reverse=True)


def test_manifests_are_read_once(model: Artifact, source: Recording) -> None:
    copy(source, "v1", MemoryStore())
    read = Counter(digest for digest, _ in source.read)
    assert {read[node.digest] for node in (*model.manifests, model.root)} == {1}


def test_what_is_there_is_skipped(model: Artifact, source: Recording) -> None:
    target = Recording()
    copy(source, model.manifests[1].digest, target)
    target.written.clear()
    events = Events()
    copy(source, "v1", target, ["v1"], on_event=events)
    shared = {model.blobs[0].digest, model.blobs[-1].digest, model.manifests[1].digest}
    assert set(events.of(Skipped)) == shared
    assert set(target.written) == {node.digest for node in model.nodes} - shared | {"v1"}
    assert set(events.of(Started)) == set(events.of(Copied)) == set(target.written) - {"v1"}


def test_a_copy_that_is_there_costs_nothing(model: Artifact, source: Recording) -> None:
    target = Recording()
    copy(source, "v1", target, ["v1"])
    source.read.clear()
    events = Events()
    copy(source, "v1", target, ["v2"], on_event=events)
    assert events.all == [Planned((model.root,)), Skipped(model.root)]
    assert source.read == []
    assert list(target.tags()) == ["v1", "v2"]


def test_a_part_of_the_graph(model: Artifact, source: Recording) -> None:
    wanted = model.blobs[2]
    target = Recording()
    copy(source, "v1", target, successors=lambda _, node: [wanted] if node == source.resolve("v1") else [])
    assert target.written == [wanted.digest, model.root.digest]


def test_by_digest_and_without_a_tag(model: Artifact, source: Recording) -> None:
    target = MemoryStore()
    assert copy(source, model.root.digest, target).digest == model.root.digest
    assert list(target.tags()) == []


def test_a_reference_that_is_not_there(model: Artifact, source: Recording) -> None:
    with pytest.raises(NotFound, match=r"^source: 'v9' is not in") as caught:
        copy(source, "v9", MemoryStore(), retry=EAGER)
    assert caught.value.side == "source"


# --- hooks and the check


def test_hooks(model: Artifact, source: Recording) -> None:
    target = Recording()
    calls: list[tuple[str, str]] = []
    copy(
        source,
        "v1",
        target,
        before=lambda node: calls.append(("before", node.digest)),
        after=lambda node: calls.append(("after" if target.exists(node) else "early", node.digest)),
        workers=1,
    )
    expected = [(when, digest) for digest in target.written for when in ("before", "after")]
    assert calls == expected
    calls.clear()
    copy(source, "v1", target, before=lambda node: calls.append(("again", node.digest)))
    assert calls == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_hook_that_refuses_ends_the_copy(model: Artifact, source: Recording, when: str) -> None:
    def refuse(node: Descriptor) -> None:
        if node.digest == model.blobs[2].digest:
            raise AccessDenied("not this one")

    target = Recording()
    with pytest.raises(AccessDenied, match=r"^not this one"):
        copy(source, "v1", target, ["v1"], **{when: refuse})  # type: ignore[arg-type]
    assert not any(target.exists(node) for node in (*model.manifests, model.root))


def test_a_check_that_refuses_comes_before_everything(model: Artifact, source: Recording) -> None:
    def check(fetcher: Fetcher, root: Descriptor) -> None:
        assert root.digest == model.root.digest
        assert read_all(fetcher.fetch(root), root, limit=root.size)
        raise AccessDenied("not signed by anyone")

    target, events = Recording(), Events()
    with pytest.raises(AccessDenied, match="not signed"):
        copy(source, "v1", target, ["v1"], check=check, on_event=events)
    assert (target.written, events.all) == ([], [])
    assert [digest for digest, _ in source.read] == [model.root.digest]


def test_a_check_that_accepts(model: Artifact, source: Recording) -> None:
    seen: list[Descriptor] = []
    copy(source, "v1", MemoryStore(), check=lambda _, root: seen.append(root))
    assert [node.digest for node in seen] == [model.root.digest]


# --- breaks


class Breaking(BytesReader):
    """Gives so many bytes, and breaks."""

    def __init__(self, inner: Reader, count: int, error: TonnageError) -> None:
        super().__init__(b"")
        self._inner = inner
        self._left = count
        self._error = error

    def readinto(self, buffer: memoryview, /) -> int:
        if not self._left:
            raise self._error
        count = self._inner.readinto(buffer[: self._left])
        self._left -= count
        return count


def test_a_stream_that_breaks_goes_on_where_it_broke() -> None:
    counts = iter([1_000_000, 1, 999_999])
    source = Disturbed()
    model = artifact(source)
    big = model.blobs[-1]

    def cut(node: Descriptor, reader: Reader) -> Reader:
        left = next(counts, None) if node.digest == big.digest else None
        return reader if left is None else Breaking(reader, left, Unavailable("the cable was pulled"))

    source.on_read = cut
    target, events = MemoryStore(), Events()
    copy(source, "v1", target, on_event=events, retry=EAGER)
    assert [offset for digest, offset in source.read if digest == big.digest] == [0, 1_000_000, 1_000_001, 2_000_000]
    assert events.moved() == {node.digest: node.size for node in model.nodes if node.size}
    assert [(event.node, str(event.error)) for event in events.retries] == [(big, "the cable was pulled")] * 3


def test_a_stream_that_never_gets_on_is_given_up() -> None:
    source = Disturbed()
    model = artifact(source)
    big = model.blobs[-1].digest
    source.on_read = lambda node, reader: Breaking(reader, 0, Unavailable("dead")) if node.digest == big else reader
    events = Events()
    with pytest.raises(Unavailable, match=r"^source: dead") as caught:
        copy(source, "v1", MemoryStore(), on_event=events, retry=EAGER)
    assert caught.value.side == "source"
    assert len(events.retries) == EAGER.attempts - 1


def test_progress_gives_new_attempts() -> None:
    source = Disturbed()
    model = artifact(source, sizes=(100,))
    blob = model.blobs[-1].digest
    source.on_read = lambda node, reader: Breaking(reader, 1, Unavailable("x")) if node.digest == blob else reader
    events = Events()
    copy(source, "v1", MemoryStore(), on_event=events, retry=EAGER)
    assert len(events.retries) == 100  # one a byte, the last of them after the last byte


class NoRanges:
    """A source that can only be read from the start."""

    def __init__(self, inner: Disturbed) -> None:
        self._inner = inner
        self.resolve = inner.resolve

    def fetch(self, node: Descriptor) -> Reader:
        return self._inner.fetch(node)


def test_a_source_without_ranges_is_read_again() -> None:
    inner = Disturbed()
    model = artifact(inner)
    breaks = iter([2_000_000])

    def cut(node: Descriptor, reader: Reader) -> Reader:
        if node.digest == model.blobs[-1].digest and (left := next(breaks, None)):
            return Breaking(reader, left, Unavailable("x"))
        return reader

    inner.on_read = cut
    target, events = MemoryStore(), Events()
    copy(NoRanges(inner), "v1", target, on_event=events, retry=EAGER)
    assert target.exists(model.root)
    assert events.moved()[model.blobs[-1].digest] == model.blobs[-1].size


def test_a_target_that_fails_is_tried_again(model: Artifact, source: Recording) -> None:
    failures = Counter[str]()

    def fail(node: Descriptor) -> None:
        failures[node.digest] += 1
        if failures[node.digest] <= 2:
            raise Unavailable("the registry restarts")

    target, events = Disturbed(on_push=fail), Events()
    copy(source, "v1", target, ["v1"], on_event=events, retry=EAGER)
    assert events.moved() == {node.digest: node.size for node in model.nodes if node.size}
    assert len(events.retries) == 2 * len(model.nodes)


class HalfTaken(Disturbed):
    """Breaks twice in the middle of each push: once before it asks for the start again, once for good."""

    def __init__(self) -> None:
        super().__init__()
        self.tries = Counter[str]()

    def push(self, node: Descriptor, open: Opener) -> None:
        self.tries[node.digest] += 1
        if self.tries[node.digest] == 1:
            for _ in range(2):
                with closing(open(0)) as reader:
                    reader.readinto(memoryview(bytearray(max(node.size // 2, 1))))
            raise Unavailable("broken pipe")
        if self.tries[node.digest] == 2:
            middle = node.size // 2
            with closing(open(0)) as reader:
                reader.readinto(memoryview(bytearray(max(middle, 1))))
            with closing(open(middle)) as reader:
                reader.readinto(memoryview(bytearray(max(node.size - middle, 1))))
            raise Unavailable("broken pipe")
        super().push(node, open)


def test_what_moved_adds_up_whatever_happened(model: Artifact, source: Recording) -> None:
    events = Events()
    copy(source, "v1", HalfTaken(), on_event=events, retry=EAGER)
    assert events.moved() == {node.digest: node.size for node in model.nodes if node.size}
    assert all(event.count for event in events.all if isinstance(event, Moved))


def test_what_moved_is_taken_back_when_it_fails_for_good(model: Artifact, source: Recording) -> None:
    events = Events()
    with pytest.raises(Unavailable):
        copy(source, "v1", HalfTaken(), on_event=events, retry=NO_RETRY)
    assert set(events.moved().values()) <= {0}


class Parts(Disturbed):
    """Takes a blob in two requests, as a resumed upload does."""

    def push(self, node: Descriptor, open: Opener) -> None:
        middle = node.size // 2
        with closing(open(0)) as reader:
            assert reader.readinto(memoryview(bytearray(middle))) == middle
        with closing(open(middle)) as reader:
            assert reader.readinto(memoryview(bytearray(node.size))) == node.size - middle


def test_an_upload_that_is_resumed_counts_once() -> None:
    source = Recording()
    model = artifact(source, sizes=(1000,))
    events = Events()
    node = model.blobs[-1]
    copy(source, "v1", Parts(), on_event=events, successors=lambda _, at: [node] if at.is_manifest else [])
    assert events.moved()[node.digest] == 1000


def test_a_server_is_given_the_time_it_asks_for(model: Artifact, source: Recording) -> None:
    slept: list[float] = []
    asked = iter([7.5])

    def busy(node: Descriptor) -> None:
        if (seconds := next(asked, None)) is not None:
            raise TooManyRequests("slow down", retry_after=seconds)

    copy(source, "v1", Disturbed(on_push=busy), retry=Retry(sleep=slept.append), workers=1)
    assert slept == [7.5]


def test_resolving_and_tagging_are_tried_again(model: Artifact, source: Recording) -> None:
    class Shaky(Recording):
        failures = 0

        def resolve(self, reference: str) -> Descriptor:
            self.shake()
            return super().resolve(reference)

        def tag(self, node: Descriptor, reference: str) -> None:
            self.shake()
            super().tag(node, reference)

        def exists(self, node: Descriptor) -> bool:
            self.shake()
            return super().exists(node)

        def shake(self) -> None:
            self.failures += 1
            if self.failures % 2:
                raise Unavailable("try again")

    origin, target = Shaky(), Shaky()
    copy(source, "v1", origin, ["v1"], retry=EAGER, workers=1)
    copy(origin, "v1", target, ["v1"], retry=EAGER, workers=1)
    assert list(target.tags()) == ["v1"]


@pytest.mark.parametrize("error", [AccessDenied("no"), NotFound("no"), IntegrityError("no")])
def test_what_trying_again_does_not_help_is_not_tried_again(
    model: Artifact, source: Recording, error: TonnageError
) -> None:
    calls = Counter[str]()

    def refuse(node: Descriptor) -> None:
        calls[node.digest] += 1
        raise error

    events = Events()
    with pytest.raises(type(error)) as caught:
        copy(source, "v1", Disturbed(on_push=refuse), on_event=events, retry=EAGER)
    assert caught.value is error
    assert caught.value.side == "target"
    assert set(calls.values()) == {1}
    assert events.retries == []


def test_a_source_that_gave_up_is_not_tried_again_for_the_target() -> None:
    opened = Counter[str]()
    source = Disturbed()
    model = artifact(source)

    def dead(node: Descriptor, reader: Reader) -> Reader:
        opened[node.digest] += 1
        return reader if node.is_manifest else Breaking(reader, 0, Unavailable("dead"))

    source.on_read = dead
    with pytest.raises(Unavailable):
        copy(source, "v1", MemoryStore(), retry=EAGER, workers=1)
    assert opened[model.blobs[-1].digest] == EAGER.attempts


def test_damage_in_the_source_is_seen_by_the_target() -> None:
    source = Disturbed()
    model = artifact(source)
    big = model.blobs[-1]
    source.on_read = lambda node, reader: BytesReader(bytes(big.size)) if node.digest == big.digest else reader
    target = MemoryStore()
    with pytest.raises(DigestMismatch, match=big.digest):
        copy(source, "v1", target, ["v1"], retry=EAGER)
    assert not target.exists(big)
    assert not target.exists(model.root)


# --- ends


def test_the_first_failure_stops_the_others() -> None:
    """Others: one in the middle of a stream, one waiting to try again, and some that have not begun."""
    source = Disturbed()
    model = artifact(source, sizes=(100, 200_000, 300_000, *range(1, 20)))
    failing, waiting, streaming = (
        next(node.digest for node in model.blobs if node.size == size) for size in (100, 200_000, 300_000)
    )
    streams, waits = threading.Event(), threading.Event()

    class Endless(BytesReader):
        def readinto(self, buffer: memoryview, /) -> int:
            streams.set()
            buffer[:1] = b"x"
            return 1

    def disturb(node: Descriptor, reader: Reader) -> Reader:
        if node.digest == streaming:
            return Endless(b"")
        return Breaking(reader, 0, Unavailable("later")) if node.digest == waiting else reader

    def refuse(node: Descriptor) -> None:
        if node.digest == failing:
            assert streams.wait(20)
            assert waits.wait(20)
            raise AccessDenied("the original error")

    def note(event: Event) -> None:
        if isinstance(event, Retrying):
            waits.set()

    source.on_read = disturb
    target = Disturbed(on_push=refuse)
    with pytest.raises(AccessDenied, match=r"^target: the original error"):
        copy(source, "v1", target, ["v1"], workers=3, on_event=note, retry=Retry(base=1e6, limit=1e6))
    assert not any(target.exists(node) for node in (*model.manifests, model.root))
    assert threads() == []


def test_ctrl_c_ends_a_copy_that_is_stuck(model: Artifact, source: Recording) -> None:
    stuck = threading.Event()
    main = threading.main_thread().ident
    assert main is not None
    first = iter([main])

    def hang(node: Descriptor) -> None:
        for thread in first:
            signal.pthread_kill(thread, signal.SIGINT)
        stuck.wait(60)

    target = Disturbed(on_push=hang)
    with pytest.raises(KeyboardInterrupt):
        copy(source, "v1", target, ["v1"], workers=1)
    assert threads() != []  # it did not wait for them
    stuck.set()
    for thread in threads():
        thread.join(20)
    assert target.written == []


def test_an_error_of_a_listener_is_not_hidden(model: Artifact, source: Recording) -> None:
    def broken(event: Event) -> None:
        if isinstance(event, Started):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        copy(source, "v1", MemoryStore(), on_event=broken)
    assert threads() == []


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("copy")]
