"""The command line: which commands there are, and what becomes of their errors."""

from __future__ import annotations

import os
import sys

import typer
from rich.console import Console

from tonnage.cli import chat, cp, inspect, pack, pull, push, registry, serve, version
from tonnage.cli.output import plain
from tonnage.errors import LocalError, TonnageError

EXIT_CODES = """Exit codes: 0 done; 1 other error; 2 wrong usage; 3 local file or disk; 4 not found; 5 access denied;
6 unavailable; 7 damaged content; 8 malformed or unsafe content; 9 refused by the registry; 10 engine failed;
130 interrupted."""

app = typer.Typer(
    name="tonnage",
    help="Delivers LLM weights to private clouds as OCI artifacts, and serves them there.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
for command in (pack.pack, push.push, pull.pull, cp.cp, inspect.inspect, serve.serve, chat.chat, version.version):
    app.command(epilog=EXIT_CODES)(command)
app.add_typer(registry.app, name="registry")


def main() -> None:
    """Run the command line and exit with its code."""
    code = 0
    try:
        app()
    except TonnageError as error:
        code = _report(error)
    except BrokenPipeError:
        # Whoever read our output has seen enough; do not fail again when Python flushes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        code = _report(LocalError(f"{error.filename or 'the system'}: {error.strerror or error}"))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
    if code == 130:
        # Threads may be waiting for the network; nothing they hold needs saving.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _report(error: TonnageError) -> int:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]tonnage:[/] {plain(str(error))}")
    return error.exit_code
