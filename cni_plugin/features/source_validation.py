"""The feature `sourceValidation`: the route to a packet's source leads back to where it came from.

Who is allowed by address must hold it. What a routed pod sends has the pod's own source; nobody on the
underlay, in the tunnel or on another pod's link speaks as a pod of this node, nor anybody on the underlay
as one behind the tunnel. It asks the node's routes, so that a pod costs no element. Before connection
tracking, in both families: rp_filter knows IPv4 alone, and is often off. RFC 2827, RFC 3704 section 2.2.
By hand: `nft add rule ... iifgroup 7368548 fib saddr . iif oif missing drop`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.contract.errors import invalid_config
from cni_plugin.features.feature import Feature
from cni_plugin.kernel.nft import FAMILY, Ruleset, ensure_ruleset, hooked, require_nft, scope_of
from cni_plugin.kernel.nft_layout import POD_GROUP, SOURCE_VALIDATION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack

    from netaddr import IPNetwork

    from cni_plugin.config.network import Addressing, Network
    from cni_plugin.contract.fields import Fields
    from cni_plugin.contract.result import Result
    from cni_plugin.features.damage import Damage
    from cni_plugin.features.feature import DeleteInput, Site
    from cni_plugin.kernel.netns import Namespace

# There is no route over the link by which the packet came.
_ELSEWHERE = "fib saddr . iif oif missing drop"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceValidation:
    """Whose sources are judged: this node's ranges, its routed pods, and what is behind the tunnel."""

    network: str
    ranges: tuple[IPNetwork, ...]
    routed: bool
    tunnel: str
    """The link that leads to the pods of other nodes and to nobody else; empty where there is none."""


def parse(fields: Fields, network: Network, addressing: Addressing) -> SourceValidation | None:
    """Return what `sourceValidation` asks for; CNIError 7 without addresses, 50 when there is no nft."""
    if not fields.boolean("sourceValidation"):
        return None
    if addressing.layer2:
        raise invalid_config('"sourceValidation": wanted addresses that routes lead to, found no "ipam"')
    require_nft()
    return SourceValidation(
        network=network.attachment.network,
        ranges=tuple(dict.fromkeys(known.subnet for known in addressing.ranges)),
        routed=network.mode == "routed",
        tunnel=addressing.elsewhere.device,
    )


def ensure(settings: SourceValidation, host: Namespace) -> int:
    """Make the network's chain be as configured; return the number of changes."""
    return int(ensure_ruleset(host.nftables, _plan_ruleset(settings)))


def _plan_ruleset(settings: SourceValidation) -> Ruleset:
    chain = hooked(SOURCE_VALIDATION, _render_rules(settings), scope_of(settings.network))
    return Ruleset(family="inet", title=f"source validation {settings.network}", chains=(chain,))


def _render_rules(settings: SourceValidation) -> Iterator[str]:
    for subnet in settings.ranges:
        yield f"{FAMILY[subnet.version]} saddr {subnet.cidr} {_ELSEWHERE}"
    if settings.tunnel:
        yield f'iifname != "{settings.tunnel}" fib saddr oifname "{settings.tunnel}" drop'
    if settings.routed:
        # A router lets nothing with such a source pass, and what discovery says to the node is its link's.
        yield f"iifgroup {POD_GROUP} ip6 saddr fe80::/10 accept"
        yield f"iifgroup {POD_GROUP} {_ELSEWHERE}"


def add(settings: SourceValidation, site: Site, result: Result, undo: ExitStack) -> Result:
    """Nothing is the pod's own: its routes say what it may send."""
    del settings, site, undo
    return result


def delete(given: DeleteInput, site: Site) -> None:
    """Nothing is the pod's own."""
    del given, site


def compare(settings: SourceValidation, site: Site, result: Result) -> Iterator[Damage]:
    """Compare the chain, without which the pod could speak as others do."""
    del result
    return compare_shared(settings, site.host)


def compare_shared(settings: SourceValidation, host: Namespace) -> Iterator[Damage]:
    """Compare the network's chain."""
    from cni_plugin.features.damage import compare_ruleset  # no ADD or DEL needs it

    yield from compare_ruleset(host.nftables, _plan_ruleset(settings), "the rules of sourceValidation")


FEATURE = Feature(
    parse=parse, add=add, delete=delete, compare=compare, compare_shared=compare_shared, ensure=ensure
)
