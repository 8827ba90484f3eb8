"""The pod's veth pair: its name and alias, and as a bridge port its flags and VLANs."""

from __future__ import annotations

import errno
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.config.network import MARK, unnamed_group
from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.link import (
    Link,
    VethPair,
    add_veth,
    delete_link,
    drop_link_local,
    get_link,
    set_down,
    set_master,
    set_owner,
    set_up,
)
from cni_plugin.kernel.nft_layout import POD_GROUP
from cni_plugin.kernel.reaper import delete_links

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import ExitStack

    from cni_plugin.attach.bridge_plan import BridgePlan
    from cni_plugin.attach.interface import InterfacePlan
    from cni_plugin.config.network import Attachment
    from cni_plugin.kernel.netns import Namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeConnection:
    """The bridge that a pod's port is on, and the MTU of the pair in bytes."""

    bridge: Link
    mtu: int


def add_bridge_veth(
    plan: BridgePlan, connection: BridgeConnection, host: Namespace, pod: Namespace, undo: ExitStack
) -> None:
    """Make the pod's veth with its host end in the bridge."""
    from cni_plugin.kernel.bridge import set_port  # no DEL needs it

    pair = _pair(plan.pod, connection.mtu, pod, master=connection.bridge.index)
    _add_veth(plan.pod, pair, host, undo)
    name = plan.pod.attachment.host_ifname
    # A port needs no address of its own; a thousand of them would burden whoever reads the node's routes.
    host.netlink.change(
        drop_link_local(name),
        set_port(name, alias=plan.pod.alias, hairpin=plan.port.hairpin, isolated=plan.port.isolated),
        tolerate={errno.EAFNOSUPPORT},
    )
    if plan.port.vlans:
        set_vlans(plan, host)


def join_bridge(plan: BridgePlan, bridge: Link, host: Namespace) -> None:
    """Put a pod's veth back into its bridge. Until it has its flags and VLANs again it is down."""
    from cni_plugin.kernel.bridge import set_port

    nl, name = host.netlink, plan.pod.attachment.host_ifname
    flags = set_port(name, alias=plan.pod.alias, hairpin=plan.port.hairpin, isolated=plan.port.isolated)
    nl.change(set_down(name), set_master(name, bridge.index), flags)
    if plan.port.vlans:
        set_vlans(plan, host)
    if plan.container_interface_up:
        nl.change(set_up(name))


def add_plain_veth(plan: InterfacePlan, mtu: int, host: Namespace, pod: Namespace, undo: ExitStack) -> None:
    """Make the pod's veth with a host end that stands alone."""
    _add_veth(plan, _pair(plan, mtu, pod), host, undo)
    name = plan.attachment.host_ifname
    owner = set_owner(name, plan.alias, POD_GROUP)
    host.netlink.change(drop_link_local(name), owner, tolerate={errno.EAFNOSUPPORT})


def _pair(plan: InterfacePlan, mtu: int, pod: Namespace, *, master: int = 0) -> VethPair:
    return VethPair(
        name=plan.attachment.host_ifname,
        mac=host_mac(plan.attachment.identity),
        master=master,
        mtu=mtu,
        peer_name=plan.attachment.ifname,
        peer_mac=plan.mac,
        peer_netns=pod.fd,
        group=unnamed_group(plan.attachment.network),
    )


def _add_veth(plan: InterfacePlan, pair: VethPair, host: Namespace, undo: ExitStack) -> None:
    try:
        add_veth(host.netlink, pair)
    except KernelError as error:
        if error.errno == errno.EEXIST:
            raise _already_attached(plan.attachment) from error
        # The answer may be lost, and the link made.
        undo.callback(delete_link, host.netlink, pair.name)
        raise
    undo.callback(delete_link, host.netlink, pair.name)


def _already_attached(attachment: Attachment) -> CNIError:
    return CNIError(
        Code.INVALID_ENVIRONMENT,
        f"{attachment}: wanted a new attachment, found {attachment.host_ifname}; DEL it first",
    )


def host_mac(seed: str) -> str:
    """Return a MAC derived from `seed`: one set by hand is one that udev leaves alone.

    It begins with fe because a bridge whose own MAC nobody set takes the lowest of its ports':
    an uplink's bridge must not take a pod's. libvirt does the same for the same reason.
    """
    digest = hashlib.sha256(seed.encode()).digest()
    return ":".join(f"{byte:02x}" for byte in bytes([0xFE, *digest[:5]]))


def set_vlans(plan: BridgePlan, host: Namespace) -> None:
    """Give a port its VLANs in place of those that it has."""
    from cni_plugin.kernel.vlan import add_vlan, delete_vlan, list_vlans  # few pods have any

    name = plan.pod.attachment.host_ifname
    port = get_link(host.netlink, name)
    if port is None:
        raise KernelError(f"bridge vlan add dev {name}", errno.ENODEV)
    present = [] if plan.port.preserve_default_vlan else list_vlans(host.netlink, port.index)
    host.netlink.change(
        *(delete_vlan(name, port.index, vlan) for vlan in present),
        *(add_vlan(name, port.index, vlan) for vlan in plan.port.vlans),
    )


def delete_veth(attachment: Attachment, host: Namespace, beside: Iterable[str] = ()) -> bool:
    """Delete the pod's veth by the name of its host end; tell whether there was one.

    With it go links of ours that are for this pod alone, by their names.
    """
    veth = get_link(host.netlink, attachment.host_ifname)
    links = [veth] if veth and veth.kind == "veth" else []
    links += filter(None, (get_link(host.netlink, name) for name in beside))
    # An alias of ours is what lets a link go together with others; without one a crash had left it.
    marked = [link for link in links if link.alias.startswith(MARK)]
    gone = [link for link in marked[:1] if delete_links(host, *marked)]
    gone += [link for link in links if link not in marked and delete_link(host.netlink, link.name)]
    return veth in gone
