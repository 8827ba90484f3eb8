"""A worker takes a step at its start, after news and after a failure, and ends whenever it is told to."""

from __future__ import annotations

import threading
import time

import pytest

from cni_plugin.dataplane import worker
from cni_plugin.dataplane.worker import Worker


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_GATHER", 0.01)
    monkeypatch.setattr(worker, "_RETRIES", (0.02, 0.04))


class Steps:
    """Counts steps; the first ones fail."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.count = 0

    def take(self) -> bool:
        self.count += 1
        return self.count > self.failures

    def until(self, count: int) -> None:
        deadline = time.monotonic() + 10
        while self.count < count:
            assert time.monotonic() < deadline
            time.sleep(0.005)


def test_news_of_a_burst_are_one_step() -> None:
    steps = Steps()
    made = Worker("test", steps.take, 600)
    made.start()
    steps.until(1)
    for _ in range(50):
        made.wake()
    steps.until(2)
    time.sleep(0.1)
    made.stop()
    assert steps.count <= 4


def test_a_step_that_failed_is_taken_again_without_news() -> None:
    steps = Steps(failures=3)
    made = Worker("test", steps.take, 600)
    made.start()
    steps.until(4)
    made.stop()


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.005, 0.009, 0.011, 0.015, 0.03])
def test_it_ends_at_whatever_moment_it_is_told(delay: float) -> None:
    for _ in range(10):
        made = Worker("test", Steps().take, 600)
        made.start()
        time.sleep(delay)
        ending = threading.Thread(target=made.stop, daemon=True)
        ending.start()
        ending.join(5)
        assert not ending.is_alive()
