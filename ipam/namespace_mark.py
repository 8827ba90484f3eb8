"""The namespace mark: the node's network namespace from which a reservation's holder was attached.

    getfattr -n user.podwire.netns <data_dir>/<network>/<address>

An extended attribute of the address file, beside the content that is Go's. A caller that attaches
holders itself sets it; in that namespace it can see later that a holder is gone. The mark's text is
the caller's. Without a mark (of the Go host-local, of another plugin, of a copy, of a file system
without attributes) nothing is known: the holder may live.
"""
# Plain os calls, as in files.py.

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ipam.address import render_address
from ipam.boot_mark import NETNS_MARK
from ipam.store import Owner

if TYPE_CHECKING:
    from netaddr import IPAddress

    from ipam.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """An address file as it was seen: another one of the same address and owner is not equal to it."""

    address: IPAddress
    owner: Owner
    netns_mark: str
    inode: int
    written: int
    """Its time of modification, in nanoseconds."""

    def __str__(self) -> str:
        """Return the address."""
        return render_address(self.address)


def list_reservations(store: Store) -> list[Reservation]:
    """Return every reserved address; needs neither the lock nor write access. Raises StoreUnavailable."""
    found = (_look(store, address) for address in sorted(store.owners()))
    return [each for each in found if each is not None]


def _look(store: Store, address: IPAddress) -> Reservation | None:
    """Return one reservation from one open file; None if it is gone by now, or cannot be read."""
    path = f"{store.directory}/{render_address(address)}"
    with suppress(OSError), open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        return Reservation(
            address=address,
            owner=Owner.parse(file.read()),
            netns_mark=_netns_mark_of(file.fileno()),
            inode=status.st_ino,
            written=status.st_mtime_ns,
        )
    return None


def _netns_mark_of(fd: int) -> str:
    with suppress(OSError):
        return os.fsdecode(os.getxattr(fd, NETNS_MARK))
    return ""


def _open_at_once(path: str, flags: int) -> int:
    """Open it without a wait, for somebody may have left a FIFO there."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
