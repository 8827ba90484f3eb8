"""The one list of what this node must hold: for each network, and for each living attachment.

Modes and features say what it is (features/damage.py). `podwire status` and the doctor name what differs,
`podwire sync` and the agent mend it. Nothing is cut off by that: what is there and right stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cni_plugin.addresses.delegate import find_delegate
from cni_plugin.config.network import parse_network
from cni_plugin.contract.errors import CNIError
from cni_plugin.features import CHAINED
from cni_plugin.features.damage import Damage
from cni_plugin.node.configured import network_of
from cni_plugin.node.records import list_joined
from cni_plugin.plugins import chained, podwire
from ipam.errors import IPAMError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cni_plugin.config.network import RangeFacts
    from cni_plugin.contract.request import Request
    from cni_plugin.kernel.netns import Namespace
    from cni_plugin.node.configured import Configured, ConfiguredNetwork
    from cni_plugin.node.records import Joined

# What is mended can show what was hidden behind it: a bridge its ports, a port its VLANs.
_ROUNDS: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrong:
    """One thing that this node does not hold as it must; `pod` is empty for what the pods share."""

    network: str
    damage: Damage
    pod: str = ""
    joined: Joined | None = None

    @property
    def remedy(self) -> str:
        """Return the command that mends it; empty where only the words can say what does."""
        if self.damage.remedy:
            return self.damage.remedy
        if self.damage.mend:
            return f"podwire sync {self.network}"
        return self.joined.remedy if self.joined else ""

    def __str__(self) -> str:
        """Return it as an operator reads it."""
        return f"{self.pod or f'network {self.network}'}: {self.damage.said}"


@dataclass(slots=True, kw_only=True)
class Repair:
    """What was mended, and what is still wrong with why it could not be mended."""

    mended: list[Wrong] = field(default_factory=list)
    left: list[Wrong] = field(default_factory=list)
    problems: list[CNIError] = field(default_factory=list)


def networks_of(configured: Configured) -> dict[str, ConfiguredNetwork]:
    """Return the networks whose pods we join, by name, as the first file has each."""
    found: dict[str, ConfiguredNetwork] = {}
    for file in configured.files:
        for main in file.mains[:1]:
            others = (each for each in file.plugins if each.config.string("type") in CHAINED)
            found.setdefault(main.network, network_of(main, tuple(others)))
    return found


def find_wrong(
    configured: Configured,
    results_dir: str,
    host: Namespace,
    network: str | None = None,
    *,
    unused: bool = False,
) -> Iterator[Wrong]:
    """Yield what this node does not hold, each thing once, in the order in which it can be mended.

    What the pods of a network share the first ADD makes, but for what a cluster has made beforehand. With
    `unused` the way to other nodes, which a sync makes too, is looked at where there is no pod.
    """
    networks = networks_of(configured)
    bin_dir = next((":".join(each.main.path) for each in networks.values()), "/")
    joined = [
        each
        for each in list_joined(host, results_dir, networks, bin_dir)
        if network in {None, each.label.network}
    ]
    used = {each.label.network for each in joined}
    made = used | {name for name, each in networks.items() if each.main.config.string("stateFile")}
    looked_at = {name for name in networks if network in {None, name} and (unused or name in made)}
    said: set[str] = set()
    for wrong in _look(networks, joined, host, looked_at):
        if wrong.damage.said not in said and (wrong.network in made or wrong.damage.kind == "peer"):
            said.add(wrong.damage.said)
            yield wrong


def _look(
    networks: Mapping[str, ConfiguredNetwork], joined: list[Joined], host: Namespace, shared: set[str]
) -> Iterator[Wrong]:
    ranges = {name: _ranges_of(network.main) for name, network in networks.items()}
    # First what pods tell: a bridge is made anew with the MAC that they know.
    for each in joined:
        yield from _look_at(each, ranges.get(each.label.network, ()), host)
    for name in sorted(shared):
        yield from _guard(name, podwire.compare_shared(networks[name].main, host))


def _ranges_of(main: Request) -> tuple[RangeFacts, ...]:
    try:
        return find_delegate(main).addressing().ranges
    except CNIError:
        return ()  # STATUS says it


def _look_at(joined: Joined, ranges: tuple[RangeFacts, ...], host: Namespace) -> Iterator[Wrong]:
    network, pod = joined.label.network, str(joined)
    if joined.main is None:
        return
    strange = _find_strange(joined.main, ranges)
    if strange:
        yield Wrong(network=network, pod=pod, joined=joined, damage=strange)
        return
    yield from _guard(network, podwire.compare(joined.main, host), pod, joined)
    for request in joined.chained:
        kind = request.config.string("type")
        if kind in CHAINED:
            yield from _guard(network, chained.compare(CHAINED[kind](), request, host), pod, joined)


def _find_strange(main: Request, ranges: tuple[RangeFacts, ...]) -> Damage | None:
    """Return the damage of an attachment that has an address of no subnet of its network now."""
    try:
        result = parse_network(main).prev_result
    except CNIError:
        return None
    for ip in result.addresses_on(main.ifname) if result and ranges else ():
        if not any(ip.address.ip in each.subnet for each in ranges):
            subnets = ", ".join(str(each.subnet) for each in ranges)
            said = f"address {ip.address.ip}: wanted one of the network's subnets {subnets}, found another"
            return Damage(kind="address", said=said, mend=None)
    return None


def _guard(
    network: str, found: Iterator[Damage], pod: str = "", joined: Joined | None = None
) -> Iterator[Wrong]:
    """Yield the damage as this network's or pod's; what could not be compared is damage, too."""
    try:
        for damage in found:
            yield Wrong(network=network, pod=pod, joined=joined, damage=damage)
    except (CNIError, IPAMError, OSError) as error:
        said = error.msg if isinstance(error, CNIError) else str(error)
        yield Wrong(network=network, pod=pod, joined=joined, damage=Damage(kind="link", said=said, mend=None))


def mend(configured: Configured, results_dir: str, host: Namespace, network: str | None = None) -> Repair:
    """Mend what can be mended, of one network or of all, and return what was and what is left.

    What is refused is tried again as long as anything else gets better: an element waits for its set.
    """
    repair = Repair()
    for _ in range(_ROUNDS):
        before = len(repair.mended)
        repair.left = []
        refusals: dict[int, CNIError | None] = {}
        known = {each.damage.said for each in repair.mended}
        # Each thing is mended before the next one is looked at, which may be right then.
        for wrong in find_wrong(configured, results_dir, host, network):
            way = wrong.damage.mend
            if way is None or wrong.damage.said in known:
                repair.left.append(wrong)
                continue
            if id(way) not in refusals:
                refusals[id(way)] = _try(way)
            (repair.left if refusals[id(way)] else repair.mended).append(wrong)
        repair.problems = [each for each in refusals.values() if each]
        if len(repair.mended) == before:
            break
    return repair


def _try(way: Callable[[], object]) -> CNIError | None:
    try:
        way()
    except CNIError as error:
        return error
    return None
