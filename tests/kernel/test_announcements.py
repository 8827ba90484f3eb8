"""After ADD the neighbours know the pod: one gratuitous ARP and one neighbour advertisement."""

from __future__ import annotations

import select
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from tests.conftest import both_filterings
from tests.harness.networks import address_of, dual_stack, inside, print_result, scripted, write_delegate
from tests.kernel.test_first_packet import open_mailbox

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.node import Node, Pod

ARP, IPV6 = 0x0806, 0x86DD
ICMPV6, SOLICITATION, ADVERTISEMENT = 58, 135, 136
HEADER = 14  # bytes of Ethernet


def open_ear(pod: Pod) -> socket.socket:
    """Return a packet socket on the pod's interface."""
    with inside(pod):
        ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    ear.bind(("eth0", 0))
    return ear


def heard(ear: socket.socket, mac: str) -> Iterator[bytes]:
    """Yield the ARP and neighbour discovery frames that came from `mac`."""
    while select.select([ear], [], [], 0.3)[0]:
        frame = ear.recv(2000)
        (kind,) = struct.unpack_from("!H", frame, 12)
        discovery = kind == IPV6 and frame[20] == ICMPV6 and frame[54] in {SOLICITATION, ADVERTISEMENT}
        if frame[6:12].hex(":") == mac and (kind == ARP or discovery):
            yield frame


def internet_sum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    return (total & 0xFFFF) + (total >> 16)


def assert_gratuitous_arp(frame: bytes, mac: bytes, address: bytes) -> None:
    assert frame[:6] == b"\xff" * 6
    hardware, protocol, sizes, operation = struct.unpack_from("!HHHH", frame, HEADER)
    assert (hardware, protocol, sizes, operation) == (1, 0x0800, 0x0604, 1)
    assert frame[22:28] == mac
    assert frame[28:32] == frame[38:42] == address


def assert_advertisement(frame: bytes, mac: bytes, address: bytes) -> None:
    all_nodes = socket.inet_pton(socket.AF_INET6, "ff02::1")
    assert frame[:6] == bytes.fromhex("333300000001")
    length, following, hops = struct.unpack_from("!HBB", frame, HEADER + 4)
    assert (following, hops) == (ICMPV6, 255)
    assert (frame[22:38], frame[38:54]) == (address, all_nodes)
    message = frame[54 : 54 + length]
    assert len(message) == length == 32
    pseudo = address + all_nodes + struct.pack("!II", length, ICMPV6)
    assert internet_sum(pseudo + message) == 0xFFFF
    (flags,) = struct.unpack_from("!I", message, 4)
    assert (message[0], message[1], flags) == (ADVERTISEMENT, 0, 0x20000000)
    assert message[8:24] == address
    assert message[24:] == b"\x02\x01" + mac


@pytest.mark.parametrize("first", [True, False], ids=["to-a-pod-that-just-came", "to-a-pod-that-was-there"])
def test_another_pod_hears_exactly_one_announcement_per_address(node: Node, *, first: bool) -> None:
    config = dual_stack(node)
    if not first:
        node.add(config, node.pod())
    listener, pod = node.pod(), node.pod()
    node.add(config, listener)
    with open_ear(listener) as ear:
        result = node.add(config, pod)
        mac = result["interfaces"][2]["mac"]
        frames = list(heard(ear, mac))
    # The kernel announces the link-local address, too.
    frames = [frame for frame in frames if frame[22:24] != b"\xfe\x80"]
    assert len(frames) == 2, [frame.hex() for frame in frames]
    hardware = bytes.fromhex(mac.replace(":", ""))
    assert_gratuitous_arp(frames[0], hardware, socket.inet_aton(address_of(result, 4)))
    assert_advertisement(frames[1], hardware, socket.inet_pton(socket.AF_INET6, address_of(result, 6)))


@both_filterings
@pytest.mark.parametrize(("family", "address"), [(4, "10.22.0.50"), (6, "fd00:22::50")])
def test_neighbours_of_a_reused_address_reach_the_new_pod_at_once(
    node: Node, family: int, address: str
) -> None:
    neighbour, pod = node.pod(), node.pod()
    node.add(dual_stack(node), neighbour)
    prefix = {4: 24, 6: 64}[family]
    environ = write_delegate(node, add=print_result(f"{address}/{prefix}"))
    for space, device in ((neighbour, "eth0"), (node, "cni0")):
        # As a pod that had the address left it a moment ago: believed for half a minute.
        old = ["lladdr", "02:00:00:00:00:01", "dev", device, "nud", "reachable"]
        space.run("ip", "neigh", "replace", address, *old)
    box, senders = open_mailbox(pod, family), [open_mailbox(s, family) for s in (neighbour, node)]
    result = node.add(scripted(node, isGateway=True), pod, environ=environ)
    for number, sender in enumerate(senders):
        sender.send(address, f"packet {number}")
        assert box.receives(f"packet {number}")
        sender.socket.close()
    box.socket.close()
    (entry,) = neighbour.ip("neigh", "show", address)
    assert entry["lladdr"] == result["interfaces"][2]["mac"]
