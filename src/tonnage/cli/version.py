"""`tonnage version`."""

from __future__ import annotations

import platform

import tonnage
from tonnage.cli.output import Json, Output


def version(json: Json = False) -> None:
    """Print the version."""
    output = Output(json=json)
    output.result(
        {"version": tonnage.__version__, "python": platform.python_version()},
        lambda console: console.print(f"tonnage {tonnage.__version__}"),
    )
