"""The command, as the tests run it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        assert self.out.count("\n") == 1
        assert self.out.endswith("\n")
        return json.loads(self.out)

    @property
    def problem(self) -> str:
        """The one line of an error; nothing else is said."""
        assert self.code != 0
        assert self.out == ""
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("tonnage: "), self.err
        assert "Traceback" not in self.err
        return self.err.removeprefix("tonnage: ").strip()


Tonnage = Callable[..., Done]


def tree(folder: Path) -> dict[str, bytes]:
    """Path to content of every file, without the record of a pull."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".tonnage.json"
    }
