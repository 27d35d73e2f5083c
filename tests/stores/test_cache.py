from __future__ import annotations

from pathlib import Path

import pytest

from tonnage.content.digest import Digest
from tonnage.stores.cache import NodeCache, default_root


@pytest.mark.parametrize(
    ("environ", "platform", "root"),
    [
        ({"TONNAGE_CACHE": "/big/disk", "XDG_CACHE_HOME": "/x", "HOME": "/home/anna"}, "linux", "/big/disk"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/home/anna"}, "linux", "/x/tonnage"),
        ({"XDG_CACHE_HOME": "", "HOME": "/home/anna"}, "linux", "/home/anna/.cache/tonnage"),
        ({"TONNAGE_CACHE": "", "HOME": "/home/anna"}, "linux", "/home/anna/.cache/tonnage"),
        ({"HOME": "/Users/anna"}, "darwin", "/Users/anna/Library/Caches/tonnage"),
        ({"TONNAGE_CACHE": "/big/disk", "HOME": "/Users/anna"}, "darwin", "/big/disk"),
    ],
)
def test_where_the_cache_is(environ: dict[str, str], platform: str, root: str) -> None:
    assert default_root(environ, platform) == Path(root)


def test_without_a_home_the_system_is_asked() -> None:
    assert default_root({}, "linux") == Path.home() / ".cache" / "tonnage"


def test_models_are_named_by_digest(tmp_path: Path) -> None:
    digest = Digest.of(b"x")
    assert NodeCache(tmp_path).model_folder(digest) == tmp_path / "models" / "sha256" / digest.hex
    assert list(tmp_path.iterdir()) == []
