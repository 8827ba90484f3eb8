"""Every chain that podwire hooks in on a real node is where kernel/nft_layout.py says it is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from cni_plugin.dataplane.services.plan import Surroundings
from cni_plugin.dataplane.services.sync import ServicesTable
from cni_plugin.kernel.netns import open_pod
from cni_plugin.kernel.nft_layout import OWN_TABLES, PLACES, Place
from tests.harness.chain import Chain, install_as
from tests.harness.cluster import Cluster, make_cluster
from tests.harness.hostports import WEB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Node


FLAT_RANGES = [[{"subnet": "10.9.0.0/16", "rangeStart": "10.9.1.1", "rangeEnd": "10.9.1.9"}]]


@pytest.fixture
def cluster(tmp_path: Path, bin_dir: Path) -> Iterator[Cluster]:
    made = make_cluster(tmp_path, bin_dir, 2)
    yield made
    made.remove()


def switch_everything_on(cluster: Cluster) -> Node:
    """Give a node a pod of every form, with all that filters, marks and translates."""
    node, others = cluster.nodes[1], {"flat": 43, "hostgw": 0}
    node.set_filtering(1)
    everything = {
        "ipMasq": True,
        "sourceValidation": True,
        "spoofCheck": "ip",
        "portIsolation": True,
        "capabilities": {"portMappings": True},
    }
    for name, form in enumerate(("routed", *others)):
        main = {**cluster.config(form, 1), **everything, "bridge": f"cni{name}"}
        if form == "flat":
            main["vxlan"]["vni"] = others[form]
            main["ipam"]["ranges"] = FLAT_RANGES
        if form == "hostgw":
            main["networkPolicy"] = {}
            main["ipam"]["ranges"] = [[{"subnet": "10.8.0.0/24"}]]
            main["hostGateway"]["peers"] = []
        policy = {} if form == "hostgw" else {"ingressPolicy": "isolated"}
        plugins = [main, {"type": "firewall", **policy}]
        runtime = {"portMappings": [{**WEB, "hostPort": 8080 + name}]}
        named = install_as(node, "podwire", "firewall")
        Chain(node, plugins, [named], runtime, version="1.1.0", name=f"test{name}").add(node.pod())
    return node


def hooked(node: Node) -> list[dict[str, Any]]:
    ruleset = json.loads(node.run("nft", "-j", "list", "ruleset").stdout)["nftables"]
    chains = [each["chain"] for each in ruleset if "chain" in each]
    return [chain for chain in chains if "hook" in chain and chain["table"] in OWN_TABLES]


def place_of(chain: dict[str, Any]) -> Place:
    fitting = [
        place
        for place in PLACES
        if (place.family, place.table, place.hook) == (chain["family"], chain["table"], chain["hook"])
        if chain["name"].startswith(place.prefix)
    ]
    return max(fitting, key=lambda place: len(place.prefix))


def test_a_node_with_everything_on_has_the_layouts_chains(cluster: Cluster) -> None:
    node = switch_everything_on(cluster)
    with open_pod(node.path) as host, host.entered():
        ServicesTable().sync(host.nftables, {}, Surroundings())
    chains = hooked(node)
    for chain in chains:
        place = place_of(chain)
        assert (chain["type"], chain["prio"], chain["policy"]) == (place.kind, place.priority, "accept"), (
            chain
        )
    assert set(map(place_of, chains)) == set(PLACES)
