"""Reads the header of a safetensors file (huggingface/safetensors, README "Format"): dtypes and number of weights."""

from __future__ import annotations

import math
import struct
from collections import Counter
from typing import Annotated, BinaryIO

import msgspec

from tonnage.content.descriptor import MAX_SIZE
from tonnage.content.manifest import JSON_ERRORS
from tonnage.errors import InvalidContent

MAX_HEADER = 100_000_000
"""Bytes; the limit of the reference implementation."""

DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3",
    "F8_E5M2": "float8_e5m2", "C64": "complex64", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""safetensors names to ModelPack's names of a precision."""


_Length = Annotated[int, msgspec.Meta(ge=0, le=MAX_SIZE)]


class _Tensor(msgspec.Struct):
    dtype: str
    shape: Annotated[list[_Length], msgspec.Meta(max_length=16)]


def count_weights(file: BinaryIO) -> Counter[str]:
    """Number of weights by ModelPack precision, from the header at the start of a file.

    Raises:
        InvalidContent: it is not safetensors, or is damaged.
    """
    try:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MAX_HEADER:
            raise InvalidContent(f"the safetensors header claims {length} bytes")
        header = file.read(length)
        if len(header) < length:
            raise InvalidContent("the safetensors header is damaged: it ends early")
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        weights: Counter[str] = Counter()
        for raw in entries.values():
            tensor = msgspec.json.decode(raw, type=_Tensor)
            weights[DTYPES.get(tensor.dtype, tensor.dtype.lower())] += math.prod(tensor.shape)
    except (struct.error, *JSON_ERRORS) as error:
        raise InvalidContent(f"the safetensors header is damaged: {error}") from error
    return weights
