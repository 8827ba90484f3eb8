"""The baton: one call computes at a time, and one that waits holds nobody up for long."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cni_plugin.agent.baton import Baton


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


def test_who_waits_for_something_else_loses_it_and_takes_it_from_nobody_afterwards() -> None:
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
        assert baton._holder is not None


def test_a_call_that_fails_gives_it_back() -> None:
    baton = Baton(patience=60)
    with pytest.raises(OSError, match="no"), baton.held():
        raise OSError("no")
    with baton.held():
        pass
