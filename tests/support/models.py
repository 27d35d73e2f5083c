"""Where the tests find the small real model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CACHED = Path(__file__).parents[2] / ".cache" / "models" / "smollm2"


def small_model() -> Path:
    """SmolLM2-135M-Instruct as GGUF: what `TONNAGE_TEST_MODEL` names, else the repository's cache.

    Skips the test only when neither is there; a path that is named and wrong fails it.
    """
    named = os.environ.get("TONNAGE_TEST_MODEL")
    if named:
        assert Path(named).exists(), f"TONNAGE_TEST_MODEL names {named}, which does not exist"
        return Path(named)
    if not CACHED.exists():
        pytest.skip(f"no model: set TONNAGE_TEST_MODEL to a GGUF file, or put one into {CACHED}")
    return CACHED
