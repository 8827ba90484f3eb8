"""What packets to Services meet: who answers, and as whom it sees the client, over TCP and UDP."""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from netaddr import IPNetwork

from cni_plugin.dataplane.services.plan import Endpoint, Frontend, FrontendPlan, Refusal
from cni_plugin.dataplane.services.sync import ServicesTable, switch_off
from cni_plugin.kernel.netns import open_pod
from tests.harness.networks import inside
from tests.harness.service_lab import (
    CLIENTS,
    CLUSTER,
    EXTERNAL,
    PORT,
    TARGET,
    ServiceLab,
    packed,
    service_lab,
)
from tests.harness.services import REFUSED, SILENCE, Flow, ask, echoing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BOTH = ("local", "remote")


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def lab(request: pytest.FixtureRequest, tmp_path: Path, bin_dir: Path) -> Iterator[ServiceLab]:
    with service_lab(tmp_path, bin_dir, request.param) as made:
        yield made


def cluster_plan(lab: ServiceLab, *names: str, **keys: Any) -> FrontendPlan:
    return FrontendPlan(name="shop/web:http", endpoints=lab.endpoints(*names), is_cluster=True, **keys)


def external_plan(lab: ServiceLab, *names: str, **keys: Any) -> FrontendPlan:
    """Return the plan of policy Cluster."""
    return FrontendPlan(
        name="shop/web:http", endpoints=lab.endpoints(*names), masquerade=True, masquerade_node=True, **keys
    )


def local_plan(lab: ServiceLab, *names: str) -> FrontendPlan:
    """Return the plan of policy Local, of a Service that has endpoints on both nodes."""
    return FrontendPlan(
        name="shop/web:http",
        endpoints=lab.endpoints(*names),
        inside=lab.endpoints(*BOTH),
        refusal=Refusal.DROP,
        masquerade_node=True,
    )


def seen(lab: ServiceLab, who: str, names: tuple[str, ...], source: str = "") -> set[tuple[str, str]]:
    return {(name, source or lab.source(who)) for name in names}


def test_a_cluster_address_leads_to_every_endpoint_and_keeps_the_client(lab: ServiceLab) -> None:
    lab.put(CLUSTER[lab.version], plan=cluster_plan(lab, *BOTH))
    address, node = CLUSTER[lab.version], lab.node_address
    assert lab.ask("pod", address, times=20) == seen(lab, "pod", BOTH)
    assert lab.ask("node", address, times=20) == seen(lab, "node", BOTH)
    # A client from outside is masqueraded: answers would not come back by this node.
    assert lab.ask("outside", address, times=20) == seen(lab, "outside", BOTH, node)


def test_a_pod_that_gets_itself_sees_the_node(lab: ServiceLab) -> None:
    lab.put(CLUSTER[lab.version], plan=cluster_plan(lab, "local"))
    assert lab.ask("itself", CLUSTER[lab.version]) == {("local", lab.node_address)}


def test_policy_cluster_masquerades_whoever_asks_by_an_external_address(
    lab: ServiceLab,
) -> None:
    lab.put(EXTERNAL[lab.version], plan=external_plan(lab, *BOTH))
    lab.put(lab.node_address, 30080, external_plan(lab, *BOTH))
    for who in CLIENTS:
        for address, port in ((EXTERNAL[lab.version], PORT), (lab.node_address, 30080)):
            assert lab.ask(who, address, port, times=15) == seen(lab, who, BOTH, lab.node_address), (
                who,
                port,
            )


def test_policy_local_keeps_the_client_from_outside_and_asks_everybody_from_inside(lab: ServiceLab) -> None:
    lab.put(EXTERNAL[lab.version], plan=local_plan(lab, "local"))
    lab.put(lab.node_address, 30080, local_plan(lab, "local"))
    for address, port in ((EXTERNAL[lab.version], PORT), (lab.node_address, 30080)):
        assert lab.ask("outside", address, port, times=10) == seen(lab, "outside", ("local",))
        assert lab.ask("pod", address, port, times=20) == seen(lab, "pod", BOTH)
        assert lab.ask("node", address, port, times=20) == seen(lab, "node", BOTH, lab.node_address)


def test_policy_local_without_an_endpoint_here_says_nothing_to_the_outside(lab: ServiceLab) -> None:
    lab.put(EXTERNAL[lab.version], plan=replace(local_plan(lab), inside=lab.endpoints("remote")))
    assert lab.ask("outside", EXTERNAL[lab.version]) == {(SILENCE, "")}
    assert lab.ask("pod", EXTERNAL[lab.version]) == seen(lab, "pod", ("remote",))


def test_no_endpoint_anywhere_is_refused_at_once(lab: ServiceLab) -> None:
    lab.put(CLUSTER[lab.version], plan=cluster_plan(lab))
    lab.put(lab.node_address, 30080, external_plan(lab))
    for who in ("pod", "node", "outside"):
        started = time.monotonic()
        assert ask(lab.space(who), CLUSTER[lab.version], PORT, "tcp") == REFUSED, who
        assert ask(lab.space(who), lab.node_address, 30080, "tcp") == REFUSED, who
        assert time.monotonic() - started < 0.5
    assert ask(lab.space("pod"), CLUSTER[lab.version], PORT, "udp") == REFUSED


def test_a_port_that_no_service_has_is_refused(lab: ServiceLab) -> None:
    lab.put(CLUSTER[lab.version], plan=cluster_plan(lab, *BOTH))
    for who in ("pod", "node", "outside"):
        assert ask(lab.space(who), CLUSTER[lab.version], 81, "tcp") == REFUSED, who


def test_only_the_ranges_may_ask(lab: ServiceLab) -> None:
    other = IPNetwork("198.18.0.0/15" if lab.version == 4 else "2001:db8:beef::/48")
    outside = IPNetwork(lab.source("outside"))
    lab.put(EXTERNAL[lab.version], plan=external_plan(lab, *BOTH, sources=(other,)))
    assert lab.ask("outside", EXTERNAL[lab.version]) == {(SILENCE, "")}
    lab.put(EXTERNAL[lab.version], plan=external_plan(lab, "local", sources=(other, outside)))
    assert lab.ask("outside", EXTERNAL[lab.version]) == {("local", lab.node_address)}
    assert lab.ask("elsewhere", EXTERNAL[lab.version]) == {(SILENCE, "")}


def test_a_client_keeps_its_endpoint_and_another_has_its_own(lab: ServiceLab) -> None:
    lab.put(CLUSTER[lab.version], plan=cluster_plan(lab, *BOTH, keep=10800))
    for protocol in ("tcp", "udp"):
        answers = {ask(lab.client, CLUSTER[lab.version], PORT, protocol) for _ in range(20)}
        assert len(answers) == 1, protocol
    assert "timeout 3h" in lab.listing()
    lab.put(CLUSTER[lab.version], plan=cluster_plan(lab, *BOTH))
    assert lab.ask("pod", CLUSTER[lab.version], times=20) == seen(lab, "pod", BOTH)


def test_who_begins_anew_changes_nothing_and_a_flush_is_filled_again(lab: ServiceLab) -> None:
    lab.put(CLUSTER[lab.version], plan=cluster_plan(lab, *BOTH, keep=60))
    ranges = (IPNetwork("0.0.0.0/0" if lab.version == 4 else "::/0"),)
    lab.put(EXTERNAL[lab.version], plan=external_plan(lab, *BOTH, sources=ranges))
    lab.put(lab.node_address, 30080, local_plan(lab, "local"))
    before = lab.listing()
    assert lab.sync(ServicesTable()).elements == 0
    assert lab.listing() == before
    lab.node.run("nft", "flush", "ruleset")
    assert lab.sync().elements > 10
    assert sorted(lab.listing().split()) == sorted(before.split())
    assert lab.ask("outside", EXTERNAL[lab.version], times=10) == seen(lab, "outside", BOTH, lab.node_address)


def test_a_table_whose_rules_somebody_flushed_has_them_again(lab: ServiceLab) -> None:
    ranges = (IPNetwork("0.0.0.0/0" if lab.version == 4 else "::/0"),)
    lab.put(CLUSTER[lab.version], plan=cluster_plan(lab, *BOTH, keep=60))
    lab.put(EXTERNAL[lab.version], plan=external_plan(lab, *BOTH, sources=ranges))
    before = lab.listing()
    lab.node.run("nft", "flush", "table", "inet", "podwire_services")
    assert lab.ask("pod", CLUSTER[lab.version]) == {(SILENCE, "")}
    lab.sync()
    assert sorted(lab.listing().split()) == sorted(before.split())


def test_ranges_that_no_service_has_any_more_are_gone(lab: ServiceLab) -> None:
    ranges = (IPNetwork("198.18.0.0/15"), IPNetwork("2001:db8:beef::/48"))
    lab.put(EXTERNAL[lab.version], plan=external_plan(lab, *BOTH, sources=ranges))
    assert "198.18.0.0/15" in lab.listing()
    lab.put(EXTERNAL[lab.version], plan=external_plan(lab, *BOTH))
    lab.sync()
    assert "198.18.0.0/15" not in lab.listing()
    assert lab.ask("outside", EXTERNAL[lab.version], times=10) == seen(lab, "outside", BOTH, lab.node_address)


def test_what_somebody_took_or_added_is_mended(lab: ServiceLab) -> None:
    lab.put(CLUSTER[lab.version], plan=cluster_plan(lab, *BOTH))
    before = lab.listing()
    key = f"{CLUSTER[lab.version]} . tcp . {PORT}"
    lab.node.run("nft", "delete", "element", "inet", "podwire_services", f"svc{lab.version}", f"{{ {key} }}")
    other = f"{EXTERNAL[lab.version]} . udp . 53 : goto pick_1"
    lab.node.run("nft", "add", "element", "inet", "podwire_services", f"svc{lab.version}", f"{{ {other} }}")
    assert lab.sync(ServicesTable()).elements == 2
    assert sorted(lab.listing().split()) == sorted(before.split())


def test_endpoints_come_and_go_and_a_connection_lives_on(lab: ServiceLab) -> None:
    address = CLUSTER[lab.version]
    lab.put(address, plan=cluster_plan(lab, "local"))
    assert lab.ask("pod", address) == seen(lab, "pod", ("local",))
    assert lab.put(address, plan=cluster_plan(lab, "remote")).elements == 2 * 2  # TCP and UDP, old and new
    assert lab.ask("pod", address) == seen(lab, "pod", ("remote",))
    lab.put(address, plan=cluster_plan(lab, *BOTH))
    assert lab.ask("pod", address, times=20) == seen(lab, "pod", BOTH)
    lab.put(address)
    assert address not in lab.listing()


def test_an_established_connection_outlives_its_service(lab: ServiceLab) -> None:
    address, local = CLUSTER[lab.version], lab.endpoints("local")
    lab.put(address, plan=cluster_plan(lab, "local"))
    with echoing(lab.local, TARGET + 1):
        target = (Endpoint(local[0].address, TARGET + 1),)
        lab.put(address, plan=FrontendPlan(name="shop/web:http", endpoints=target, is_cluster=True))
        with inside(lab.client):
            client = socket.create_connection((address, PORT), 2)
        with client:
            for plan in (cluster_plan(lab, "remote"), cluster_plan(lab), None):
                lab.put(address, plan=plan)
                client.sendall(b"still")
                assert client.recv(10) == b"still"
            lab.sync(ServicesTable())
            client.sendall(b"there")
            assert client.recv(10) == b"there"


def test_more_endpoints_than_there_are_chains_for_from_the_start(lab: ServiceLab) -> None:
    """Of a Service beyond 1,024 endpoints some stand twice; one more or less costs little."""
    address = CLUSTER[lab.version]
    nobody = packed("198.18.0.0" if lab.version == 4 else "2001:db8:beef::")
    many = tuple(
        Endpoint((int.from_bytes(nobody, "big") + number).to_bytes(len(nobody), "big"), TARGET)
        for number in range(1500)
    )
    plan = cluster_plan(lab, *BOTH)
    lab.put(address, plan=replace(plan, endpoints=(*many, *plan.endpoints)))
    assert "pick_2048" in lab.listing()
    assert lab.put(address, plan=replace(plan, endpoints=(*many[1:], *plan.endpoints))).elements <= 2 * 6
    assert lab.sync(ServicesTable()).elements == 0
    lab.put(address, plan=plan)
    assert lab.ask("pod", address, times=20) == seen(lab, "pod", BOTH)


def test_a_node_that_learns_of_its_pods_sees_which_endpoints_are_its_own(lab: ServiceLab) -> None:
    around = lab.around
    plans = {Frontend(packed(CLUSTER[lab.version]), 6, PORT): cluster_plan(lab, "local")}
    table = ServicesTable()
    with open_pod(lab.node.path) as host, host.entered():
        table.sync(host.nftables, plans, replace(around, own_subnets=()))
        table.update(host.nftables, {}, around)
    assert ask(lab.local, CLUSTER[lab.version], PORT, "tcp") == f"local {lab.node_address}"


def test_a_table_that_is_switched_off_leaves_nothing(lab: ServiceLab) -> None:
    lab.put(CLUSTER[lab.version], plan=cluster_plan(lab, *BOTH))
    with open_pod(lab.node.path) as host, host.entered():
        assert switch_off(host.nftables)
        assert not switch_off(host.nftables)
    assert "podwire_services" not in lab.node.run("nft", "list", "tables").stdout


def test_one_frontend_that_the_kernel_refuses_holds_no_other_up(lab: ServiceLab) -> None:
    lab.put(CLUSTER[lab.version], plan=cluster_plan(lab, "local"))
    bad = replace(cluster_plan(lab, "local"), endpoints=(Endpoint(b"\1\2\3", 8080),))
    good = cluster_plan(lab, "remote")
    table = lab.table
    wrong = Frontend(packed(EXTERNAL[lab.version]), 6, 7)
    others = {Frontend(packed(CLUSTER[lab.version]), 6, port): good for port in range(1000, 1020)}
    with open_pod(lab.node.path) as host, host.entered():
        done = table.update(host.nftables, {**others, wrong: bad}, lab.around)
    assert set(done.frontends) == set(others)
    assert set(table.problems) == {wrong}
    assert table.is_doubtful
    assert lab.ask("pod", CLUSTER[lab.version], 1007) >= seen(lab, "pod", ("remote",))


def test_a_udp_flow_ends_with_its_endpoint_and_not_with_the_table(lab: ServiceLab) -> None:
    address = CLUSTER[lab.version]
    lab.put(address, plan=cluster_plan(lab, "local"))
    with Flow(lab.client, address, PORT) as flow:
        assert flow.ask() == f"local {lab.source('pod')}"
        lab.put(address, plan=cluster_plan(lab, *BOTH))
        lab.sync(ServicesTable())
        lab.end_flows(address)
        assert flow.ask() == f"local {lab.source('pod')}"
        lab.put(address, plan=cluster_plan(lab, "remote", draining=lab.endpoints("local")))
        lab.end_flows(address)
        assert flow.ask() == f"local {lab.source('pod')}"
        lab.put(address, plan=cluster_plan(lab, "remote"))
        lab.end_flows(address)
        assert flow.ask() == f"remote {lab.source('pod')}"
        lab.put(address)
        lab.end_flows(address)
        lab.put(address, plan=cluster_plan(lab))
        assert flow.ask() == REFUSED
        lab.put(address, plan=cluster_plan(lab, "remote"))
        assert flow.ask() == f"remote {lab.source('pod')}"


def test_a_client_whose_endpoint_is_gone_gets_another(lab: ServiceLab) -> None:
    address = CLUSTER[lab.version]
    lab.put(address, plan=cluster_plan(lab, "local", keep=600))
    assert lab.ask("pod", address) == seen(lab, "pod", ("local",))
    lab.put(address, plan=cluster_plan(lab, "remote", keep=600))
    assert lab.end_affinity(address) == 2
    assert lab.ask("pod", address, times=3) == seen(lab, "pod", ("remote",))
