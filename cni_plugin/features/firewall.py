"""The feature `firewall`: who may open connections to a pod, in nftables.

A network has a chain at the forward hook: first the operator's own chain, then what belongs to connections
of pods, then `ingressPolicy`, then whatever pods send. `isolated` has a chain in the bridge family too,
which keeps pods of one bridge apart without connection tracking. A pod is one element per
address and family of tables. An accept here overrides no drop of another table: kernel/foreign_chains.py.
By hand: `nft list table inet podwire`.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.contract.errors import CNIError, Code, invalid_config
from cni_plugin.features.elements import claim, compare_elements, release_addresses
from cni_plugin.features.feature import Feature
from cni_plugin.features.forward_warning import warn_of_drops
from cni_plugin.features.nft_backend import require_nftables
from cni_plugin.features.published import IS_PUBLISHED, plan_marks
from cni_plugin.kernel.link import get_link
from cni_plugin.kernel.nft import (
    FAMILY,
    Ruleset,
    ensure_ruleset,
    hooked,
    require_nft,
    scope_of,
)
from cni_plugin.kernel.nft_layout import BRIDGE_FIREWALL, FIREWALL
from cni_plugin.kernel.nft_message import Element

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import ExitStack

    from cni_plugin.config.network import Addressing, Network
    from cni_plugin.contract.fields import Fields
    from cni_plugin.contract.result import IPConfig, Result
    from cni_plugin.features.damage import Damage
    from cni_plugin.features.feature import DeleteInput, Site
    from cni_plugin.kernel.netns import Namespace

log = logging.getLogger("podwire")

DEFAULT_ADMIN_CHAIN = "CNI-ADMIN"
_POLICIES = ("open", "same-bridge", "isolated")
# The names of our own chains and the words of nft are lower case, so that none of them is like this.
_ADMIN_CHAIN = re.compile(r"(?=.*[A-Z-])[A-Za-z][A-Za-z0-9_.-]{0,27}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Firewall:
    """What the pods of a network get. `bridge` is theirs, empty where the policy asks for none."""

    network: str
    bridge: str
    policy: str
    admin_chain: str

    @property
    def scope(self) -> str:
        """Return what the names of its chain and sets end with: a pod keeps the policy that it was given."""
        return scope_of(repr(self))


def parse(fields: Fields, network: Network, addressing: Addressing) -> Firewall:
    """Return what is asked for; CNIError 2 for firewalld, 7 for a policy or a name that cannot be."""
    del addressing
    _refuse_backend(fields)
    policy = fields.string("ingressPolicy") or "open"
    if policy not in _POLICIES:
        raise invalid_config(f'"ingressPolicy" must be one of {list(_POLICIES)}, found "{policy}"')
    admin_chain = fields.string("iptablesAdminChainName") or DEFAULT_ADMIN_CHAIN
    if not _ADMIN_CHAIN.fullmatch(admin_chain):
        raise invalid_config(
            '"iptablesAdminChainName" must be 1 to 28 letters, digits, "_", "." and "-", '
            f'one of them upper case or "-", found "{admin_chain}"'
        )
    require_nft()
    first = network.prev_result.interfaces[:1] if network.prev_result else ()
    bridge = first[0].name if first and policy != "open" else ""
    return Firewall(network=network.attachment.network, bridge=bridge, policy=policy, admin_chain=admin_chain)


def _refuse_backend(fields: Fields) -> None:
    backend = fields.string("backend")
    if backend not in {"", "nftables", "iptables"}:
        raise CNIError(
            Code.UNSUPPORTED_FIELD, f'"backend": wanted nftables, the only one of podwire, found "{backend}"'
        )
    require_nftables(fields, "backend")


def ensure(settings: Firewall, host: Namespace) -> int:
    """Make the network's chains be as configured; return the number of changes."""
    if settings.policy != "open":
        _require_bridge(settings, host)
    return sum(ensure_ruleset(host.nftables, ruleset) for ruleset in _plan_rulesets(settings))


def _require_bridge(settings: Firewall, host: Namespace) -> None:
    """Refuse a policy about a bridge where prevResult, whose first interface it is, has none."""
    link = get_link(host.netlink, settings.bridge) if settings.bridge else None
    if link is None or link.kind != "bridge":
        found = f'"{settings.bridge}"' if settings.bridge else "none"
        raise invalid_config(
            f'"ingressPolicy" {settings.policy}: wanted a bridge as the first interface of prevResult, '
            f"found {found}"
        )


def _plan_rulesets(settings: Firewall) -> list[Ruleset]:
    rules = [
        f"jump {settings.admin_chain}",
        *_established(settings),
        *_policy(settings),
        *_outgoing(settings),
    ]
    routed = _plan_ruleset(settings, "inet", rules, kept=(settings.admin_chain,))
    if settings.policy != "isolated":
        return [routed]
    bridged = [
        f"{IS_PUBLISHED} accept",
        _DISCOVERY,
        *(f"{_to(settings, version)} drop" for version in (4, 6)),
    ]
    return [routed, plan_marks(settings.bridge), _plan_ruleset(settings, "bridge", bridged)]


def _plan_ruleset(settings: Firewall, family: str, rules: list[str], kept: tuple[str, ...] = ()) -> Ruleset:
    chain = hooked(BRIDGE_FIREWALL if family == "bridge" else FIREWALL, rules, settings.scope)
    sets = tuple((f"set firewall{v}_{settings.scope}", f"typeof {FAMILY[v]} saddr;") for v in (4, 6))
    return Ruleset(family=family, title=f"firewall {settings.network}", chains=(chain,), sets=sets, kept=kept)


# Without it a pod could not find a router that is beside it on the bridge.
_DISCOVERY = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept"


def _to(settings: Firewall, version: int) -> str:
    return f"{FAMILY[version]} daddr @firewall{version}_{settings.scope}"


def _established(settings: Firewall) -> list[str]:
    return [f"{_to(settings, version)} ct state established,related accept" for version in (4, 6)]


def _policy(settings: Firewall) -> list[str]:
    """Return what drops new connections; to a published port (DNAT) they come from everywhere."""
    if settings.policy == "open":
        return []
    away = f'iifname != "{settings.bridge}" ' if settings.policy == "same-bridge" else ""
    ends = ("ct status dnat accept", "drop")
    return [_DISCOVERY, *(f"{away}{_to(settings, version)} {end}" for version in (4, 6) for end in ends)]


def _outgoing(settings: Firewall) -> list[str]:
    return [f"{FAMILY[version]} saddr @firewall{version}_{settings.scope} accept" for version in (4, 6)]


def add(settings: Firewall, site: Site, result: Result, undo: ExitStack) -> Result:
    """Let the network's rules be for the pod's addresses."""
    claim(site, _plan_elements(settings, site, result.ips), undo)
    warn_of_drops(site.host, result.interfaces[0].name if result.interfaces else "", result)
    return result


def _plan_elements(settings: Firewall, site: Site, ips: Iterable[IPConfig]) -> list[Element]:
    """Return one element for each of the addresses in each family of tables."""
    addresses = dict.fromkeys(ip.address.ip for ip in ips)
    families = [ruleset.family for ruleset in _plan_rulesets(settings) if ruleset.sets]
    return [
        Element(
            family=family,
            set_name=f"firewall{a.version}_{settings.scope}",
            key=a.packed,
            comment=site.label,
        )
        for family in families
        for a in addresses
    ]


def delete(given: DeleteInput, site: Site) -> None:
    """Forget the pod's addresses, whatever the configuration says by now."""
    known, removed = given.addresses, release_addresses(site, "firewall", given.addresses)
    if known and not removed:
        from cni_plugin.features.go_cleanup import delete_accepts

        delete_accepts(site, known)


def compare(settings: Firewall, site: Site, result: Result) -> Iterator[Damage]:
    """Compare the network's chains and the pod's elements.

    ADD makes them for every address of prevResult, whatever interface it is on. What is on another one
    now a later plugin may have added.
    """
    from cni_plugin.features.damage import compare_ruleset  # no ADD or DEL needs it

    for ruleset in _plan_rulesets(settings):
        yield from compare_ruleset(site.host.nftables, ruleset, "the rules of firewall")
    wanted = _plan_elements(settings, site, result.addresses_on(site.attachment.ifname))
    yield from compare_elements(site, wanted, "firewall")


FEATURE = Feature(parse=parse, add=add, delete=delete, compare=compare, ensure=ensure)
