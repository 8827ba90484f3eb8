"""What breaks on a node is named by status, and mended by one sync: every damage in every mode."""

from __future__ import annotations

from difflib import ndiff
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cni_plugin.kernel.monitor import Monitor
from cni_plugin.kernel.netns import inside, open_host
from tests.harness.agents import start_agent
from tests.harness.cluster import address_of, make_cluster
from tests.harness.damage import BLOWS, MODES, held, join, occupy, plugins_of
from tests.harness.networks import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.cluster import Cluster
    from tests.harness.damage import Place


@pytest.fixture
def pair(tmp_path: Path, bin_dir: Path) -> Iterator[Cluster]:
    made = make_cluster(tmp_path, bin_dir, 2)
    yield made
    made.remove()


def targets_of(place: Place) -> list[str]:
    """Return whom the pod reaches: pods of another node, else the router of the nodes."""
    if place.far is None:
        return ["192.0.2.254", "2001:db8::fe"]
    return [address_of(place.far, version) for version in (4, 6)]


def difference(wanted: str, found: str) -> list[str]:
    return [each for each in ndiff(wanted.splitlines(), found.splitlines()) if each[0] in "+-"]


@pytest.mark.parametrize("mode", MODES)
def test_status_names_each_damage_and_a_sync_mends_it(pair: Cluster, mode: str) -> None:
    place = occupy(pair, mode)
    node, targets = place.node, targets_of(place)
    assert all(place.pod.ping(each) for each in targets)
    assert place.run("status") == (0, place.run("status")[1])
    wanted = held(node)
    for name, blow in BLOWS.items():
        if mode not in blow.modes:
            continue
        node.run("sh", "-c", blow.line.format(veth=place.veth))
        broken = held(node)
        status, said = place.run("status")
        assert status == 1, (name, said)
        assert "podwire sync test" in said, (name, said)
        done, mended = place.run("sync")
        assert done == 0, (name, mended)
        assert "  mended: " in mended, (name, mended)
        assert broken != wanted or name == "rp_filter", name
        assert difference(wanted, held(node)) == [], (name, mended)
        assert [each for each in targets if not place.pod.ping(each, within=2)] == [], (name, mended)
        assert place.run("sync")[1] == "network test: 0 changes\n", name
        assert place.run("status")[0] == 0, (name, place.run("status")[1])


REACTION = 30.0  # seconds; it is a fraction of one, but for a machine that runs all other tests meanwhile


@pytest.mark.parametrize("mode", MODES)
def test_an_agent_mends_each_damage_by_itself(pair: Cluster, mode: str, tmp_path: Path) -> None:
    place = occupy(pair, mode)
    node, wanted = place.node, held(place.node)
    options = [*place.words[:2], *place.words[4:], "--resync=3600"]
    with start_agent(tmp_path / "a.sock", *options, inside=node) as agent:
        agent.wait_ready()
        for name, blow in BLOWS.items():
            if mode in blow.modes and blow.announced:
                node.run("sh", "-c", blow.line.format(veth=place.veth))
                seen = eventually(lambda: difference(wanted, held(node)), [], within=REACTION)
                assert seen == [], (name, seen, agent.lines())
        assert [each for each in targets_of(place) if not place.pod.ping(each, within=2)] == []
        assert agent.stop() == 0
    assert "unexpected" not in agent.log.read_text()


def test_pods_that_come_and_go_are_no_reason_to_look(pair: Cluster) -> None:
    place = occupy(pair, "bridge")
    node, pods = place.node, [place.node.pod() for _ in range(4)]
    with Path(node.path).open() as opened, inside(opened.fileno()), open_host() as host:
        monitor = Monitor()
        for pod in pods:
            join(node, plugins_of(pair, "bridge", 1), pod, {})
        assert not (monitor.drain() and monitor.confirm(host.netlink))
        for pod in pods:
            node.delete(plugins_of(pair, "bridge", 1)[0] | {"name": "test", "cniVersion": "1.1.0"}, pod)
        assert not (monitor.drain() and monitor.confirm(host.netlink))
        node.run("ip", "link", "set", place.veth, "nomaster")
        assert monitor.drain()
        assert monitor.confirm(host.netlink)
        monitor.close()
