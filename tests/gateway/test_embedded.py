"""llama.cpp in its child process: which file it takes, what it says when it cannot, and how it comes back."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from support.models import small_model
from tonnage.errors import EngineError, Unavailable, UsageError
from tonnage.gateway.engines import embedded
from tonnage.gateway.engines.embedded import EmbeddedEngine, find_gguf, pause_after
from tonnage.gateway.engines.engine import Timeouts
from tonnage.gateway.engines.http import HttpEngine

CHAT = "/v1/chat/completions"
TIMEOUTS = Timeouts(silence=60)
PATIENCE = 60.0


def gguf(folder: Path, *names: str) -> None:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"GGUF and more")


def engine_of(path: Path, **options: object) -> EmbeddedEngine:
    return EmbeddedEngine(path, model="smollm2", context=2048, threads=1, **options)  # type: ignore[arg-type]


class TestWhichFile:
    @pytest.mark.parametrize(
        ("names", "found"),
        [
            (["model.gguf"], "model.gguf"),
            (["deep/er/model.gguf", "README.md"], "deep/er/model.gguf"),
            (["m-00002-of-00002.gguf", "m-00001-of-00002.gguf"], "m-00001-of-00002.gguf"),
            (["model.gguf", "mmproj-model.gguf", ".hidden.gguf"], "model.gguf"),
        ],
    )
    def test_found(self, tmp_path: Path, names: list[str], found: str) -> None:
        gguf(tmp_path, *names)
        assert find_gguf(tmp_path) == tmp_path / found
        assert find_gguf(tmp_path / found) == tmp_path / found

    @pytest.mark.parametrize(
        ("names", "says"),
        [
            ([], r"holds no \.gguf file"),
            (["model.safetensors"], r"holds no \.gguf file"),
            (["a.gguf", "b.gguf"], r"holds 2 models: a\.gguf, b\.gguf"),
            (["m-00002-of-00002.gguf"], r"holds no \.gguf file"),
        ],
    )
    def test_not_found(self, tmp_path: Path, names: list[str], says: str) -> None:
        gguf(tmp_path, *names)
        with pytest.raises(EngineError, match=says):
            find_gguf(tmp_path)

    def test_wrong_files(self, tmp_path: Path) -> None:
        with pytest.raises(EngineError, match="No such file"):
            find_gguf(tmp_path / "absent.gguf")
        (tmp_path / "x.gguf").write_bytes(b"PK")
        with pytest.raises(EngineError, match="not a GGUF file"):
            find_gguf(tmp_path / "x.gguf")
        gguf(tmp_path, "m-00002-of-00003.gguf")
        with pytest.raises(EngineError, match="part 2 of 3"):
            find_gguf(tmp_path / "m-00002-of-00003.gguf")

    @pytest.mark.parametrize("options", [{"context": 0}, {"slots": 0}, {"threads": -1}])
    def test_options_out_of_range(self, tmp_path: Path, options: dict[str, int]) -> None:
        with pytest.raises(UsageError, match="out of range"):
            EmbeddedEngine(tmp_path, model="m", **options)  # type: ignore[arg-type]


def test_pauses_double_up_to_a_limit() -> None:
    assert [pause_after(failures) for failures in (1, 2, 3, 6, 7, 1000)] == [0.5, 1, 2, 16, 30, 30]


def test_without_llama_cpp_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf(tmp_path, "model.gguf")
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "xllamacpp.py").write_text("raise ImportError('No module named xllamacpp')")
    monkeypatch.setenv("PYTHONPATH", str(shadow))
    with pytest.raises(EngineError, match=r"cannot load llama.cpp: No module.*pip install tonnage\[engine\]"):
        asyncio.run(engine_of(tmp_path).start())


@pytest.mark.engine
class TestBrokenModels:
    def test_rubbish(self, tmp_path: Path) -> None:
        small_model()
        gguf(tmp_path, "model.gguf")
        with pytest.raises(EngineError, match=r"cannot load the model .*model\.gguf: ") as caught:
            asyncio.run(engine_of(tmp_path).start())
        assert "\n" not in str(caught.value)

    def test_cut_short(self, tmp_path: Path) -> None:
        with find_gguf(small_model()).open("rb") as whole:
            (tmp_path / "model.gguf").write_bytes(whole.read(8 << 20))
        with pytest.raises(EngineError, match="corrupted or incomplete"):
            asyncio.run(engine_of(tmp_path).start())


@asynccontextmanager
async def running(engine: EmbeddedEngine) -> AsyncIterator[EmbeddedEngine]:
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def say(engine: EmbeddedEngine) -> int:
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}).encode()
    async with engine.open(CHAT, body, headers={}, timeouts=TIMEOUTS) as answer:
        await answer.read()
        return answer.status


@pytest.fixture
def empty_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model for a child without llama.cpp, which says a lot on standard error before it says that it is up."""
    script = tmp_path / "child.py"
    script.write_text(
        "import sys\n"
        "sys.stdin.readline()\n"
        "sys.stderr.write('loading...\\n' * 100_000)\n"
        "sys.stderr.flush()\n"
        'print(\'{"url": "http://127.0.0.1:1"}\', flush=True)\n'
        "sys.stdin.read()\n"
    )
    monkeypatch.setattr(embedded, "_CHILD", script)
    gguf(tmp_path, "model.gguf")
    return tmp_path / "model.gguf"


class Closed(io.BytesIO):
    """A sink that has taken nothing since it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.close()


class TestTheKeeper:
    def test_outlives_a_log_file_that_cannot_be_opened(self, empty_child: Path, tmp_path: Path) -> None:
        async def main() -> None:
            pauses: list[int] = []
            logs = tmp_path / "logs"
            logs.mkdir()

            def pause(failures: int) -> float:
                pauses.append(failures)
                return 0

            async with running(engine_of(empty_child, log_file=logs / "engine.log", pause=pause)) as engine:
                assert engine.pid
                logs.rename(tmp_path / "away")
                os.kill(engine.pid, signal.SIGKILL)
                await until(lambda: len(pauses) >= 3)
                assert "cannot be restarted: cannot write" in (await engine.health(TIMEOUTS)).reason
                (tmp_path / "away").rename(logs)
                await until(lambda: engine.pid is not None)
            assert pauses[:3] == [1, 2, 3]

        asyncio.run(main())

    def test_outlives_what_nobody_foresaw(
        self, empty_child: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def main() -> None:
            async with running(engine_of(empty_child, pause=lambda _: 0.01)) as engine:
                assert engine.pid
                assert engine._child
                with monkeypatch.context() as broken:
                    broken.setattr(engine, "_sinks", fail)
                    broken.setattr(engine._child, "stop", fail)
                    left, first = engine._child, engine.pid
                    os.kill(first, signal.SIGKILL)
                    await until(lambda: "cannot be restarted: nobody foresaw this" in engine._trouble)
                await left.stop()
                await until(lambda: engine.pid not in (None, first))

        def fail() -> None:
            raise RuntimeError("nobody foresaw this")

        asyncio.run(main())
        assert "left something behind" in caplog.text
        assert "Traceback" in caplog.text


class TestMessages:
    def test_a_full_disk_does_not_block_the_child(self, empty_child: Path, caplog: pytest.LogCaptureFixture) -> None:
        async def main() -> None:
            async with running(engine_of(empty_child, log_file=Path("/dev/full"), start_timeout=PATIENCE)) as engine:
                assert engine.pid

        asyncio.run(main())
        assert caplog.text.count("No space left on device") == 1

    def test_a_sink_that_fails_is_dropped_and_the_others_are_not(self) -> None:
        async def main() -> None:
            stream = asyncio.StreamReader()
            stream.feed_data(b"one two")
            stream.feed_eof()
            with io.BytesIO() as sound:
                messages = embedded._Messages([Closed(), sound])
                await messages.read_from(stream)
                assert sound.getvalue() == b"one two"
                messages.close()

        asyncio.run(main())


@pytest.mark.engine
class TestTheChild:
    def test_is_started_again_when_it_dies(self) -> None:
        async def main() -> None:
            may_restart = asyncio.Event()
            pauses: list[int] = []

            def pause(failures: int) -> float:
                pauses.append(failures)
                return 0 if may_restart.is_set() else 3600

            async with running(engine_of(small_model(), pause=pause)) as engine:
                first = engine.pid
                assert first
                os.kill(first, signal.SIGKILL)
                await until(lambda: engine.pid is None)
                health = await engine.health(TIMEOUTS)
                assert not health.ready
                assert "ended with status -9" in health.reason
                with pytest.raises(Unavailable, match="is being restarted"):
                    await say(engine)
            may_restart.set()
            async with running(engine) as again:
                first = again.pid
                assert first
                os.kill(first, signal.SIGKILL)
                await until(lambda: again.pid not in (None, first))
                assert (await again.health(TIMEOUTS)).ready
                assert await say(again) == 200
            assert pauses == [1, 1]
            assert not (await engine.health(TIMEOUTS)).ready

        asyncio.run(main())

    def test_a_model_that_is_gone_is_tried_again_and_again(self, tmp_path: Path) -> None:
        async def main() -> None:
            file = tmp_path / "model.gguf"
            shutil.copyfile(find_gguf(small_model()), file)
            pauses: list[int] = []

            def pause(failures: int) -> float:
                pauses.append(failures)
                return 0

            async with running(engine_of(file, pause=pause)) as engine:
                assert engine.pid
                file.rename(tmp_path / "away")
                os.kill(engine.pid, signal.SIGKILL)
                await until(lambda: len(pauses) >= 3)
                assert "cannot be restarted" in (await engine.health(TIMEOUTS)).reason
                (tmp_path / "away").rename(file)
                await until(lambda: engine.pid is not None)
                assert await say(engine) == 200
            assert pauses[:3] == [1, 2, 3]

        asyncio.run(main())

    def test_ends_with_its_parent(self) -> None:
        code = (
            "import asyncio, sys\n"
            "from tonnage.gateway.engines.embedded import EmbeddedEngine\n"
            "async def main():\n"
            f"    engine = EmbeddedEngine({str(small_model())!r}, model='m', context=512, threads=1)\n"
            "    await engine.start()\n"
            "    print(engine.pid, flush=True)\n"
            "    await asyncio.Event().wait()\n"
            "asyncio.run(main())\n"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            child = int(parent.stdout.readline())
            watch = os.pidfd_open(child)
            parent.kill()
        try:

            async def main() -> None:
                ended = asyncio.Event()
                asyncio.get_running_loop().add_reader(watch, ended.set)
                await asyncio.wait_for(ended.wait(), PATIENCE)
                asyncio.get_running_loop().remove_reader(watch)

            asyncio.run(main())
        finally:
            os.close(watch)

    def test_only_the_gateway_may_ask_it(self) -> None:
        async def main() -> None:
            async with running(engine_of(small_model())) as engine:
                assert engine._child
                stranger = HttpEngine(engine._child.http.url, models=["m"])
                await stranger.start()
                async with stranger.open(CHAT, b'{"messages":[]}', headers={}, timeouts=TIMEOUTS) as answer:
                    assert answer.status == 401
                await stranger.stop()

        asyncio.run(main())

    def test_leaving_an_answer_frees_its_slot(self) -> None:
        async def busy(engine: EmbeddedEngine) -> int:
            assert engine._child
            http = engine._child.http
            assert http._fresh
            async with http._fresh.get(http._url("/slots")) as response:
                return sum(slot["is_processing"] for slot in json.loads(await response.read()))

        async def main() -> None:
            body = json.dumps(
                {
                    "messages": [{"role": "user", "content": "Tell a long story"}],
                    "stream": True,
                    "max_tokens": 1900,
                    "ignore_eos": True,
                }
            ).encode()
            async with running(engine_of(small_model())) as engine:
                async with engine.open(CHAT, body, headers={}, timeouts=TIMEOUTS) as answer:
                    async for _ in answer.chunks():
                        break
                    assert await busy(engine) == 1
                async with asyncio.timeout(PATIENCE / 6):
                    while await busy(engine):
                        pass

        asyncio.run(main())

    def test_its_messages_go_to_the_log_file(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with running(engine_of(small_model(), log_file=tmp_path / "engine.log")):
                pass

        asyncio.run(main())
        assert "load_model" in (tmp_path / "engine.log").read_text()
