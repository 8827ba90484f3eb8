"""What a hostile pod tries against its neighbour, its node and the pods of other nodes.

Each attack returns whether it has succeeded, by what the victim's kernel holds or hears afterwards.
The attacker has what containers have by default: raw sockets in a namespace of its own.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.harness.cluster import VNI
from tests.harness.frames import ARP, IP4, IP6, NA, RA, arp, checksum, ether, link_layer, packed_mac
from tests.harness.networks import inside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness.cluster import Cluster
    from tests.harness.node import Node, Pod, Space

_ALL_PACKETS = 0x0003  # ETH_P_ALL
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
PORT, VXLAN_PORT = 4000, 4789
PAGE = Path(__file__).parents[2] / "docs/reliability.md"
OUTCOME = {True: "succeeds", False: "stopped"}
_SOLICITED_OVERRIDE = 0x60000000
FLOOD = 2000
OTHER = {4: "10.22.0.200", 6: "fd00:22::c8"}


@dataclass(frozen=True)
class Scene:
    """Who is there: two pods of a node, their MACs, and the addresses that matter by family."""

    node: Node
    attacker: Pod
    victim: Pod
    gateways: dict[int, str]
    victims: dict[int, str]

    def mac(self, space: Space) -> str:
        return str(space.links()["eth0"]["address"])

    def local(self, space: Space) -> str:
        infos = space.ip("-6", "addr", "show", "dev", "eth0")[0]["addr_info"]
        return next(str(i["local"]) for i in infos if i["local"].startswith("fe80:"))

    def send(self, frame: bytes) -> None:
        with raw(self.attacker) as link:
            link.send(frame)


@contextmanager
def raw(space: Space, ifname: str = "eth0") -> Iterator[socket.socket]:
    """Yield a packet socket on a link; it sees what the link receives from now on."""
    with inside(space), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PACKETS)) as made:
        made.bind((ifname, _ALL_PACKETS))
        yield made


def hears(link: socket.socket, belongs: Callable[[bytes], bool], within: float = 0.4) -> bool:
    """Tell whether a frame that belongs arrives in time; what the socket's own host sends does not count."""
    deadline = time.monotonic() + within
    while (left := deadline - time.monotonic()) > 0:
        if select.select([link], [], [], left)[0]:
            frame, (_, _, kind, *_) = link.recvfrom(4000)
            if kind != socket.PACKET_OUTGOING and belongs(frame):
                return True
    return False


def becomes(look: Callable[[], bool], within: float = 0.6) -> bool:
    """Tell whether it comes true in time."""
    deadline = time.monotonic() + within
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def icmp6(source: str, to: str, kind: int, body: bytes) -> bytes:
    """Return an ICMPv6 packet that a kernel believes: hop limit 255 and the right checksum."""
    ends = ip_address(source).packed + ip_address(to).packed
    message = struct.pack("!BBH", kind, 0, 0) + body
    ones = checksum(ends + struct.pack("!IxxxB", len(message), socket.IPPROTO_ICMPV6) + message)
    message = message[:2] + ones + message[4:]
    return struct.pack("!IHBB", 6 << 28, len(message), socket.IPPROTO_ICMPV6, 255) + ends + message


def advertisement(source: str, mac: str) -> bytes:
    """Return what a router says that would be everybody's: for half an hour, with a prefix for addresses."""
    prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 1800, 0) + ip_address("fd66::").packed
    body = struct.pack("!BBHII", 64, 0, 1800, 0, 0) + link_layer(1, mac) + prefix
    return icmp6(source, "ff02::1", RA, body)


def impersonates_the_gateway_by_arp(scene: Scene) -> bool:
    return lies_about(scene, scene.victim, scene.gateways[4])


def lies_about(scene: Scene, victim: Space, address: str) -> bool:
    """Say to everybody that an IPv4 address is at the attacker's; tell whether the victim believes it."""
    mac, own = scene.mac(scene.attacker), next(a for a in victim.addresses("eth0") if "." in a)
    # A second long Linux believes nobody else; attackers have the time.
    victim.run("sysctl", "-qw", "net.ipv4.neigh.eth0.locktime=0")
    victim.ping(address)
    scene.send(ether(mac, ARP, arp(mac, address, target=own.partition("/")[0])))
    return becomes(lambda: believes(victim, address, mac))


def impersonates_the_gateway_by_discovery(scene: Scene) -> bool:
    gateway, mac = scene.gateways[6], scene.mac(scene.attacker)
    scene.victim.ping(gateway)
    body = struct.pack("!I", _SOLICITED_OVERRIDE) + ip_address(gateway).packed + link_layer(2, mac)
    to = scene.victims[6]
    frame = ether(mac, IP6, icmp6(gateway, to, NA, body))
    scene.send(packed_mac(scene.mac(scene.victim)) + frame[6:])
    return becomes(lambda: believes(scene.victim, gateway, mac))


def believes(space: Space, address: str, mac: str) -> bool:
    return any(each.get("lladdr") == mac for each in space.ip("neigh", "show", address))


def becomes_the_router_of_its_neighbour(scene: Scene) -> bool:
    return _advertises(scene, scene.victim)


def becomes_the_router_of_the_node(scene: Scene) -> bool:
    return _advertises(scene, scene.node)


def _advertises(scene: Scene, space: Space) -> bool:
    local = scene.local(scene.attacker)
    scene.send(ether(scene.mac(scene.attacker), IP6, advertisement(local, scene.mac(scene.attacker))))

    def follows() -> bool:
        routes = space.run("ip", "-6", "route", "show").stdout
        return f"via {local}" in routes or "fd66::" in routes + space.run("ip", "-6", "addr").stdout

    return becomes(follows)


def redirects_its_neighbour(scene: Scene) -> bool:
    """Say as the gateway that it is the attacker who is the way to somewhere."""
    own, far = next(a for a in scene.attacker.addresses("eth0") if "." in a).partition("/")[0], "192.0.2.77"
    scene.victim.run("ip", "route", "replace", "default", "via", scene.gateways[4], "dev", "eth0", "onlink")
    scene.victim.ping(own)
    # The kernel looks at the packet that is said to have gone the long way: an answer to a ping.
    sent = ip_header(scene.victims[4], far, socket.IPPROTO_ICMP, 8) + bytes(8)
    said = struct.pack("!BBH", 5, 1, 0) + ip_address(own).packed + sent
    said = said[:2] + checksum(said) + said[4:]
    packet = ip_header(scene.gateways[4], scene.victims[4], socket.IPPROTO_ICMP, len(said)) + said
    frame = ether(scene.mac(scene.attacker), IP4, packet)
    scene.send(packed_mac(scene.mac(scene.victim)) + frame[6:])
    return becomes(lambda: f"via {own}" in scene.victim.run("ip", "route", "get", far).stdout)


def takes_the_neighbours_mac(scene: Scene) -> bool:
    """Say something as the neighbour, and then hear what the node says to it."""
    scene.node.ping(scene.victims[4])
    with raw(scene.attacker) as link:
        link.send(ether(scene.mac(scene.victim), 0x88B5, bytes(46)))
        scene.node.ping(scene.victims[4], within=0.2)
        return hears(link, lambda frame: frame[30:34] == ip_address(scene.victims[4]).packed, 0.1)


def sends_as_another_over_ipv4(scene: Scene) -> bool:
    return _sends_as_another(scene, 4)


def sends_as_another_over_ipv6(scene: Scene) -> bool:
    return _sends_as_another(scene, 6)


def _sends_as_another(scene: Scene, version: int) -> bool:
    return sends_as(scene.attacker, OTHER[version], scene.victim, scene.victims[version])


def sends_as(attacker: Space, source: str, victim: Space, to: str) -> bool:
    """Send a datagram from an address that is not one's own; tell whether it is heard as that one's."""
    family, own = FAMILY[ip_address(to).version], (source, "dev", "lo")
    attacker.run("ip", "addr", "replace", *own, *(["nodad"] if ":" in source else []))
    try:
        with inside(attacker), socket.socket(family, socket.SOCK_DGRAM) as said:
            said.bind((source, 0))
            return is_heard(victim, to, source, lambda: said.sendto(b"truly", (to, PORT)))
    finally:
        attacker.run("ip", "addr", "del", *own)


def is_heard(victim: Space, to: str, source: str, say: Callable[[], object]) -> bool:
    """Tell whether a datagram of this source arrives at the victim's port when it is said."""
    with inside(victim), socket.socket(FAMILY[ip_address(to).version], socket.SOCK_DGRAM) as heard:
        heard.bind((to, PORT))
        heard.settimeout(0.4)
        with suppress(OSError):  # nothing comes, or the attacker may not even say it
            say()
            return str(heard.recvfrom(100)[1][0]) == source
    return False


def fills_the_bridges_table(scene: Scene) -> bool:
    before = learned(scene.node)
    _flood(scene)
    return learned(scene.node) >= before + FLOOD // 2


def overhears_its_neighbour_behind_a_flood(scene: Scene) -> bool:
    """What becomes of switches whose table is full: they send everything everywhere."""
    scene.victim.ping(scene.gateways[4])
    _flood(scene)
    with raw(scene.attacker) as link:
        scene.victim.ping(scene.gateways[4], within=0.2)
        ends = {ip_address(scene.victims[4]).packed}
        return hears(link, lambda frame: not ends.isdisjoint((frame[26:30], frame[30:34])), 0.1)


def _flood(scene: Scene) -> None:
    with raw(scene.attacker) as link:
        for _ in range(FLOOD):
            link.send(b"\xff" * 6 + b"\x02" + os.urandom(5) + b"\x88\xb5" + bytes(46))


def learned(node: Node) -> int:
    return len(node.run("bridge", "fdb", "show").stdout.splitlines())


ATTACKS = {
    "ARP as the gateway": impersonates_the_gateway_by_arp,
    "neighbour advertisement as the gateway": impersonates_the_gateway_by_discovery,
    "router advertisement to a neighbour": becomes_the_router_of_its_neighbour,
    "router advertisement to the node": becomes_the_router_of_the_node,
    "redirect in the gateway's name": redirects_its_neighbour,
    "taking a neighbour's MAC": takes_the_neighbours_mac,
    "IPv4 source of another": sends_as_another_over_ipv4,
    "IPv6 source of another": sends_as_another_over_ipv6,
    "filling the bridge's table": fills_the_bridges_table,
    "overhearing a neighbour behind a flood of MACs": overhears_its_neighbour_behind_a_flood,
}


def inject(attacker: Space, vtep: str, frame: bytes) -> None:
    """Send a frame in the wrapping that only nodes should use."""
    with inside(attacker), socket.socket(FAMILY[ip_address(vtep).version], socket.SOCK_DGRAM) as said:
        said.sendto(struct.pack("!II", 1 << 27, VNI << 8) + frame, (vtep, VXLAN_PORT))


def datagram(source: str, to: str) -> bytes:
    """Return an IPv4 packet without the checksum of UDP, which need not be there."""
    content = struct.pack("!HHHH", PORT, PORT, 13, 0) + b"truly"
    return ip_header(source, to, socket.IPPROTO_UDP, len(content)) + content


def ip_header(source: str, to: str, protocol: int, length: int) -> bytes:
    """Return the header of an IPv4 packet with so much in it."""
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 1, 0, 64, protocol, 0)
    head += ip_address(source).packed + ip_address(to).packed
    return head[:10] + checksum(head) + head[12:]


def documented(setting: str) -> dict[str, str]:
    """Return the column of a setting, by attack, of the table that has it."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.read_text().splitlines()]
    start = next(n for n, row in enumerate(rows) if row[:1] == ["attack"] and setting in row)
    table = takewhile(bool, rows[start + 2 :])
    return {row[0]: row[rows[start].index(setting)] for row in table}


def outcomes(
    attacks: dict[str, Callable[[], bool]],
    expected: dict[str, str],
    before: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Try every attack; one that is said to succeed has three tries, as a busy machine loses packets."""
    found = {}
    for name, attack in attacks.items():
        won = False
        tries = 3 if expected.get(name) == OUTCOME[True] else 1
        while not won and tries:
            before()
            won, tries = attack(), tries - 1
        found[name] = OUTCOME[won]
    return found


def start_three(cluster: Cluster, config_of: Callable[[int], dict[str, Any]]) -> dict[int, Pod]:
    """Make pods 0 and 1 on node 1 and pod 2 on node 2, with the configuration of each node."""
    pods = {}
    for number, i in ((0, 1), (1, 1), (2, 2)):
        pods[number] = cluster.nodes[i].pod()
        cluster.nodes[i].add(config_of(i), pods[number])
    return pods
