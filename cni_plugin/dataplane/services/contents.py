"""What the kernel's table of Services holds, and where a plan's endpoints stand there already."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cni_plugin.dataplane.services.plan import VERSIONS
from cni_plugin.dataplane.services.table import index_of, parse_endpoint, split_key
from cni_plugin.kernel.nft_layout import SERVICES_TABLE

if TYPE_CHECKING:
    from cni_plugin.dataplane.services.plan import Endpoint, Frontend, FrontendPlan
    from cni_plugin.dataplane.services.table import Elements
    from cni_plugin.kernel.nfnetlink import Nftables

# Sets whose elements are one frontend's, and those that frontends share.
_OWN = ("svc", "svcin", "stop", "keep", "guard", "snat", "out")
_NUMBERED = ("ep", "epin")
_SHARED, GLOBAL = ("vip", "loop", "self", "nodes"), ("self", "nodes")


@dataclass(slots=True)
class TableContents:
    """What the kernel's table holds."""

    own: dict[Frontend, Elements] = field(default_factory=dict)
    shared: Elements = field(default_factory=dict)

    def list_endpoints(self, frontend: Frontend) -> list[tuple[Endpoint, ...]]:
        """Return the endpoints of a frontend in their order: everybody's, and those for the inside."""
        elements = self.own.get(frontend, {})
        lists = []
        for which in _NUMBERED:
            name = f"{which}{frontend.version}"
            numbered = sorted(
                (index_of(key), value) for (where, key), value in elements.items() if where == name
            )
            lists.append(tuple(parse_endpoint(value) for _, value in numbered if isinstance(value, bytes)))
        return lists


def read_table(nftables: Nftables) -> TableContents:
    """Return the elements of all sets and maps; nothing when there is no table."""
    found = TableContents()
    for version in VERSIONS:
        for name in (*_OWN, *_NUMBERED):
            pairs = nftables.list_pairs("inet", f"{name}{version}", table=SERVICES_TABLE)
            for key, value in pairs.items():
                frontend = split_key(key, version)
                found.own.setdefault(frontend, {})[f"{name}{version}", key] = value
        for name in _SHARED:
            pairs = nftables.list_pairs("inet", f"{name}{version}", table=SERVICES_TABLE)
            found.shared |= {(f"{name}{version}", key): None for key in pairs}
    return found


def arrange(
    plan: FrontendPlan, endpoints: tuple[Endpoint, ...], inside: tuple[Endpoint, ...]
) -> FrontendPlan:
    """Return the plan with its endpoints where they are in the kernel already."""
    ordered = _order(endpoints, plan.endpoints)
    within = plan.inside and _order(inside, plan.inside)
    if ordered is plan.endpoints and within is plan.inside:
        return plan
    return replace(plan, endpoints=ordered, inside=within)


def _order(before: tuple[Endpoint, ...], wanted: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    """Return what is wanted, each where it was: who is new, or was behind the end, fills the holes."""
    if not before or before == wanted:
        return wanted
    remaining = dict.fromkeys(wanted)
    places: list[Endpoint | None] = [None] * len(wanted)
    for index, endpoint in enumerate(before[: len(wanted)]):
        if endpoint in remaining:
            places[index] = endpoint
            del remaining[endpoint]
    rest = iter(remaining)
    return tuple(each if each is not None else next(rest) for each in places)
