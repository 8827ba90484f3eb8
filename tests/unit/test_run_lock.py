"""The baton: one call computes at a time, and one that waits holds nobody up for long."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cni_plugin.agent.run_lock import Baton


def test_there_is_one_holder_at_a_time_and_everybody_has_a_turn() -> None:
    baton, inside, most = Baton(patience=60), [0], [0]

    def call(_: int) -> None:
        with baton.held():
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.001)
            inside[0] -= 1

    with ThreadPoolExecutor(16) as pool:
        assert len(list(pool.map(call, range(100)))) == 100
    assert most == [1]


def can_be_taken(baton: Baton, within: float = 10) -> bool:
    """Tell whether somebody else gets it in time."""
    taken = threading.Event()

    def call() -> None:
        with baton.held():
            taken.set()

    threading.Thread(target=call, daemon=True).start()
    return taken.wait(within)


def test_who_holds_it_for_too_long_loses_it_and_takes_it_from_nobody_afterwards() -> None:
    baton, stuck, away = Baton(patience=0.01), threading.Event(), threading.Event()

    def wait() -> None:
        with baton.held():
            stuck.set()
            away.wait()

    slow = threading.Thread(target=wait)
    slow.start()
    stuck.wait()
    with baton.held():
        away.set()
        slow.join()
        assert baton._holder == threading.get_ident()


def test_who_waits_lets_others_have_it_and_is_the_only_one_afterwards() -> None:
    baton = Baton(patience=60)
    with baton.held():
        with baton.aside():
            assert can_be_taken(baton)
        assert not can_be_taken(baton, within=0.05)


def test_who_waits_without_it_takes_it_from_nobody() -> None:
    baton = Baton(patience=60)
    with baton.aside():
        pass
    assert can_be_taken(baton)


def test_a_call_that_fails_gives_it_back() -> None:
    baton = Baton(patience=60)
    with pytest.raises(OSError, match="no"), baton.held(), baton.aside():
        raise OSError("no")
    assert can_be_taken(baton)
