"""The stamp: a small file that says what the last sync of a network made; it may be lost.

An ADD that finds the network as the stamp says does not sync again. The stamp also keeps the last valid
content of a peers file. Without it the next sync reads everything; a wrong stamp does no harm.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.contract.errors import CNIError, Code
from ipam.seam import step
from ipam.seam.files import make_directories, replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.config.network import Network

_LOCK_TIMEOUT = 10.0  # seconds
_LOCK_POLL = 0.003


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """A digest of what was asked for, the counts of what was made, and the peers file's words."""

    digest: str = ""
    counts: str = ""
    content: str = ""


def stamp_path_of(network: Network) -> str:
    """Return where the stamp of a network is kept."""
    return f"{network.state_dir}/{network.attachment.network}.peers"


def read_stamp(path: str) -> Stamp:
    """Return the stamp; an empty one when there is none that can be read."""
    with suppress(OSError, ValueError, TypeError, RecursionError), open(path, encoding="utf-8") as file:
        stamp = Stamp(**json.load(file))
        # JSON can say what no file can hold.
        for each in (stamp.digest, stamp.counts, stamp.content):
            str.encode(each)
        return stamp
    return Stamp()


def write_stamp(path: str, stamp: Stamp) -> None:
    """Replace the stamp; only under the lock. A store that cannot be written costs only the memory."""
    written = {"digest": stamp.digest, "counts": stamp.counts, "content": stamp.content}
    with suppress(OSError):
        replace_file(path, json.dumps(written).encode())


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the lock of one network's sync; CNIError 11 when it is not had in time."""
    from filelock import FileLock, Timeout  # most calls never wait

    lock = FileLock(f"{path}.lock", _LOCK_TIMEOUT, 0o600, poll_interval=_LOCK_POLL, preserve_lock_file=True)
    try:
        make_directories(os.path.dirname(path))
        step("lock", lock.acquire)
    except Timeout as error:
        raise CNIError(
            Code.TRY_AGAIN_LATER, f"{path}.lock: wanted it in {_LOCK_TIMEOUT} s, found it held"
        ) from error
    except OSError as error:
        raise CNIError(Code.IO_FAILURE, f"cannot lock {path}.lock: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()
