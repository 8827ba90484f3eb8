"""The run lock: one call computes at a time, and one that waits holds nobody up for long."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cni_plugin.agent.run_lock import RunLock


def test_there_is_one_holder_at_a_time_and_everybody_has_a_turn() -> None:
    run_lock, inside, most = RunLock(patience=60), [0], [0]

    def call(_: int) -> None:
        with run_lock.held():
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.001)
            inside[0] -= 1

    with ThreadPoolExecutor(16) as pool:
        assert len(list(pool.map(call, range(100)))) == 100
    assert most == [1]


def can_be_taken(run_lock: RunLock, within: float = 10) -> bool:
    """Tell whether somebody else gets it in time."""
    taken = threading.Event()

    def call() -> None:
        with run_lock.held():
            taken.set()

    threading.Thread(target=call, daemon=True).start()
    return taken.wait(within)


def test_who_holds_it_for_too_long_loses_it_and_takes_it_from_nobody_afterwards() -> None:
    run_lock, stuck, away = RunLock(patience=0.01), threading.Event(), threading.Event()

    def wait() -> None:
        with run_lock.held():
            stuck.set()
            away.wait()

    slow = threading.Thread(target=wait)
    slow.start()
    stuck.wait()
    with run_lock.held():
        away.set()
        slow.join()
        assert run_lock._holder == threading.get_ident()


def test_who_waits_lets_others_have_it_and_is_the_only_one_afterwards() -> None:
    run_lock = RunLock(patience=60)
    with run_lock.held():
        with run_lock.aside():
            assert can_be_taken(run_lock)
        assert not can_be_taken(run_lock, within=0.05)


def test_who_waits_without_it_takes_it_from_nobody() -> None:
    run_lock = RunLock(patience=60)
    with run_lock.aside():
        pass
    assert can_be_taken(run_lock)


def test_a_call_that_fails_gives_it_back() -> None:
    run_lock = RunLock(patience=60)
    with pytest.raises(OSError, match="no"), run_lock.held(), run_lock.aside():
        raise OSError("no")
    assert can_be_taken(run_lock)
