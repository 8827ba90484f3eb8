"""How many examples hypothesis tries: a few, the same every time; with --long many, and others each time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Choose the profile. What a random run finds is printed as a `reproduce_failure` line."""
    common = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    settings.register_profile("short", derandomize=True, max_examples=50, stateful_step_count=30, **common)
    settings.register_profile("long", max_examples=5000, stateful_step_count=60, print_blob=True, **common)
    settings.load_profile("long" if config.getoption("--long") else "short")
