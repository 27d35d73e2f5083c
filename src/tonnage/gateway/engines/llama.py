"""The child process of the embedded engine: llama.cpp's own HTTP server, and nothing of Tonnage.

Run as a file, by `engines/embedded.py`. It reads one JSON object, its settings, from standard input; it writes one JSON
object, `{"url": ...}` or `{"error": ...}`, to standard output; it ends when standard input ends, which is when its
parent does. llama.cpp holds the interpreter lock while it loads a model, so until then only the kernel can end it
(`PR_SET_PDEATHSIG`).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

PR_SET_PDEATHSIG = 1
"""prctl(2)."""


def main() -> None:
    """Serve until standard input ends."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # What llama.cpp prints must not look like our answer.
    die_with_parent()
    try:
        import xllamacpp  # noqa: F401
    except ImportError as error:
        tell(channel, error=f"cannot load llama.cpp: {error}", missing=True)
        return
    try:
        server = start(json.loads(sys.stdin.readline()))
    except Exception as error:
        tell(channel, error=str(error) or type(error).__name__)
        return
    tell(channel, url=server.listening_address)
    sys.stdin.read()
    # Destructors would wait for generations under way, which nobody reads any more.
    os._exit(0)


def start(settings: Mapping[str, Any]) -> Any:
    """Load the model and listen on a free loopback port.

    Args:
        settings: `path`, `name`, `key`, `context` (tokens a conversation), `slots`, `threads`, `verbosity`.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["path"]
    params.model_alias = {settings["name"]}
    params.api_keys = [settings["key"]]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = settings["slots"]
    params.n_ctx = settings["context"] * settings["slots"]
    params.cpuparams.n_threads = settings["threads"]
    params.cpuparams_batch.n_threads = settings["threads"]
    params.use_jinja = True
    params.ui = False
    params.verbosity = settings["verbosity"]
    return xllamacpp.Server(params)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def tell(channel: Any, **message: object) -> None:
    """Answer the parent."""
    channel.write(json.dumps(message) + "\n")
    channel.flush()


if __name__ == "__main__":
    main()
