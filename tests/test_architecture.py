"""The arrows between packages, and the tables that must say what the code does."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import tonnage.errors
from tonnage.cli.main import EXIT_CODES
from tonnage.errors import TonnageError

ROOT = Path(__file__).parents[1]


def test_the_arrows_point_one_way() -> None:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 broken" in done.stdout


def test_every_package_has_a_layer() -> None:
    import tomllib

    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    named = {name.strip(" ()") for layer in layers for name in layer.split("|")}
    package = ROOT / "src" / "tonnage"
    found = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()} - {
        "__init__",
        "__main__",
    }
    assert found <= named


def errors() -> dict[str, type[TonnageError]]:
    return {
        name: kind
        for name, kind in vars(tonnage.errors).items()
        if inspect.isclass(kind) and issubclass(kind, TonnageError)
    }


def test_the_tree_of_errors_is_drawn() -> None:
    """Each line of the drawing names a class, below the one that it derives from, with its exit code if it has one."""
    drawn: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (tonnage.errors.__doc__ or "").splitlines():
        found = re.match(r"    (?P<branch>[|' -]*)(?P<name>[A-Z]\w+)(?:\s+(?:exit code )?(?P<code>\d+))?", line)
        if not found:
            continue
        depth, name, code = len(found["branch"]), found["name"], found["code"]
        above = [entry for entry in above if entry[0] < depth]
        drawn[name] = above[-1][1] if above else ""
        above.append((depth, name))
        if code:
            assert errors()[name].exit_code == int(code), name
        else:
            assert errors()[name].exit_code == errors()[drawn[name]].exit_code, name
    bases = {name: kind.__base__.__name__ if kind is not TonnageError else "" for name, kind in errors().items()}  # type: ignore[union-attr]
    assert drawn == bases


def test_the_help_names_every_exit_code() -> None:
    named = {int(code) for code in re.findall(r"(?:^|[;:] |\n)(\d+) ", EXIT_CODES)}
    assert named == {0, 130} | {kind.exit_code for kind in errors().values()}


def test_errors_say_which_side_failed_and_what_to_do() -> None:
    error = TonnageError("the ship sank", hint="take the train")
    assert str(error) == "the ship sank; take the train"
    error.side = "source"
    assert str(error) == "source: the ship sank; take the train"
    assert str(TonnageError("the ship sank")) == "the ship sank"
