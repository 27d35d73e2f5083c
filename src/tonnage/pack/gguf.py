"""Reads the header of a GGUF file (ggml-org/ggml, docs/gguf.md): its metadata, and how many weights it has."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from tonnage.errors import InvalidContent

MAX_STRING = 64 << 20
MAX_ITEMS = 16_000_000

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS",
    20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M",
    28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
}  # fmt: skip
"""`general.file_type` (llama.cpp, enum llama_ftype)."""


@dataclass(frozen=True)
class GgufHeader:
    """What the header of a GGUF file says.

    Args:
        metadata: key to scalar or string; arrays are left out.
        parameters: number of weights in all tensors.
    """

    metadata: Mapping[str, Any]
    parameters: int

    def text(self, key: str) -> str | None:
        """The string under a key, if there is one."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) and value else None


def read_header(file: BinaryIO) -> GgufHeader:
    """Read the header from the start of a file.

    Raises:
        InvalidContent: it is not GGUF version 2 or 3, or is damaged.
    """
    try:
        return _read(file)
    except (struct.error, UnicodeDecodeError, OverflowError) as error:
        raise InvalidContent(f"the GGUF header is damaged: {error}") from error


def _read(file: BinaryIO) -> GgufHeader:
    magic, version, tensors, pairs = _unpack(file, "4sIQQ")
    if magic != b"GGUF" or version not in (2, 3):
        raise InvalidContent("this is not a GGUF file of version 2 or 3")
    if max(tensors, pairs) > MAX_ITEMS:
        raise InvalidContent("the GGUF header claims more entries than any model has")
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key = _string(file)
        (kind,) = _unpack(file, "I")
        if kind == _ARRAY:
            _skip_array(file)
        else:
            metadata[key] = _scalar(file, kind)
    parameters = 0
    for _ in range(tensors):
        _string(file)
        (dimensions,) = _unpack(file, "I")
        if dimensions > 8:
            raise InvalidContent("the GGUF header is damaged: a tensor with more than 8 dimensions")
        parameters += math.prod(_unpack(file, f"{dimensions}Q"))
        _unpack(file, "IQ")
    return GgufHeader(metadata, parameters)


def _scalar(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind not in _SCALARS:
        raise InvalidContent(f"the GGUF header is damaged: value type {kind}")
    return _unpack(file, _SCALARS[kind])[0]


def _skip_array(file: BinaryIO) -> None:
    kind, count = _unpack(file, "IQ")
    if count > MAX_ITEMS:
        raise InvalidContent("the GGUF header claims an array longer than any model has")
    if kind in _SCALARS:
        file.seek(count * struct.calcsize(_SCALARS[kind]), 1)
        return
    for _ in range(count):
        _scalar(file, kind)


def _string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "Q")
    if length > MAX_STRING:
        raise InvalidContent("the GGUF header claims a string longer than any model has")
    return _exactly(file, length).decode()


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack("<" + form, _exactly(file, struct.calcsize("<" + form)))


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise InvalidContent("the GGUF header is damaged: it ends early")
    return data
