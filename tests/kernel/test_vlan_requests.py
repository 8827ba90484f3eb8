"""VLANs on a kernel without them: what we send is, byte for byte, what iproute2 sends.

strace(1) shows the requests of `bridge vlan` and `ip link`; the kernel's answer does not matter.
Sequence numbers differ, and links may be named by index or by name.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Any

import pytest

from cni_plugin.kernel.bridge import BridgeSpec, _add_bridge, _set_vlan_filtering
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.netlink import NLM_F_ACK, Netlink, pack
from cni_plugin.kernel.vlan import Vlan, access_vlan, add_vlan, delete_vlan
from tests.harness.networks import add_foreign_port, inside

if TYPE_CHECKING:
    from cni_plugin.kernel.netlink import Change
    from tests.harness.node import Node

RTM_NEWLINK, RTM_DELLINK, RTM_SETLINK = 16, 17, 19
IFLA_IFNAME, IFLA_LINKINFO, IFLA_INFO_KIND = 3, 18, 1
HEADER, IFINFOMSG = 16, 16  # bytes


def requests_of(node: Node, *argv: str) -> list[bytes]:
    """Return the netlink messages that a program of iproute2 sends."""
    trace = node.tmp / "trace"
    node.run("strace", "-o", str(trace), "-e", "trace=sendmsg", "-e", "write=all", *argv, check=False)
    found: list[bytes] = []
    for line in trace.read_text().splitlines():
        if line.startswith(" * "):
            found.append(b"")
        elif (dumped := re.match(r" \| [0-9a-f]{5}  ((?:[0-9a-f]{2} {1,2})+)", line)) and found:
            found[-1] += bytes.fromhex(dumped[1])
    return [message for message in found if kind_of(message) in {RTM_NEWLINK, RTM_DELLINK, RTM_SETLINK}]


def sent_by(change: Change) -> bytes:
    """Return the message that a change alone in its send is."""
    return pack(change.kind, NLM_F_ACK | change.flags, change.body)


def kind_of(message: bytes) -> int:
    return int(struct.unpack_from("=H", message, 4)[0])


def without_numbers(message: bytes) -> bytes:
    """Return the message with its sequence number and port id taken out."""
    return message[:8] + message[HEADER:]


def attributes(message: bytes) -> dict[int, Any]:
    """Return the attributes of a link message by their types."""
    found = split(message[HEADER + IFINFOMSG :])
    # The kernel takes the kind of a link with a terminating zero or without.
    info = split(found[IFLA_LINKINFO])
    return found | {IFLA_LINKINFO: info | {IFLA_INFO_KIND: info[IFLA_INFO_KIND].rstrip(b"\0")}}


def split(data: bytes) -> dict[int, Any]:
    offset, found = 0, {}
    while offset < len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        found[kind] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


REQUESTS = {
    "dev tap0 vid 100 pvid untagged": (add_vlan, access_vlan(100)),
    "dev tap0 vid 200": (add_vlan, Vlan(vid=200, last=200)),
    "dev tap0 vid 300-310": (add_vlan, Vlan(vid=300, last=310)),
    "dev tap0 vid 1": (delete_vlan, Vlan(vid=1, last=1)),
    "dev tap0 vid 2-4094": (delete_vlan, Vlan(vid=2, last=4094)),
}


@pytest.mark.parametrize("words", REQUESTS)
def test_request_for_a_vlan_is_the_one_of_bridge_vlan(node: Node, words: str) -> None:
    node.run("ip", "link", "add", "cni0", "type", "bridge")
    add_foreign_port(node, "cni0")
    index = node.links()["tap0"]["ifindex"]
    change, vlan = REQUESTS[words]
    verb = {add_vlan: "add", delete_vlan: "del"}[change]
    (theirs,) = requests_of(node, "bridge", "vlan", verb, *words.split())
    ours = change("tap0", index, vlan)
    assert ours.command == f"bridge vlan {verb} {words}"
    assert without_numbers(sent_by(ours)) == without_numbers(theirs)


def test_request_for_vlan_filtering_is_the_one_of_ip_link_set(node: Node) -> None:
    node.run("ip", "link", "add", "cni0", "type", "bridge")
    change = _set_vlan_filtering("cni0")
    (theirs,) = requests_of(node, *change.command.split())
    ours = sent_by(change)
    assert (kind_of(ours), ours[6:8]) == (kind_of(theirs), theirs[6:8])
    named = attributes(ours)
    assert named.pop(IFLA_IFNAME) == b"cni0\0"
    assert named == attributes(theirs)


def test_request_for_a_filtering_bridge_is_the_one_of_ip_link_add(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Change] = []
    real = Netlink.change
    monkeypatch.setattr(Netlink, "change", lambda nl, *changes: sent.extend(changes) or real(nl, *changes))
    with inside(node):
        nl = Netlink()
        # Refused here; that it is asked for is the claim.
        with pytest.raises(KernelError, match="cannot filter VLANs on bridges"):
            _add_bridge(nl, BridgeSpec(name="cni0", mtu=1400, vlan_filtering=True))
        nl.close()
    (theirs,) = requests_of(node, *sent[0].command.split())
    ours = sent_by(sent[0])
    assert (kind_of(ours), ours[6:8]) == (kind_of(theirs), theirs[6:8])
    assert attributes(ours) == attributes(theirs)
