"""The object that the state of a process hangs on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ipam.seam import Process, part, waits

if TYPE_CHECKING:
    from collections.abc import Iterator


class Remembered:
    """A part as a module has one."""

    def __init__(self) -> None:
        self.items: list[int] = []


def test_all_threads_have_the_same_part() -> None:
    Process().begin()
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: part(Remembered), range(64)))
    assert {id(each) for each in found} == {id(part(Remembered))}


def test_a_process_that_begins_remembers_nothing_of_another() -> None:
    part(Remembered).items.append(1)
    Process().begin()
    assert part(Remembered).items == []


def test_a_wait_lets_others_as_the_process_was_told() -> None:
    said = []

    @contextmanager
    def let_others() -> Iterator[None]:
        said.append("aside")
        yield
        said.append("back")

    Process(let_others).begin()
    with waits.waiting():
        said.append("waits")
    assert said == ["aside", "waits", "back"]
