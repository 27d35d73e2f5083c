"""The lock files: what they start from is what pyproject.toml says, and they can be carried anywhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "requirements"
LOCKED = ("runtime", "engine", "build", "dev")
LOCKS = sorted([*FOLDER.glob("*.txt"), ROOT / "bench" / "requirements.txt"])
INPUTS = sorted([*FOLDER.glob("*.in"), ROOT / "bench" / "requirements.in"])

_PIN = re.compile(r"^([a-z0-9-]+)==(\S+) \\$", re.MULTILINE)
_ADDRESS = re.compile(r"://|--(?:extra-)?index-url|--find-links|--trusted-host|--no-index|file:|@ ")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def lines(name: str) -> set[str]:
    text = (FOLDER / f"{name}.in").read_text()
    return {line for line in text.splitlines() if line and not line.startswith("#")}


def pins(name: str) -> dict[str, str]:
    return dict(_PIN.findall((FOLDER / f"{name}.txt").read_text()))


def test_runtime_is_what_the_package_depends_on(project: dict[str, Any]) -> None:
    assert lines("runtime") == set(project["project"]["dependencies"])


def test_engine_adds_the_extra(project: dict[str, Any]) -> None:
    extra = project["project"]["optional-dependencies"]["engine"]
    assert lines("engine") == {"-r runtime.in", *extra}


def test_build_is_the_build_system(project: dict[str, Any]) -> None:
    assert lines("build") == {*project["build-system"]["requires"], "editables~=0.3"}


def test_dev_adds_the_groups(project: dict[str, Any]) -> None:
    groups = project["dependency-groups"]
    assert lines("dev") == {"-r engine.in", "-r build.in", *groups["test"], *groups["check"]}


@pytest.mark.parametrize("name", LOCKED)
def test_every_requirement_is_locked_at_a_version_that_satisfies_it(name: str) -> None:
    locked = pins(name)
    for requirement in map(Requirement, (line for line in lines(name) if not line.startswith("-r"))):
        version = locked[requirement.name.lower()]
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement}, locked at {version}"


@pytest.mark.parametrize("name", [name for name in LOCKED if name != "dev"])
def test_what_ships_is_what_was_tested(name: str) -> None:
    assert pins(name).items() <= pins("dev").items()


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_a_lock_names_no_address_and_hashes_everything(path: Path) -> None:
    text = path.read_text()
    assert not _ADDRESS.search(text)
    comments, *entries = re.split(r"^(?=[a-zA-Z])", text, flags=re.MULTILINE)
    assert entries
    assert all(line.startswith("#") for line in comments.splitlines())
    for entry in entries:
        assert re.match(r"[a-z0-9-]+==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", entry), entry[:100]


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.stem)
def test_an_input_names_no_address(path: Path) -> None:
    assert not _ADDRESS.search(path.read_text())
