"""DEL removes what an ADD of this attachment made, whoever made it, and nothing else."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.networks import (
    address_of,
    call_reference,
    calm,
    dual_stack,
    eventually,
    host_end,
    network,
    reference,
)

if TYPE_CHECKING:
    from tests.harness.node import Node, Pod


def masquerade(node: Node) -> str:
    """Return the nat rules of both families."""
    return node.run("iptables-save", "-t", "nat").stdout + node.run("ip6tables-save", "-t", "nat").stdout


def chain_of(pod: Pod) -> str:
    return "CNI-" + hashlib.sha512(f"test{pod.container_id}".encode()).hexdigest()[:24]


def add_by_reference(node: Node, config: dict[str, Any], pod: Pod) -> None:
    answer = call_reference(node, "ADD", config, pod)
    assert answer.status == 0, answer.stdout


@pytest.mark.parametrize("ipam", ["podwire-ipam", "host-local"])
def test_attachment_of_the_go_plugins_goes_with_its_chains_and_its_neighbours_stay(
    node: Node, ipam: str
) -> None:
    config = reference(node, ipMasq=True)
    gone, neighbour = node.pod(), node.pod()
    for pod in (gone, neighbour):
        add_by_reference(node, config, pod)
    assert masquerade(node).count(chain_of(gone)) == masquerade(node).count(chain_of(neighbour)) > 4
    ours = config | {"type": "podwire", "ipam": config["ipam"] | {"type": ipam}}
    node.delete(ours, gone, environ={"CNI_PATH": f"{node.bin_dir}:/usr/lib/cni"})
    assert "eth0" not in gone.links()
    assert {owner.split()[0] for owner in node.held().values()} == {neighbour.container_id}
    assert chain_of(gone) not in masquerade(node)
    assert masquerade(node).count(f"-j {chain_of(neighbour)}") == 2
    assert neighbour.ping("10.22.0.1")


def test_chains_of_the_go_plugins_go_when_the_namespace_is_gone_already(node: Node) -> None:
    config = reference(node, ipMasq=True)
    pod = node.pod()
    add_by_reference(node, config, pod)
    pod.remove()
    node.delete(config | {"type": "podwire", "ipam": config["ipam"] | {"type": "podwire-ipam"}}, pod)
    assert chain_of(pod) not in masquerade(node)
    assert node.held() == {}


@pytest.mark.parametrize(
    "environ", [{}, {"CNI_NETNS": None}, {"CNI_NETNS": ""}], ids=["gone", "unset", "empty"]
)
def test_delete_without_the_namespace_removes_everything(node: Node, environ: dict[str, str | None]) -> None:
    config = dual_stack(node)
    pod, other = node.pod(), node.pod()
    node.add(config, other)
    before = calm(node)
    result = node.add(config, pod)
    if not environ:
        pod.remove()
    node.delete(config, pod, environ=environ)
    assert host_end(result) not in node.links()
    assert eventually(lambda: calm(node), before) == before


def test_second_delete_and_delete_without_add_change_nothing(node: Node) -> None:
    config, pod = dual_stack(node), node.pod()
    node.delete(config, pod)
    node.add(config, pod)
    node.delete(config, pod)
    before = node.run("nft", "list", "ruleset").stdout, eventually(lambda: calm(node), None, within=1)
    node.delete(config, pod)
    assert (node.run("nft", "list", "ruleset").stdout, calm(node)) == before


@pytest.mark.parametrize("words", ["link add eth0 type bridge", "tuntap add dev eth0 mode tap"])
def test_delete_never_touches_an_interface_that_is_no_veth(node: Node, words: str) -> None:
    pod = node.pod()
    pod.run("ip", *words.split())
    node.delete(dual_stack(node), pod)
    assert "eth0" in pod.links()


def test_delete_never_touches_a_host_link_that_is_no_veth(node: Node) -> None:
    pod = node.pod()
    name = host_end(node.add(dual_stack(node), pod))
    node.delete(dual_stack(node), pod)
    node.run("ip", "link", "add", name, "type", "bridge")
    node.delete(dual_stack(node), pod)
    assert name in node.links()


def test_delete_of_one_interface_leaves_the_other_of_the_same_container(node: Node) -> None:
    pod = node.pod()
    config = dual_stack(node)
    results = {name: node.add(config, pod, environ={"CNI_IFNAME": name}) for name in ("eth0", "net1")}
    assert len(node.held()) == 4
    node.delete(config, pod, environ={"CNI_IFNAME": "eth0"})
    assert set(pod.links()) == {"lo", "net1"}
    assert set(node.held()) == {address_of(results["net1"], family) for family in (4, 6)}
    assert node.check(config, results["net1"], pod, environ={"CNI_IFNAME": "net1"}).status == 0


def test_delete_on_one_network_leaves_the_attachment_to_another(node: Node) -> None:
    pod = node.pod()
    node.add(dual_stack(node), pod)
    other = network(node, name="other", bridge="cni1")
    node.add(other, pod, environ={"CNI_IFNAME": "net1"})
    node.delete(other, pod, environ={"CNI_IFNAME": "net1"})
    assert set(pod.links()) == {"lo", "eth0"}
    assert len(node.held()) == 2


def test_gc_removes_attachments_of_this_network_that_the_runtime_does_not_list(node: Node) -> None:
    config, other = dual_stack(node), network(node, name="other", bridge="cni1")
    kept, lost, elsewhere = node.pod(), node.pod(), node.pod()
    names = [host_end(node.add(c, pod)) for c, pod in ((config, kept), (config, lost), (other, elsewhere))]
    valid = [{"containerID": kept.container_id, "ifname": "eth0"}]
    assert node.call("GC", config).status == 0
    assert set(names) <= set(node.links())
    assert node.call("GC", config | {"cni.dev/valid-attachments": valid}).status == 0
    assert [name in node.links() for name in names] == [True, False, True]
    assert {owner.split()[0] for owner in node.held().values()} == {kept.container_id}
