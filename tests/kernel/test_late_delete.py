"""A late DEL changes nothing in a namespace that by now is another pod's.

Runtimes name a namespace by the process in it, /proc/PID/ns/net, and process ids come again.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import in_process
from tests.harness.answers import assert_ok
from tests.harness.chain import REFERENCE, Chain, install_as
from tests.harness.networks import FAMILIES, dual_stack, network, reference, routed

if TYPE_CHECKING:
    from tests.harness.node import Node, Pod

SYSCTLS = {"net.core.somaxconn": "555", "net.ipv4.conf.IFNAME.arp_ignore": "1"}
MODES = pytest.mark.parametrize("mode", ["bridge", "routed"])


def state(pod: Pod) -> dict[str, Any]:
    """Return what a late DEL could have changed in a pod."""
    links = pod.links()
    return {
        "links": {
            name: (each["address"], each["mtu"], "UP" in each["flags"]) for name, each in links.items()
        },
        "addresses": pod.addresses("eth0") if "eth0" in links else [],
        "sysctls": [pod.run("sysctl", "-n", key.replace("IFNAME", "eth0")).stdout for key in SYSCTLS],
    }


def at(other: Pod) -> dict[str, str | None]:
    """Return the environment in which CNI_NETNS leads to another pod."""
    return {"CNI_NETNS": other.path}


def attach(node: Node, config: dict[str, Any]) -> tuple[Pod, Pod, dict[str, Any]]:
    """Return two pods of a network, and the result of the first."""
    first, second = node.pod(), node.pod()
    result = node.add(config, first)
    node.add(config, second)
    return first, second, result


@MODES
@pytest.mark.parametrize(("version", "told"), [("0.3.1", False), ("1.1.0", True)])
def test_second_del_leaves_the_pod_that_has_the_path_now(
    node: Node, mode: str, version: str, told: bool
) -> None:
    config = dual_stack(node, mode=mode, sysctl=SYSCTLS) | {"cniVersion": version}
    gone, living, result = attach(node, config)
    node.delete(config, gone)
    gone.remove()
    before = state(living)
    node.delete(config | ({"prevResult": result} if told else {}), gone, environ=at(living))
    assert state(living) == before


@pytest.mark.parametrize(("mode", "family"), [("bridge", "v4"), ("bridge", "dual-stack"), ("routed", "v6")])
def test_first_del_leaves_the_pod_that_has_the_path_now_and_releases(
    node: Node, mode: str, family: str
) -> None:
    config = network(node, *FAMILIES[family], isDefaultGateway=True, mode=mode, sysctl=SYSCTLS)
    gone, living, result = attach(node, config)
    gone.remove()
    before = state(living)
    node.delete(config | {"prevResult": result}, gone, environ=at(living))
    assert state(living) == before
    assert {owner.split()[0] for owner in node.held().values()} == {living.container_id}
    assert [path.name for path in node.tmp.rglob("*.json")] == [f"{living.container_id}_eth0.json"]


@MODES
def test_del_of_a_pod_that_lives_on_takes_its_own_link_and_leaves_the_other(node: Node, mode: str) -> None:
    """Its namespace is held by somebody, and the path of the process is another pod's."""
    config = dual_stack(node, mode=mode, sysctl=SYSCTLS)
    first, second, result = attach(node, config)
    before = state(second)
    node.delete(config | {"prevResult": result}, first, environ=at(second))
    assert "eth0" not in first.links()
    assert state(second) == before


def test_path_of_a_process_that_came_again(node: Node) -> None:
    config = dual_stack(node)
    gone, living, result = attach(node, config)
    with subprocess.Popen(["nsenter", f"--net={living.path}", "sleep", "60"]) as process:
        try:
            path: dict[str, str | None] = {"CNI_NETNS": f"/proc/{process.pid}/ns/net"}
            for _ in range(2):
                node.delete(config | {"prevResult": result}, gone, environ=path)
        finally:
            process.kill()
    assert living.ping("10.22.0.1")


@pytest.mark.parametrize("bridge", ["ours", "reference"])
@pytest.mark.parametrize("told", [True, False], ids=["prevResult", "bare"])
def test_late_del_of_tuning_alone_writes_nothing(node: Node, bridge: str, told: bool) -> None:
    main = {key: value for key, value in reference(node).items() if key not in {"name", "cniVersion"}}
    plugin = {"type": "tuning", "dataDir": str(node.tmp / "kept"), "mtu": 1400, "sysctl": SYSCTLS}
    path = [install_as(node, "tuning", *(["bridge", "host-local"] if bridge == "ours" else [])), REFERENCE]
    gone, living = node.pod(), node.pod()
    chain = Chain(node=node, plugins=[main, plugin | {"mac": "02:00:00:00:00:09"}], path=path)
    result = chain.add(gone)
    Chain(node=node, plugins=[main, plugin | {"mac": "02:00:00:00:00:0a"}], path=path).add(living)
    gone.remove()
    before = state(living)
    chain.environ = at(living)
    assert_ok(chain.call("DEL", chain.plugins[1], gone, result if told else None))
    assert state(living) == before
    assert [path.name for path in (node.tmp / "kept").iterdir()] == [f"{living.container_id}_eth0.json"]


@in_process
def test_late_del_of_tuning_with_a_file_of_the_go_plugin_writes_nothing(node: Node) -> None:
    """Its file does not say whose the namespace is; the interface in it does."""
    main = {key: value for key, value in reference(node).items() if key not in {"name", "cniVersion"}}
    plugin = {"type": "tuning", "dataDir": str(node.tmp / "kept"), "mac": "02:00:00:00:00:09"}
    theirs = Chain(node=node, plugins=[main, plugin], path=[REFERENCE])
    gone, living = node.pod(), node.pod()
    result = theirs.add(gone)
    Chain(node=node, plugins=[main], path=[REFERENCE]).add(living)
    before = state(living)
    ours = Chain(node=node, plugins=[main, plugin], path=[install_as(node, "tuning")], environ=at(living))
    assert_ok(ours.call("DEL", plugin, gone, result))
    assert state(living) == before


def test_what_tuning_has_kept_says_by_itself_whose_the_namespace_is(node: Node) -> None:
    """With the link gone, and no prevResult, the namespace is set back all the same."""
    config, pod = dual_stack(node, sysctl=SYSCTLS), node.pod()
    before = pod.run("sysctl", "-n", "net.core.somaxconn").stdout
    node.add(config, pod)
    pod.run("ip", "link", "del", "eth0")
    node.delete(config, pod)
    assert pod.run("sysctl", "-n", "net.core.somaxconn").stdout == before


def add_by_reference(node: Node, config: dict[str, Any], pod: Pod) -> dict[str, Any]:
    answer = node.call("ADD", config, pod, program=f"{REFERENCE}/bridge", environ={"CNI_PATH": REFERENCE})
    assert answer.status == 0, answer.stdout
    return answer.json


def ours(config: dict[str, Any]) -> dict[str, Any]:
    """Return the network of the Go plugins as the switch to podwire makes it."""
    return config | {"type": "podwire", "ipam": config["ipam"] | {"type": "podwire-ipam"}}


@in_process
@pytest.mark.parametrize(("version", "told"), [("0.3.1", False), ("1.0.0", True), ("1.0.0", False)])
@pytest.mark.parametrize("repeated", [True, False], ids=["again", "first"])
def test_late_del_leaves_a_link_of_the_go_plugins(
    node: Node, version: str, told: bool, repeated: bool
) -> None:
    config = reference(node) | {"cniVersion": version}
    gone, living = node.pod(), node.pod()
    result = add_by_reference(node, config, gone)
    add_by_reference(node, config, living)
    if repeated:
        node.delete(ours(config), gone)
        assert "eth0" not in gone.links()
    gone.remove()
    before = state(living)
    last = {"prevResult": result} if told else {}
    node.delete(ours(config) | last, gone, environ=at(living))
    assert state(living) == before
    assert {owner.split()[0] for owner in node.held().values()} == {living.container_id}


@in_process
@pytest.mark.parametrize("proof", ["MAC", "addresses", "none"])
def test_a_link_of_the_go_plugins_goes_by_its_mac_or_by_the_addresses_held(node: Node, proof: str) -> None:
    config, pod = reference(node), node.pod()
    result = add_by_reference(node, config, pod)
    last = {"prevResult": result} if proof == "MAC" else {}
    if proof != "addresses":
        for name in node.held():
            (node.data_dir / "test" / name).unlink()
    node.delete(ours(config) | last, pod)
    assert ("eth0" in pod.links()) == (proof == "none")


@in_process
def test_a_link_of_the_go_plugins_whose_mac_tuning_has_set_back_goes(node: Node) -> None:
    """The chain's DEL goes backwards: by the turn of the bridge the MAC is not that of the result."""
    plugin = {"type": "tuning", "dataDir": str(node.tmp / "kept"), "mac": "02:00:00:00:00:09"}
    main = {key: value for key, value in reference(node).items() if key not in {"name", "cniVersion"}}
    theirs = Chain(node=node, plugins=[main, plugin], path=[REFERENCE])
    pod = node.pod()
    result = theirs.add(pod)
    path = [install_as(node, "tuning", "bridge", "host-local")]
    Chain(node=node, plugins=[main, plugin], path=path).delete(pod, result)
    assert list(pod.links()) == ["lo"]


def test_late_del_leaves_a_link_of_somebody_else(node: Node) -> None:
    config = routed(node)
    gone, living = node.pod(), node.pod()
    result = node.add(config, gone)
    gone.remove()
    living.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
    node.delete(config | {"prevResult": result}, gone, environ=at(living))
    assert "eth0" in living.links()


LOOPBACK = {"cniVersion": "0.3.1", "name": "cni-loopback", "type": "loopback"}


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_late_del_of_loopback_leaves_lo_up(node: Node, whose: str) -> None:
    program = f"{install_as(node, 'loopback')}/loopback"
    gone, living = node.pod(), node.pod()
    names: dict[str, str | None] = {"CNI_IFNAME": "lo"}
    node.add(LOOPBACK, gone, program=program, environ=names)
    adds = program if whose == "ours" else f"{REFERENCE}/loopback"
    node.add(LOOPBACK, living, program=adds, environ=names)
    for _ in range(2):
        node.delete(LOOPBACK, gone, program=program, environ=names | at(living))
    assert "UP" in living.links()["lo"]["flags"]
