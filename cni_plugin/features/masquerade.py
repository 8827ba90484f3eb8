"""The feature `ipMasq`: what a pod sends out of the pod networks leaves with the node's address.

A network has one chain and two sets a family, a pod one element per address. Never translated: what goes
to the network's own pods on this node and on others, what takes its tunnel, `nonMasqueradeCIDRs`,
multicast, IPv6 link-local. Where the configuration does not name the pods' networks, whoever gives the
addresses tells a network with each; then it is the pod's own element too, in a third set.
By hand: `nft add rule ... ip saddr @pods ip daddr != { ... } masquerade fully-random`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from netaddr import IPAddress, IPNetwork, cidr_merge

from cni_plugin.contract.errors import invalid_config
from cni_plugin.contract.inet import parse_cidr, width
from cni_plugin.features.elements import claim, compare_elements, release
from cni_plugin.features.feature import Feature
from cni_plugin.kernel.nft import (
    FAMILY,
    Ruleset,
    ensure_ruleset,
    hooked,
    require_nft,
    scope_of,
)
from cni_plugin.kernel.nft_layout import MASQUERADE
from cni_plugin.kernel.nft_message import Element

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import ExitStack

    from cni_plugin.config.network import Addressing, Network, RemoteNetworks
    from cni_plugin.contract.fields import Fields
    from cni_plugin.contract.result import Result
    from cni_plugin.features.damage import Damage
    from cni_plugin.features.feature import DeleteInput, Site
    from cni_plugin.kernel.netns import Namespace

# RFC 5771, RFC 4291 sections 2.7 and 2.5.6. Of IPv4 link-local addresses some are a cloud's services, for
# metadata, names and time, which answer the node alone.
_NEVER = {4: ("224.0.0.0/4",), 6: ("ff00::/8", "fe80::/10")}
# A pod's address and the network that it was told with.
_NEAR = "typeof {0} saddr . {0} daddr; flags interval;"


@dataclass(frozen=True, slots=True, kw_only=True)
class Masquerade:
    """What a network wants: the families to translate, and to where nothing is translated."""

    network: str
    families: tuple[int, ...]
    exceptions: tuple[IPNetwork, ...]
    elsewhere: RemoteNetworks
    told: bool
    """Nobody knows the pods' own networks but who gives the addresses."""

    @property
    def scope(self) -> str:
        """Return what the names of the network's chain and sets end with."""
        return scope_of(self.network)


def parse(fields: Fields, network: Network, addressing: Addressing) -> Masquerade | None:
    """Return what `ipMasq` and `nonMasqueradeCIDRs` ask for; CNIError 50 when there is no nft."""
    families = _parse_families(fields)
    named = [_parse_exception(text) for text in fields.strings("nonMasqueradeCIDRs")]
    if fields.value("ipMasqBackend") is not None:
        from cni_plugin.features.nft_backend import require_nftables  # few configurations name it

        require_nftables(fields, "ipMasqBackend")
    if not families:
        return None
    require_nft()
    own = [known.subnet for known in addressing.ranges]
    return Masquerade(
        network=network.attachment.network,
        families=families,
        exceptions=(*own, *named),
        elsewhere=addressing.elsewhere,
        told=not own,
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
    wanted = _plan_elements(settings, site, result)
    claim(site, wanted, undo, partial(_settle, site, wanted))
    return result


def _settle(site: Site, wanted: Sequence[Element]) -> tuple[Sequence[Element], list[Element]]:
    """Return what is made, and other networks of the addresses: of several that hold one a DEL finds any."""
    there = [
        site.host.nftables.get(each.family, each.set_name, each.key[: len(each.key) // 2] * 2)
        for each in wanted
        if each.end
    ]
    return wanted, [each for each in there if each and each not in wanted]


def ensure(settings: Masquerade, host: Namespace) -> int:
    """Make the network's chain be as configured; return the number of changes."""
    return int(ensure_ruleset(host.nftables, _plan_ruleset(settings)))


def _plan_ruleset(settings: Masquerade) -> Ruleset:
    scope, families = settings.scope, settings.families
    return Ruleset(
        family="inet",
        title=f"masquerade {settings.network}",
        chains=(hooked(MASQUERADE, (_render_rule(settings, version) for version in families), scope),),
        sets=(
            *((f"set masq{v}_{scope}", f"typeof {FAMILY[v]} saddr;") for v in families),
            *((f"set far{v}_{scope}", f"typeof {FAMILY[v]} daddr; flags interval;") for v in families),
            *((f"set masqnear{v}_{scope}", _NEAR.format(FAMILY[v])) for v in families if settings.told),
        ),
        filled=tuple(f"far{v}_{scope}" for v in families),
        fingerprint=f"{_NEVER} {settings.exceptions} {settings.elsewhere.digest}",
        fill=lambda: _list_exceptions(settings),
    )


def _render_rule(settings: Masquerade, version: int) -> str:
    family, scope, tunnel = FAMILY[version], settings.scope, settings.elsewhere.device
    pods, far, near = (f"@{name}{version}_{scope}" for name in ("masq", "far", "masqnear"))
    out = f'oifname != "{tunnel}" ' if tunnel else ""
    told = f" {family} daddr != {pods} {family} saddr . {family} daddr != {near}" if settings.told else ""
    return f"{out}{family} saddr {pods} {family} daddr != {far}{told} masquerade fully-random"


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
    """Return one element for each of the attachment's addresses, and one for its network if it was told one.

    In mode `routed` only ADD knows it: prevResult has single addresses.
    """
    own = result.addresses_on(site.attachment.ifname)
    networks = {ip.address.ip: ip.network or ip.address.cidr for ip in own}
    element = partial(Element, family="inet", comment=site.label)
    elements = []
    for address, network in networks.items():
        version = address.version
        if version not in settings.families:
            continue
        elements.append(element(set_name=f"masq{version}_{settings.scope}", key=address.packed))
        if settings.told and network.prefixlen < width(address):
            first, last = (IPAddress(value, version).packed for value in (network.first, network.last))
            near = f"masqnear{version}_{settings.scope}"
            elements.append(element(set_name=near, key=address.packed + first, end=address.packed + last))
    return elements


def delete(given: DeleteInput, site: Site) -> None:
    """Forget the pod's addresses."""
    for version in (4, 6):
        known = given.addresses
        keys = None if known is None else [a.packed for a in known if a.version == version]
        release(site, "inet", f"masq{version}_", keys)
        release(site, "inet", f"masqnear{version}_", keys and [key * 2 for key in keys])


def compare(settings: Masquerade, site: Site, result: Result) -> Iterator[Damage]:
    """Compare the pod's elements."""
    yield from compare_elements(site, _plan_elements(settings, site, result), "ipMasq")


def compare_shared(settings: Masquerade, host: Namespace) -> Iterator[Damage]:
    """Compare the network's chain."""
    from cni_plugin.features.damage import compare_ruleset  # no ADD or DEL needs it

    yield from compare_ruleset(host.nftables, _plan_ruleset(settings), "the rules of ipMasq")


FEATURE = Feature(
    parse=parse, add=add, delete=delete, compare=compare, compare_shared=compare_shared, ensure=ensure
)
