"""What tests have left to the garbage collector: processes not waited for, sockets and files not closed."""

from __future__ import annotations

import gc
import io
import socket
import subprocess


def list_unreleased() -> dict[int, str]:
    """Return what there is in this process, by the number of the object, in words."""
    found = {}
    for each in gc.get_objects():
        # Not isinstance(), which asks what may answer for another.
        if issubclass(type(each), (subprocess.Popen, socket.socket, io.FileIO)) and (
            words := _describe(each)
        ):
            found[id(each)] = words
    return found


def _describe(each: subprocess.Popen[bytes] | socket.socket | io.FileIO) -> str:
    """Return what is wrong with it, empty for nothing."""
    if isinstance(each, subprocess.Popen):
        return f"not waited for: process {each.pid}, {each.args}" if each.returncode is None else ""
    if isinstance(each, socket.socket):
        return f"not closed: {each!r}" if each.fileno() != -1 else ""
    # Python's own, and pytest's for what is captured, have no name.
    return f"not closed: {each!r}" if not each.closed and isinstance(each.name, str) else ""
