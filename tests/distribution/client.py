"""A plain client of a registry, which shows what was answered and hides nothing."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
EMPTY = b"{}"


def digest(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def codes(self) -> list[str]:
        assert self.headers["Content-Type"].startswith("application/json")
        return [error["code"] for error in self.json["errors"]]


class Client:
    def __init__(self, host: str) -> None:
        self.host = host

    def __call__(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        connection = http.client.HTTPConnection(self.host, timeout=20)
        try:
            connection.request(method, path, body=body, headers=dict(headers or {}))
            reply = connection.getresponse()
            return Reply(reply.status, reply.headers, reply.read())
        finally:
            connection.close()

    def start(self, name: str) -> str:
        reply = self("POST", f"/v2/{name}/blobs/uploads/")
        assert reply.status == 202
        return reply.headers["Location"]

    def blob(self, name: str, data: bytes) -> str:
        reply = self("PUT", f"{self.start(name)}?digest={digest(data)}", data)
        assert reply.status == 201, reply.body
        return digest(data)

    def manifest(self, name: str, reference: str, **fields: Any) -> tuple[Reply, bytes]:
        """Push a manifest with an empty config and no layers, if `fields` say nothing else."""
        self.blob(name, EMPTY)
        raw = manifest(**fields)
        return self("PUT", f"/v2/{name}/manifests/{reference}", raw, {"Content-Type": OCI_MANIFEST}), raw

    def until(self, path: str, holds: Callable[[Reply], bool]) -> Reply:
        """Ask until the answer is as expected: for what the server notices in its own time."""
        for _ in range(20_000):
            reply = self("GET", path)
            if holds(reply):
                return reply
        raise AssertionError(f"{path} stays {reply.status} {dict(reply.headers)}")

    def broken(self, method: str, path: str, *, length: int, sent: bytes) -> socket.socket:
        """Begin a request of `length` bytes, send only some; the caller breaks the connection."""
        host, port = self.host.split(":")
        connection = socket.create_connection((host, int(port)), timeout=20)
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode() + sent)
        return connection


def describe(data: bytes, media_type: str = "application/octet-stream") -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data)}


def manifest(**fields: Any) -> bytes:
    config = describe(EMPTY, "application/vnd.oci.empty.v1+json")
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [], **fields}
    return json.dumps(document, indent=1).encode()
