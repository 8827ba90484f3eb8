"""Networks of ours that have plugins of the reference in them, of each version that is tried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import in_process
from tests.harness.answers import assert_ok
from tests.harness.chain import Chain
from tests.harness.networks import dual_stack
from tests.harness.runtime import state, tools

if TYPE_CHECKING:
    from tests.harness.node import Node

pytestmark = [in_process, pytest.mark.parametrize("reference", tools.PLUGINS)]

RUNTIME = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
RATES = dict.fromkeys(("ingressRate", "ingressBurst", "egressRate", "egressBurst"), 10**7)
FURTHER: tuple[dict[str, Any], ...] = (
    {"type": "portmap", "capabilities": {"portMappings": True}},
    {"type": "bandwidth", **RATES},
    {"type": "firewall"},
    {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}},
    {"type": "sbr"},
)


def chain_of(node: Node, reference: str, *plugins: dict[str, Any]) -> Chain:
    path = [str(node.bin_dir), str(tools.reference_plugins(reference))]
    version = "1.0.0" if reference == tools.OLD_PLUGINS else "1.1.0"
    return Chain(node, list(plugins), path, RUNTIME, version=version)


def assert_comes_and_goes(node: Node, chain: Chain) -> None:
    """What the reference keeps for all pods is its affair; of the pod's network nothing stays."""
    pod = node.pod()
    result = chain.add(pod)
    assert len(state.addresses(pod, "eth0")) == 2
    # The portmap of 1.1 looks for its rules for IPv4 among those for IPv6.
    if (chain.plugins[-1]["type"], chain.version) != ("portmap", "1.0.0"):
        assert_ok(chain.check(pod, result))
    chain.delete(pod, result)
    assert state.veths(node) == []
    assert state.reserved(node.data_dir) == []
    assert f"{pod.container_id} eth0" not in node.run("nft", "list", "ruleset").stdout


@pytest.mark.parametrize("further", FURTHER, ids=lambda plugin: plugin["type"])
def test_a_pod_of_ours_with_a_plugin_of_the_reference_behind_it(
    node: Node, reference: str, further: dict[str, Any]
) -> None:
    assert_comes_and_goes(node, chain_of(node, reference, dual_stack(node), further))


def test_ptp_of_the_reference_has_its_addresses_from_ours(node: Node, reference: str) -> None:
    ipam = dual_stack(node)["ipam"]
    assert_comes_and_goes(node, chain_of(node, reference, {"type": "ptp", "ipMasq": True, "ipam": ipam}))


def test_static_of_the_reference_says_the_addresses_of_a_pod_of_ours(node: Node, reference: str) -> None:
    wanted = ["10.22.0.77/24", "fd00:22::77/64"]
    ipam = {"type": "static", "addresses": [{"address": each} for each in wanted]}
    chain, pod = chain_of(node, reference, dual_stack(node) | {"ipam": ipam}), node.pod()
    # A gateway is what static does not make up.
    chain.plugins[0].pop("isDefaultGateway")
    chain.add(pod)
    assert sorted(pod.addresses("eth0")) == sorted(wanted)
    chain.delete(pod)
    assert state.veths(node) == []
