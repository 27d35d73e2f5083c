"""The node cache: where a machine keeps the models that it serves, one folder a model, named by digest."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from tonnage.content.digest import Digest


def default_root(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """`$TONNAGE_CACHE`, or `tonnage` in the platform's folder for caches (XDG Base Directory Specification)."""
    if chosen := environ.get("TONNAGE_CACHE"):
        return Path(chosen)
    home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    if platform == "darwin":
        return home / "Library" / "Caches" / "tonnage"
    return Path(environ.get("XDG_CACHE_HOME") or home / ".cache") / "tonnage"


class NodeCache:
    """The models of one machine.

    Args:
        root: the cache's folder; made when something is put into it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def model_folder(self, digest: Digest) -> Path:
        """Where the model with this root digest is, or belongs."""
        return self.root / "models" / digest.algorithm / digest.hex
