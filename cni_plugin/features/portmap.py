"""The feature `portmap`: what arrives for a port of the node goes to a port of the pod.

A port is one element of a map and a pod's address one of a set, whatever else is on the node. What to make of
a configuration says portmap_plan, the chains are those of portmap_rules, and whose a port is knows
portmap_conflicts; a DEL needs none of the three. UDP flows that began before are portmap_flows'.
"""

from __future__ import annotations

import logging
import operator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.contract.errors import CNIError, Code, invalid_config
from cni_plugin.features.elements import claim, compare_elements, release
from cni_plugin.features.feature import Feature
from cni_plugin.features.hostports import parse_holder, parse_host_ports, parse_key, parse_target
from cni_plugin.kernel.nft import ensure_ruleset, require_nft, try_ruleset

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from contextlib import ExitStack

    from cni_plugin.config.network import Addressing, Network
    from cni_plugin.contract.fields import Fields
    from cni_plugin.contract.result import Result
    from cni_plugin.features.damage import Damage
    from cni_plugin.features.feature import DeleteInput, Site
    from cni_plugin.features.hostports import HostPort
    from cni_plugin.features.portmap_plan import PortmapPlan
    from cni_plugin.features.portmap_rules import Treatment
    from cni_plugin.kernel.link import Link
    from cni_plugin.kernel.netns import Namespace
    from cni_plugin.kernel.nft_message import Element

log = logging.getLogger("podwire")


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMap:
    """What an attachment asks for: the pod's port behind each host port, and how it is reached."""

    ports: Mapping[HostPort, int]
    treatment: Treatment


def parse(fields: Fields, network: Network, addressing: Addressing) -> PortMap:
    """Return what is asked for, perhaps nothing; CNIError 2, 7 or 50."""
    del network, addressing
    settings = PortMap(ports=parse_host_ports(fields) or {}, treatment=_parse_treatment(fields))
    _refuse_unreachable(settings)
    if settings.ports:
        require_nft()
        _require_conditions(settings.treatment)
    return settings


def _parse_treatment(fields: Fields) -> Treatment:
    if fields.value("backend") is not None:
        from cni_plugin.features.nft_backend import require_nftables  # few configurations name it

        require_nftables(fields, "backend")
    bit = fields.integer("markMasqBit", 0, 31)
    if chain := fields.string("externalSetMarkChain"):
        if bit is not None:
            raise invalid_config('"externalSetMarkChain" and "markMasqBit" exclude each other, found both')
        from cni_plugin.features.nft_backend import is_own, warn_of_iptables

        if is_own(fields):
            raise CNIError(
                Code.UNSUPPORTED_FIELD, f'"externalSetMarkChain": podwire has no iptables, found "{chain}"'
            )
        warn_of_iptables(fields, "externalSetMarkChain", f"the chain {chain} of iptables")
    from cni_plugin.features.portmap_rules import Treatment

    snat = fields.boolean("snat", default=True)
    return Treatment(
        snat=snat,
        masq_all=snat and fields.boolean("masqAll"),
        mark=0 if bit is None else 1 << bit,
        conditions=tuple((version, _parse_conditions(fields, version)) for version in (4, 6)),
    )


def _parse_conditions(fields: Fields, version: int) -> str:
    if fields.value(f"conditionsV{version}") is None:
        return ""
    from cni_plugin.features.conditions import parse_conditions
    from cni_plugin.features.nft_backend import is_own

    return parse_conditions(fields, version, own=is_own(fields))


def _refuse_unreachable(settings: PortMap) -> None:
    for port in settings.ports:
        if port.address is not None and port.address.is_loopback() and not settings.treatment.snat:
            raise invalid_config(
                f'"snat" must be true for host port {port}: nothing answers 127.0.0.1 without'
            )


def _require_conditions(treatment: Treatment) -> None:
    if not any(words for _, words in treatment.conditions):
        return
    from cni_plugin.features.portmap_rules import plan_ruleset

    if refusal := try_ruleset(plan_ruleset(treatment)):
        raise invalid_config(f'"conditionsV4", "conditionsV6": wanted words of an nft rule: {refusal}')


def add(settings: PortMap, site: Site, result: Result, undo: ExitStack) -> Result:
    """Lead the host ports to the pod."""
    plan = _plan(settings, site, result)
    if plan is None:
        return result
    from cni_plugin.features.portmap_conflicts import settle
    from cni_plugin.kernel.netconf import ensure_route_localnet

    for ruleset in plan.rulesets:
        ensure_ruleset(site.host.nftables, ruleset)
    if plan.local_link:
        with site.host.entered():
            ensure_route_localnet(site.host.netlink, plan.local_link)
    made = claim(site, plan.elements, undo, partial(settle, site, plan))
    _tell_of_others(site, plan, made)
    if plan.bridge_port:
        _open_port(site.host, plan.bridge_port)
    # After the elements: a flow that began in between would find the port as it was.
    _forget_flows(site, (each for each in plan.ports.values() if each in made), operator.ne)
    return result


def _open_port(host: Namespace, port: Link) -> None:
    """Let the pod's bridge port take what br_netfilter sends on inside the bridge."""
    from cni_plugin.kernel.bridge import set_hairpin  # no DEL needs it

    host.netlink.change(set_hairpin(port.name))
    if port.port and port.port.isolated:
        from cni_plugin.features.isolated_ports import open_host_ports

        open_host_ports(host, port)


def _tell_of_others(site: Site, plan: PortmapPlan, made: Collection[Element]) -> None:
    if left := [str(port) for port, element in plan.ports.items() if element not in made]:
        log.warning(
            "host ports %s: wanted for %s, found them held by another interface of the container",
            ", ".join(left),
            site.attachment,
        )


def _plan(settings: PortMap, site: Site, result: Result) -> PortmapPlan | None:
    if not settings.ports:
        return None
    from cni_plugin.features.portmap_plan import plan_host_ports

    return plan_host_ports(settings.ports, settings.treatment, site, result)


def delete(given: DeleteInput, site: Site) -> None:
    """Let go of the attachment's host ports; what nobody tells is searched by its identity."""
    told = _known_ports(given)
    removed = [e for kind, keys in told.items() for e in release(site, "inet", kind, keys)]
    if given.addresses and _are_all(removed):
        # The address comes last: while it is there, there may be ports.
        for prefix, key in _place_pods(given):
            release(site, "inet", prefix, [key])
    elif _may_have_ports(given, site):
        removed += release(site, "inet", "hostport")
    if told and not removed:
        from cni_plugin.features.go_cleanup import delete_host_ports

        delete_host_ports(site)
    _forget_flows(site, (element for element in removed if element.data), operator.eq)


def forget_collected(elements: Iterable[Element], site: Site) -> None:
    """Forget the flows to the pods of host ports that were taken away."""
    _forget_flows(site, (e for e in elements if e.data and e.set_name.startswith("hostport")), operator.eq)


def _forget_flows(
    site: Site, elements: Iterable[Element], is_stale: Callable[[object, object], bool]
) -> None:
    """Forget the UDP flows to these ports that are stale by where they and the ports lead."""
    known = {parse_key(e.set_name, e.key): parse_target(e.data) for e in elements}
    if udp := {port: target for port, target in known.items() if port.protocol == "udp"}:
        from cni_plugin.features.portmap_flows import forget_udp

        forget_udp(site.host, udp, is_stale)


def _known_ports(given: DeleteInput) -> dict[str, list[bytes]]:
    """Return the keys of the ports that DEL was told of by how the names of their maps begin."""
    ports: Iterable[HostPort] = given.recalled or ()
    keys: dict[str, list[bytes]] = {}
    for port in ports:
        keys.setdefault(port.kind, []).append(port.key)
    return keys


def _are_all(ports: Iterable[Element]) -> bool:
    """Tell whether there are as many as each of them says: DEL may be told of others than ADD was."""
    told = [parse_holder(port.comment).ports for port in ports]
    return all(0 < number <= len(told) for number in told) and told != []


def _place_pods(given: DeleteInput) -> Iterator[tuple[str, bytes]]:
    """Yield how the name of the sets begins that know an address of the pod, and its key there."""
    for address in given.addresses or ():
        yield f"hostport_pods{address.version}_", address.packed * 2


def _may_have_ports(given: DeleteInput, site: Site) -> bool:
    """Tell whether a search can find anything: of a pod with ports there is an address, too."""
    if given.addresses is None:
        return True
    places = ((name, key) for prefix, key in _place_pods(given) for name in site.sets("inet", prefix))
    return any(site.host.nftables.get("inet", *place) for place in places)


def compare(settings: PortMap, site: Site, result: Result) -> Iterator[Damage]:
    """Compare the chains, the elements and the switches of the interface."""
    plan = _plan(settings, site, result)
    # Without the way to the pod, which is its mode's, nobody knows the rules that ADD chose by it.
    if plan is None or (site.netns is None and not plan.link):
        return
    from cni_plugin.features.damage import compare_ruleset
    from cni_plugin.features.portmap_conflicts import list_own

    for ruleset in plan.rulesets:
        yield from compare_ruleset(site.host.nftables, ruleset, "the rules of portmap")
    yield from compare_elements(site, list_own(site, plan), "portmap")
    yield from _compare_switches(site, plan)


def _compare_switches(site: Site, plan: PortmapPlan) -> Iterator[Damage]:
    from cni_plugin.features.damage import Damage
    from cni_plugin.kernel.bridge import set_hairpin
    from cni_plugin.kernel.netconf import ensure_route_localnet, lets_localnet_pass, route_localnet

    nl, local = site.host.netlink, plan.local_link
    if local and not lets_localnet_pass(nl, local):
        said = f"sysctl {route_localnet(local)}: wanted 1, found 0"
        yield Damage(kind="sysctl", said=said, mend=partial(ensure_route_localnet, nl, local))
    link = plan.bridge_port
    if link and link.port and link.port.isolated:
        from cni_plugin.features.isolated_ports import list_foreign, open_host_ports

        if not list_foreign(site.host, link.master):
            said = f"bridge port {link.name}: wanted isolated off, which host ports need, found on"
            yield Damage(kind="port", said=said, mend=partial(open_host_ports, site.host, link))
    if link and link.port and not link.port.hairpin:
        said = f"bridge port {link.name}: wanted hairpin on, which br_netfilter needs, found off"
        yield Damage(kind="port", said=said, mend=partial(nl.change, set_hairpin(link.name)))


def ready(settings: PortMap, _: Namespace) -> None:
    """Raise CNIError 50 when nft or the kernel refuse the rules."""
    from cni_plugin.features.portmap_rules import plan_ruleset

    if refusal := try_ruleset(plan_ruleset(settings.treatment)):
        raise CNIError(Code.NOT_AVAILABLE, f"nft -c -f -: {refusal}")


FEATURE = Feature(
    parse=parse,
    add=add,
    delete=delete,
    compare=compare,
    ready=ready,
    recall=parse_host_ports,
    collected=forget_collected,
)
