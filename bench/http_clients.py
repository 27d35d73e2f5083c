"""Receiving one blob over HTTP: what each client of Python costs, plain and over TLS.

    make bench, or: python bench/http_clients.py --size 1 --rounds 5 --only raw,stdlib

A server process serves a file in memory; each client is a process of its own, with four workers (threads, or tasks
where it is asynchronous) that ask for 16 MiB ranges in turn over connections they keep, and bring each into a buffer of
the worker's, made before. Nothing is hashed or written, so that the client is what is measured. The first range of
every worker is not timed, and is compared with what it must be. Rounds are interleaved, after one that is not counted.

Server and client share the machine: where there are few cores, a client that needs less processor also leaves more to
the server, as it would to hashing. What matters is the ratio within one run. Clients that are not installed are left
out; bench/requirements.txt pins them.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import importlib
import importlib.util
import json
import os
import re
import resource
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

MIB = 1 << 20
PIECE = MIB
"""Bytes that a client is asked to bring at a time, where it can be asked."""

Get = Callable[[int, memoryview], None]
"""Brings the bytes from an offset on into a buffer, which it fills."""


# The server.


def serve(file: Path, certificate: Path | None) -> None:
    """Serve ranges of `file` until standard input ends; prints the URL."""
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(f"http{'s' if context else ''}://127.0.0.1:{listener.getsockname()[1]}/blob", flush=True)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=answer, args=(connection, file, context), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


def answer(connection: socket.socket, file: Path, context: ssl.SSLContext | None) -> None:
    """Answer one connection's requests; zero-copy where there is no TLS."""
    size = file.stat().st_size
    try:
        if context:
            connection = context.wrap_socket(connection, server_side=True)
        with connection, file.open("rb") as source, connection.makefile("rb") as reader:
            while head := read_head(reader):
                first, last = 0, size - 1
                if found := re.search(rb"(?im)^range:\s*bytes=(\d+)-(\d+)", head):
                    first, last = int(found[1]), int(found[2])
                length = last - first + 1
                connection.sendall(
                    b"HTTP/1.1 206 Partial Content\r\nContent-Type: application/octet-stream\r\n"
                    b'Accept-Ranges: bytes\r\nETag: "blob"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n'
                    b"Content-Range: bytes %d-%d/%d\r\nContent-Length: %d\r\n\r\n" % (first, last, size, length)
                )
                if not head.startswith(b"HEAD "):
                    send(connection, source, first, length, tls=context is not None)
    except (OSError, ValueError):
        return


def read_head(reader: BinaryIO) -> bytes:
    """A request up to its empty line; nothing when the client is done."""
    head = b""
    while (line := reader.readline()) not in (b"", b"\r\n"):
        head += line
    return head


def send(connection: socket.socket, source: BinaryIO, first: int, length: int, *, tls: bool) -> None:
    """Send a part of an open file."""
    if not tls:
        while length:
            sent = os.sendfile(connection.fileno(), source.fileno(), first, length)
            first, length = first + sent, length - sent
        return
    buffer = memoryview(bytearray(256 << 10))
    while length:
        count = os.preadv(source.fileno(), [buffer[: min(len(buffer), length)]], first)
        connection.sendall(buffer[:count])
        first, length = first + count, length - count


# The clients. Each makes what one worker needs; what is shared by workers is made once, in the outer function.


def unverified() -> ssl.SSLContext:
    """TLS without a look at the certificate, which this bench made itself."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def ranged(first: int, length: int) -> dict[str, str]:
    """The header that asks for a range."""
    return {"Range": f"bytes={first}-{first + length - 1}", "Accept-Encoding": "identity"}


def raw(url: str) -> Callable[[], Get]:
    """A socket and nothing else: the limit of what Python can do."""
    parts = urlsplit(url)

    def worker() -> Get:
        connection: socket.socket = socket.create_connection((parts.hostname or "", parts.port or 0))
        if parts.scheme == "https":
            connection = unverified().wrap_socket(connection, server_hostname=parts.hostname)

        def get(first: int, into: memoryview) -> None:
            end = first + len(into) - 1
            connection.sendall(f"GET {parts.path} HTTP/1.1\r\nHost: x\r\nRange: bytes={first}-{end}\r\n\r\n".encode())
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(4096)
            body = head.partition(b"\r\n\r\n")[2]
            into[: len(body)] = body
            left = into[len(body) :]
            while left:
                left = left[connection.recv_into(left, min(len(left), PIECE)) :]

        return get

    return worker


def stdlib(url: str) -> Callable[[], Get]:
    """http.client and `readinto`."""
    parts = urlsplit(url)

    def worker() -> Get:
        connection = (
            http.client.HTTPSConnection(parts.netloc, context=unverified())
            if parts.scheme == "https"
            else http.client.HTTPConnection(parts.netloc)
        )

        def get(first: int, into: memoryview) -> None:
            connection.request("GET", parts.path, headers=ranged(first, len(into)))
            response = connection.getresponse()
            left = into
            while left:
                left = left[response.readinto(left[:PIECE]) :]
            response.read()

        return get

    return worker


def urllib3_read(url: str) -> Callable[[], Get]:
    """urllib3, a MiB at a time."""
    urllib3 = importlib.import_module("urllib3")

    def worker() -> Get:
        pool = urllib3.PoolManager(ssl_context=unverified())

        def get(first: int, into: memoryview) -> None:
            response = pool.request("GET", url, headers=ranged(first, len(into)), preload_content=False)
            fill(into, response.stream(PIECE, decode_content=False))
            response.release_conn()

        return get

    return worker


def requests_with(piece: int) -> Callable[[str], Callable[[], Get]]:
    """requests, `piece` bytes at a time."""

    def client(url: str) -> Callable[[], Get]:
        requests = importlib.import_module("requests")
        urllib3 = importlib.import_module("urllib3")
        urllib3.disable_warnings()

        def worker() -> Get:
            session = requests.Session()
            session.trust_env, session.verify = False, False

            def get(first: int, into: memoryview) -> None:
                with session.get(url, headers=ranged(first, len(into)), stream=True) as response:
                    fill(into, response.iter_content(piece))

            return get

        return worker

    return client


def httpx_like(name: str) -> Callable[[str], Callable[[], Get]]:
    """httpx, or its fork httpx2, by raw pieces of whatever size comes."""

    def client(url: str) -> Callable[[], Get]:
        module = importlib.import_module(name)

        def worker() -> Get:
            session = module.Client(verify=unverified(), trust_env=False, timeout=60)

            def get(first: int, into: memoryview) -> None:
                with session.stream("GET", url, headers=ranged(first, len(into))) as response:
                    fill(into, response.iter_raw())

            return get

        return worker

    return client


def obstore_get(url: str) -> Callable[[], Get]:
    """obstore: Rust's object_store; a whole range comes as one buffer, which is copied."""
    obstore = importlib.import_module("obstore.store")
    parts = urlsplit(url)
    store = obstore.HTTPStore.from_url(
        f"{parts.scheme}://{parts.netloc}",
        client_options={"allow_http": True, "allow_invalid_certificates": True},
    )

    def worker() -> Get:
        def get(first: int, into: memoryview) -> None:
            into[:] = memoryview(store.get_range(parts.path.lstrip("/"), start=first, length=len(into)))

        return get

    return worker


def pycurl_write(url: str) -> Callable[[], Get]:
    """pycurl: libcurl, which calls back with pieces."""
    pycurl = importlib.import_module("pycurl")

    def worker() -> Get:
        curl = pycurl.Curl()
        for option, value in (
            (pycurl.URL, url),
            (pycurl.SSL_VERIFYPEER, 0),
            (pycurl.SSL_VERIFYHOST, 0),
            (pycurl.BUFFERSIZE, 512 << 10),
            (pycurl.NOSIGNAL, 1),
        ):
            curl.setopt(option, value)

        def get(first: int, into: memoryview) -> None:
            done = 0

            def write(piece: bytes) -> None:
                nonlocal done
                into[done : done + len(piece)] = piece
                done += len(piece)

            curl.setopt(pycurl.RANGE, f"{first}-{first + len(into) - 1}")
            curl.setopt(pycurl.WRITEFUNCTION, write)
            curl.perform()

        return get

    return worker


def fill(into: memoryview, pieces: Iterator[bytes]) -> None:
    """Copy pieces into a buffer."""
    done = 0
    for piece in pieces:
        into[done : done + len(piece)] = piece
        done += len(piece)


THREADED: dict[str, tuple[str, Callable[[str], Callable[[], Get]]]] = {
    "raw": ("raw socket, recv_into", raw),
    "stdlib": ("http.client, readinto", stdlib),
    "urllib3": ("urllib3, stream(1 MiB)", urllib3_read),
    "requests-8k": ("requests, iter_content(8192)", requests_with(8192)),
    "requests-1m": ("requests, iter_content(1 MiB)", requests_with(PIECE)),
    "httpx": ("httpx, iter_raw", httpx_like("httpx")),
    "httpx2": ("httpx2, iter_raw", httpx_like("httpx2")),
    "obstore": ("obstore, get_range", obstore_get),
    "pycurl": ("pycurl, write function", pycurl_write),
}
ASYNC = {"aiohttp": "aiohttp, iter_any", "aiohttp-uvloop": "aiohttp on uvloop, iter_any"}
LABELS = {name: label for name, (label, _) in THREADED.items()} | ASYNC
MODULES = {"raw": "socket", "stdlib": "http.client", "requests-8k": "requests", "requests-1m": "requests"}
MODULES |= {"aiohttp-uvloop": "uvloop"}


# One measurement, in a process of its own.


def measure(name: str, url: str, size: int, length: int, workers: int) -> dict[str, float]:
    """Seconds, and seconds of processor, to bring `size` bytes."""
    firsts = list(range(0, size, length))
    if name in ASYNC:
        return _measure_async(name, url, firsts, length, workers)
    get_worker = THREADED[name][1](url)
    ready, go = threading.Barrier(workers + 1), threading.Barrier(workers + 1)
    lock, left, failures = threading.Lock(), iter(firsts), list[BaseException]()

    def work(number: int) -> None:
        try:
            buffer = memoryview(bytearray(length))
            get = get_worker()
            get(firsts[number], buffer)
            expect(buffer, number)
            ready.wait()
            go.wait()
            while True:
                with lock:
                    first = next(left, None)
                if first is None:
                    return
                get(first, buffer)
        except BaseException as error:
            failures.append(error)
            ready.abort()
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    ready.wait()
    start, before = time.perf_counter(), processor()
    go.wait()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return {"seconds": time.perf_counter() - start, "cpu": processor() - before}


def _measure_async(name: str, url: str, firsts: list[int], length: int, workers: int) -> dict[str, float]:
    import aiohttp

    async def run() -> dict[str, float]:
        connector = aiohttp.TCPConnector(limit=workers, ssl=unverified())
        async with aiohttp.ClientSession(connector=connector, read_bufsize=PIECE, auto_decompress=False) as session:

            async def get(first: int, into: memoryview) -> None:
                done = 0
                async with session.get(url, headers=ranged(first, len(into))) as response:
                    async for piece in response.content.iter_any():
                        into[done : done + len(piece)] = piece
                        done += len(piece)

            buffers = [memoryview(bytearray(length)) for _ in range(workers)]
            await gather(get(firsts[number], buffer) for number, buffer in enumerate(buffers))
            for number, buffer in enumerate(buffers):
                expect(buffer, number)
            left = iter(firsts)

            async def work(buffer: memoryview) -> None:
                for first in left:
                    await get(first, buffer)

            start, before = time.perf_counter(), processor()
            await gather(work(buffer) for buffer in buffers)
            return {"seconds": time.perf_counter() - start, "cpu": processor() - before}

    async def gather(tasks: Iterator[Awaitable[None]]) -> None:
        await asyncio.gather(*tasks)

    if name == "aiohttp-uvloop":
        uvloop = importlib.import_module("uvloop")
        return dict(uvloop.run(run()))
    return asyncio.run(run())


def processor() -> float:
    """Seconds of processor that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def block(number: int, length: int) -> bytes:
    """What range `number` of the blob holds."""
    return number.to_bytes(8, "big") * (length // 8)


def expect(buffer: memoryview, number: int) -> None:
    """A client that brings wrong bytes is not measured."""
    if bytes(buffer) != block(number, len(buffer)):
        raise ValueError(f"range {number} is not what the server holds")


# All of them.


def compare(options: argparse.Namespace) -> None:
    """Run the rounds, and print the tables."""
    names = [name for name in (options.only.split(",") if options.only else LABELS) if installed(name)]
    size, length = int(options.size * 1024) * MIB, options.range * MIB
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="bench-http-") as folder:
        file, certificate = Path(folder) / "blob", Path(folder) / "server.pem"
        with file.open("wb") as blob:
            for number in range(size // length):
                blob.write(block(number, length))
        make_certificate(certificate)
        print(
            f"{options.size:g} GiB in {options.range} MiB ranges, {options.workers} workers, {options.rounds} rounds,"
        )
        print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, load {os.getloadavg()[0]:.1f} at the start\n")
        for title, pem in (("plain", None), ("TLS", certificate)):
            if options.over not in (None, title.lower()):
                continue
            with server(file, pem) as url:
                found = rounds(names, url, options)
            table(title, size, found)
        print(f"load {os.getloadavg()[0]:.1f} at the end")


def installed(name: str) -> bool:
    """Whether a client can be measured here."""
    return importlib.util.find_spec(MODULES.get(name, name)) is not None


def rounds(names: list[str], url: str, options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Every client in turn, again and again; the first round is not counted."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(options.rounds + 1):
        for name in names:
            command = [sys.executable, __file__, "--client", name, "--url", url, "--size", str(options.size)]
            command += ["--range", str(options.range), "--workers", str(options.workers)]
            ran = subprocess.run(command, capture_output=True, check=True, timeout=600, text=True)
            if number:
                found[name].append(json.loads(ran.stdout))
        print(f"round {number} of {options.rounds}: load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    return found


def table(title: str, size: int, found: dict[str, list[dict[str, float]]]) -> None:
    """Print medians."""
    middle = {name: statistics.median(one["seconds"] for one in taken) for name, taken in found.items()}
    ours = middle.get("stdlib")
    print(f"| {title} | MiB/s, median | slowest to fastest | time / http.client | client's CPU, s |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, taken in found.items():
        speeds = sorted(size / MIB / one["seconds"] for one in taken)
        ratio = f"{middle[name] / ours:.2f}" if ours else ""
        cpu = statistics.median(one["cpu"] for one in taken)
        speed = size / MIB / middle[name]
        print(f"| {LABELS[name]} | {speed:.0f} | {speeds[0]:.0f} to {speeds[-1]:.0f} | {ratio} | {cpu:.2f} |")
    print(flush=True)


@contextmanager
def server(file: Path, certificate: Path | None) -> Iterator[str]:
    """A server process; gives its URL."""
    command = [sys.executable, __file__, "--serve", str(file)]
    if certificate:
        command += ["--certificate", str(certificate)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


def make_certificate(path: Path) -> None:
    """Write a key and its self-signed certificate."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    key, certificate = path.with_suffix(".key"), path.with_suffix(".crt")
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    path.write_bytes(key.read_bytes() + certificate.read_bytes())


def main() -> None:
    """Be the server, one client, or the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=float, default=1.0, help="GiB to bring (default: 1)")
    parser.add_argument("--range", type=int, default=16, help="MiB of one range (default: 16)")
    parser.add_argument("--workers", type=int, default=4, help="concurrent ranges (default: 4)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default: 5)")
    parser.add_argument("--dir", default="/dev/shm", help="a folder on tmpfs (default: /dev/shm)")
    parser.add_argument("--only", help=f"some of {','.join(LABELS)}")
    parser.add_argument("--over", choices=("plain", "tls"), help="only one of the two (default: both)")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--certificate", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.certificate)
    elif options.client:
        size, length = int(options.size * 1024) * MIB, options.range * MIB
        print(json.dumps(measure(options.client, options.url, size, length, options.workers)))
    else:
        compare(options)


if __name__ == "__main__":
    main()
