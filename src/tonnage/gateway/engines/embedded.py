"""llama.cpp, embedded: one GGUF file, served by a child process that the gateway starts, watches and restarts.

A child, because a model that crashes or runs out of memory must not take the gateway with it. The child listens on a
free loopback port, with a key that only the gateway knows, so what reaches the model went through the gateway.

The first start must succeed: a file that cannot be loaded now will not load later. After that a child that dies is
started again, after a pause that doubles up to `MAX_PAUSE`; meanwhile requests are `Unavailable`, and `health` says
why.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from tonnage.errors import EngineError, LocalError, TonnageError, Unavailable, UsageError
from tonnage.gateway.engines.engine import Answer, Health, Timeouts
from tonnage.gateway.engines.http import HttpEngine

CONTEXT = 8192
"""Tokens of a conversation; each slot reserves memory for as many."""

SLOTS = 2
"""Conversations that are generated at a time; further ones wait in llama.cpp's queue."""

START_TIMEOUT = 600.0
"""Seconds; a file of a hundred gigabytes on a slow disk."""

MAX_PAUSE = 30.0
"""Seconds between two attempts to restart a child that keeps dying."""

STEADY = 60.0
"""Seconds after which a child counts as healthy, and the next pause is the first one again."""

GGUF_MAGIC = b"GGUF"
"""https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "File Structure"."""

_CHILD = Path(__file__).with_name("llama.py")
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf")
_STOP_TIMEOUT = 5.0
_TAIL = 16 << 10
_ERRORS_ONLY = 1
_TALKATIVE = 3

log = logging.getLogger("tonnage.gateway.engine")


def pause_after(failures: int) -> float:
    """Seconds to wait before the next start, after so many failures in a row (1 or more)."""
    return float(min(MAX_PAUSE, 0.5 * 2 ** min(failures - 1, 10)))


def find_gguf(path: Path) -> Path:
    """The GGUF file that `path` is, or holds: the only one, or the first part of the only split one.

    Raises:
        EngineError: there is none, or several; or the file is not in GGUF.
    """
    file = _only_gguf(path) if path.is_dir() else path
    try:
        with file.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise EngineError(f"cannot read the model {file}: {error.strerror}") from error
    if magic != GGUF_MAGIC:
        raise EngineError(f"{file} is not a GGUF file", hint="the embedded engine runs GGUF models only")
    if (part := _SPLIT.search(file.name)) and int(part[1]) != 1:
        raise EngineError(
            f"{file} is part {int(part[1])} of {int(part[2])} of a split model",
            hint="name the folder, or the file that ends in -00001-of-" + part[2] + ".gguf",
        )
    return file


def _only_gguf(folder: Path) -> Path:
    files = sorted(file for file in folder.rglob("*.gguf") if not file.name.startswith("."))
    # Beside a model there may be its image encoder, which is no model on its own.
    models = [file for file in files if not file.name.startswith("mmproj")]
    firsts = [file for file in models if not (part := _SPLIT.search(file.name)) or int(part[1]) == 1]
    if not firsts:
        raise EngineError(f"{folder} holds no .gguf file", hint="the embedded engine runs GGUF models only")
    if len(firsts) > 1:
        names = ", ".join(str(file.relative_to(folder)) for file in firsts[:5])
        raise EngineError(f"{folder} holds {len(firsts)} models: {names}", hint="name the file to serve")
    return firsts[0]


class EmbeddedEngine:
    """Serves a GGUF model with llama.cpp.

    Args:
        path: the file, or a folder that holds one model.
        model: the name that clients ask for.
        name: names the engine in metrics and logs; the model's name unless given.
        context: tokens of a conversation, question and answer together.
        slots: conversations generated at a time.
        threads: threads that compute; the processors that this process may use unless given.
        log_file: where llama.cpp's messages are appended; nowhere unless given.
        verbose: whether they go to standard error too, and all of them instead of errors only.
        start_timeout: seconds within which the model must be loaded.
        pause: seconds before the next start, from the number of failures in a row.

    Raises:
        UsageError: an option is out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        model: str,
        name: str = "",
        context: int = CONTEXT,
        slots: int = SLOTS,
        threads: int | None = None,
        log_file: Path | None = None,
        verbose: bool = False,
        start_timeout: float = START_TIMEOUT,
        pause: Callable[[int], float] = pause_after,
    ) -> None:
        for option, value in (("context", context), ("slots", slots), ("threads", threads)):
            if value is not None and value < 1:
                raise UsageError(f"{option}={value} is out of range", hint="it must be 1 or more")
        self._path = Path(path)
        self._model = model
        self._name = name or model
        self._context = context
        self._slots = slots
        self._threads = threads or _processors()
        self._log_file = log_file
        self._verbose = verbose
        self._start_timeout = start_timeout
        self._pause = pause
        self._child: _Child | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._trouble = "not started"

    @property
    def name(self) -> str:
        """See `Engine.name`."""
        return self._name

    @property
    def models(self) -> Sequence[str]:
        """See `Engine.models`."""
        return (self._model,)

    @property
    def pid(self) -> int | None:
        """The process id of the running child."""
        return self._child.process.pid if self._child else None

    async def start(self) -> None:
        """See `Engine.start`; returns when the model is loaded.

        Raises:
            EngineError: no model there, a broken one, or llama.cpp is not installed.
        """
        if self._keeper is not None:
            return
        file = await asyncio.to_thread(find_gguf, self._path)
        self._child = await self._launch(file)
        self._keeper = asyncio.create_task(self._keep(file), name=f"engine {self._name}")

    async def stop(self) -> None:
        """See `Engine.stop`."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            with suppress(asyncio.CancelledError):
                await keeper
        child, self._child = self._child, None
        self._trouble = "stopped"
        if child is not None:
            await child.stop()

    async def health(self, timeouts: Timeouts) -> Health:
        """See `Engine.health`."""
        child = self._child
        if child is None:
            return Health(ready=False, reason=f"engine {self._name}: {self._trouble}")
        return await child.http.health(timeouts)

    @asynccontextmanager
    async def open(
        self, path: str, body: bytes, *, headers: Mapping[str, str], timeouts: Timeouts
    ) -> AsyncIterator[Answer]:
        """See `Engine.open`."""
        child = self._child
        if child is None:
            raise Unavailable(f"engine {self._name} is not running: {self._trouble}")
        async with child.http.open(path, body, headers=headers, timeouts=timeouts) as answer:
            yield answer

    async def _keep(self, file: Path) -> None:
        """Start the child again whenever it ends; nobody would restart this task, so no error may end it."""
        clock = asyncio.get_running_loop().time
        failures = 0
        while True:
            began = clock()
            if self._child is not None:
                await self._outlive(self._child)
            failures = 1 if clock() - began > STEADY else failures + 1
            await asyncio.sleep(self._pause(failures))
            try:
                self._child = await self._launch(file)
            except TonnageError as error:
                self._trouble = f"it cannot be restarted: {error.message}"
                log.error("engine %s cannot be restarted: %s", self._name, error)
            except Exception as error:
                self._trouble = f"it cannot be restarted: {error or type(error).__name__}"
                log.exception("engine %s cannot be restarted", self._name)
            else:
                log.info("engine %s is running again", self._name)

    async def _outlive(self, child: _Child) -> None:
        """Wait until the child has ended, and clear up after it."""
        status = await child.process.wait()
        self._child = None
        self._trouble = f"it ended with status {status}, and is being restarted"
        log.error("engine %s ended with status %d; restarting it", self._name, status)
        try:
            await child.stop()
        except Exception:
            log.exception("engine %s left something behind", self._name)

    async def _launch(self, file: Path) -> _Child:
        settings = {
            "path": str(file),
            "name": self._model,
            "key": secrets.token_urlsafe(32),
            "context": self._context,
            "slots": self._slots,
            "threads": self._threads,
            "verbosity": _TALKATIVE if self._verbose or self._log_file else _ERRORS_ONLY,
        }
        messages = _Messages(self._sinks())
        try:
            # -P: the folder of the child's file must not be searched for modules, it holds an `http.py`.
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", str(_CHILD), stdin=PIPE, stdout=PIPE, stderr=PIPE
            )
        except OSError as error:
            messages.close()
            raise EngineError(f"cannot start a process for engine {self._name}: {error.strerror}") from error
        reading = asyncio.create_task(messages.read_from(process.stderr), name=f"engine {self._name} messages")
        try:
            url = await self._introduction(process, settings, messages, reading)
            http = HttpEngine(url, models=(self._model,), name=self._name, api_key=str(settings["key"]))
            await http.start()
        except BaseException:
            # While it loads a model it hears nothing, and there is nothing in it to lose.
            if process.returncode is None:
                process.kill()
            await _end(process, reading, messages)
            raise
        return _Child(process, http, reading, messages)

    async def _introduction(
        self, process: Process, settings: Mapping[str, object], messages: _Messages, reading: asyncio.Task[None]
    ) -> str:
        """Give the child its settings, and wait for its address."""
        stdin, stdout = _pipes(process)
        with suppress(ConnectionError):
            stdin.write(msgspec.json.encode(settings) + b"\n")
            await stdin.drain()
        try:
            line = await asyncio.wait_for(stdout.readline(), self._start_timeout)
        except TimeoutError as error:
            raise EngineError(
                f"the model {settings['path']} was not loaded within {self._start_timeout:g} s"
            ) from error
        answer = msgspec.json.decode(line) if line else {}
        if "url" in answer:
            return str(answer["url"])
        await process.wait()
        await reading
        if answer.get("missing"):
            raise EngineError(str(answer["error"]), hint="pip install tonnage[engine]")
        reason = messages.reason() or answer.get("error") or f"llama.cpp ended with status {process.returncode}"
        raise EngineError(f"cannot load the model {settings['path']}: {reason}")

    def _sinks(self) -> list[BinaryIO]:
        sinks: list[BinaryIO] = [sys.stderr.buffer] if self._verbose else []
        if self._log_file is not None:
            try:
                sinks.append(self._log_file.open("ab"))
            except OSError as error:
                raise LocalError(f"cannot write {self._log_file}: {error.strerror}") from error
        return sinks


class _Child:
    """A running llama.cpp."""

    def __init__(self, process: Process, http: HttpEngine, reading: asyncio.Task[None], messages: _Messages) -> None:
        self.process = process
        self.http = http
        self._reading = reading
        self._messages = messages

    async def stop(self) -> None:
        """End it, and wait until it has."""
        await self.http.stop()
        await _end(self.process, self._reading, self._messages)


class _Messages:
    """What llama.cpp says on standard error: passed to the sinks, and the end of it kept."""

    def __init__(self, sinks: Sequence[BinaryIO]) -> None:
        self._sinks = list(sinks)
        self._tail = b""

    async def read_from(self, stream: asyncio.StreamReader | None) -> None:
        """Read until the child closes it, whatever becomes of the sinks: a child that nobody reads from blocks."""
        while stream is not None and (data := await stream.read(1 << 16)):
            self._tail = (self._tail + data)[-_TAIL:]
            for sink in list(self._sinks):
                self._pass(data, sink)

    def reason(self) -> str:
        """The first error about the model, on one line; empty if there is none."""
        found = re.search(r"error loading model: (.+)", self._tail.decode(errors="replace"))
        return found[1].strip() if found else ""

    def close(self) -> None:
        """Close the log file."""
        for sink in self._sinks:
            _close(sink)
        self._sinks.clear()

    def _pass(self, data: bytes, sink: BinaryIO) -> None:
        """Give `data` to a sink; one that takes no more (a full disk, a closed stream) is dropped."""
        try:
            sink.write(data)
            sink.flush()
        except (OSError, ValueError) as error:
            self._sinks.remove(sink)
            _close(sink)
            log.warning("llama.cpp's messages cannot be written any more: %s", error)


def _close(sink: BinaryIO) -> None:
    # Standard error is not ours to close. Closing writes what is left, which fails where writing did.
    if sink is not getattr(sys.stderr, "buffer", None):
        with suppress(OSError, ValueError):
            sink.close()


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


async def _end(process: Process, reading: asyncio.Task[None], messages: _Messages) -> None:
    stdin, _ = _pipes(process)
    stdin.close()
    try:
        await asyncio.wait_for(process.wait(), _STOP_TIMEOUT)
    except TimeoutError:
        process.kill()
        await process.wait()
    await reading
    messages.close()


def _pipes(process: Process) -> tuple[asyncio.StreamWriter, asyncio.StreamReader]:
    if process.stdin is None or process.stdout is None:
        raise EngineError("the engine's process has no pipes")
    return process.stdin, process.stdout
