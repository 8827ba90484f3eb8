"""What must hold of a store at any moment at which no call is under way, read without our own code.

Each address belongs to one attachment, each attachment's addresses are in the store under its name,
nothing is in the store that no attachment has, and no call left anything beside it.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

Attached = tuple[str, str]  # container id, ifname
_OTHERS = ("lock", "last_reserved_ip.")


def held(data_dir: str | Path, network: str) -> dict[str, Attached]:
    """Return who holds each address by the files; a legacy file has an empty ifname, debris no container."""
    directory = Path(data_dir, network)
    files = directory.iterdir() if directory.is_dir() else ()
    found = {}
    for file in files:
        if not file.name.startswith(_OTHERS):
            container_id, _, ifname = file.read_bytes().decode(errors="replace").partition("\r\n")
            found[file.name] = (container_id, ifname)
    return found


def find_violations(
    data_dir: str | Path, network: str, attached: Mapping[Attached, Collection[str]]
) -> list[str]:
    """Return what is wrong; each living attachment was told these addresses, here without prefix length."""
    store = held(data_dir, network)
    wrong = [f"{name} is no address" for name in store if not _is_address(name)]
    given = Counter(address for addresses in attached.values() for address in addresses)
    wrong += [f"{address} was given {count} times" for address, count in given.items() if count > 1]
    for owner, addresses in attached.items():
        wrong += [
            f"{address} was given to {owner}, and the store says {store.get(address)}"
            for address in addresses
            if store.get(address) != owner
        ]
    wrong += [
        f"{name} is held by {owner}, who has it not" for name, owner in store.items() if name not in given
    ]
    return wrong + [f"{file} is left" for file in Path(data_dir, ".podwire").glob(f"{network}.*new")]


def _is_address(name: str) -> bool:
    try:
        return str(ipaddress.ip_address(name)) == name
    except ValueError:
        return False
