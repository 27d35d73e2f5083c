"""What a model's own files say about it: the `descriptor` and `config` of a ModelPack configuration.

Only the files speak, never the folder's name, the user or the clock: the same files give the same configuration.
A header that cannot be read is not an error here: the model is delivered as it is, and described by the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, TypeVar

import msgspec

from tonnage.content.manifest import JSON_ERRORS
from tonnage.errors import InvalidContent, LocalError
from tonnage.pack.files import ModelFile
from tonnage.pack.gguf import FILE_TYPES, read_header
from tonnage.pack.safetensors import DTYPES, count_weights

MAX_CONFIG = 4 << 20
"""Bytes of a `config.json` worth reading."""

PRECISIONS = frozenset(DTYPES.values()) | {"complex32", "complex128"}
"""What ModelPack's schema allows."""

_GGUF_PRECISIONS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_T = TypeVar("_T")


def describe(files: Sequence[ModelFile]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `descriptor` and the `config` objects (ModelPack model-spec, docs/config.md); unknown fields are left out."""
    descriptor: dict[str, Any] = {}
    config: dict[str, Any] = {}
    for reader in (_from_config_json, _from_safetensors, _from_gguf):
        reader(files, descriptor, config)
    return descriptor, config


def parameter_size(count: int) -> str:
    """A number of weights as ModelPack writes it, such as `134.5M`.

    >>> parameter_size(7_241_732_096)
    '7.2B'
    """
    for unit, letter in ((10**15, "Q"), (10**12, "T"), (10**9, "B"), (10**6, "M")):
        # Judged as the smaller unit would round it: 999,999,999 is 1B, not 1000M.
        if round(count / (unit // 1000), 1) >= 1000:
            return f"{count / unit:.1f}".removesuffix(".0") + letter
    return f"{count / 1000:.1f}".removesuffix(".0") + "K"


def _from_config_json(files: Sequence[ModelFile], descriptor: dict[str, Any], config: dict[str, Any]) -> None:
    found = next((file for file in files if file.path == "config.json" and file.size <= MAX_CONFIG), None)
    if found is None:
        return
    obj = _read(found, lambda file: msgspec.json.decode(file.read(MAX_CONFIG)))
    if not isinstance(obj, dict):
        return
    _set(config, "architecture", obj.get("model_type"))
    _set(descriptor, "family", obj.get("model_type"))
    dtype = obj.get("dtype", obj.get("torch_dtype"))
    if isinstance(dtype, str) and dtype in PRECISIONS:
        config["precision"] = dtype
    quantization = obj.get("quantization_config")
    if isinstance(quantization, Mapping):
        _set(config, "quantization", quantization.get("quant_method"))


def _from_safetensors(files: Sequence[ModelFile], _: dict[str, Any], config: dict[str, Any]) -> None:
    weights: Counter[str] = Counter()
    for file in files:
        if file.path.endswith(".safetensors"):
            weights += _read(file, count_weights) or Counter()
    if not weights:
        return
    config["format"] = "safetensors"
    config["paramSize"] = parameter_size(weights.total())
    known = [name for name, _ in weights.most_common() if name in PRECISIONS]
    if known:
        config["precision"] = ",".join(known)


def _from_gguf(files: Sequence[ModelFile], descriptor: dict[str, Any], config: dict[str, Any]) -> None:
    headers = [header for file in files if file.path.endswith(".gguf") and (header := _read(file, read_header))]
    # A vision projector stands beside the model it belongs to, and says nothing of it.
    headers = [header for header in headers if header.text("general.architecture") != "clip"] or headers
    if not headers or "format" in config:
        return
    first = headers[0]
    config["format"] = "gguf"
    if parameters := sum(header.parameters for header in headers):
        config["paramSize"] = parameter_size(parameters)
    _set(config, "architecture", first.text("general.architecture"))
    _set(descriptor, "family", first.text("general.architecture"))
    _set(descriptor, "name", first.text("general.name"))
    _set(descriptor, "vendor", first.text("general.organization"))
    _set(descriptor, "version", first.text("general.version"))
    _set(descriptor, "description", first.text("general.description"))
    _set(descriptor, "sourceURL", first.text("general.source.url"))
    if licence := first.text("general.license"):
        descriptor["licenses"] = [licence]
    kind = FILE_TYPES.get(first.metadata.get("general.file_type", -1))
    if kind in _GGUF_PRECISIONS:
        config["precision"] = _GGUF_PRECISIONS[kind]
    elif kind:
        config["quantization"] = kind


def _set(obj: dict[str, Any], key: str, value: object) -> None:
    if isinstance(value, str) and value:
        obj[key] = value


def _read(file: ModelFile, parse: Callable[[BinaryIO], _T]) -> _T | None:
    try:
        with file.source.open("rb") as stream:
            return parse(stream)
    except OSError as error:
        raise LocalError.from_os(error, "read", file.source) from error
    except (InvalidContent, *JSON_ERRORS):
        return None
