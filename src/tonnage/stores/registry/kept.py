"""Manifests that were read a moment ago, within a bound."""

from __future__ import annotations

import threading
from collections import OrderedDict

_OVERHEAD = 512
"""Bytes that an entry costs besides its content, about; without it, tiny manifests would escape the bound."""


class KeptManifests:
    """The manifests kept last, by digest; the oldest make room. Safe for several threads.

    Args:
        limit: bytes of memory, about.
    """

    def __init__(self, limit: int) -> None:
        self._room = limit
        self._entries: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, digest: str) -> bytes | None:
        """The manifest, if it is still there."""
        with self._lock:
            return self._entries.get(digest)

    def keep(self, digest: str, raw: bytes) -> None:
        """Keep a manifest, and drop others for it if it takes that."""
        with self._lock:
            self._forget(digest)
            self._entries[digest] = raw
            self._room -= len(raw) + _OVERHEAD
            while self._room < 0:
                self._forget(next(iter(self._entries)))

    def forget(self, digest: str) -> None:
        """Drop a manifest, if it is there."""
        with self._lock:
            self._forget(digest)

    def _forget(self, digest: str) -> None:
        raw = self._entries.pop(digest, None)
        if raw is not None:
            self._room += len(raw) + _OVERHEAD
