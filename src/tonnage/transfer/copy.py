"""The one verb: copy an artifact from a store to a store. Push, pull, mirror, export and load are this.

The graph below the reference is walked first, which fetches only manifests. Then blobs are copied, several at a time,
largest first; then manifests, each after what it refers to; last the tag. A store therefore never holds a manifest
without its content, and a copy that is interrupted is completed by running it again: what has arrived is skipped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import TypeVar

from tonnage.content import graph
from tonnage.content.descriptor import Descriptor
from tonnage.content.storage import Fetcher, Source, Target
from tonnage.errors import Side
from tonnage.transfer.events import Copied, OnEvent, Planned, Retrying, Skipped, Started
from tonnage.transfer.retry import Retry, Stopped
from tonnage.transfer.source import ManifestCache, SteadyReader

_T = TypeVar("_T")

Hook = Callable[[Descriptor], None]
"""Called for a node; an exception ends the copy."""

WORKERS = 4
"""Blobs copied at a time by default."""


def copy(
    source: Source,
    reference: str,
    target: Target,
    tags: Sequence[str] = (),
    *,
    successors: graph.Successors = graph.successors,
    check: Callable[[Source, Descriptor], None] | None = None,
    before: Hook | None = None,
    after: Hook | None = None,
    on_event: OnEvent = lambda _: None,
    workers: int = WORKERS,
    retry: Retry | None = None,
) -> Descriptor:
    """Copy what `reference` names, and everything below it.

    Args:
        source: the store to read.
        reference: a tag or digest in it.
        target: the store to write.
        tags: names that the copy gets in the target; none to copy by digest only.
        successors: what is below a node; replaced to copy a part of the graph.
        check: called with the source and the root before anything is copied, to refuse it by raising.
        before: called before a node is copied, from the thread that does.
        after: called after a node was copied; not for nodes that were there already (ORAS' PostCopy).
        on_event: told what happens, from several threads.
        workers: blobs copied at a time.
        retry: what is tried again.

    Returns:
        The root: what the reference resolved to.

    Raises:
        TonnageError: with `side` saying which store failed.
    """
    run = _Copy(source, target, before, after, on_event, retry or Retry())
    root = run.on("source", lambda: source.resolve(reference))
    if check is not None:
        run.on("source", partial(check, source, root))
    if run.on("target", lambda: target.exists(root)):
        on_event(Planned((root,)))
        on_event(Skipped(root))
    else:
        nodes = run.on("source", lambda: tuple(graph.walk(run.manifests, root, successors)))
        on_event(Planned(nodes))
        run.blobs([node for node in nodes if not node.is_manifest], workers)
        for node in nodes:
            if node.is_manifest:
                run.node(node)
    for tag in tags:
        run.on("target", partial(target.tag, root, tag))
    return root


class _Copy:
    def __init__(
        self,
        source: Source,
        target: Target,
        before: Hook | None,
        after: Hook | None,
        on_event: OnEvent,
        retry: Retry,
    ) -> None:
        self.manifests = ManifestCache(source)
        self._source = source
        self._target = target
        self._before = before
        self._after = after
        self._on_event = on_event
        self._retry = retry
        self._stop = threading.Event()

    def on(self, side: Side, action: Callable[[], _T], node: Descriptor | None = None) -> _T:
        """Do something with one of the stores, with retries."""
        return self._retry.call(
            side, action, on_retry=lambda error, delay: self._on_event(Retrying(node, error, delay)), stop=self._stop
        )

    def blobs(self, nodes: Sequence[Descriptor], workers: int) -> None:
        """Copy blobs in parallel; the first failure stops the others."""
        if not nodes:
            return
        order = sorted(nodes, key=lambda node: -node.size)
        pool = ThreadPoolExecutor(min(workers, len(order)), thread_name_prefix="copy")
        try:
            futures = [pool.submit(self.node, node) for node in order]
            wait(futures, return_when=FIRST_EXCEPTION)
        except BaseException:
            # Interrupted: whoever does that does not want to wait for a network that may be stuck.
            self._stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        if any(_failed(future) for future in futures):
            self._stop.set()
        pool.shutdown(cancel_futures=self._stop.is_set())
        errors = [error for future in futures if (error := _failed(future))]
        for error in sorted(errors, key=lambda error: isinstance(error, Stopped)):
            raise error

    def node(self, node: Descriptor) -> None:
        """Copy one node, unless the target has it."""
        if self.on("target", lambda: self._target.exists(node)):
            self._on_event(Skipped(node))
            return
        if self._before is not None:
            self._before(node)
        self._on_event(Started(node))
        self.on("target", lambda: self._push(node), node)
        if self._after is not None:
            self._after(node)
        self._on_event(Copied(node))

    def _push(self, node: Descriptor) -> None:
        source: Fetcher = self.manifests if node.is_manifest else self._source
        opened: list[SteadyReader] = []

        def open_at(offset: int) -> SteadyReader:
            rewind(offset)
            opened.append(
                SteadyReader(source, node, offset, retry=self._retry, on_event=self._on_event, stop=self._stop)
            )
            return opened[-1]

        def rewind(offset: int) -> None:
            for reader in opened:
                reader.rewind(offset)

        try:
            self._target.push(node, open_at)
        except BaseException:
            rewind(0)
            raise


def _failed(future: Future[None]) -> BaseException | None:
    return future.exception() if future.done() and not future.cancelled() else None
