"""The feature `sourceValidation`: the route to a packet's source leads back to where it came from.

Who is allowed by address must hold it. What a routed pod sends has the pod's own source; nobody on the
underlay, in the tunnel or on another pod's link speaks as a pod of this node, nor anybody on the underlay
as one behind the tunnel. It asks the node's routes: nothing is one pod's. Before connection
tracking, in both families: rp_filter knows IPv4 alone, and is often off. RFC 2827, RFC 3704 section 2.2.
By hand: `nft add rule ... iifgroup 7368548 fib saddr . iif oif missing drop`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.contract.errors import invalid_config
from cni_plugin.features.feature import Feature
from cni_plugin.kernel.nft import (
    FAMILY,
    Ruleset,
    delete_ruleset,
    ensure_ruleset,
    hooked,
    list_present,
    require_nft,
    scope_of,
)
from cni_plugin.kernel.nft_layout import POD_GROUP, SOURCE_VALIDATION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netaddr import IPNetwork

    from cni_plugin.config.network import Addressing, Network
    from cni_plugin.contract.fields import Fields
    from cni_plugin.features.damage import Damage
    from cni_plugin.kernel.netns import Namespace

# There is no route over the link by which the packet came.
_ELSEWHERE = "fib saddr . iif oif missing drop"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceValidation:
    """Whose sources are judged: this node's ranges, its routed pods, and what is behind the tunnel."""

    network: str
    on: bool
    """A network that is said to have none may have it from before."""
    ranges: tuple[IPNetwork, ...]
    routed: bool
    tunnel: str
    """The link that leads to the pods of other nodes and to nobody else; empty where there is none."""


def parse(fields: Fields, network: Network, addressing: Addressing) -> SourceValidation:
    """Return what `sourceValidation` asks for; CNIError 7 without addresses, 50 when there is no nft."""
    on = fields.boolean("sourceValidation")
    if on and addressing.layer2:
        raise invalid_config('"sourceValidation": wanted addresses that routes lead to, found no "ipam"')
    if on:
        require_nft()
    return SourceValidation(
        network=network.attachment.network,
        on=on,
        ranges=tuple(dict.fromkeys(known.subnet for known in addressing.ranges)),
        routed=network.mode == "routed",
        tunnel=addressing.elsewhere.device,
    )


def ensure(settings: SourceValidation, host: Namespace) -> int:
    """Make the network's chain be as configured, or not be; return the number of changes."""
    change = ensure_ruleset if settings.on else delete_ruleset
    return int(change(host.nftables, _plan_ruleset(settings)))


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


def compare_shared(settings: SourceValidation, host: Namespace) -> Iterator[Damage]:
    """Compare the network's chain."""
    from cni_plugin.features.damage import Damage, compare_ruleset  # no ADD or DEL needs it

    ruleset = _plan_ruleset(settings)
    if settings.on:
        yield from compare_ruleset(host.nftables, ruleset, "the rules of sourceValidation")
    else:
        for chain in list_present(host.nftables, ruleset):
            said = f"nft chain inet podwire {chain}: wanted none without sourceValidation, found it"
            yield Damage(kind="chain", said=said, mend=partial(ensure, settings, host))


FEATURE = Feature(parse=parse, compare_shared=compare_shared, ensure=ensure)
