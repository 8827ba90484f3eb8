"""`macspoofchk` and `spoofCheck`: a spoofing pod is silenced, and its neighbour is not."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import both_filterings
from tests.harness.answers import assert_ok, assert_refused, unchanged, warm
from tests.harness.cluster import FORMS, Cluster, exchange, make_cluster, serving
from tests.harness.frames import (
    ARP,
    IP4,
    IP6,
    MLD_REPORT,
    NA,
    NS,
    PROVIDER_VLAN,
    RA,
    REDIRECT,
    RS,
    VLAN,
    arp,
    discovery,
    ether,
    icmp6,
    igmp,
    link_layer,
    tagged,
    tapped,
    udp,
)
from tests.harness.networks import (
    GATEWAYS,
    address_of,
    dual_stack,
    eventually,
    host_end,
    network,
    print_result,
    scripted,
    write_delegate,
)
from tests.kernel.test_first_packet import add_by_executable, lost_packets

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.node import Node, Pod

OTHER_MAC = "02:00:5e:00:00:99"
FAMILIES = (4, 6)
EVERYBODY, NOBODY = ("neighbour", "node"), ()


@dataclass(frozen=True)
class Facts:
    """What a frame may say truly, and falsely."""

    mac: str
    own4: str
    own6: str
    local: str
    other4: str
    other6: str


def facts_of(pod: Pod, result: dict[str, Any], other: dict[str, Any]) -> Facts:
    mac = next(i["mac"] for i in result["interfaces"] if i.get("sandbox"))
    infos = [i for link in pod.ip("addr", "show", "dev", "eth0") for i in link["addr_info"]]
    local = next(i["local"] for i in infos if i["local"].startswith("fe80:"))
    own, foreign = ([address_of(each, v) for v in FAMILIES] for each in (result, other))
    return Facts(mac, *own, local, *foreign)


def honest(f: Facts) -> dict[str, bytes]:
    """Return what a pod sends that means well."""
    own, mine = link_layer(1, f.mac), link_layer(2, f.mac)
    frames = {
        "IPv4": (IP4, udp(f.own4)),
        "IPv6": (IP6, udp(f.own6)),
        "IPv6 link-local": (IP6, udp(f.local)),
        "ARP": (ARP, arp(f.mac, f.own4)),
        "ARP probe": (ARP, arp(f.mac, "0.0.0.0", operation=1)),
        "DHCP request": (IP4, udp("0.0.0.0", ports=(68, 67))),
        "DHCPv6 request": (IP6, udp(f.local, ports=(546, 547))),
        "IGMP without address": (IP4, igmp("0.0.0.0")),
        "NS": (IP6, discovery(f.own6, NS, f.other6, own)),
        "NS without option": (IP6, discovery(f.local, NS, f.other6)),
        "duplicate address detection": (IP6, discovery("::", NS, f.own6)),
        "detection with a nonce": (IP6, discovery("::", NS, f.local, bytes([14, 1, *range(6)]))),
        "NA": (IP6, discovery(f.own6, NA, f.own6, mine)),
        "NA of the link-local": (IP6, discovery(f.local, NA, f.local, mine)),
        "RS": (IP6, discovery(f.local, RS, option=own)),
        "RS without address": (IP6, discovery("::", RS)),
        "MLD": (IP6, icmp6(f.local, MLD_REPORT, bytes(24), extended=True)),
        "MLD without address": (IP6, icmp6("::", MLD_REPORT, bytes(24), extended=True)),
    }
    return {name: ether(f.mac, kind, content) for name, (kind, content) in frames.items()}


def lies(f: Facts) -> dict[str, bytes]:
    """Return what must not arrive when addresses are compared; the MAC of the frame is the pod's."""
    own, false = link_layer(1, f.mac), link_layer(1, OTHER_MAC)
    mine, theirs = link_layer(2, f.mac), link_layer(2, OTHER_MAC)
    frames = {
        "IPv4 of another": (IP4, udp(f.other4)),
        "IPv4 of nobody": (IP4, udp("0.0.0.0")),
        "IPv6 of another": (IP6, udp(f.other6)),
        "IPv6 of nobody": (IP6, udp("::")),
        "link-local of another": (IP6, udp("fe80::1")),
        "ARP for another": (ARP, arp(f.mac, f.other4)),
        "ARP for the gateway": (ARP, arp(f.mac, GATEWAYS[4])),
        "ARP request as another": (ARP, arp(f.mac, f.other4, operation=1)),
        "ARP with another MAC": (ARP, arp(OTHER_MAC, f.own4)),
        "NS as another": (IP6, discovery(f.other6, NS, f.own6, own)),
        "NS with another MAC": (IP6, discovery(f.own6, NS, f.other6, false)),
        "NS with two options": (IP6, discovery(f.own6, NS, f.other6, own + false)),
        "detection of another's address": (IP6, discovery("::", NS, f.other6)),
        "NA for another": (IP6, discovery(f.own6, NA, f.other6, mine)),
        "NA as the gateway": (IP6, discovery(GATEWAYS[6], NA, GATEWAYS[6], mine)),
        "NA with another MAC": (IP6, discovery(f.own6, NA, f.own6, theirs)),
        "NA behind an extension header": (IP6, discovery(f.own6, NA, f.other6, mine, extended=True)),
        "RS with another MAC": (IP6, discovery(f.local, RS, option=false)),
        "RA": (IP6, icmp6(f.local, RA, bytes(12))),
        "RA behind an extension header": (IP6, icmp6(f.local, RA, bytes(12), extended=True)),
        "redirect": (IP6, icmp6(f.local, REDIRECT, bytes(36))),
        "DHCP answer": (IP4, udp(f.own4, ports=(67, 68))),
        "DHCPv6 answer": (IP6, udp(f.own6, ports=(547, 546))),
        "IPv4 of another in a VLAN": (VLAN, tagged(VLAN, IP4, udp(f.other4))),
        "ARP for another in a VLAN": (VLAN, tagged(VLAN, ARP, arp(f.mac, f.other4))),
        "IPv4 in a provider's VLAN": (PROVIDER_VLAN, tagged(PROVIDER_VLAN, IP4, udp(f.other4))),
        "IPv4 in two VLANs": (PROVIDER_VLAN, tagged(PROVIDER_VLAN, VLAN, tagged(VLAN, IP4, udp(f.other4)))),
        "another protocol": (0x88B5, bytes(40)),
        "an LLC frame": (40, b"\x42\x42\x03" + bytes(37)),
    }
    return {name: ether(f.mac, kind, content) for name, (kind, content) in frames.items()}


def attach_two(node: Node, **keys: Any) -> tuple[dict[str, Any], list[Pod], list[dict[str, Any]]]:
    config = dual_stack(node, **keys)
    pods = [node.pod(), node.pod()]
    return config, pods, [node.add(config, pod) for pod in pods]


def seen_of(node: Node, pods: list[Pod], frames: dict[str, bytes]) -> dict[str, tuple[str, ...]]:
    """Return by frame who has seen it: the pod's neighbour, and the node on its bridge."""
    with tapped(pods[0], neighbour=(pods[1], "eth0"), node=(node, "cni0")) as tap:
        return {name: tuple(tap.arrives(frame)) for name, frame in frames.items()}


@both_filterings
def test_what_a_pod_says_truly_arrives(plain_node: Node) -> None:
    _, pods, results = attach_two(plain_node, spoofCheck="ip")
    frames = honest(facts_of(pods[0], *results))
    assert seen_of(plain_node, pods, frames) == dict.fromkeys(frames, EVERYBODY)


@both_filterings
def test_nothing_that_a_pod_says_falsely_arrives(plain_node: Node) -> None:
    _, pods, results = attach_two(plain_node, spoofCheck="ip")
    frames = lies(facts_of(pods[0], *results))
    assert seen_of(plain_node, pods, frames) == dict.fromkeys(frames, NOBODY)


@both_filterings
@pytest.mark.parametrize("keys", [{"macspoofchk": True}, {"spoofCheck": "mac"}, {"spoofCheck": "ip"}])
def test_no_frame_with_another_mac_arrives(plain_node: Node, keys: dict[str, Any]) -> None:
    _, pods, results = attach_two(plain_node, **keys)
    facts = facts_of(pods[0], *results)
    frames = {
        "IPv4": ether(OTHER_MAC, IP4, udp(facts.own4)),
        "ARP": ether(OTHER_MAC, ARP, arp(OTHER_MAC, facts.own4)),
        "IPv6": ether(OTHER_MAC, IP6, udp(facts.own6)),
        "in a VLAN": ether(OTHER_MAC, VLAN, tagged(VLAN, IP4, udp(facts.own4))),
        "another protocol": ether(OTHER_MAC, 0x88B5, bytes(40)),
    }
    assert seen_of(plain_node, pods, frames) == dict.fromkeys(frames, NOBODY)


@both_filterings
def test_with_the_mac_alone_addresses_are_the_pods_affair(plain_node: Node) -> None:
    _, pods, results = attach_two(plain_node, macspoofchk=True)
    frames = lies(facts_of(pods[0], *results))
    assert seen_of(plain_node, pods, frames) == dict.fromkeys(frames, EVERYBODY)


@pytest.mark.parametrize("form", ["bridge", *FORMS])
def test_a_spoofing_pod_is_silenced_and_its_neighbour_is_not(
    tmp_path: Path, bin_dir: Path, form: str
) -> None:
    cluster = make_cluster(tmp_path, bin_dir, 1)
    try:
        _silence(cluster, form)
    finally:
        cluster.remove()


def ping_as(pod: Pod, source: str, address: str) -> bool:
    """Send one packet from an address and tell whether it was answered."""
    return pod.run("ping", "-n", "-c1", "-W0.3", "-I", source, address, check=False).returncode == 0


def _silence(cluster: Cluster, form: str) -> None:
    node = cluster.nodes[1]
    config = dual_stack(node) if form == "bridge" else cluster.config(form, 1)
    pods = [node.pod(), node.pod(), node.pod()]
    results = [node.add(config | {"spoofCheck": "ip"}, pod) for pod in pods]
    spoofing, neighbour, target = pods
    mine, away = ([address_of(results[i], v) for v in FAMILIES] for i in (0, 2))
    foreign = {4: address_of(results[1], 4), 6: address_of(results[1], 6)}
    with serving(target):
        for pod in (spoofing, neighbour):
            assert all(seen["tcp"]["intact"] for seen in exchange(pod, *away).values())
        for version, far in zip(FAMILIES, away, strict=True):
            stolen = f"{foreign[version]}/{32 if version == 4 else 128}"
            nodad = ["nodad"] if version == 6 else []
            spoofing.run("ip", "addr", "add", stolen, "dev", "eth0", *nodad)
            assert not ping_as(spoofing, foreign[version], far)
        assert all(ping_as(spoofing, own, far) for own, far in zip(mine, away, strict=True))
        assert all(seen["tcp"]["intact"] for seen in exchange(neighbour, *away).values())
        spoofing.run("ip", "link", "set", "eth0", "address", OTHER_MAC)
        assert not any(ping_as(spoofing, own, far) for own, far in zip(mine, away, strict=True))
        assert all(seen["tcp"]["intact"] for seen in exchange(neighbour, *away).values())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_packet_of_a_checked_pod_is_not_lost(plain_node: Node, family: int) -> None:
    assert lost_packets(plain_node, family, add_by_executable, spoofCheck="ip") == []


def count_drops(node: Node) -> None:
    """Let every rule of the check that drops count."""
    chain = ""
    for rule in node.run("nft", "-a", "list", "table", "bridge", "podwire").stdout.splitlines():
        chain = rule.split()[1] if rule.strip().startswith("chain") else chain
        text, _, rest = rule.strip().partition(" comment ")
        if text.endswith("drop"):
            place = ["bridge", "podwire", chain, "handle", rest.split()[-1]]
            node.run("nft", "replace", "rule", *place, f"{text.removesuffix('drop')} counter drop")


def dropped(node: Node) -> list[str]:
    listing = node.run("nft", "list", "table", "bridge", "podwire").stdout.splitlines()
    counted = [line.strip() for line in listing if "counter packets" in line]
    assert len(counted) > 10
    return [line for line in counted if "counter packets 0 " not in line]


def tentative(pod: Pod) -> str:
    return pod.run("ip", "addr", "show", "tentative").stdout


@both_filterings
@pytest.mark.parametrize("keys", [{}, {"enabledad": True}], ids=["nodad", "dad"])
def test_what_a_pods_kernel_does_by_itself_is_never_dropped(plain_node: Node, keys: dict[str, bool]) -> None:
    node = plain_node
    _, pods, results = attach_two(node, spoofCheck="ip", **keys)
    count_drops(node)
    for there, here in zip(results, reversed(pods), strict=True):
        here.run("ip", "link", "set", "eth0", "down")
        here.run("ip", "link", "set", "eth0", "up")
        # A pod whose addresses are all tentative speaks as ::1.
        assert eventually(partial(tentative, here), "") == ""
        assert all(eventually(partial(here.ping, address_of(there, v)), wanted=True) for v in FAMILIES)
    assert dropped(node) == []


def elements(node: Node) -> list[str]:
    listing = node.run("nft", "list", "ruleset").stdout
    return [line.strip() for line in listing.splitlines() if " test pod-" in line]


@pytest.mark.parametrize(
    ("keys", "count"), [({"macspoofchk": True}, 2), ({"macspoofchk": True, "spoofCheck": "ip"}, 9)]
)
def test_a_pod_has_a_constant_number_of_elements_that_name_it(
    plain_node: Node, keys: dict[str, Any], count: int
) -> None:
    config, pods, results = attach_two(plain_node, **keys)
    for pod, result in zip(pods, results, strict=True):
        mine = [line for line in elements(plain_node) if pod.container_id in line]
        assert len(mine) == count
        assert all(host_end(result) in line for line in mine)
    chains = plain_node.run("nft", "list", "chains").stdout
    plain_node.delete({**config, "prevResult": results[0]}, pods[0])
    assert len(elements(plain_node)) == count
    assert plain_node.run("nft", "list", "chains").stdout == chains


LOST = ["nothing", "prevResult", "namespace", "link", "configuration", "MAC", "MAC of ADD", "addresses"]


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize("mode", ["bridge", "routed"])
def test_nothing_is_left_whatever_is_missing_at_del(node: Node, mode: str, lost: str) -> None:
    config, pod = dual_stack(node, mode=mode, spoofCheck="ip"), node.pod()
    node.delete({**config, "prevResult": node.add(config, pod)}, pod)
    if mode == "bridge":
        warm(node, spoofCheck="ip")
    with unchanged(node):
        pod = node.pod()
        result = node.add(config, pod)
        asked = {**config, "prevResult": result}
        if lost == "prevResult":
            asked = config
        if lost == "MAC":
            asked["prevResult"]["interfaces"][-1]["mac"] = "none"
        if lost == "MAC of ADD":
            asked["prevResult"]["interfaces"][-1]["mac"] = OTHER_MAC
        if lost == "addresses":
            del asked["prevResult"]["ips"]
        if lost == "configuration":
            asked = {**dual_stack(node), "spoofCheck": 7, "mode": "wormhole"}
        if lost == "link":
            node.run(
                "ip", "link", "del", next(i["name"] for i in result["interfaces"] if "veth" in i["name"])
            )
        if lost == "namespace":
            pod.remove()
        node.delete(asked, pod)


@pytest.mark.parametrize("mode", ["bridge", "routed"])
def test_check_names_the_element_that_is_gone_and_the_chain_that_differs(node: Node, mode: str) -> None:
    config, pod = dual_stack(node, mode=mode, spoofCheck="ip"), node.pod()
    result = node.add(config, pod)
    assert_ok(node.check(config, result, pod))
    family = "inet" if mode == "routed" else "bridge"
    for name in ("spoof_ports", "spoof_mac", "spoof_addressed", "spoof_ip4", "spoof_ip6"):
        before = node.run("nft", "list", "set", family, "podwire", name).stdout
        node.run("nft", "flush", "set", family, "podwire", name)
        assert_refused(node.check(config, result, pod), 100, name)
        node.run("nft", "-f", "-", input=before)
        assert_ok(node.check(config, result, pod))
    node.run("nft", "flush", "chain", family, "podwire", "spoof_ns")
    assert_refused(node.check(config, result, pod), 100, "spoof_ns")
    node.add(config, node.pod())
    assert_ok(node.check(config, result, pod))


def test_gc_takes_the_elements_of_what_is_not_listed_and_no_others(node: Node) -> None:
    config, pods, _ = attach_two(node, spoofCheck="ip")
    listed = [{"containerID": pods[1].container_id, "ifname": "eth0"}]
    assert_ok(node.call("GC", config | {"cni.dev/valid-attachments": listed}))
    assert {pods[1].container_id in line for line in elements(node)} == {True}
    assert len(elements(node)) == 9


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"macspoofchk": "yes"}, "macspoofchk"),
        ({"spoofCheck": True}, "spoofCheck"),
        ({"spoofCheck": "all"}, "spoofCheck"),
    ],
)
def test_bad_keys_are_refused_before_anything_is_made(node: Node, keys: dict[str, Any], said: str) -> None:
    with unchanged(node):
        assert_refused(node.call("ADD", dual_stack(node, **keys), node.pod()), 7, said)


def test_addresses_cannot_be_compared_where_there_are_none(plain_node: Node) -> None:
    config = network(plain_node, spoofCheck="ip")
    assert_refused(plain_node.call("ADD", config, plain_node.pod()), 7, "spoofCheck", "ipam")
    plain_node.add(network(plain_node, spoofCheck="mac"), plain_node.pod())


@pytest.mark.parametrize("keys", [{}, {"macspoofchk": False}, {"spoofCheck": "none"}, {"spoofCheck": None}])
def test_without_it_nothing_of_nftables_is_made(plain_node: Node, keys: dict[str, Any]) -> None:
    plain_node.add(dual_stack(plain_node, **keys), plain_node.pod())
    assert plain_node.run("nft", "list", "ruleset").stdout == ""


def test_when_nft_refuses_nothing_is_made(plain_node: Node, tmp_path: Path) -> None:
    (tmp_path / "nft").write_text("#!/bin/sh\necho 'Error: no room' >&2\nexit 1\n")
    (tmp_path / "nft").chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with unchanged(plain_node):
        config = dual_stack(plain_node, spoofCheck="ip")
        answer = plain_node.call("ADD", config, plain_node.pod(), environ=environ)
        assert_refused(answer, 11, "Error: no room")


def test_an_add_that_fails_late_leaves_nothing(plain_node: Node) -> None:
    node, pod = plain_node, plain_node.pod()
    printed = print_result("10.22.0.5/24", "fd00:22::5/64")
    environ = write_delegate(node, add=f"umount --lazy {pod.path}; rm {pod.path}\n{printed}")
    config = scripted(node, spoofCheck="ip")
    assert_refused(node.call("ADD", config, pod, environ=environ), 4, "vanished")
    assert "chain spoof" in node.run("nft", "list", "ruleset").stdout
    assert elements(node) == []


def test_without_nft_status_says_so(plain_node: Node, tmp_path: Path) -> None:
    (tmp_path / "nsenter").symlink_to(shutil.which("nsenter"))
    config = dual_stack(plain_node, macspoofchk=True)
    assert_ok(plain_node.call("STATUS", config))
    assert_refused(plain_node.call("STATUS", config, environ={"PATH": str(tmp_path)}), 50, "nft")
