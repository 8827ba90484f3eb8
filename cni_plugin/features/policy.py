"""The feature `networkPolicy`: a pod is closed until its policies are in force; ADD waits for that.

The address of a pod that nothing is known of is closed by the rules themselves (policy_rules). ADD puts
it into the maps as pending, with the attachment's identity, and asks whoever follows the policies to put
it into its groups, which takes a millisecond. Nobody there, or no answer in time: the pod stays closed, the
log says so, and the follower opens it when it comes; with `strict` the ADD fails instead.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.config.paths import POLICY_SOCKET
from cni_plugin.contract.errors import CNIError, Code, invalid_config
from cni_plugin.features.elements import claim, compare_elements, identity_of, release_exactly
from cni_plugin.features.feature import DeleteInput, Feature, OwnedObject, Site
from cni_plugin.kernel.nft import FAMILY, ensure_ruleset, find_difference, require_nft
from cni_plugin.kernel.nft_layout import POLICY_TABLE
from cni_plugin.kernel.nft_message import Element, ElementChange

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import ExitStack

    from netaddr import IPAddress, IPNetwork

    from cni_plugin.config.network import Addressing, Network
    from cni_plugin.contract.fields import Fields
    from cni_plugin.contract.result import Result
    from cni_plugin.features.damage import Damage
    from cni_plugin.features.policy_question import PolicyQuestion
    from cni_plugin.kernel.netns import Namespace

log = logging.getLogger("podwire")

DIRECTIONS = ("egress", "ingress")
PENDING = "goto pending"
_KEYS = frozenset({"socket", "timeout", "strict"})
_TIMEOUT, _LONGEST = 2000, 60000  # milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """Who is asked about a pod and for how long, in seconds; the pods' own networks."""

    network: str
    pod: str
    uid: str
    ranges: tuple[IPNetwork, ...]
    socket: str
    timeout: float
    strict: bool


def parse(fields: Fields, network: Network, addressing: Addressing) -> PolicySettings | None:
    """Return what `networkPolicy` asks for; CNIError 7 where pods could pass the rules by."""
    section = fields.section("networkPolicy")
    if section is None:
        return None
    if unknown := sorted(set(section.raw) - _KEYS):
        raise invalid_config(f'"networkPolicy": wanted keys of {sorted(_KEYS)}, found {unknown}')
    if network.mode != "routed":
        # What two pods of one bridge say to each other never passes the node.
        raise invalid_config(f'"networkPolicy": wanted "mode" "routed" beside it, found "{network.mode}"')
    if not addressing.ranges:
        raise invalid_config('"networkPolicy": wanted "ipam" with ranges that are this node\'s, found none')
    require_nft()
    timeout = section.integer("timeout", 0, _LONGEST)
    return PolicySettings(
        network=network.attachment.network,
        pod=network.pod,
        uid=network.pod_uid,
        ranges=tuple(dict.fromkeys(known.subnet for known in addressing.ranges)),
        socket=section.string("socket") or POLICY_SOCKET,
        timeout=(_TIMEOUT if timeout is None else timeout) / 1000,
        strict=section.boolean("strict"),
    )


def ensure(settings: PolicySettings, host: Namespace) -> int:
    """Make the rules that close every address which nothing is known of; return the number of changes."""
    from cni_plugin.features.policy_rules import ensure_maps, plan_policy_ruleset  # no DEL needs it

    changes = ensure_maps(host.nftables)
    ruleset = plan_policy_ruleset(settings.network, settings.ranges)
    return changes + int(ensure_ruleset(host.nftables, ruleset))


def admit(settings: PolicySettings, site: Site, addresses: Result, undo: ExitStack) -> None:
    """Put the pod's addresses on pending, whatever held for who had them: its link is not up yet."""
    del settings
    claim(site, list(_plan_elements((each.address.ip for each in addresses.ips), site.label)), undo)


def add(settings: PolicySettings, site: Site, result: Result, undo: ExitStack) -> Result:
    """Wait until the pod's policies are in force."""
    from cni_plugin.features.policy_question import READY, ask  # no DEL needs it

    del undo
    addresses = [each.address.ip for each in result.ips]
    answer = ask(settings.socket, _question_of(settings, site, addresses)) if settings.pod else ""
    if answer != READY:
        _complain(settings, site, answer)
    return result


def _question_of(settings: PolicySettings, site: Site, addresses: Iterable[IPAddress]) -> PolicyQuestion:
    from cni_plugin.features.policy_question import PolicyQuestion  # no DEL needs it

    namespace, _, name = settings.pod.partition("/")
    return PolicyQuestion(
        identity=site.attachment.identity,
        namespace=namespace,
        name=name,
        uid=settings.uid,
        addresses=tuple(map(str, addresses)),
        timeout=settings.timeout,
    )


def _complain(settings: PolicySettings, site: Site, answer: str) -> None:
    said = (
        f"pod {settings.pod or site.attachment}: wanted its policies in force within {settings.timeout} s, "
        f"found {answer or f'nobody who answers at {settings.socket}'}"
    )
    if settings.strict:
        raise CNIError(Code.TRY_AGAIN_LATER, said)
    log.warning("%s; it is closed until they are", said)


def _plan_elements(addresses: Iterable[IPAddress], label: str) -> Iterator[Element]:
    """Yield the elements of a pod's addresses: what holds for it each way, and that it may reach itself."""
    for address in addresses:
        for direction in DIRECTIONS:
            yield _element(f"{direction}{address.version}", address.packed, label, PENDING)
        yield _element(f"self{address.version}", address.packed * 2, label)


def _element(name: str, key: bytes, label: str, verdict: str = "") -> Element:
    return Element(family="inet", table=POLICY_TABLE, set_name=name, key=key, verdict=verdict, comment=label)


def delete(given: DeleteInput, site: Site) -> None:
    """Remove what is the attachment's own; where nobody knows its addresses it is searched for."""
    if given.addresses is not None:
        release_exactly(site, list(_plan_elements(given.addresses, "")))
        return
    identity = site.attachment.identity
    release_exactly(site, [e for e in _list_elements(site.host) if identity_of(e) == identity])


def _list_elements(host: Namespace) -> list[Element]:
    names = [f"{name}{version}" for name in (*DIRECTIONS, "self") for version in FAMILY]
    nftables = host.nftables
    return nftables.search(
        lambda: [e for name in names for e in nftables.list_elements("inet", name, table=POLICY_TABLE)]
    )


def list_owned(network: str, recalled: object, site: Site) -> Iterator[OwnedObject]:
    """Yield the elements of a network's attachments."""
    del recalled
    for element in _list_elements(site.host):
        words = element.comment.split(" ")
        if words[1:2] == [network]:
            remove = partial(_remove_exactly, site.host, element)
            yield OwnedObject(label=element.comment, what=element.command, remove=remove)


def _remove_exactly(host: Namespace, element: Element) -> None:
    """Remove an element unless somebody else has its key by now."""
    nftables = host.nftables

    def decide() -> list[ElementChange]:
        found = nftables.get("inet", element.set_name, element.key, table=POLICY_TABLE)
        own = found is not None and identity_of(found) == identity_of(element)
        return [ElementChange(found, present=False)] if found is not None and own else []

    nftables.update(decide)


def compare(settings: PolicySettings, site: Site, result: Result) -> Iterator[Damage]:
    """Compare the pod's elements, whatever group they lead to; one that is gone is pending again."""
    addresses = [each.address.ip for each in result.ips]
    for element in _plan_elements(addresses, site.label):
        found = site.host.nftables.get("inet", element.set_name, element.key, table=POLICY_TABLE)
        if found is None or identity_of(found) != site.attachment.identity:
            yield from compare_elements(site, [element], "networkPolicy")
    del settings


def compare_shared(settings: PolicySettings, host: Namespace) -> Iterator[Damage]:
    """Compare the chains that judge the network's pods."""
    from cni_plugin.features.damage import Damage  # no ADD or DEL needs it
    from cni_plugin.features.policy_rules import plan_dead_ends, plan_policy_ruleset

    rulesets = (plan_dead_ends(), plan_policy_ruleset(settings.network, settings.ranges))
    differing = filter(None, (find_difference(host.nftables, each) for each in rulesets))
    if chain := next(differing, None):
        said = f"nft chain inet {POLICY_TABLE} {chain}: wanted the rules of networkPolicy, found others"
        yield Damage(kind="chain", said=said, mend=partial(ensure, settings, host))


FEATURE = Feature(
    parse=parse,
    add=add,
    delete=delete,
    compare=compare,
    compare_shared=compare_shared,
    ensure=ensure,
    admit=admit,
    list_owned=list_owned,
)
