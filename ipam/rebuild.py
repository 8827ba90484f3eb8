"""Rebuilds a network's directory that is gone, with the addresses that living attachments hold.

    <data_dir>/.podwire/<network>.rebuild  the directory while it is made; it appears by rename(2)

So nobody finds it half full, however this ends, and its lock is held when it appears. What the
caller cannot see is not in it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from ipam.errors import IPAMError, StoreUnavailable
from ipam.seam import step
from ipam.seam.files import remove_file
from ipam.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ipam.transfer import Claim


def rebuild(store: Store, claims: Sequence[Claim], netns_mark: str) -> bool:
    """Make the directory hold these addresses; False if it is there by now, by whomever.

    Of an address that is claimed twice the first one counts. Raises LockTimeout and StoreUnavailable.
    """
    root, network = os.path.split(store.directory)
    staged = Store(f"{root}/.podwire", f"{network}.rebuild", store.lock_timeout)
    try:
        with staged.locked():
            staged.remove_all(staged.owners().items())
            for address, owner in claims:
                staged.reserve(address, owner, netns_mark)
            step("rename", os.rename, staged.directory, store.directory)
    except (IPAMError, OSError) as error:
        _discard(staged)
        if os.path.lexists(store.directory):
            return False  # another call was faster
        raise error if isinstance(error, IPAMError) else _unavailable(store, error) from error
    return True


def _discard(staged: Store) -> None:
    with suppress(IPAMError, OSError):
        staged.remove_all(staged.owners().items())
        remove_file(f"{staged.directory}/lock")
        step("rmdir", os.rmdir, staged.directory)


def _unavailable(store: Store, error: OSError) -> StoreUnavailable:
    return StoreUnavailable("make", store.directory, error)
