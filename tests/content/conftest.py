"""Property tests run as often as a shared machine bears, and never fail for being slow."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("tonnage", deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tonnage")
