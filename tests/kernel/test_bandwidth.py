"""`bandwidth`: what a pod receives and sends is as fast as was asked, and nobody else's is slower."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import in_process
from tests.harness.answers import assert_ok, assert_refused, unchanged, warm
from tests.harness.chain import REFERENCE, Chain, install_as
from tests.harness.networks import dual_stack, reference
from tests.harness.node import Pod
from tests.harness.rates import assert_rate, measure_rate

if TYPE_CHECKING:
    from tests.harness.node import Node

UP, DOWN = 10_000_000, 20_000_000  # bits/s
BURST = 800_000  # bits
LIMITS = {"ingressRate": DOWN, "ingressBurst": BURST, "egressRate": UP, "egressBurst": BURST}
KUBERNETES = {"IngressRate": DOWN, "IngressBurst": 2**32 - 1, "EgressRate": UP, "EgressBurst": 2**32 - 1}


# What runtimes send for "no burst", and numbers that would let more than ten seconds of the rate pass.
NO_BURST = {
    "the largest int32": 2**31 - 1,
    "containerd": 2**32 - 1,
    "CRI-O": 34_359_738_359,
    "eleven seconds": 11 * DOWN,
}


def runtime(limits: dict[str, int]) -> dict[str, Any]:
    return {"capabilities": {"bandwidth": True}, "runtimeConfig": {"bandwidth": limits}}


def attached(node: Node, **keys: Any) -> tuple[dict[str, Any], Pod, dict[str, Any]]:
    config, pod = dual_stack(node, **keys), node.pod()
    return config, pod, node.add(config, pod)


def address_of(result: dict[str, Any], family: int = 4) -> str:
    found = [ip["address"].partition("/")[0] for ip in result["ips"]]
    return str(next(a for a in found if (":" in a) == (family == 6)))


def ifbs(node: Node) -> list[str]:
    return [name for name in node.links() if name.startswith("bwp")]


def qdiscs(node: Node, dev: str) -> dict[str, Any]:
    """Return the token bucket at the root of a link as `tc` shows it."""
    found = json.loads(node.run("tc", "-j", "-d", "qdisc", "show", "dev", dev).stdout)
    return next((each["options"] for each in found if each["kind"] == "tbf"), {})


def bursts(node: Node, result: dict[str, Any]) -> list[int]:
    """Return the bursts of both directions in bytes; the kernel counts in ticks, which are not whole ones."""
    found = [qdiscs(node, result["interfaces"][i]["name"])["burst"].partition("/")[0] for i in (1, -1)]
    units = {"Mb": 2**20, "Kb": 2**10, "b": 1}
    unit = [next(each for each in units if text.endswith(each)) for text in found]
    return [
        round(float(text.removesuffix(each)) * units[each]) for text, each in zip(found, unit, strict=True)
    ]


def ours_behind(node: Node, bridge: str, **keys: Any) -> Chain:
    """Return a chain of bandwidth behind a bridge, ours or the Go reference's."""
    names = ("bandwidth", "bridge", "host-local") if bridge == "ours" else ("bandwidth",)
    first = {key: value for key, value in reference(node).items() if key not in {"name", "cniVersion"}}
    path = [install_as(node, *names), REFERENCE]
    return Chain(node=node, plugins=[first, {"type": "bandwidth", **keys}], path=path)


@pytest.mark.parametrize("asked", ["configuration", "runtime"])
def test_both_directions_are_as_fast_as_asked_and_a_neighbour_is_not_slowed(node: Node, asked: str) -> None:
    keys = LIMITS if asked == "configuration" else runtime(KUBERNETES)
    _, pod, result = attached(node, **keys)
    _, neighbour, other = attached(node)
    family = 4 if asked == "configuration" else 6
    assert_rate(neighbour, pod, address_of(result, family), DOWN)
    assert_rate(pod, neighbour, address_of(other, family), UP)
    assert measure_rate(node, neighbour, address_of(other)) > 5 * DOWN


@in_process
@pytest.mark.parametrize("bridge", ["ours", "reference"])
def test_in_a_chain_behind_a_bridge_it_is_the_same(node: Node, bridge: str) -> None:
    chain, pod = ours_behind(node, bridge, capabilities={"bandwidth": True}), node.pod()
    chain.runtime = {"bandwidth": KUBERNETES}
    result = chain.add(pod)
    assert result["interfaces"][-1]["name"] in ifbs(node)
    assert_rate(pod, node, "10.22.0.1", UP)
    assert_rate(node, pod, address_of(result), DOWN)
    assert_ok(chain.check(pod, result))
    chain.delete(pod, result)
    assert (ifbs(node), node.held()) == ([], {})


@in_process
def test_a_routed_pod_is_limited_too(node: Node) -> None:
    config, pod = dual_stack(node, mode="routed", **LIMITS), node.pod()
    result = node.add(config, pod)
    # The node needs an address of its own to speak from.
    node.run("ip", "addr", "add", "192.0.2.1/32", "dev", "lo")
    assert_rate(node, pod, address_of(result), DOWN)
    assert_rate(pod, node, "192.0.2.1", UP)
    assert_ok(node.check(config, result, pod))
    node.delete(config, pod)
    assert ifbs(node) == []


def test_two_attachments_of_one_container_to_one_network_do_not_collide(node: Node) -> None:
    config, pod = dual_stack(node, egressRate=UP, egressBurst=BURST), node.pod()
    second = Pod(name=pod.name, container_id=pod.container_id)
    node.add(config, pod)
    result = node.add(config, second, environ={"CNI_IFNAME": "eth1"})
    assert len(ifbs(node)) == 2
    node.delete(config, pod)
    assert len(ifbs(node)) == 1
    assert_ok(node.check(config, result, second, environ={"CNI_IFNAME": "eth1"}))
    assert_rate(pod, node, "10.22.0.1", UP)


def test_the_kernel_holds_what_was_asked(node: Node) -> None:
    config, pod, result = attached(node, **LIMITS)
    host = qdiscs(node, result["interfaces"][1]["name"])
    ifb = qdiscs(node, result["interfaces"][-1]["name"])
    assert (host["rate"], ifb["rate"]) == (DOWN // 8, UP // 8)
    assert host["burst"].startswith("99999b") or host["burst"].startswith("100000b"), host
    assert host["lat"] == pytest.approx(25_000, rel=0.01)  # microseconds
    assert_ok(node.check(config, result, pod))


@pytest.mark.parametrize("asked", ["configuration", "runtime"])
@pytest.mark.parametrize("burst", NO_BURST.values(), ids=NO_BURST)
def test_a_burst_that_is_no_limit_counts_as_not_given(node: Node, burst: int, asked: str) -> None:
    limits = {"ingressRate": DOWN, "ingressBurst": burst, "egressRate": DOWN, "egressBurst": burst}
    config, pod, result = attached(node, **limits if asked == "configuration" else runtime(limits))
    assert bursts(node, result) == pytest.approx([65536, 65536], rel=1e-3)
    assert_ok(node.check(config, result, pod))


def test_what_passes_under_cri_os_word_for_no_burst_is_as_fast_as_asked(node: Node) -> None:
    word = 34_359_738_359
    limits = {"ingressRate": DOWN, "ingressBurst": word, "egressRate": UP, "egressBurst": word}
    _, pod, result = attached(node, **runtime(limits))
    assert_rate(node, pod, address_of(result, 6), DOWN)
    assert_rate(pod, node, "10.22.0.1", UP)


def test_a_burst_of_some_seconds_is_taken_as_it_is(node: Node) -> None:
    keys = {"ingressRate": DOWN, "ingressBurst": 9 * DOWN, "egressRate": 8000, "egressBurst": 8 * 20_000}
    config, pod, result = attached(node, **keys)
    assert bursts(node, result) == pytest.approx([9 * DOWN // 8, 20_000], rel=1e-3)
    assert_ok(node.check(config, result, pod))


@pytest.mark.parametrize("latency", [1, 100])
def test_the_queue_is_as_long_as_the_latency_asked_for(node: Node, latency: int) -> None:
    config, pod, result = attached(node, latency=latency, **LIMITS)
    assert qdiscs(node, result["interfaces"][1]["name"])["lat"] == pytest.approx(1000 * latency, rel=0.01)
    assert_ok(node.check(config, result, pod))


@pytest.mark.parametrize(
    ("rate", "burst"),
    [(8, 8), (1_000_000, 2**31 - 1), (8000, 2**34), (40_000_000_000, 2**32 - 1), (2**63 - 1, 2**34)],
)
def test_extremes_are_taken_and_pass_check(node: Node, rate: int, burst: int) -> None:
    keys = {"ingressRate": rate, "ingressBurst": burst, "egressRate": rate, "egressBurst": burst}
    config, pod, result = attached(node, **keys)
    assert_ok(node.check(config, result, pod))
    assert qdiscs(node, result["interfaces"][-1]["name"])["rate"] in {rate // 8, rate}


@in_process
def test_a_burst_smaller_than_a_packet_still_lets_packets_pass(node: Node) -> None:
    _, pod, result = attached(node, **LIMITS | {"ingressBurst": 8, "egressBurst": 8})
    assert UP / 2 < measure_rate(pod, node, "10.22.0.1") < 1.1 * UP
    assert DOWN / 2 < measure_rate(node, pod, address_of(result)) < 1.1 * DOWN


@pytest.mark.parametrize("lost", ["nothing", "prevResult", "namespace", "link", "configuration"])
def test_nothing_is_left_whatever_is_missing_at_del(node: Node, lost: str) -> None:
    warm(node)
    with unchanged(node):
        config, pod, result = attached(node, **LIMITS)
        assert ifbs(node)
        asked = {**config, "prevResult": result}
        if lost == "prevResult":
            asked = config
        if lost == "configuration":
            asked = {**dual_stack(node), "ingressRate": "much", "egressBurst": -1}
        if lost == "link":
            node.run("ip", "link", "del", result["interfaces"][1]["name"])
        if lost == "namespace":
            pod.remove()
        node.delete(asked, pod)


def test_many_that_go_at_once_leave_nothing(node: Node) -> None:
    made = [attached(node, **LIMITS) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda each: node.delete(each[0], each[1]), made))
    assert [name for name in node.links() if name.startswith(("bwp", "veth"))] == []


def test_gc_takes_the_devices_of_what_is_not_listed_and_no_others(node: Node) -> None:
    chain, pods = ours_behind(node, "ours", **LIMITS), [node.pod(), node.pod()]
    chain.version = "1.1.0"
    for pod in pods:
        result = chain.add(pod)
    listed = [{"containerID": pods[1].container_id, "ifname": "eth0"}]
    plugin = chain.plugins[1] | {"cni.dev/valid-attachments": listed}
    assert_ok(chain.call("GC", plugin, None))
    assert ifbs(node) == [result["interfaces"][-1]["name"]]
    assert_ok(chain.check(pods[1], result))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("tc qdisc replace dev VETH root handle 1: tbf rate 9mbit burst 9kb limit 99kb", "rate 1125000bps"),
        ("tc qdisc del dev VETH root", "found none"),
        ("tc qdisc del dev VETH ingress", "redirection"),
        ("tc qdisc del dev IFB root", "found none"),
        ("ip link del IFB", "IFB"),
    ],
)
def test_check_names_what_is_not_as_it_was(node: Node, command: str, said: str) -> None:
    config, pod, result = attached(node, **LIMITS)
    assert_ok(node.check(config, result, pod))
    names = {"VETH": result["interfaces"][1]["name"], "IFB": result["interfaces"][-1]["name"]}
    node.run(*(names.get(word, word) for word in command.split()))
    assert_refused(node.check(config, result, pod), 100, names.get(said, said))


def test_what_a_crash_had_left_is_made_anew(node: Node) -> None:
    chain, pod = ours_behind(node, "reference", **LIMITS), node.pod()
    bridge = chain.call("ADD", chain.plugins[0], pod).json
    for _ in range(2):
        answer = chain.call("ADD", chain.plugins[1], pod, bridge)
        assert answer.status == 0, answer.stdout
    assert len(ifbs(node)) == 1
    assert_ok(chain.check(pod, answer.json))
    chain.delete(pod, answer.json)
    assert ifbs(node) == []


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"ingressRate": 8000}, "ingressRate"),
        ({"egressBurst": 8000}, "egressRate"),
        ({"ingressRate": -1, "ingressBurst": 8}, "ingressRate"),
        ({"egressRate": 2**63, "egressBurst": 8}, "egressRate"),
        ({"ingressRate": 8000, "ingressBurst": 2**35}, "ingressBurst"),
        ({"ingressRate": "1M", "ingressBurst": 8}, "ingressRate"),
        ({"ingressRate": 7, "ingressBurst": 8}, "ingressRate"),
        (LIMITS | {"latency": 0}, "latency"),
    ],
)
def test_bad_keys_are_refused_before_anything_is_made(node: Node, limits: dict[str, Any], said: str) -> None:
    with unchanged(node):
        assert_refused(node.call("ADD", dual_stack(node, **limits), node.pod()), 7, said)
        if "latency" not in limits:
            assert_refused(node.call("ADD", dual_stack(node, **runtime(limits)), node.pod()), 7, said)


def test_only_a_veth_of_the_chain_before_can_be_limited(node: Node) -> None:
    chain, pod = ours_behind(node, "ours", **LIMITS), node.pod()
    nothing = {"cniVersion": "1.0.0", "interfaces": []}
    assert_refused(chain.call("ADD", chain.plugins[1], pod, nothing), 7, "eth0")
    pod.run("ip", "link", "add", "eth0", "type", "bridge")
    assert_refused(chain.call("ADD", chain.plugins[1], pod, nothing), 7, "veth")
    pod.run("ip", "link", "del", "eth0")
    node.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "eth0", "netns", pod.name)
    assert_refused(chain.call("ADD", chain.plugins[1], pod, nothing), 7, "v0")
    assert_refused(chain.call("ADD", chain.plugins[1], pod), 7, "prevResult")
