"""Declares sets and maps of nftables over netlink, without the words that `nft` adds for itself.

An `nft` before 1.1.2 dies of what a newer one writes about a set's type, and a node may have both: one on
the host, one in the agent's image. The kernel needs none of it, and either `nft` lists such a set from the
number of its type alone. By hand: `nft add map inet TABLE NAME { ... : verdict; }`.
linux/netfilter/nf_tables.h, nftables' include/datatype.h
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cni_plugin.kernel import netlink
from cni_plugin.kernel.message import attribute, text
from cni_plugin.kernel.nft_message import FAMILIES, PackedChange, general, nested

NEWTABLE, NEWSET = 0, 9
_TABLE_NAME = 1
_SET_TABLE, _SET_NAME, _SET_FLAGS, _KEY_TYPE, _KEY_LEN, _DATA_TYPE, _DATA_LEN, _DESC, _ID = (
    *(1, 2, 3, 4, 5, 6, 7, 9, 10),
)
_DESC_SIZE = 1
_INTERVAL, _MAP, _TIMEOUT, _EVAL = 0x4, 0x8, 0x10, 0x20  # NFT_SET_*
_VERDICT = "verdict"
_VERDICT_TYPE = 0xFFFFFF00  # NFT_DATA_VERDICT
# nft's number and the bytes of each type; 6 bits of a number are one field of a concatenation.
_TYPES = {
    "ipv4_addr": (7, 4),
    "ipv6_addr": (8, 16),
    "inet_proto": (12, 1),
    "inet_service": (13, 2),
    "mark": (19, 4),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedSet:
    """A set, or a map when it has `data`: the names of the types of its fields, `verdict` for a verdict map.

    `dynamic` is filled by packets, its elements end after a time; `size` is how many it takes, 0 for any.
    """

    family: str
    table: str
    name: str
    key: tuple[str, ...]
    data: tuple[str, ...] = ()
    interval: bool = False
    dynamic: bool = False
    size: int = 0

    @property
    def command(self) -> str:
        """Return the command that declares it by hand."""
        kind = " . ".join(self.key) + (f" : {' . '.join(self.data)}" if self.data else "")
        what = "map" if self.data else "set"
        return f"nft add {what} {self.family} {self.table} {self.name} {{ type {kind}; }}"

    def declare(self) -> PackedChange:
        """Return the change that makes it; one that is there already, as it shall be, is no error."""
        flags = (_INTERVAL if self.interval else 0) | (_MAP if self.data else 0)
        flags |= _TIMEOUT | _EVAL if self.dynamic else 0
        body = text(_SET_TABLE, self.table) + text(_SET_NAME, self.name) + _u32(_SET_FLAGS, flags)
        body += _u32(_KEY_TYPE, _number(self.key)) + _u32(_KEY_LEN, _length(self.key))
        if self.data == (_VERDICT,):
            body += _u32(_DATA_TYPE, _VERDICT_TYPE)
        elif self.data:
            body += _u32(_DATA_TYPE, _number(self.data)) + _u32(_DATA_LEN, _length(self.data))
        # Within a batch sets are told apart by a number that their maker gives them.
        body += _u32(_ID, 1 + sum(self.name.encode()))
        if self.size:
            body += nested(_DESC, _u32(_DESC_SIZE, self.size))
        return PackedChange(
            command=self.command,
            kind=NEWSET,
            flags=netlink.NLM_F_CREATE,
            body=general(FAMILIES[self.family]) + body,
        )


def declare_table(family: str, table: str) -> PackedChange:
    """Return the change that makes a table; one that is there is no error."""
    return PackedChange(
        command=f"nft add table {family} {table}",
        kind=NEWTABLE,
        flags=netlink.NLM_F_CREATE,
        body=general(FAMILIES[family]) + text(_TABLE_NAME, table),
    )


def _number(types: tuple[str, ...]) -> int:
    number = 0
    for name in types:
        number = number << 6 | _TYPES[name][0]
    return number


def _length(types: tuple[str, ...]) -> int:
    """Return the bytes of a key: fields of a concatenation are padded to four."""
    if len(types) == 1:
        return _TYPES[types[0]][1]
    return sum((_TYPES[name][1] + 3) & ~3 for name in types)


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value))
