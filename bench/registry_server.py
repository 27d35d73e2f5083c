"""Serving and receiving one blob: our registry beside Debian's `docker-registry` (distribution), on one machine.

    python bench/registry_server.py --size 1 --rounds 5

Every server is a process of its own over a folder in memory (`--dir`, a tmpfs), so that the figures are those of the
servers and not of a disk. Readers are another process with four threads, which ask for 16 MiB ranges in turn and read
them into one buffer each; they hash nothing, so that they are not what is measured. Rounds are interleaved, after one
that is not counted, and medians are printed: what matters is the ratio within one run.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import http.client
import importlib.util
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

MIB = 1 << 20
NAME = "bench/model"
ASYNCIO, UVLOOP, PEER = "tonnage, asyncio", "tonnage, uvloop", "docker-registry"


def main() -> None:
    """Run what the arguments ask for."""
    options = _options()
    if options.serve:
        _serve(options.serve, Path(options.root), options.port)
        return
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="bench-registry-") as folder:
        _measure(Path(folder), options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=float, default=1.0, help="GiB of the blob (default: 1)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default: 5)")
    parser.add_argument("--readers", type=int, default=4, help="concurrent readers (default: 4)")
    parser.add_argument("--range", type=int, default=16, help="MiB of one range (default: 16)")
    parser.add_argument("--dir", default="/dev/shm", help="a folder on tmpfs (default: /dev/shm)")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(folder: Path, options: argparse.Namespace) -> None:
    size = int(options.size * 1024) * MIB
    source = folder / "source"
    digest = _fill(source, size)
    names = [ASYNCIO]
    if importlib.util.find_spec("uvloop"):
        names.append(UVLOOP)
    if shutil.which("docker-registry"):
        names.append(PEER)
    sent: dict[str, list[float]] = {name: [] for name in names}
    received: dict[str, list[float]] = {name: [] for name in names}
    for number in range(options.rounds + 1):
        for name in names:
            root = folder / "root"
            with _server(name, root) as port:
                up = _apart(_upload, port, source, size, digest)
                down = _apart(_download, port, digest, size, options.readers, options.range * MIB)
            shutil.rmtree(root)
            if number:
                sent[name].append(size / MIB / down)
                received[name].append(size / MIB / up)
    print(f"{size / MIB:.0f} MiB, {options.rounds} rounds, {options.readers} readers of {options.range} MiB ranges")
    _table("serving", sent)
    _table("receiving one PUT", received)


def _table(title: str, figures: dict[str, list[float]]) -> None:
    against = statistics.median(figures.get(PEER, figures[ASYNCIO]))
    print(f"\n{title:<20}{'median MiB/s':>14}{'lowest':>10}{'highest':>10}{'ratio':>8}")
    for name, values in figures.items():
        middle = statistics.median(values)
        print(f"{name:<20}{middle:>14.0f}{min(values):>10.0f}{max(values):>10.0f}{middle / against:>8.2f}")


def _fill(path: Path, size: int) -> str:
    state, block = hashlib.sha256(), os.urandom(MIB)
    with path.open("wb") as file:
        for number in range(size // MIB):
            part = number.to_bytes(8, "big") + block[8:]
            file.write(part)
            state.update(part)
    return f"sha256:{state.hexdigest()}"


@contextmanager
def _server(name: str, root: Path) -> Iterator[int]:
    root.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    if name == PEER:
        config = root / "config.yml"
        config.write_text(
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {root}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
        )
        command = ["docker-registry", "serve", str(config)]
    else:
        command = [sys.executable, __file__, "--serve", name, "--root", str(root), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await(port)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _serve(name: str, root: Path, port: int) -> None:
    from aiohttp import web

    from tonnage.distribution.app import create_app

    loop = asyncio.new_event_loop()
    if name == UVLOOP:
        import uvloop

        loop = uvloop.new_event_loop()
    web.run_app(create_app(root), host="127.0.0.1", port=port, access_log=None, print=lambda *_: None, loop=loop)


def _await(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise SystemExit("the server did not start")


def _apart(work: Callable[..., float], *arguments: object) -> float:
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def _upload(port: int, source: Path, size: int, digest: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, blocksize=MIB)
    connection.request("POST", f"/v2/{NAME}/blobs/uploads/")
    reply = connection.getresponse()
    reply.read()
    location = reply.headers["Location"]
    joined = f"{location}{'&' if '?' in location else '?'}digest={digest}"
    started = time.perf_counter()
    connection.putrequest("PUT", joined.partition(f"127.0.0.1:{port}")[2] or joined)
    connection.putheader("Content-Length", str(size))
    connection.endheaders()
    with source.open("rb") as file:
        connection.sock.sendfile(file)
    reply = connection.getresponse()
    reply.read()
    took = time.perf_counter() - started
    if reply.status != 201:
        raise SystemExit(f"upload refused: {reply.status}")
    return took


def _download(port: int, digest: str, size: int, readers: int, length: int) -> float:
    offsets = iter(range(0, size, length))
    lock = threading.Lock()
    errors: list[str] = []

    def read() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        buffer = memoryview(bytearray(length))
        while True:
            with lock:
                offset = next(offsets, None)
            if offset is None:
                break
            count = min(length, size - offset)
            headers = {"Range": f"bytes={offset}-{offset + count - 1}"}
            connection.request("GET", f"/v2/{NAME}/blobs/{digest}", headers=headers)
            reply = connection.getresponse()
            got = 0
            while got < count and (part := reply.readinto(buffer[got:count])):
                got += part
            reply.read()
            if reply.status != 206 or got != count:
                errors.append(f"range refused: {reply.status}, {got} of {count} bytes")
        connection.close()

    started = time.perf_counter()
    threads = [threading.Thread(target=read) for _ in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - started
    if errors:
        raise SystemExit(errors[0])
    return took


if __name__ == "__main__":
    main()
