"""What a model's files say about it, and that a configuration fits ModelPack's schema whatever they say."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

from support.weights import STRING, gguf, gguf_text, gguf_value, safetensors
from tonnage.content.manifest import Manifest, parse
from tonnage.errors import InvalidContent, LocalError
from tonnage.pack.describe import describe, parameter_size
from tonnage.pack.files import scan
from tonnage.pack.gguf import read_header
from tonnage.pack.model import pack
from tonnage.pack.safetensors import MAX_HEADER, count_weights

SCHEMA = Draft202012Validator(
    json.loads(Path(__file__).with_name("modelpack-config-schema.json").read_text()), format_checker=FormatChecker()
)

LLAMA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "Small Model",
    "general.organization": "The Vendor",
    "general.version": "v1.2",
    "general.description": "A model",
    "general.source.url": "https://example.com/m",
    "general.license": "apache-2.0",
    "general.file_type": 15,
    "llama.context_length": 2048,
    "tokenizer.ggml.tokens": ["<s>", "a", "ü"],
    "tokenizer.ggml.scores": [("f32", 0.5), ("f32", 1.5)],
    "tokenizer.ggml.add_bos_token": True,
    "empty.list": [],
    "odd.types": ("i64", -1),
    "odd.float": ("f64", 0.5),
}
TENSORS = {"token_embd.weight": (100, 64), "output_norm.weight": (64,), "scalar": ()}


def described(folder: Path, **files: bytes | str) -> tuple[dict[str, Any], dict[str, Any]]:
    for name, data in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return describe(scan(folder))


# --- GGUF


@pytest.mark.parametrize("version", [2, 3])
def test_gguf_header(version: int) -> None:
    header = read_header(io.BytesIO(gguf(LLAMA, TENSORS, version=version)))
    assert header.parameters == 100 * 64 + 64 + 1
    assert header.text("general.name") == "Small Model"
    assert header.text("general.file_type") is None
    assert header.metadata["llama.context_length"] == 2048
    assert header.metadata["tokenizer.ggml.add_bos_token"] is True
    assert header.metadata["odd.types"] == -1
    assert "tokenizer.ggml.tokens" not in header.metadata


def test_gguf_model(tmp_path: Path) -> None:
    descriptor, config = described(tmp_path, m_gguf=gguf(LLAMA, TENSORS))
    assert descriptor == {
        "family": "llama",
        "name": "Small Model",
        "vendor": "The Vendor",
        "version": "v1.2",
        "description": "A model",
        "sourceURL": "https://example.com/m",
        "licenses": ["apache-2.0"],
    }
    assert config == {"format": "gguf", "paramSize": "6.5K", "architecture": "llama", "quantization": "Q4_K_M"}


@pytest.mark.parametrize(
    ("file_type", "expected"), [(0, "float32"), (1, "float16"), (32, "bfloat16"), (7, None), (9999, None), ("x", None)]
)
def test_gguf_precision(tmp_path: Path, file_type: Any, expected: str | None) -> None:
    _, config = described(tmp_path, m_gguf=gguf({"general.file_type": file_type}, TENSORS))
    assert config.get("precision") == expected
    assert ("quantization" in config) == (file_type == 7)


def test_split_gguf_with_a_projector(tmp_path: Path) -> None:
    parts = {f"m-{number}_gguf": gguf(LLAMA if number == 1 else {}, {"t": (1000,)}) for number in (1, 2, 3)}
    parts["a-mmproj_gguf"] = gguf({"general.architecture": "clip"}, {"t": (9000,)})
    descriptor, config = described(tmp_path, **parts)
    assert (descriptor["name"], config["paramSize"], config["architecture"]) == ("Small Model", "3K", "llama")


def test_gguf_without_tensors_has_no_size(tmp_path: Path) -> None:
    _, config = described(tmp_path, m_gguf=gguf(LLAMA))
    assert "paramSize" not in config


WHOLE = gguf(LLAMA, TENSORS)
HEADER_END = WHOLE.index(b"scalar") + 6 + 4 + 4 + 8


@pytest.mark.parametrize("cut", [0, 3, 4, 8, 23, 24, 30, 100, 200, HEADER_END - 1])
def test_gguf_cut_off(cut: int) -> None:
    with pytest.raises(InvalidContent):
        read_header(io.BytesIO(WHOLE[:cut]))


@pytest.mark.parametrize(
    "data",
    [
        b"GGUX" + WHOLE[4:],
        gguf({}, version=1),
        gguf({}, version=4),
        struct.pack("<4sIQQ", b"GGUF", 3, 1 << 62, 0),
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1 << 62),
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q", 1 << 62),
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + gguf_text("k") + struct.pack("<IQ", STRING, 1 << 62),
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + gguf_text("k") + struct.pack("<IQ", STRING, 60 << 20),
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + gguf_text("k") + struct.pack("<I", 99),
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + gguf_text("k") + struct.pack("<IIQ", 9, 4, 1 << 62),
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + gguf_text("k") + struct.pack("<IIQ", 9, 9, 1),
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + gguf_text("k") + struct.pack("<IIQ", 9, 77, 1),
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + gguf_text(b"\xff\xfe") + gguf_value(1),
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + gguf_text("k") + gguf_value(b"\xff\xfe"),
        struct.pack("<4sIQQ", b"GGUF", 3, 1, 0) + gguf_text("t") + struct.pack("<I", 1 << 31),
    ],
)
def test_damaged_gguf(data: bytes) -> None:
    with pytest.raises(InvalidContent):
        read_header(io.BytesIO(data))


# --- safetensors


def test_safetensors_model(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {
        "model-1_safetensors": safetensors({"a": ("BF16", (1000, 1000)), "b": ("BF16", ())}, {"format": "pt"}),
        "model-2_safetensors": safetensors({"c": ("F32", (300, 1000)), "d": ("F8_E8M0", (5,))}),
        "config_json": json.dumps({"model_type": "llama", "torch_dtype": "float16"}),
    }
    _, config = described(tmp_path, **files)
    assert config == {
        "architecture": "llama",
        "format": "safetensors",
        "paramSize": "1.3M",
        "precision": "bfloat16,float32",
    }


def head(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        head(b"{}", 100),
        head(b"", MAX_HEADER + 1),
        head(b"", (1 << 64) - 1),
        head(b"[]"),
        head(b"\xff"),
        head(b'{"a": 1}'),
        head(b'{"a": {"dtype": "F32"}}'),
        head(b'{"a": {"dtype": "\xff", "shape": []}}'),
        head(b'{"a": {"dtype": "F32", "shape": [-1]}}'),
        head(b'{"a": {"dtype": "F32", "shape": [1.5]}}'),
        head(b'{"a": {"dtype": "F32", "shape": [' + b"9" * 400 + b"]}}"),
        head(b'{"a": {"dtype": "F32", "shape": [' + b",".join([b"9999999999"] * 100_000) + b"]}}"),
        head(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        head(b"[" * 100_000),
    ],
    ids=range(16),
)
def test_damaged_safetensors(data: bytes) -> None:
    with pytest.raises(InvalidContent):
        count_weights(io.BytesIO(data))


# --- config.json and the rest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"model_type": "qwen3", "dtype": "bfloat16"}', {"architecture": "qwen3", "precision": "bfloat16"}),
        ('{"torch_dtype": "float32"}', {"precision": "float32"}),
        ('{"dtype": "auto", "torch_dtype": "float32"}', {}),
        ('{"dtype": {}, "model_type": ["x"], "quantization_config": "x"}', {}),
        ('{"model_type": "", "quantization_config": {"quant_method": "awq"}}', {"quantization": "awq"}),
        ("[1]", {}),
        ("null", {}),
        ("not json", {}),
        ("", {}),
        ("[" * 100_000, {}),
        ('{"a":' * 100_000, {}),
    ],
    ids=range(11),
)
def test_config_json(tmp_path: Path, text: str, expected: dict[str, Any]) -> None:
    _, config = described(tmp_path, config_json=text)
    assert config == expected


@pytest.mark.parametrize("data", [b"\xff\xfe", b'{"model_type": "\xff"}', b'{"model_type": "\\ud800"}'])
def test_config_json_that_is_not_utf8(tmp_path: Path, data: bytes) -> None:
    assert described(tmp_path, config_json=data) == ({}, {})


def test_damaged_files_are_delivered_and_described_by_the_rest(tmp_path: Path) -> None:
    files = {"a_safetensors": b"junk", "b_safetensors": safetensors({"a": ("F16", (2000,))}), "c_gguf": b"junk"}
    _, config = described(tmp_path, config_json='{"model_type": "m"}', **files)
    assert config == {"architecture": "m", "format": "safetensors", "paramSize": "2K", "precision": "float16"}


def test_a_large_config_is_not_read(tmp_path: Path) -> None:
    assert described(tmp_path, config_json=b" " * (4 << 20) + b'{"model_type": "m"}') == ({}, {})


def test_a_file_that_went_away(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    files = scan(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(LocalError):
        describe(files)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0K"),
        (1, "0K"),
        (999, "1K"),
        (1000, "1K"),
        (134_515_008, "134.5M"),
        (6_738_415_616, "6.7B"),
        (999_949_999, "999.9M"),
        (999_999_999, "1B"),
        (70_553_706_496, "70.6B"),
        (1_026_408_232_448, "1T"),
        (10**15, "1Q"),
        (10**120, "1" + "0" * 105 + "Q"),
    ],
)
def test_parameter_size(count: int, text: str) -> None:
    if count < 10**100:
        assert parameter_size(count) == text
    assert re.fullmatch(r"[0-9]+(\.[0-9])?[KMBTQ]", parameter_size(count))


# --- ModelPack's schema


@pytest.mark.parametrize(
    "files",
    [
        {"m.gguf": WHOLE, "README.md": b"hello"},
        {
            "m.safetensors": safetensors({"a": ("BF16", (7, 9)), "b": ("U8", (3,))}),
            "config.json": b'{"model_type":"x"}',
        },
        {"mystery.bin": b"x" * 10},
        {"m.gguf": gguf({"general.name": "", "general.license": "", "general.architecture": "clip"})},
        {"m.safetensors": safetensors({"a": ("NEW_DTYPE", (3,))})},
    ],
    ids=["gguf", "safetensors", "unknown", "empty gguf", "unknown dtype"],
)
def test_the_configuration_is_valid_modelpack(tmp_path: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    artifact = pack(tmp_path).artifact
    manifest = parse(artifact.documents[artifact.modelpack.digest])
    assert isinstance(manifest, Manifest)
    config = json.loads(artifact.documents[manifest.config.digest])
    SCHEMA.validate(config)
    assert config["modelfs"]["diffIds"] == [layer.digest for layer in manifest.layers]


@pytest.mark.parametrize(
    "patch",
    [
        {"extra": 1},
        {"descriptor": {"name": ""}},
        {"descriptor": {"createdBy": "x"}},
        {"config": {"paramSize": "7.25B"}},
        {"config": {"precision": "fp16"}},
        {"config": {"capabilities": {"languages": ["eng"]}}},
        {"modelfs": {"type": "layers", "diffIds": []}},
    ],
)
def test_the_schema_refuses_what_modelpack_does(patch: dict[str, Any]) -> None:
    good = {"descriptor": {}, "config": {}, "modelfs": {"type": "layers", "diffIds": ["sha256:" + "0" * 64]}}
    SCHEMA.validate(good)
    assert not SCHEMA.is_valid({**good, **patch})


# --- hostile headers


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, len(data) - 1))
        data[position : position + draw(st.integers(0, 3))] = draw(st.binary(max_size=8))
    return bytes(data)


SAFE = safetensors({"a": ("F32", (2, 3)), "b": ("BF16", (4,))}, {"format": "pt"})


@given(st.binary(max_size=200) | damaged(WHOLE) | st.binary(max_size=100).map(lambda rest: WHOLE[:24] + rest))
@example(struct.pack("<4sIQQ", b"GGUF", 3, 16_000_000, 16_000_000))
def test_any_bytes_are_gguf_or_refused(data: bytes) -> None:
    with suppress(InvalidContent):
        parameter_size(read_header(io.BytesIO(data)).parameters)


@given(st.binary(max_size=200) | damaged(SAFE) | st.text(max_size=60).map(lambda text: head(text.encode())))
def test_any_bytes_are_safetensors_or_refused(data: bytes) -> None:
    with suppress(InvalidContent):
        parameter_size(count_weights(io.BytesIO(data)).total())


@pytest.mark.parametrize("claim", [1 << 20, 63 << 20])
def test_a_claimed_length_allocates_no_more_than_the_limit(tmp_path: Path, claim: int) -> None:
    path = tmp_path / "m"
    for data, parse_header in (
        (
            struct.pack("<4sIQQ", b"GGUF", 3, 0, 5) + (gguf_text("k") + gguf_value("v")) * 4 + struct.pack("<Q", claim),
            read_header,
        ),
        (head(random.Random(1).randbytes(100), claim), count_weights),
    ):
        path.write_bytes(data)
        tracemalloc.start()
        with path.open("rb") as file, pytest.raises(InvalidContent):
            parse_header(file)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak <= claim + (1 << 20)
