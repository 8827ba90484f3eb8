"""The feature `bandwidth`: limits what a pod receives and sends, outside the pod's reach.

What goes to the pod passes a token bucket on the host's end of its veth. What comes from it is
sent through a device of the pod's own first, whose name `bwp...` is its identity, with another
bucket; DEL needs nothing but that name. Rates are bits/s, bursts bits, as the reference has them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.config.network import LINK_DIGITS, MARK, alias_prefix, owner_of_unnamed, unnamed_group
from cni_plugin.contract.errors import invalid_config
from cni_plugin.contract.result import Interface
from cni_plugin.features.feature import Feature, OwnedObject
from cni_plugin.kernel.link import (
    IFF_UP,
    Link,
    delete_link,
    delete_listed,
    get_link,
    get_other_end,
    list_links,
    set_up,
)
from cni_plugin.kernel.reaper import delete_links
from ipam.seam.undo import Undo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import ExitStack

    from cni_plugin.config.network import Addressing, Attachment, Network
    from cni_plugin.contract.fields import Fields
    from cni_plugin.contract.result import Result
    from cni_plugin.features.damage import Damage
    from cni_plugin.features.feature import DeleteInput, Site
    from cni_plugin.kernel.netlink import Netlink
    from cni_plugin.kernel.qdisc import Bucket

_KEYS = ("ingressRate", "ingressBurst", "egressRate", "egressBurst")
_MAX_RATE = 2**63 - 1  # bits/s
_MAX_BURST = 8 * (2**32 - 1) - 1  # bits; the kernel counts bytes in 32 bits
_MAX_BYTES = 2**32 - 1
_LATENCY = 25  # milliseconds, the reference's
# What runtimes send because Kubernetes has no word for a burst: the largest number that they have a type for.
# The last is CRI-O's, the largest burst that the kernel can hold.
_NO_WORD = frozenset({2**31 - 1, 2**32 - 1, _MAX_BURST})
_LONGEST_BURST_TIME = 10  # seconds of the rate; a larger burst is no limit, so nobody meant it as one
_OWN_BURST_TIME = 100  # a hundredth of a second, what a busy node may oversleep
_LEAST_OWN_BURST = 64 * 1024  # bytes; one packet that segmentation offload made
_LONGEST_NAME = 15  # bytes, IFNAMSIZ less the terminating zero
_FRAME = 18  # bytes that a frame has beside its MTU, a VLAN tag included


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One direction's limit: bytes/s, bytes, and the bytes that may wait for the rate."""

    rate: int
    burst: int
    queue: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """What the pod may receive (`ingress`) and send (`egress`); None is as much as it can."""

    ingress: Limit | None
    egress: Limit | None


def parse(fields: Fields, network: Network, addressing: Addressing) -> Bandwidth | None:
    """Return the limits of the configuration, else of the runtime; CNIError 7 for one that cannot be."""
    del network, addressing
    latency = fields.integer("latency", 1, 10_000) or _LATENCY
    source = _find_source(fields)
    if source is None:
        return None
    ingress, egress = (_parse_limit(source, direction, latency) for direction in ("ingress", "egress"))
    return Bandwidth(ingress=ingress, egress=egress) if ingress or egress else None


def _find_source(fields: Fields) -> Fields | None:
    if any(fields.value(key) is not None for key in _KEYS):
        return fields
    runtime = fields.section("runtimeConfig")
    return runtime.section("bandwidth") if runtime else None


def _parse_limit(source: Fields, direction: str, latency: int) -> Limit | None:
    rate = source.integer(f"{direction}Rate", 0, _MAX_RATE) or 0
    burst = source.integer(f"{direction}Burst", 0, _MAX_BURST) or 0
    if bool(rate) != bool(burst):
        raise invalid_config(
            f'"{source.name(direction)}Rate" and "{direction}Burst" must both be set or both be 0, '
            f"found {rate} and {burst}"
        )
    if not rate:
        return None
    if rate < 8:
        raise invalid_config(f'"{source.name(direction)}Rate" must be 0 or at least 8 bits/s, found {rate}')
    bytes_per_second = rate // 8
    return Limit(
        rate=bytes_per_second,
        burst=_find_burst(bytes_per_second, burst),
        queue=bytes_per_second * latency // 1000,
    )


def _find_burst(rate: int, asked: int) -> int:
    """Return the burst in bytes: as asked in bits, or our own where the number says that none was given.

    That is a number that runtimes send for it, and any that would let more than ten seconds of the rate
    (bytes/s) pass at once. What is smaller than our own is always taken.
    """
    own = min(max(rate // _OWN_BURST_TIME, _LEAST_OWN_BURST), _MAX_BYTES)
    burst = asked // 8
    limitless = asked in _NO_WORD or burst > rate * _LONGEST_BURST_TIME
    return own if limitless and burst > own else burst


def _bucket(limit: Limit, link: Link) -> Bucket:
    """Return the limit as the kernel takes it: a burst holds one packet, or nothing ever passes."""
    from cni_plugin.kernel.qdisc import Bucket

    burst = max(limit.burst, link.mtu + _FRAME)
    return Bucket(rate=limit.rate, burst=burst, limit=min(limit.queue + burst, _MAX_BYTES))


def add(settings: Bandwidth, site: Site, result: Result, undo: ExitStack) -> Result:
    """Limit the pod; the device that its packets pass is appended to the result."""
    from cni_plugin.kernel.qdisc import drop_bucket, set_bucket

    nl, veth = site.host.netlink, _find_host_end(site, result)
    if settings.ingress:
        undo.callback(nl.change, drop_bucket(veth))
        nl.change(set_bucket(veth, _bucket(settings.ingress, veth)))
    if not settings.egress:
        return result
    ifb = _limit_egress(settings.egress, veth, site, undo)
    made = Interface(name=ifb.name, mac=ifb.mac, mtu=ifb.mtu)
    return replace(result, interfaces=(*result.interfaces, made))


def _limit_egress(limit: Limit, veth: Link, site: Site, undo: ExitStack) -> Link:
    """Send what the pod sends through a device with a bucket, which is made anew."""
    from cni_plugin.kernel.qdisc import add_ifb, redirect, set_bucket

    nl, name = site.host.netlink, ifb_name(site.attachment)
    undo.callback(delete_link, nl, name)
    group = unnamed_group(site.attachment.network)
    ifb = add_ifb(nl, name, mtu=veth.mtu, alias=MARK + site.label, group=group)
    nl.change(set_bucket(ifb, _bucket(limit, ifb)))
    redirect(nl, veth, ifb, undo)
    return ifb


def ifb_name(attachment: Attachment) -> str:
    """Return the name of the device that an attachment's packets pass."""
    return f"bwp{attachment.identity[: LINK_DIGITS[1]]}"


def _find_host_end(site: Site, result: Result) -> Link:
    """Return the host's end of the pod's veth, which the result must name too; CNIError 7."""
    ifname = site.attachment.ifname
    if site.netns is None and (ours := get_link(site.host.netlink, site.attachment.host_ifname)):
        return ours
    inside = get_link(site.pod.netlink, ifname) if site.pod else None
    if inside is None:
        raise invalid_config(f"interface {ifname}: wanted it in {site.attachment.netns}, found none")
    outside = get_other_end(site.host.netlink, inside)
    if outside is None:
        raise invalid_config(f"interface {ifname}: wanted a veth whose other end is on the host, found none")
    if not any(each.name == outside.name and not each.sandbox for each in result.interfaces):
        raise invalid_config(f'"prevResult": wanted the interface {outside.name} without sandbox, found none')
    return outside


def delete(given: DeleteInput, site: Site) -> None:
    """Remove the device; what is on the veth goes with the veth."""
    del given
    link = get_link(site.host.netlink, ifb_name(site.attachment))
    if link is None:
        delete_go_device(site)
    elif link.alias.startswith(MARK):
        delete_links(site.host, link)  # which lets it go together with other pods' links
    else:
        delete_link(site.host.netlink, link.name)


def delete_go_device(site: Site) -> None:
    """Remove the device that the Go `bandwidth` made."""
    link = get_link(site.host.netlink, site.attachment.go_name("bwp", _LONGEST_NAME))
    if link is not None and link.kind == "ifb":
        delete_link(site.host.netlink, link.name)


def compare(settings: Bandwidth, site: Site, result: Result) -> Iterator[Damage]:
    """Compare rate, burst and limit of both directions with what the kernel holds."""
    veth, name = _find_host_end(site, result), ifb_name(site.attachment)
    if settings.ingress:
        yield from _compare_bucket(settings.ingress, veth, site.host.netlink)
    if settings.egress:
        yield from _compare_egress(settings.egress, veth, site)
    elif get_link(site.host.netlink, name):
        yield _damage(f"link {name}: wanted no limit of what the pod sends, found it", None)


def _damage(said: str, mend: Callable[[], object] | None) -> Damage:
    from cni_plugin.features.damage import Damage  # no ADD or DEL needs it

    return Damage(kind="limit", said=said, mend=mend)


def _compare_egress(limit: Limit, veth: Link, site: Site) -> Iterator[Damage]:
    from cni_plugin.kernel.qdisc import find_redirection

    nl, name = site.host.netlink, ifb_name(site.attachment)
    anew = partial(_limit_again, limit, veth, site)
    ifb = get_link(nl, name)
    if ifb is None:
        yield _damage(f"link {name}: wanted it, found none", anew)
        return
    yield from _compare_bucket(limit, ifb, nl)
    if find_redirection(nl, veth) != ifb.index:
        yield _damage(f"tc filter dev {veth.name} ingress: wanted a redirection to {name}, found none", anew)
    if not ifb.flags & IFF_UP:
        yield _damage(f"link {name}: wanted it up, found it down", partial(nl.change, set_up(name)))


def _limit_again(limit: Limit, veth: Link, site: Site) -> None:
    """Make the device again, unless the pod's veth has gone meanwhile."""
    with Undo() as undo:
        _limit_egress(limit, veth, site, undo)
        if get_link(site.host.netlink, veth.name) is not None:
            undo.pop_all()


def _compare_bucket(limit: Limit, link: Link, nl: Netlink) -> Iterator[Damage]:
    from cni_plugin.kernel.qdisc import get_bucket, set_bucket

    wanted, found = _bucket(limit, link), get_bucket(nl, link)
    if found is None or not found.holds(wanted):
        said = f"tc qdisc dev {link.name}: wanted tbf {wanted}, found {found or 'none'}"
        yield _damage(said, partial(nl.change, set_bucket(link, wanted)))


def find_devices(network: str, _: None, site: Site) -> Iterator[OwnedObject]:
    """Yield the devices of a network's attachments."""
    nl = site.host.netlink
    for each in list_links(nl, kind="ifb"):
        label = each.alias.removeprefix(MARK)
        own = each.alias.startswith(alias_prefix(label.partition(" ")[0], network))
        if unnamed := owner_of_unnamed(each.name, each.alias, each.group, network):
            label, own = f"{unnamed} {network}", True
        # A kernel that does not know the kind yet lists all links.
        if each.kind == "ifb" and own:
            what = f"link {each.name}, index {each.index}"
            yield OwnedObject(label=label, what=what, remove=partial(delete_listed, nl, each))


def list_own_links(attachment: Attachment) -> tuple[str, ...]:
    """Return the name of the attachment's device."""
    return (ifb_name(attachment),)


FEATURE = Feature(
    parse=parse, add=add, delete=delete, compare=compare, list_owned=find_devices, links=list_own_links
)
