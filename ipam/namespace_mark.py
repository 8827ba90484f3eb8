"""Where the holder of a reservation is joined to its network: a mark on its file beside Go's content.

    getfattr -n user.podwire.place <data_dir>/<network>/<address>

It is set by who joins holders itself, and names where one can see that a holder is gone; the words
are the caller's. Without a mark (the Go host-local's, of another plugin, of a copy, of a file
system without attributes) nothing is known: its holder may live unseen.
"""
# Plain os calls, as in files.py.

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ipam.address import render_address
from ipam.boot_mark import PLACE
from ipam.store import Owner

if TYPE_CHECKING:
    from netaddr import IPAddress

    from ipam.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """An address file as it was seen: another one of the same address and owner is not equal to it."""

    address: IPAddress
    owner: Owner
    place: str
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
            place=_place_of(file.fileno()),
            inode=status.st_ino,
            written=status.st_mtime_ns,
        )
    return None


def _place_of(fd: int) -> str:
    with suppress(OSError):
        return os.fsdecode(os.getxattr(fd, PLACE))
    return ""


def _open_at_once(path: str, flags: int) -> int:
    """Open it without a wait, for somebody may have left a FIFO there."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
