"""Small weight files, made by hand from the two formats' own documents."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

GGUF_TYPES = {"u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"), "i32": (5, "i")}
GGUF_TYPES |= {"f32": (6, "f"), "bool": (7, "?"), "u64": (10, "Q"), "i64": (11, "q"), "f64": (12, "d")}
STRING, ARRAY = 8, 9


def gguf_text(text: str | bytes) -> bytes:
    """A string: its length, then its bytes."""
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def gguf_value(value: Any) -> bytes:
    """A value behind its type: a string, a bool, a whole number, a list of them, or ("u8", 3) for a certain type."""
    if isinstance(value, str | bytes):
        return struct.pack("<I", STRING) + gguf_text(value)
    if isinstance(value, list):
        items = [gguf_value(item) for item in value]
        kind = items[0][:4] if items else struct.pack("<I", STRING)
        return struct.pack("<I", ARRAY) + kind + struct.pack("<Q", len(items)) + b"".join(item[4:] for item in items)
    name, number = value if isinstance(value, tuple) else ("bool" if isinstance(value, bool) else "u32", value)
    code, form = GGUF_TYPES[name]
    return struct.pack(f"<I{form}", code, number)


def gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Sequence[int]] | None = None, *, version: int = 3) -> bytes:
    """A whole GGUF file: F32 tensors of the given shapes, filled with zeros (ggml-org/ggml, docs/gguf.md)."""
    tensors = tensors or {}
    head = struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(metadata))
    head += b"".join(gguf_text(key) + gguf_value(value) for key, value in metadata.items())
    offset = 0
    for name, shape in tensors.items():
        head += gguf_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset)
        size = 4
        for length in shape:
            size *= length
        offset += size + -size % 32
    return head + bytes(-len(head) % 32) + bytes(offset)


def safetensors(
    tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str] | None = None, *, itemsize: int = 2
) -> bytes:
    """A whole safetensors file of zeros: name to (dtype, shape)."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        size = itemsize
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(offset)
