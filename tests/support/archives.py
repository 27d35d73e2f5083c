"""Tars made by hand, honest and hostile, and artifacts in memory that hold them."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tonnage.content.descriptor import Descriptor
from tonnage.content.mediatype import OCI_EMPTY, OCI_IMAGE_CONFIG, OCI_LAYER_TAR, OCI_MANIFEST, ORAS_UNPACK, TITLE
from tonnage.content.verify import opener
from tonnage.pack.artifact import ModelArtifact, read_artifact
from tonnage.stores.memory import MemoryStore

END = bytes(1024)


def header(
    name: str | bytes = "", size: int = 0, kind: bytes = b"0", link: str | bytes = "", mode: int = 0o644
) -> bytes:
    """A ustar header block, with whatever is asked for and a right checksum.

    Args:
        name: of the entry; `bytes` as they are.
        size: bytes of data; base-256 if it is negative or has more than eleven octal digits.
        kind: the type flag.
        link: the link target.
        mode: permission bits.
    """
    block = bytearray(512)

    def put(start: int, data: bytes) -> None:
        block[start : start + len(data)] = data

    put(0, _bytes(name)[:100])
    put(100, b"%07o\0" % mode)
    put(108, b"%07o\0" % 0)
    put(116, b"%07o\0" % 0)
    put(124, b"%011o\0" % size if 0 <= size < 8**11 else _base256(size))
    put(136, b"%011o\0" % 0)
    put(156, kind)
    put(157, _bytes(link)[:100])
    put(257, b"ustar\x0000")
    return checksummed(bytes(block))


def checksummed(block: bytes) -> bytes:
    """The block with the checksum that it needs."""
    blank = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(blank) + block[156:]


def entry(
    name: str | bytes, data: bytes = b"", *, pax: Mapping[str, str | bytes] | None = None, **fields: Any
) -> bytes:
    """A whole entry: PAX records if there are some, header, data, padding."""
    head = pax_header(b"".join(record(key, value) for key, value in pax.items())) if pax else b""
    return head + header(name, fields.pop("size", len(data)), **fields) + padded(data)


def pax_header(records: bytes, kind: bytes = b"x", size: int | None = None) -> bytes:
    """An extended header with these records."""
    return header("pax", len(records) if size is None else size, kind) + padded(records)


def record(key: str, value: str | bytes) -> bytes:
    """One PAX record."""
    rest = b" " + key.encode() + b"=" + _bytes(value) + b"\n"
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length).encode() + rest


def long_name(name: str | bytes, kind: bytes = b"L") -> bytes:
    """A GNU long name (or, for kind `K`, link) that precedes an entry."""
    data = _bytes(name) + b"\0"
    return header("././@LongLink", len(data), kind) + padded(data)


def padded(data: bytes) -> bytes:
    """The data, up to a block's end."""
    return data + bytes(-len(data) % 512)


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def _base256(size: int) -> bytes:
    return bytes(tarfile.itn(size, 12, tarfile.GNU_FORMAT))  # type: ignore[attr-defined]


class Shelf:
    """A store in memory into which a test puts artifacts by hand."""

    def __init__(self) -> None:
        self.store = MemoryStore()

    def blob(self, data: bytes, media_type: str = OCI_LAYER_TAR, **fields: Any) -> Descriptor:
        """Put some bytes, as whatever they shall be."""
        node = Descriptor.of(data, media_type, **fields)
        self.store.push(node, opener(data))
        return node

    def manifest(self, config: Descriptor, layers: Sequence[Descriptor], **fields: Any) -> Descriptor:
        """Put a manifest."""
        obj = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config.to_dict(),
            "layers": [layer.to_dict() for layer in layers],
            **fields,
        }
        return self.blob(json.dumps(obj).encode(), OCI_MANIFEST)

    def image(self, *layers: tuple[bytes, str, bytes]) -> ModelArtifact:
        """An image whose layers are (blob, suffix of the media type, uncompressed content)."""
        nodes = [self.blob(data, OCI_LAYER_TAR + suffix) for data, suffix, _ in layers]
        diff_ids = [f"sha256:{hashlib.sha256(content).hexdigest()}" for _, _, content in layers]
        config = self.blob(json.dumps({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode(), OCI_IMAGE_CONFIG)
        return read_artifact(self.store, self.manifest(config, nodes))

    def tars(self, *layers: bytes) -> ModelArtifact:
        """An image of uncompressed layers."""
        return self.image(*((layer, "", layer) for layer in layers))

    def folder(self, data: bytes, suffix: str) -> ModelArtifact:
        """What ORAS pushes: one folder as one compressed archive, of whose content no digest is given."""
        node = self.blob(data, OCI_LAYER_TAR + suffix, annotations={TITLE: "folder", ORAS_UNPACK: "true"})
        return read_artifact(self.store, self.manifest(self.blob(b"{}", OCI_EMPTY), [node], artifactType="a/x"))

    def files(self, *files: tuple[str, bytes]) -> ModelArtifact:
        """What ORAS pushes: each (name, content) a layer as it is."""
        nodes = [self.blob(data, OCI_LAYER_TAR, annotations={TITLE: name}) for name, data in files]
        config = self.blob(b"{}", OCI_EMPTY)
        return read_artifact(self.store, self.manifest(config, nodes, artifactType="application/x"))


def contents(folder: Path) -> dict[str, bytes]:
    """Path to content of every file of a pulled folder but its record."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".tonnage.json"
    }
