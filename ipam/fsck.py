"""Checks the files of a network's directory: what is not as the store writes it; repairs nothing.

Each of these is harmless to everybody else: debris is reclaimed, an unreadable file blocks its
address, a pointer that is none means a search from the start, and foreign files are left alone.
"""
# Plain os calls, as in files.py.
# ruff: noqa: PTH113, PTH208

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from ipam import files
from ipam.address import parse_address, render_address
from ipam.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ipam.store import Store

_POINTER: Final = re.compile(r"last_reserved_ip\.[0-9]+")
_OWNER: Final = re.compile(rb"\S+(\r\n\S+)?")


def check_files(store: Store) -> list[tuple[str, str]]:
    """Return the names that are damaged and what is wrong with each; raises StoreUnavailable."""
    try:
        names = sorted(os.listdir(store.directory))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreUnavailable("read", store.directory, error) from error
    return list(_judge_all(store.directory, names))


def _judge_all(directory: str, names: list[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        with suppress(FileNotFoundError):
            wrong = _judge(directory, name)
            if wrong:
                yield name, wrong


def _judge(directory: str, name: str) -> str:
    content = files.content(f"{directory}/{name}") if name != "lock" else None
    address = parse_address(name)
    if name == "lock":
        return "" if os.path.isfile(f"{directory}/lock") else "it is not a file"
    if _POINTER.fullmatch(name):
        wrong = content is None or parse_address(os.fsdecode(content)) is None
        return f"wanted an address in it, found {_show(content)}" if wrong else ""
    if address is None or render_address(address) != name:
        return "it is neither an address as the store writes it nor one of its other files"
    if content == b"":
        return "it is empty: an ADD that was killed; the next one reclaims it"
    if content is None or not _OWNER.fullmatch(content):
        return f"wanted a container id and an interface name in it, found {_show(content)}"
    return ""


def _show(content: bytes | None) -> str:
    return "nothing that can be read" if content is None else repr(content[:60])
