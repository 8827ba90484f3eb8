"""`portIsolation` beside host ports: neighbours reach what is published, and nothing else of each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.chain import Chain, install_as
from tests.harness.cluster import ROUTER, Cluster, address_of, make_cluster
from tests.harness.hostports import WEB, elements, mapped
from tests.harness.networks import calm, dual_stack, eventually, host_end, ports
from tests.harness.services import SILENCE, ask, ask_all, offering

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Node, Pod

FAMILIES = (4, 6)
BOTH = ({**WEB, "protocol": "tcp"}, {**WEB, "protocol": "udp"})
BRIEFLY = 0.3  # seconds, where nobody answers


@pytest.fixture
def cluster(tmp_path: Path, bin_dir: Path) -> Iterator[Cluster]:
    made = make_cluster(tmp_path, bin_dir, 1)
    yield made
    made.remove()


def publish(node: Node, host_port: int, **keys: Any) -> tuple[dict[str, Any], Pod, dict[str, Any]]:
    """Attach an isolated pod whose port 80 is a port of the node, in TCP and UDP."""
    config = mapped(node, *({**each, "hostPort": host_port} for each in BOTH), portIsolation=True, **keys)
    pod = node.pod()
    return config, pod, node.add(config, pod)


def isolate(node: Node) -> Pod:
    node.add(dual_stack(node, portIsolation=True), pod := node.pod())
    return pod


def are_apart(first: Pod, second: Pod) -> bool:
    """Tell whether neither answers the other."""
    pairs = [(a, address_of(b, v)) for a, b in ((first, second), (second, first)) for v in FAMILIES]
    with ThreadPoolExecutor(2 * len(pairs)) as pool:
        echoes = pool.map(lambda pair: pair[0].ping(pair[1], within=BRIEFLY), pairs)
        answers = pool.map(lambda pair: ask(*pair, 80, "udp", within=BRIEFLY), pairs)
        return not any(echoes) and {*answers} == {SILENCE}


def is_flagged(node: Node, result: dict[str, Any]) -> bool:
    return bool(ports(node)[host_end(result)]["isolated"])


def test_isolated_pods_reach_host_ports_and_not_each_other(filtering: int, cluster: Cluster) -> None:
    node = cluster.nodes[1]
    before, (_, pod, result) = isolate(node), publish(node, 8080)
    (_, other, _), after = publish(node, 8081), isolate(node)
    assert is_flagged(node, result) == (not filtering)
    with offering(pod, 80, name="pod "), offering(other, 80, name="other "):
        for v in FAMILIES:
            to = cluster.address(1, v)
            assert ask_all(cluster.underlay, to, 8080) == {f"pod {ROUTER[v]}"}
            for who in (before, after, other, pod):
                assert all(each.startswith("pod ") for each in ask_all(who, to, 8080)), who.name
            assert all(each.startswith("other ") for each in ask_all(pod, to, 8081))
        for neighbour in (before, after, other):
            assert are_apart(pod, neighbour)


def test_behind_the_plugin_portmap_it_is_the_same(filtering: int, cluster: Cluster) -> None:
    node = cluster.nodes[1]
    neighbour = isolate(node)
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    main = dual_stack(node, portIsolation=True)
    chain = Chain(node, [main, portmap], [install_as(node, "podwire", "portmap")])
    chain.runtime = {"portMappings": list(BOTH)}
    result = chain.add(pod := node.pod())
    assert is_flagged(node, result) == (not filtering)
    assert chain.check(pod, result).status == 0
    with offering(pod, 80):
        for v in FAMILIES:
            assert SILENCE not in ask_all(neighbour, cluster.address(1, v), 8080)
        assert are_apart(pod, neighbour)
    chain.delete(pod, result)
    assert elements(node) == elements(node, neighbour.container_id)


def test_a_pod_that_is_not_isolated_reaches_those_that_are(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    node.set_filtering(1)
    _, pod, _ = publish(node, 8080)
    node.add(dual_stack(node), free := node.pod())
    with offering(pod, 80):
        for v in FAMILIES:
            assert SILENCE not in ask_all(free, address_of(pod, v), 80)
            assert SILENCE not in ask_all(free, cluster.address(1, v), 8080)
            assert pod.ping(address_of(free, v))


def test_check_asks_for_the_flag_or_for_the_rule(plain_node: Node) -> None:
    node = plain_node
    node.set_filtering(1)
    plain, pod = dual_stack(node, portIsolation=True), node.pod()
    result = node.add(plain, pod)
    config, published, own = publish(node, 8080)
    assert node.check(plain, result, pod).status == node.check(config, own, published).status == 0
    for line in ("flush chain bridge podwire isolation", "flush set bridge podwire isolated_ports"):
        node.run("nft", *line.split())
        for asked in ((plain, result, pod), (config, own, published)):
            answer = node.check(*asked)
            assert (answer.status, answer.json["code"]) == (1, 100)
            assert "portIsolation" in answer.json["msg"]
        # The next ADD mends the rule.
        node.add(plain, node.pod())
    node.run("ip", "link", "set", host_end(result), "type", "bridge_slave", "isolated", "off")
    assert "wanted isolated True, found False" in node.check(plain, result, pod).json["msg"]


def test_nothing_is_made_where_the_flag_is_enough(plain_node: Node) -> None:
    """No port is published, or nothing is translated in the bridge."""
    plain_node.set_filtering(0)
    isolate(plain_node)
    _, _, result = publish(plain_node, 8080)
    assert is_flagged(plain_node, result)
    assert "isolated_ports" not in plain_node.run("nft", "list", "ruleset").stdout


@pytest.mark.parametrize("end", ["DEL", "late DEL", "GC"])
def test_a_port_leaves_the_set_with_its_pod(plain_node: Node, end: str) -> None:
    node = plain_node
    node.set_filtering(1)
    publish(node, 8080)
    before = calm(node)
    config, pod, result = publish(node, 8081)
    assert len(elements(node, pod.container_id)) > 6
    if end != "DEL":
        pod.remove()
    if end == "GC":
        valid = [
            {"containerID": each.container_id, "ifname": "eth0"} for each in node.pods if each is not pod
        ]
        assert node.call("GC", config | {"cni.dev/valid-attachments": valid}).status == 0
    else:
        node.delete(config | {"prevResult": result}, pod)
    assert eventually(lambda: calm(node), before) == before


def test_a_foreign_isolated_port_keeps_the_flag_on(plain_node: Node) -> None:
    """Nothing but the flag keeps it from the pod: the host ports wait, and a warning says for whom."""
    node = plain_node
    node.set_filtering(1)
    isolate(node)
    node.run("ip", "link", "add", "vm0", "type", "veth", "peer", "name", "vm1")
    node.run("ip", "link", "set", "vm0", "master", "cni0", "up")
    node.run("ip", "link", "set", "vm0", "type", "bridge_slave", "isolated", "on")
    config = mapped(node, WEB, portIsolation=True)
    answer = node.call("ADD", config, pod := node.pod())
    assert answer.status == 0
    assert "vm0 is isolated and not by podwire" in answer.stderr
    assert is_flagged(node, answer.json)
    assert node.check(config, answer.json, pod).status == 0


def test_a_pod_is_guarded_until_its_link_is_gone(plain_node: Node) -> None:
    """What is removed before the link would leave the pod free for that long."""
    node = plain_node
    node.set_filtering(1)
    config, pod, result = publish(node, 8080, spoofCheck="ip")
    answer = node.call("DEL", config, pod, environ={"PODWIRE_LOG": "debug"})
    assert answer.status == 0
    steps = [line for line in answer.stderr.splitlines() if "link del" in line or "nft delete" in line]
    gone = next(n for n, line in enumerate(steps) if f"link del {host_end(result)}" in line)
    guards = [n for n, line in enumerate(steps) if " bridge podwire " in line]
    assert len(guards) > 1
    assert min(guards) > gone, "\n".join(steps)
