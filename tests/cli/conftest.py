from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

import tonnage as package
from cli.command import Done, Tonnage
from support.servers import running
from tonnage.cli.main import main
from tonnage.distribution.app import create_app


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No login, no cache and no terminal of whoever runs the tests; subprocesses find the package under test."""
    monkeypatch.setenv("PYTHONPATH", str(Path(package.__file__).parents[1]))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("TONNAGE_CACHE", "TONNAGE_API_KEY", "XDG_CACHE_HOME", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tonnage(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tonnage:
    """Runs the command in this process."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["tonnage", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return Done(int(end.value.code or 0), out, err)

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model: two files of weights, config, a document and code."""
    folder = tmp_path / "model"
    folder.mkdir()
    random = Random(1)
    for number in (1, 2):
        (folder / f"weights-{number}.bin").write_bytes(random.randbytes(100_000))
    (folder / "config.json").write_text('{"model_type": "test"}')
    (folder / "README.md").write_text("# Test\n")
    (folder / "sub").mkdir()
    (folder / "sub" / "modeling.py").write_text("pass\n")
    return folder


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    with running(create_app(tmp_path / "registry")) as host:
        yield host
