"""What the agent says over HTTP: every number is that of what was done, and asking costs nobody else."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cni_plugin.agent.pools import Pools
from cni_plugin.contract.errors import CNIError
from cni_plugin.kernel.netns import inside
from tests.harness.agents import start_agent
from tests.harness.cluster import write_conflist
from tests.harness.garbage import kill
from tests.harness.networks import GATEWAYS, V4, dual_stack, eventually, network
from tests.harness.scrape import (
    PLACE,
    Watched,
    get,
    listens,
    state_file,
    watched,
    write_services_state,
    write_state,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.node import Node, Space


@pytest.fixture
def on_node(plain_node: Node) -> Iterator[Watched]:
    with watched(plain_node) as made:
        yield made


# Begin


def test_without_the_option_nothing_listens(plain_node: Node) -> None:
    with start_agent(plain_node.tmp / "a.sock", inside=plain_node):
        assert not listens(plain_node, ":")


def test_without_the_package_the_option_is_refused_with_what_to_install(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['prometheus_client'] = None; "
        "from cni_plugin.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["agent", "--socket", str(tmp_path / "a.sock"), "--http", "127.0.0.1:0"]
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, check=False, timeout=20
    )
    assert done.returncode == 1
    assert "--http: wanted the package prometheus_client, found " in done.stderr
    assert "scripts/install --with metrics" in done.stderr


@pytest.mark.parametrize(
    "address",
    [
        "9112",
        "::1:9112",
        "127.0.0.1:",
        "127.0.0.1:http",
        "127.0.0.1:70000",
        "[]:9112",
        "[::1:9112",
        "[[::1]]:9112",
    ],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    from cni_plugin.agent.endpoints import parse_address

    with pytest.raises(CNIError, match="--http: wanted ADDRESS:PORT"):
        parse_address(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_brackets_are_taken_around_either_family(host: str) -> None:
    from cni_plugin.agent.endpoints import parse_address

    assert parse_address(f"[{host}]:9112") == (host, 9112)


def test_without_an_address_it_listens_on_those_of_both_families(plain_node: Node) -> None:
    with start_agent(plain_node.tmp / "a.sock", "--http", ":9112", inside=plain_node):
        for host in ("127.0.0.1", "[::1]"):
            assert get(plain_node, f"http://{host}:9112/healthz").status == 200


def test_an_address_in_use_is_refused_by_name(on_node: Watched) -> None:
    node = on_node.node
    words = ("agent", "--socket", str(node.tmp / "b.sock"), "--http", PLACE)
    done = node.run(sys.executable, "-m", "cni_plugin", *words, check=False, timeout=20)
    assert done.returncode == 1
    assert done.stderr.endswith(
        f"podwire: --http {PLACE}: wanted to listen there, found Address already in use\n"
    )


# Calls


def test_calls_are_counted_by_verb_result_and_code(on_node: Watched) -> None:
    node = on_node.node
    pod, config = node.pod(), dual_stack(node)
    node.add(config, pod)
    again = node.call("ADD", config, pod)
    node.delete(config, pod)
    node.delete(config, pod)
    seen = on_node.scrape()
    name = "podwire_cni_operations_total"
    assert seen.value(name, verb="ADD", type="podwire", result="success", code="0") == 1
    assert seen.value(name, verb="ADD", result="error", code=str(again.json["code"])) == 1
    assert seen.value(name, verb="DEL", result="success") == 2
    duration = "podwire_cni_operation_duration_seconds"
    assert seen.value(f"{duration}_count", verb="DEL", result="success") == 2
    assert seen.value(f"{duration}_bucket", verb="DEL", result="success", le="+Inf") == 2
    assert seen.value(f"{duration}_bucket", verb="ADD", result="success", le="0.001") == 0
    assert 0.001 < seen.value(f"{duration}_sum", verb="ADD", result="success") < 10
    assert seen.value("podwire_cni_operations_in_progress") == 0


def test_what_the_kernel_refused_is_counted_by_errno(on_node: Watched) -> None:
    node = on_node.node
    config = network(node, V4, sysctl={"net.ipv4.conf.eth0.nonsense": "1"})
    answer = node.call("ADD", config, node.pod())
    assert answer.status == 1
    assert on_node.scrape().rows("podwire_kernel_errors_total") == [
        ({"subsystem": "sysctl", "errno": "ENOENT"}, 1.0)
    ]


def test_an_ordinary_add_and_delete_count_no_kernel_errors(on_node: Watched) -> None:
    node = on_node.node
    pod, config = node.pod(), dual_stack(node, ipMasq=True)
    node.delete(config, pod)
    node.add(config, pod)
    node.delete(config, pod)
    assert on_node.scrape().rows("podwire_kernel_errors_total") == []


def test_build_and_process_are_shown(on_node: Watched) -> None:
    seen = on_node.scrape()
    assert seen.value("podwire_build_info", python=".".join(map(str, sys.version_info[:3]))) == 1
    assert abs(seen.value("process_resident_memory_bytes") - on_node.rss()) < 2**20


def test_both_formats_are_served(on_node: Watched) -> None:
    assert on_node.get("/metrics").content_type.startswith("text/plain; version=")
    asked = on_node.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert asked.content_type.startswith("application/openmetrics-text")
    assert asked.text.endswith("# EOF\n")


# Pools


def test_pools_are_those_of_the_configured_networks(on_node: Watched) -> None:
    node = on_node.node
    config = dual_stack(node)
    write_conflist(node, config)
    empty = on_node.scrape()
    assert empty.value("podwire_ipam_pool_used_addresses", network="test", family="ipv4") == 0
    pods = [node.pod() for _ in range(3)]
    for pod in pods:
        node.add(config, pod)
    seen = on_node.scrape()
    assert seen.value("podwire_ipam_pool_addresses", network="test", family="ipv4") == 253
    assert seen.value("podwire_ipam_pool_used_addresses", network="test", family="ipv4") == 3
    assert seen.value("podwire_ipam_pool_free_addresses", network="test", family="ipv4") == 250
    assert seen.value("podwire_ipam_pool_used_addresses", network="test", family="ipv6") == 3
    assert seen.value("podwire_ipam_pool_addresses", network="test", family="ipv6") > 2**63


def test_an_address_that_another_program_takes_is_seen_at_the_next_scrape(on_node: Watched) -> None:
    node = on_node.node
    config = dual_stack(node)
    write_conflist(node, config)
    for _ in range(2):
        node.add(config, node.pod())
    used = ("podwire_ipam_pool_used_addresses", {"network": "test", "family": "ipv4"})
    assert on_node.scrape().value(used[0], **used[1]) == 2
    (node.data_dir / "test/10.22.0.77").write_text("other\r\neth0")
    assert on_node.scrape().value(used[0], **used[1]) == 3


def test_a_directory_that_must_be_listed_is_listed_a_hundredth_of_the_time(plain_node: Node) -> None:
    directory = plain_node.data_dir / "test"
    directory.mkdir(parents=True)
    for number in range(2000):
        (directory / f"10.22.{number >> 8}.{number & 255}").write_text("a\r\neth0")
    write_conflist(plain_node, network(plain_node, [{"subnet": "10.22.0.0/16"}]))
    pools = Pools(str(plain_node.tmp / "net.d"))
    begun = time.monotonic()
    first = pools.read()
    took = time.monotonic() - begun
    (directory / "10.22.200.1").write_text("a\r\neth0")
    assert pools.read() == first
    while pools.read() == first:
        assert time.monotonic() - begun < 101 * took + 1
        time.sleep(0.05)


def test_a_network_that_cannot_be_read_leaves_the_others(on_node: Watched) -> None:
    node = on_node.node
    write_conflist(node, dual_stack(node))
    (node.tmp / "net.d/20-half.conflist").write_text('{"name":')
    (node.tmp / "net.d/30-wrong.conf").write_text('{"name": "wrong", "type": "podwire", "ipam": 5}')
    found = on_node.scrape().rows("podwire_ipam_pool_addresses")
    assert {labels["network"] for labels, _ in found} == {"test"}


# The cluster


def test_the_state_of_the_cluster_is_shown_where_there_is_one(on_node: Watched) -> None:
    names = {sample.name for sample in on_node.scrape().samples}
    assert not {name for name in names if name.startswith(("podwire_cluster", "podwire_services"))}
    write_state(on_node.node)
    write_services_state(on_node.node)
    seen = on_node.scrape()
    assert seen.value("podwire_cluster_peers_wanted", network="test") == 3
    assert seen.value("podwire_cluster_peers_programmed") == 2
    assert seen.value("podwire_cluster_repairs_total") == 5
    assert seen.value("podwire_cluster_last_sync_duration_seconds") == 0.25
    assert seen.value("podwire_cluster_ready") == 1
    assert seen.value("podwire_services_ready") == 1
    assert seen.value("podwire_services_frontends") == 9
    assert seen.value("podwire_services_rivals") == 1


# Garbage


def test_what_collections_found_and_removed_is_counted(plain_node: Node) -> None:
    config = dual_stack(plain_node)
    write_conflist(plain_node, config)
    pods = [plain_node.pod(), plain_node.pod()]
    with watched(plain_node, "--gc-interval", "0.2", "--gc-grace", "0") as at:
        for pod in pods:
            plain_node.add(config, pod)
        kill(plain_node, pods[1])
        name = "podwire_gc_reclaimed_total"
        assert eventually(lambda: at.scrape().value(name), 1.0, within=20) == 1
        assert at.scrape().value("podwire_gc_leaked_total") == 1
        assert at.scrape().value("podwire_ipam_pool_used_addresses", family="ipv4") == 1


# Probes


def test_an_agent_of_its_own_is_ready_when_its_socket_listens(on_node: Watched) -> None:
    assert on_node.get("/healthz").text == "ok\n"
    assert on_node.get("/readyz").status == 200
    on_node.agent.socket.rename(on_node.agent.socket.with_suffix(".gone"))
    page = on_node.get("/readyz")
    assert page.status == 503
    assert (
        page.text
        == f"{on_node.agent.socket}: wanted an agent that listens, found No such file or directory\n"
    )
    assert on_node.get("/healthz").status == 200
    on_node.agent.socket.with_suffix(".gone").rename(on_node.agent.socket)


def test_a_node_of_a_cluster_is_ready_when_the_state_says_so(plain_node: Node) -> None:
    script = (
        "import sys; from cni_plugin.agent import server; sys.exit(server.run(server.AgentSettings("
        "socket=sys.argv[1], workers=4, queue=4, http=sys.argv[2], state_file=sys.argv[3], in_cluster=True)))"
    )
    path = plain_node.tmp / "a.sock"
    write_state(plain_node)
    words = [sys.executable, "-c", script, str(path), PLACE, str(state_file(plain_node))]
    with subprocess.Popen(
        ["nsenter", f"--net={plain_node.path}", *words], stderr=subprocess.DEVNULL
    ) as process:
        from tests.harness.agents import Agent, wait_until_ready

        agent = Agent(process, path, path)
        wait_until_ready(agent)
        at = Watched(plain_node, agent)
        assert at.get("/readyz").status == 503
        assert "an earlier one's" in at.get("/readyz").text
        write_state(plain_node, ready=False, reasons=["node n1 has no podCIDR"])
        assert at.get("/readyz").text == "node n1 has no podCIDR\n"
        write_state(plain_node)
        assert at.get("/readyz").status == 200
        assert agent.stop() == 0


def test_other_paths_are_not_there(on_node: Watched) -> None:
    assert on_node.get("/").status == 404


# Cost


def test_pods_that_trickle_hold_their_places_for_five_seconds_and_delay_nobody(plain_node: Node) -> None:
    """A pod that keeps all places busy must not have the kubelet think that the agent is dead."""
    node = plain_node
    with watched(node, "--http", ":9112") as served, ExitStack() as opened:
        pod, config = node.pod(), dual_stack(node)
        node.add(config, pod)
        for _ in range(8):
            opened.enter_context(_connected(pod, GATEWAYS[4])).sendall(b"GET /metr")
        time.sleep(0.2)
        ninth = opened.enter_context(_connected(pod, GATEWAYS[4]))
        assert ninth.recv(100).startswith(b"HTTP/1.0 503 ")
        assert [_status_of(node, address) for address in ("127.0.0.1", "::1", GATEWAYS[4], GATEWAYS[6])] == [
            200
        ] * 4
        begun = time.monotonic()
        node.add(config, node.pod())
        while _status_of(pod, GATEWAYS[4]) != 200:
            assert time.monotonic() - begun < 8
            time.sleep(0.2)
        assert served.agent.process.poll() is None


def _status_of(space: Space, address: str) -> int:
    with _connected(space, address) as asking:
        asking.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        return int(asking.recv(100).split()[1])


def _connected(space: Space, address: str) -> socket.socket:
    with Path(space.path).open() as entered, inside(entered.fileno()):
        return socket.create_connection((address, 9112), timeout=10)


def test_the_agent_stays_below_45_mib_with_metrics(on_node: Watched) -> None:
    node = on_node.node
    write_conflist(node, dual_stack(node))
    for _ in range(20):
        pod = node.pod()
        node.add(dual_stack(node), pod)
        node.delete(dual_stack(node), pod)
        on_node.scrape()
    assert on_node.rss() < 45 * 2**20
