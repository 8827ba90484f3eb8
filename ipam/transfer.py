"""Import of many reservations at once, from a backup or another node: all of a network's, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipam.address import render_address
from ipam.errors import Conflicts
from ipam.seam.undo import Undo

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from netaddr import IPAddress

    from ipam.store import Owner, Store

    Claim = tuple[IPAddress, Owner]


def reserve_all(store: Store, claims: Sequence[Claim]) -> list[IPAddress]:
    """Reserve each address for its owner and return those that it did not hold before.

    Raises Conflicts, which names every address that another owner has, LockTimeout and
    StoreUnavailable; then nothing is reserved.
    """
    wanted = _unite(claims)
    with store.locked(), Undo() as undo:
        held = {address: owner for address, owner in store.owners().items() if owner.container_id}
        new = [(address, owner) for address, owner in wanted.items() if held.get(address) != owner]
        _refuse([_conflict(address, owner, held[address]) for address, owner in new if address in held])
        for address, owner in new:
            if not store.reserve(address, owner):
                _refuse([_conflict(address, owner, "an unreadable file")])
            undo.callback(store.remove, address, owner)
        undo.pop_all()
    return [address for address, _ in new]


def _unite(claims: Iterable[Claim]) -> dict[IPAddress, Owner]:
    wanted: dict[IPAddress, Owner] = {}
    _refuse([_conflict(a, owner, wanted[a]) for a, owner in claims if wanted.setdefault(a, owner) != owner])
    return wanted


def _conflict(address: IPAddress, owner: Owner, holder: object) -> str:
    return f"{render_address(address)} wanted for {owner}, found held by {holder}"


def _refuse(conflicts: list[str]) -> None:
    if conflicts:
        raise Conflicts(conflicts)
