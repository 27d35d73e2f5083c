"""What commands print: prose and progress to standard error, results to standard output, never mixed."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from tonnage.errors import TonnageError, UsageError
from tonnage.transfer.events import Event, Moved, Planned, Retrying, Skipped

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, to standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no prose; errors only.")]

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
    "ti": 1 << 40,
}
_WIDTH = 1000
_LINE_INTERVAL = 5.0
"""Seconds between lines of progress where there is no terminal."""


class Output:
    """One command's way to speak.

    Args:
        json: results as JSON.
        quiet: no prose, no progress.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self.err = Console(stderr=True, highlight=False, soft_wrap=True)
        # A digest that is cut off is of no use: lines may be longer than the terminal is wide.
        self.out = Console(highlight=False, soft_wrap=True, width=_WIDTH)

    def say(self, text: str) -> None:
        """Tell the user something in passing."""
        if not self.quiet:
            self.err.print(plain(text))

    def warn(self, text: str) -> None:
        """Tell the user something that should not be missed."""
        self.err.print(f"[yellow]warning:[/] {plain(text)}")

    def retrying(self, error: TonnageError, delay: float) -> None:
        """Tell the user that something failed and is tried again, in so many seconds."""
        self.say(f"{error.message}; trying again in {delay:.1f} s")

    def result(self, data: Mapping[str, Any], prose: Callable[[Console], None]) -> None:
        """The command's result: `data` as one line of JSON, or what `prose` prints."""
        if self.json:
            sys.stdout.write(msgspec.json.encode(data, enc_hook=str).decode() + "\n")
            sys.stdout.flush()
        elif not self.quiet:
            prose(self.out)

    def progress(self, doing: str) -> Transfer:
        """Shows a transfer while a `with` block runs."""
        return Transfer(self, doing)


class Transfer(AbstractContextManager["Transfer"]):
    """Progress of a copy: give `on_event` to it, or `add` to whatever counts bytes.

    Attributes:
        total: bytes of content that the copy is about.
        moved: bytes that were read from the source.
        skipped: bytes that the target had.
        seconds: how long it took, once it is over.
    """

    def __init__(self, output: Output, doing: str, total: int = 0) -> None:
        self.total = total
        self.moved = 0
        self.skipped = 0
        self.seconds = 0.0
        self._output = output
        self._doing = doing
        self._lock = threading.Lock()
        self._start = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Transfer:
        self._start = self._last_line = time.monotonic()
        if not self._output.quiet and self._output.err.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[amount]}"),
                TimeRemainingColumn(),
                console=self._output.err,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._doing, total=self.total or None, amount="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.monotonic() - self._start
        if self._bar is not None:
            self._bar.stop()

    def on_event(self, event: Event) -> None:
        """Take note of an event of a copy."""
        match event:
            case Planned(nodes):
                self.total = sum(node.size for node in nodes)
            case Skipped(node):
                with self._lock:
                    self.skipped += node.size
                self._show()
            case Moved(_, count):
                self.add(count)
            case Retrying(_, error, delay):
                self._output.retrying(error, delay)
            case _:
                pass

    def add(self, count: int) -> None:
        """Take note of bytes that were read; from any thread."""
        with self._lock:
            self.moved += count
        self._show()

    def summary(self) -> dict[str, Any]:
        """For a command's JSON."""
        return {"bytes": self.total, "moved": self.moved, "skipped": self.skipped, "seconds": round(self.seconds, 3)}

    def __str__(self) -> str:
        rate = f", {size(self.moved / self.seconds)}/s" if self.seconds else ""
        there = f", {size(self.skipped)} were there" if self.skipped else ""
        if not self.moved:
            return "it was there already"
        return f"{size(self.moved)} moved in {self.seconds:.1f} s{rate}{there}"

    def _show(self) -> None:
        done = self.moved + self.skipped
        elapsed = time.monotonic() - self._start
        amount = size(done) + (f" of {size(self.total)}" if self.total else "")
        amount += f", {size(self.moved / elapsed if elapsed else 0)}/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self.total or None, amount=amount)
        elif not self._output.quiet and time.monotonic() - self._last_line >= _LINE_INTERVAL:
            self._last_line = time.monotonic()
            left = f", {(self.total - done) * elapsed / self.moved:.0f} s left" if self.total and self.moved else ""
            self._output.say(f"{self._doing}: {amount}{left}")


def plain(text: str) -> str:
    """One line, as markup: names and messages that others chose get no say over the terminal."""
    return escape("".join(letter if letter.isprintable() else " " for letter in text))


def size(count: float) -> str:
    """A number of bytes for people.

    >>> size(98_362_432)
    '93.8 MiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def parse_size(text: str) -> int:
    """Bytes, from `4GiB`, `9.5GB`, `512M` or a plain number.

    Raises:
        UsageError: it is not a size.
    """
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([kmgt]?i?)b?", text.strip().lower())
    if not match or match[2] == "i":
        raise UsageError(f"{text!r} is not a size", hint="write it like 4GiB or 9.5GB")
    return int(float(match[1]) * _UNITS[match[2]])
