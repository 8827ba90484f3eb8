"""The address manager: which attachment holds which address, on which terms.

`ranges` is arithmetic, `store` the locked directory in the reference `host-local`'s own format,
`allocator` the policy that joins them, `memory` what spares a process that stays the search (`index`,
`watch`), `notes` what optional behaviours remember (`sticky`, `resting`), `boots` tells what is of an
earlier boot, `places` where a holder can be seen, `damage` is a look at what the store would never write,
`transfer` many reservations at once, `rescue` a directory that is gone, `errors` what can go wrong in its own
words. It imports nothing of the plugin and knows nothing of CNI, interfaces or the kernel.
"""

from ipam.address import parse_address, render_address
from ipam.allocator import (
    Allocation,
    Terms,
    Usage,
    allocate,
    collect,
    give_up,
    held,
    reclaim,
    release,
    remembered_usage,
    usage,
)
from ipam.errors import (
    AddressTaken,
    AddressUnavailable,
    Conflicts,
    DuplicateAllocation,
    InvalidNetwork,
    InvalidRange,
    IPAMError,
    LockTimeout,
    NotInRange,
    PoolExhausted,
    PoolResting,
    StoreUnavailable,
)
from ipam.memory import Memory
from ipam.ranges import Range, RangeSet, make_range, make_range_sets
from ipam.store import Owner, Store, list_networks

__all__ = [
    "AddressTaken",
    "AddressUnavailable",
    "Allocation",
    "Conflicts",
    "DuplicateAllocation",
    "IPAMError",
    "InvalidNetwork",
    "InvalidRange",
    "LockTimeout",
    "Memory",
    "NotInRange",
    "Owner",
    "PoolExhausted",
    "PoolResting",
    "Range",
    "RangeSet",
    "Store",
    "StoreUnavailable",
    "Terms",
    "Usage",
    "allocate",
    "collect",
    "give_up",
    "held",
    "list_networks",
    "make_range",
    "make_range_sets",
    "parse_address",
    "reclaim",
    "release",
    "remembered_usage",
    "render_address",
    "usage",
]
