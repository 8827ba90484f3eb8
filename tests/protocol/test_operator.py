"""The operator's face of the executable: `podwire status` and `podwire ipam`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import in_process
from tests.harness.foreign import delegated, foreign, says, speaks
from tests.harness.networks import REFERENCE, V4, dual_stack, network

if TYPE_CHECKING:
    import subprocess

    from tests.harness.node import Node, Pod

POD_ARGS = {"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0"}

# The operator's command line is the program itself, with or without an agent.
pytestmark = in_process


def run(node: Node, *words: str) -> subprocess.CompletedProcess[str]:
    return node.run(str(node.bin_dir / "podwire"), *words, check=False)


def configure(node: Node, config: dict[str, Any]) -> str:
    """Write the configuration where a runtime would read it."""
    directory = node.tmp / "net.d"
    directory.mkdir(exist_ok=True)
    plugin = {key: value for key, value in config.items() if key not in {"name", "cniVersion"}}
    document = {"cniVersion": "0.4.0", "name": config["name"], "plugins": [plugin]}
    (directory / "10-test.conflist").write_text(json.dumps(document))
    return str(directory)


def status(node: Node, conf_dir: str, *words: str) -> subprocess.CompletedProcess[str]:
    return run(node, "status", "--conf-dir", conf_dir, "--bin-dir", str(node.bin_dir), *words)


@pytest.fixture
def web(node: Node) -> Pod:
    pod = node.pod()
    node.add(dual_stack(node), pod, environ=POD_ARGS)
    return pod


def test_version_and_help(node: Node) -> None:
    assert run(node, "--version").stdout.startswith("podwire 0.")
    assert "status" in run(node, "--help").stdout
    assert run(node, "--nonsense").returncode == 2


def test_status_shows_networks_pools_and_pods(node: Node, web: Pod) -> None:
    done = status(node, configure(node, dual_stack(node)))
    assert done.returncode == 0, done.stdout
    assert "network test: bridge, addresses from podwire-ipam" in done.stdout
    assert "pool 10.22.0.1-10.22.0.254: 1 used, 252 free" in done.stdout
    assert "shop/web-0" in done.stdout
    assert "nothing is wrong" in done.stdout
    assert web.addresses("eth0")[0].split("/")[0] in done.stdout


def test_status_as_json(node: Node, web: Pod) -> None:
    seen = json.loads(status(node, configure(node, dual_stack(node)), "--json").stdout)
    assert [pod["container_id"] for pod in seen["attachments"]] == [web.container_id]
    assert seen["attachments"][0]["addresses"] == ["10.22.0.2", "fd00:22::2"]
    assert seen["networks"][0]["pools"][0]["used"] == 1
    assert seen["problems"] == []


def test_status_names_an_address_whose_interface_is_gone(node: Node, web: Pod) -> None:
    conf_dir = configure(node, dual_stack(node))
    web.run("ip", "link", "del", "eth0")
    done = status(node, conf_dir)
    assert done.returncode == 1
    assert (
        f"10.22.0.2 fd00:22::2 held by {web.container_id} (eth0), which has no interface here" in done.stdout
    )


def test_status_says_why_a_pod_could_not_be_added(node: Node) -> None:
    config = network(node, [{"subnet": "10.22.0.0/30"}])
    conf_dir = configure(node, config)
    node.add(config, node.pod())
    done = status(node, conf_dir)
    assert done.returncode == 1
    assert "no IP addresses available in range set: 10.22.0.1-10.22.0.2" in done.stdout


@pytest.mark.parametrize("kind", ["podwire", "bridge"])
@pytest.mark.parametrize("mode", ["bridge", "routed"])
def test_an_ipam_plugin_of_before_status_is_no_problem(node: Node, kind: str, mode: str) -> None:
    """The Go host-local of Debian 12 speaks 1.0.0."""
    config = dual_stack(node, version="0.4.0", type=kind, mode=mode)
    config["ipam"]["type"] = "host-local"
    node.add(config, node.pod(), environ={"CNI_PATH": REFERENCE})
    done = status(node, configure(node, config), "--bin-dir", REFERENCE)
    assert (done.returncode, "problem" in done.stdout) == (0, False), done.stdout


def test_an_ipam_plugin_that_has_status_is_asked(node: Node) -> None:
    plugin = foreign(node, status=says({"code": 51, "msg": "no lease"}, 1))
    conf_dir = configure(node, delegated())
    done = status(node, conf_dir, "--bin-dir", str(plugin.directory))
    assert (done.returncode, plugin.calls) == (1, ["VERSION", "STATUS"])
    assert "10-test.conflist: IPAM plugin elsewhere: no lease" in done.stdout


def test_an_ipam_plugin_that_would_refuse_the_files_version_is_a_problem(node: Node) -> None:
    plugin = foreign(node, version=speaks("0.3.1"))
    done = status(node, configure(node, delegated()), "--bin-dir", str(plugin.directory))
    assert (done.returncode, plugin.calls) == (1, ["VERSION"])
    assert "wanted one that speaks version 0.4.0" in done.stdout


def test_status_names_the_file_that_cannot_be_read(node: Node) -> None:
    conf_dir = configure(node, network(node, V4, mtu="1500"))
    (node.tmp / "net.d/20-half.conflist").write_text('{"name":')
    done = status(node, conf_dir)
    assert done.returncode == 1
    assert '10-test.conflist: "mtu" must be an integer, found "1500"' in done.stdout
    assert "20-half.conflist: " in done.stdout


def test_status_without_a_network_says_where_it_looked(node: Node) -> None:
    done = status(node, str(node.tmp / "nowhere"))
    assert done.returncode == 0
    assert done.stdout == f"no podwire network in {node.tmp}/nowhere\n"


def test_ipam_list_shows_who_holds_what(node: Node, web: Pod) -> None:
    words = ("ipam", "list", "test", "--data-dir", str(node.data_dir))
    table = run(node, *words).stdout.splitlines()
    assert table[1].split() == ["test", "10.22.0.2", web.container_id, "eth0"]
    assert [row["address"] for row in json.loads(run(node, *words, "--json").stdout)] == [
        "10.22.0.2",
        "fd00:22::2",
    ]


def test_ipam_list_of_an_unknown_network_names_those_that_there_are(node: Node, web: Pod) -> None:
    del web
    for verb in ("list", "export"):
        done = run(node, "ipam", verb, "tset", "--data-dir", str(node.data_dir))
        assert (done.returncode, done.stdout) == (1, "")
        assert "wanted network tset, found ['test']" in done.stderr


def test_ipam_release_frees_what_a_dead_container_holds(node: Node, web: Pod) -> None:
    web.run("ip", "link", "del", "eth0")
    release = ("ipam", "release", "test", "10.22.0.2", "fd00:22::2", "--data-dir", str(node.data_dir))
    assert run(node, *release).returncode == 0
    assert node.held() == {}
    again = run(node, *release)
    assert again.returncode == 1
    assert "wanted ['10.22.0.2', 'fd00:22::2'] held, found them free" in again.stderr


def test_ipam_release_refuses_an_address_in_use(node: Node, web: Pod) -> None:
    done = run(node, "ipam", "release", "test", "10.22.0.2", "--data-dir", str(node.data_dir))
    assert done.returncode == 1
    assert "stop the pod instead" in done.stderr
    assert web.addresses("eth0")[0].split("/")[0] in node.held()
