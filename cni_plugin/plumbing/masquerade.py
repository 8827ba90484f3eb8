"""`ipMasq`: what a pod sends out of the pod networks leaves with the node's address.

A network has one chain and two sets, a pod one element per address. Never translated: what goes to
the network's own pods on this node and on others, what takes its tunnel, `nonMasqueradeCIDRs`,
multicast, link-local.
By hand: `nft add rule ... ip saddr @pods ip daddr != { ... } masquerade fully-random`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from netaddr import IPNetwork, cidr_merge

from cni_plugin.contract.errors import broken, invalid_config
from cni_plugin.contract.inet import parse_cidr
from cni_plugin.kernel.nfnetlink import Element
from cni_plugin.kernel.nft import (
    FAMILY,
    Chain,
    Ruleset,
    ensure_ruleset,
    find_difference,
    require_nft,
    scope_of,
)
from cni_plugin.plumbing.backend import require_nftables
from cni_plugin.plumbing.elements import claim, release, require
from cni_plugin.plumbing.feature import Feature

if TYPE_CHECKING:
    from contextlib import ExitStack

    from cni_plugin.config import Addressing, Elsewhere, Network
    from cni_plugin.contract.fields import Fields
    from cni_plugin.contract.result import Result
    from cni_plugin.kernel.netns import Namespace
    from cni_plugin.plumbing.feature import Site, Traces

# RFC 5771, RFC 3927, RFC 4291 sections 2.7 and 2.5.6.
_NEVER = {4: ("224.0.0.0/4", "169.254.0.0/16"), 6: ("ff00::/8", "fe80::/10")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Masquerade:
    """What a network wants: the families to translate, and to where nothing is translated."""

    network: str
    families: tuple[int, ...]
    exceptions: tuple[IPNetwork, ...]
    elsewhere: Elsewhere
    scope: str
    """What the names of the network's sets end with; empty until the pods' own networks are known."""


def parse(network: Network, addressing: Addressing) -> Masquerade | None:
    """Return what `ipMasq` and `nonMasqueradeCIDRs` ask for; CNIError 50 when there is no nft."""
    families = _parse_families(network.fields)
    named = [_parse_exception(text) for text in network.fields.strings("nonMasqueradeCIDRs")]
    require_nftables(network.fields, "ipMasqBackend")
    if not families:
        return None
    require_nft()
    own = [known.subnet for known in addressing.ranges]
    return Masquerade(
        network=network.attachment.network,
        families=families,
        exceptions=(*own, *named),
        elsewhere=addressing.elsewhere,
        scope=scope_of(network.attachment.network) if own else "",
    )


def _parse_families(fields: Fields) -> tuple[int, ...]:
    if not isinstance(fields.value("ipMasq"), dict):
        return (4, 6) if fields.boolean("ipMasq") else ()
    section = fields.section("ipMasq")
    return tuple(v for v in (4, 6) if section and section.boolean(f"ipv{v}"))


def _parse_exception(text: str) -> IPNetwork:
    found = parse_cidr(text, '"nonMasqueradeCIDRs"')
    if found.ip != found.network:
        raise invalid_config(f'"nonMasqueradeCIDRs" must have no host bits set, found {text}')
    return found


def add(settings: Masquerade, site: Site, result: Result, undo: ExitStack) -> Result:
    """Let the pod's addresses be translated."""
    known = _complete(settings, result)
    if known is not settings:
        ensure(known, site.host)
    claim(site, _plan_elements(known, site, result), undo)
    return result


def _complete(settings: Masquerade, result: Result) -> Masquerade:
    """Return the settings with the pods' own networks, which a foreign IPAM plugin tells by its result.

    Pods that it gives addresses of other networks then have a chain of their own.
    """
    if settings.scope:
        return settings
    own = sorted({ip.address.cidr for ip in result.ips})
    scope = scope_of(f"{settings.network} {own}")
    return replace(settings, exceptions=(*settings.exceptions, *own), scope=scope)


def ensure(settings: Masquerade, host: Namespace) -> int:
    """Make the network's chain be as configured; return the number of changes."""
    return int(bool(settings.scope) and ensure_ruleset(host.nftables, _plan_ruleset(settings)))


def _plan_ruleset(settings: Masquerade) -> Ruleset:
    scope, families = settings.scope, settings.families
    return Ruleset(
        family="inet",
        title=f"masquerade {settings.network}",
        chains=(
            Chain(
                name=f"masquerade_{scope}",
                hook="type nat hook postrouting priority srcnat; policy accept;",
                rules=tuple(_render_rule(version, scope, settings.elsewhere.device) for version in families),
            ),
        ),
        sets=(
            *((f"set masq{v}_{scope}", f"type ipv{v}_addr;") for v in families),
            *((f"set far{v}_{scope}", f"type ipv{v}_addr; flags interval;") for v in families),
        ),
        filled=tuple(f"far{v}_{scope}" for v in families),
        fingerprint=f"{settings.exceptions} {settings.elsewhere.digest}",
        fill=lambda: _list_exceptions(settings),
    )


def _render_rule(version: int, scope: str, tunnel: str) -> str:
    family = FAMILY[version]
    pods, far = f"@masq{version}_{scope}", f"@far{version}_{scope}"
    out = f'oifname != "{tunnel}" ' if tunnel else ""
    return f"{out}{family} saddr {pods} {family} daddr != {far} masquerade fully-random"


def _list_exceptions(settings: Masquerade) -> dict[str, list[IPNetwork]]:
    """Return, by set, to where nothing is translated."""
    known = (*settings.exceptions, *settings.elsewhere.read())
    return {
        f"far{version}_{settings.scope}": cidr_merge(
            [*map(IPNetwork, _NEVER[version]), *(block for block in known if block.version == version)]
        )
        for version in settings.families
    }


def _plan_elements(settings: Masquerade, site: Site, result: Result) -> list[Element]:
    addresses = dict.fromkeys(ip.address.ip for ip in result.ips if ip.address.version in settings.families)
    return [
        Element(family="inet", set_name=f"masq{a.version}_{settings.scope}", key=a.packed, comment=site.label)
        for a in addresses
    ]


def delete(traces: Traces, site: Site) -> None:
    """Forget the pod's addresses."""
    for version in (4, 6):
        known = traces.addresses
        keys = None if known is None else [a.packed for a in known if a.version == version]
        release(site, "inet", f"masq{version}_", keys)


def check(settings: Masquerade, site: Site, result: Result) -> None:
    """Compare the network's chain and the pod's elements."""
    settings = _complete(settings, result)
    if chain := find_difference(site.host.nftables, _plan_ruleset(settings)):
        raise broken(f"nft chain inet podwire {chain}: wanted the rules of ipMasq, found others")
    require(site, _plan_elements(settings, site, result), "ipMasq")


FEATURE = Feature(parse=parse, add=add, delete=delete, check=check, ensure=ensure)
