"""What goes wrong on one node: each fault is made, found, mended with the command printed, and gone."""

from __future__ import annotations

import base64
import json
import os
import struct
from typing import TYPE_CHECKING, Any

import pytest

from cni_plugin.doctor.node import judge_conntrack
from tests.conftest import install
from tests.harness.agents import start_agent
from tests.harness.clinic import conf_dir, examine, mend, the_only, words
from tests.harness.cluster import write_conflist
from tests.harness.garbage import kill
from tests.harness.networks import REFERENCE, V4, add_uplink, dual_stack, network
from tests.harness.scrape import write_state

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.node import Node, Pod


@pytest.fixture
def well(plain_node: Node) -> Node:
    """Return a node with a network and a pod on it."""
    config = dual_stack(plain_node)
    write_conflist(plain_node, config)
    plain_node.add(config, plain_node.pod())
    return plain_node


def own_executables(node: Node, *options: str) -> None:
    node.bin_dir = node.tmp / "bin"
    install(node.bin_dir, node.tmp / "a.sock", *options)


def test_a_healthy_node_yields_nothing(well: Node) -> None:
    assert examine(well) == []
    said = well.run(*words(well)).stdout
    assert said.endswith("nothing is wrong\n")
    assert "note: NetworkPolicy: podwire does not enforce NetworkPolicy objects\n" in said


def test_a_node_before_its_first_pod_yields_nothing(plain_node: Node) -> None:
    write_conflist(plain_node, dual_stack(plain_node))
    assert examine(plain_node) == []


def test_it_changes_nothing(well: Node) -> None:
    before = well.transcript()
    examine(well)
    assert well.transcript() == before


def test_a_person_reads_what_it_means_and_what_to_type(plain_node: Node) -> None:
    done = plain_node.run(*words(plain_node), check=False)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"error: {conf_dir(plain_node)}: no network configuration")
    assert lines[1].startswith("  means: the runtime has no pod network: kubelet says ")
    assert lines[2].startswith("  mend:  mkdir -p ")


# The configuration


def test_no_configuration_is_cni_plugin_not_initialized(plain_node: Node) -> None:
    found = the_only(examine(plain_node))
    assert "cni plugin not initialized" in found["meaning"]
    mend(plain_node, found["remedy"])
    assert examine(plain_node) == []


def test_no_configuration_yet_is_said_with_the_reasons_of_the_agent(plain_node: Node) -> None:
    write_state(plain_node, ready=False, reasons=["node n1 has no podCIDR"])
    found = examine(plain_node)
    assert [each["found"] for each in found] == [
        "no network configuration; the agent has not written it: node n1 has no podCIDR",
        "node n1 has no podCIDR",
    ]


def test_another_file_that_sorts_first_is_named(well: Node) -> None:
    other = {"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "ptp"}]}
    (conf_dir(well) / "05-other.conflist").write_text(json.dumps(other))
    found = the_only(examine(well))
    assert found["object"].endswith("/05-other.conflist")
    assert found["found"].startswith("it sorts before ")
    assert found["meaning"] == "the runtime takes the first file: pods get the network of ptp"
    mend(well, found["remedy"])
    assert examine(well) == []


def test_one_that_sorts_behind_is_nobodys_business(well: Node) -> None:
    other = {"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "ptp"}]}
    (conf_dir(well) / "87-other.conflist").write_text(json.dumps(other))
    assert examine(well) == []


def test_files_of_a_single_plugin_are_read_too(plain_node: Node) -> None:
    (conf_dir(plain_node) / "10-test.conf").write_text(json.dumps(dual_stack(plain_node)))
    assert examine(plain_node) == []
    other = {"cniVersion": "1.0.0", "name": "other", "type": "ptp"}
    (conf_dir(plain_node) / "05-other.conf").write_text(json.dumps(other))
    found = the_only(examine(plain_node))
    assert found["meaning"] == "the runtime takes the first file: pods get the network of ptp"


def test_a_broken_file_is_named(well: Node) -> None:
    path = conf_dir(well) / "20-half.conflist"
    path.write_text('{"name":')
    found = the_only(examine(well))
    assert found["object"] == str(path)
    path.unlink()
    assert examine(well) == []


def test_a_version_that_nobody_speaks_is_named(well: Node) -> None:
    path = conf_dir(well) / "10-test.conflist"
    path.write_text(path.read_text().replace("0.4.0", "9.9.9"))
    found = the_only(examine(well))
    assert found["found"] == '"cniVersion" is "9.9.9"'
    mend(well, found["remedy"])
    assert examine(well) == []


def test_a_configuration_that_cannot_be_is_said_as_the_runtime_gets_it(well: Node) -> None:
    write_conflist(well, dual_stack(well, mtu="1500"))
    assert the_only(examine(well))["found"] == '"mtu" must be an integer, found "1500"'


# The executables


def test_a_missing_plugin_is_named(well: Node) -> None:
    own_executables(well)
    chain = json.loads((conf_dir(well) / "10-test.conflist").read_text())
    chain["plugins"].append({"type": "portmap", "capabilities": {"portMappings": True}})
    (conf_dir(well) / "10-test.conflist").write_text(json.dumps(chain))
    found = the_only(examine(well))
    assert found["object"] == str(well.bin_dir / "portmap")
    assert found["meaning"].startswith('the runtime says: failed to find plugin "portmap" in path ')
    assert found["remedy"] == f"scripts/install --bin-dir {well.bin_dir} --drop-in"


@pytest.mark.parametrize("mode", ["bridge", "routed"])
def test_an_ipam_plugin_of_before_status_is_healthy(plain_node: Node, mode: str) -> None:
    own_executables(plain_node)
    (plain_node.bin_dir / "host-local").unlink(missing_ok=True)
    (plain_node.bin_dir / "host-local").symlink_to(f"{REFERENCE}/host-local")
    config = dual_stack(plain_node, version="0.4.0", mode=mode)
    config["ipam"]["type"] = "host-local"
    write_conflist(plain_node, config)
    plain_node.add(config, plain_node.pod())
    assert examine(plain_node) == []


def _not_executable(path: Path) -> None:
    path.chmod(0o644)


def _another_machine(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(18)
        file.write(struct.pack("<H", 183 if os.uname().machine != "aarch64" else 62))


def _no_program(path: Path) -> None:
    path.write_text("hello\n")


def _no_interpreter(path: Path) -> None:
    path.write_text("#!/nowhere/python\n# podwire-cni-executable\n")


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (_not_executable, "it is not executable"),
        (_another_machine, "it is for "),
        (_no_program, "it is no program"),
        (_no_interpreter, "its interpreter /nowhere/python is not there"),
    ],
)
def test_a_plugin_that_cannot_be_executed_is_named(well: Node, spoil: Any, found: str) -> None:
    own_executables(well, "--shim")
    spoiled = well.bin_dir / "podwire"
    with start_agent(well.tmp / "a.sock", inside=well):
        spoil(spoiled)
        said = the_only(examine(well))
        assert said["object"] == str(spoiled)
        assert said["found"].startswith(found)
        if spoil is _not_executable:
            mend(well, said["remedy"])
            assert examine(well) == []


def test_an_executable_of_another_release_is_named(well: Node) -> None:
    own_executables(well)
    path = well.bin_dir / "podwire"
    path.write_text(path.read_text().replace("podwire-cni-executable 0.", "podwire-cni-executable 7.", 1))
    found = the_only(examine(well))
    assert found["found"].startswith("it is of podwire 7.")
    assert found["severity"] == "warning"


# The agent


def test_a_shim_without_its_agent_is_an_error_and_starting_him_mends_it(well: Node) -> None:
    own_executables(well, "--shim")
    found = the_only(examine(well))
    assert found["object"] == str(well.tmp / "a.sock")
    assert found["found"] == "no agent there: No such file or directory"
    assert found["remedy"] == f"podwire agent --socket {well.tmp}/a.sock"
    with start_agent(well.tmp / "a.sock", inside=well) as agent:
        assert examine(well) == []
        agent.kill()
    found = the_only(examine(well))
    assert found["found"] == "no agent there: Connection refused"
    assert found["severity"] == "error"


def test_a_killed_agent_is_a_warning_where_the_executables_work_without(well: Node) -> None:
    own_executables(well)
    assert examine(well) == []
    with start_agent(well.tmp / "a.sock", inside=well) as agent:
        agent.kill()
    assert the_only(examine(well))["severity"] == "warning"


# Addresses


def leak(node: Node, config: dict[str, Any], count: int) -> None:
    """Let pods vanish that nobody has deleted."""
    pods = [node.pod() for _ in range(count)]
    for pod in pods:
        node.add(config, pod)
    kill(node, *pods)


def test_a_full_pool_is_named_and_releasing_what_is_lost_mends_it(plain_node: Node) -> None:
    config = network(plain_node, [{"subnet": "10.22.0.0/29"}])
    write_conflist(plain_node, config)
    leak(plain_node, config, 5)
    found = examine(plain_node)
    full = [each for each in found if each["severity"] == "error"]
    assert the_only(full)["found"] == "its pool 10.22.0.1-10.22.0.6 is full: 5 in use"
    assert len(found) == 6
    mend(plain_node, full[0]["remedy"])
    assert examine(plain_node) == []
    plain_node.add(config, plain_node.pod())


def test_a_leaked_address_is_named(well: Node) -> None:
    pod = well.pod()
    well.add(dual_stack(well), pod)
    kill(well, pod)
    found = examine(well)
    assert [each["found"] for each in found] == [
        f"{address} is held by {pod.container_id} (eth0), which has no interface here"
        for address in ("10.22.0.3", "fd00:22::3")
    ]
    for each in found:
        mend(well, each["remedy"])
    assert examine(well) == []


def test_who_may_live_unseen_is_not_to_be_released(well: Node) -> None:
    (well.data_dir / "test/10.22.0.9").write_text("unseen\r\neth0")
    assert examine(well) == []


def test_a_store_that_cannot_be_written_is_named(plain_node: Node) -> None:
    config = dual_stack(plain_node)
    write_conflist(plain_node, config)
    plain_node.data_dir.write_text("")
    found = the_only(examine(plain_node))
    assert found["object"] == str(plain_node.data_dir)
    assert "no address can be written down" in found["meaning"]


# Links, sysctls, firewalls


def test_a_stale_bridge_address_is_named_and_removed(plain_node: Node) -> None:
    config = network(plain_node, V4, isGateway=True)
    write_conflist(plain_node, config)
    plain_node.run("ip", "link", "add", config["bridge"], "type", "bridge")
    plain_node.run("ip", "addr", "add", "10.99.0.1/24", "dev", config["bridge"])
    found = the_only(examine(plain_node))
    assert found["found"] == "it has 10.99.0.1/24, where the network's gateway 10.22.0.1/24 belongs"
    assert plain_node.call("ADD", config, plain_node.pod()).status == 1
    mend(plain_node, found["remedy"])
    assert examine(plain_node) == []
    plain_node.add(config, plain_node.pod())


def test_forwarding_that_somebody_switched_off_is_named(well: Node) -> None:
    for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        well.run("sysctl", "-qw", f"{key}=0")
        found = the_only(examine(well))
        assert found["object"] == f"sysctl {key}"
        mend(well, found["remedy"])
    assert examine(well) == []


def test_a_chain_that_drops_what_pods_forward_is_named_with_what_opens_it(well: Node) -> None:
    well.run(
        "nft",
        "add table inet site; add chain inet site f { type filter hook forward priority 0; policy drop; }",
    )
    found = the_only(examine(well))
    assert found["object"] == "table inet site, chain f"
    mend(well, found["remedy"])
    assert examine(well) == []


def test_kube_proxy_without_br_netfilter_is_named(well: Node) -> None:
    well.run("nft", "add table ip nat; add chain ip nat KUBE-SERVICES")
    well.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0")
    found = the_only(examine(well))
    assert found["severity"] == "warning"
    mend(well, found["remedy"])
    assert examine(well) == []


@pytest.mark.parametrize(("count", "full"), [(0, False), (900, False), (950, True), (1000, True)])
def test_a_table_of_connections_that_is_full_is_named(count: int, full: bool) -> None:
    found = list(judge_conntrack(count, 1000))
    assert bool(found) == full
    assert all(each.remedy == "sysctl -w net.netfilter.nf_conntrack_max=2000" for each in found)


def test_pods_with_the_mtu_of_before_are_named(plain_node: Node) -> None:
    config = dual_stack(plain_node)
    write_conflist(plain_node, config)
    add_uplink(plain_node, 1500)
    plain_node.add(config, plain_node.pod())
    assert examine(plain_node) == []
    plain_node.run("ip", "link", "set", "up0", "mtu", "1400")
    found = the_only(examine(plain_node))
    assert found["found"].startswith("1 pods were given an MTU of 1500, now it is 1400: ")


# The runtime


@pytest.fixture
def containerd(well: Node) -> Node:
    own_executables(well, "--drop-in")
    section = 'version = 2\n[plugins."io.containerd.grpc.v1.cri".cni]\n'
    (well.tmp / "config.toml").write_text(
        f'{section}conf_dir = "{conf_dir(well)}"\nbin_dir = "{well.bin_dir}"\n'
    )
    return well


def test_the_directories_are_those_that_containerd_reads(containerd: Node) -> None:
    assert examine(containerd) == []
    command = [str(containerd.bin_dir / "podwire"), "doctor", "--containerd-config"]
    said = containerd.run(*command, str(containerd.tmp / "config.toml"), check=False).stdout
    assert said.endswith("nothing is wrong\n")


def test_a_runtime_that_looks_elsewhere_is_named(containerd: Node) -> None:
    found = the_only(
        examine(containerd, "--conf-dir", str(containerd.tmp / "net.d/../net.d"), "--bin-dir", "/usr/bin")[:1]
    )
    assert found["found"] == f"containerd's bin_dir is {containerd.bin_dir}, and not /usr/bin"


def test_containerd_without_loopback_is_named(containerd: Node) -> None:
    (containerd.bin_dir / "loopback").unlink()
    found = the_only(examine(containerd))
    assert found["meaning"].startswith('the runtime says: failed to find plugin "loopback" in path ')


# A pod

ARGS = {"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0"}


@pytest.fixture
def web(plain_node: Node) -> Pod:
    config = dual_stack(plain_node, ipMasq=True, spoofCheck="ip")
    write_conflist(plain_node, config)
    pod = plain_node.pod()
    result = plain_node.add(config, pod, environ=ARGS)
    keep_result(plain_node, config, pod, result)
    return pod


def keep_result(node: Node, config: dict[str, Any], pod: Pod, result: dict[str, Any]) -> None:
    """Write what libcni writes after an ADD."""
    (node.tmp / "results").mkdir()
    kept = {
        "kind": "cniCacheV1",
        "config": base64.b64encode(json.dumps(config).encode()).decode(),
        "cniArgs": [pair.split("=") for pair in ARGS["CNI_ARGS"].split(";")],
        "result": result,
    }
    (node.tmp / f"results/test-{pod.container_id}-eth0").write_text(json.dumps(kept))


def test_a_pod_that_is_well_yields_nothing(plain_node: Node, web: Pod) -> None:
    assert examine(plain_node, "--pod", "shop/web-0") == []
    assert examine(plain_node, "--container", web.container_id[:9]) == []


def test_a_result_in_a_version_that_the_runtime_chose_is_understood(plain_node: Node, web: Pod) -> None:
    """Of the versions that a list names it takes the newest, and keeps the list as it was."""
    path = plain_node.tmp / f"results/test-{web.container_id}-eth0"
    kept = json.loads(path.read_text())
    config = json.loads(base64.b64decode(kept["config"]))
    versions = {"cniVersion": "0.4.0", "cniVersions": ["0.4.0", config["cniVersion"]]}
    conflist = {"name": config["name"], **versions, "plugins": [config]}
    kept["config"] = base64.b64encode(json.dumps(conflist).encode()).decode()
    path.write_text(json.dumps(kept))
    assert kept["result"]["cniVersion"] == "1.1.0"
    assert examine(plain_node, "--pod", "shop/web-0") == []


@pytest.mark.usefixtures("web")
def test_what_a_running_pod_has_lost_is_named_and_mended(plain_node: Node) -> None:
    plain_node.run("nft", "flush", "ruleset")
    found = the_only(examine(plain_node))
    assert found["found"].startswith("pod shop/web-0 eth0: ipMasq: wanted element inet podwire masq4_")
    mend(plain_node, found["remedy"])
    assert examine(plain_node) == []


def test_a_pod_of_before_the_network_got_another_subnet_is_named(plain_node: Node, web: Pod) -> None:
    config = dual_stack(plain_node, ipMasq=True)
    config["ipam"]["ranges"] = [[{"subnet": "10.33.0.0/24"}], [{"subnet": "fd00:33::/64"}]]
    write_conflist(plain_node, config)
    found = [each for each in examine(plain_node) if each["object"] == "pod shop/web-0 eth0"]
    assert the_only(found)["remedy"] == "kubectl -n shop delete pod web-0"
    status = [plain_node.bin_dir / "podwire", "status", "--conf-dir", conf_dir(plain_node)]
    records = ["--cache-dir", plain_node.tmp / "results"]
    said = plain_node.run(*status, *records, "--bin-dir", plain_node.bin_dir, check=False).stdout
    assert "address 10.22.0.2: wanted one of the network's subnets 10.33.0.0/24" in said, web
    assert "kubectl -n shop delete pod web-0" in said


@pytest.mark.usefixtures("web")
def test_a_pod_that_is_not_here_is_said_to_be_so(plain_node: Node) -> None:
    found = the_only(examine(plain_node, "--pod", "shop/web-1"))
    assert found["found"] == "no interface of podwire's on this node"
    assert found["remedy"].startswith("kubectl -n shop describe pod web-1")


def test_a_pod_that_lost_an_address_is_named_as_check_says_it(plain_node: Node, web: Pod) -> None:
    web.run("ip", "addr", "flush", "dev", "eth0", "scope", "global")
    found = the_only(examine(plain_node, "--pod", "shop/web-0"))
    assert found["object"] == "pod shop/web-0 eth0"
    assert "10.22.0.2" in found["found"]
    assert found["remedy"] == "kubectl -n shop delete pod web-0"


def test_a_pod_that_does_not_answer_is_named_without_a_kept_result(plain_node: Node, web: Pod) -> None:
    for path in (plain_node.tmp / "results").iterdir():
        path.unlink()
    web.run("ip", "link", "set", "eth0", "down")
    found = the_only(examine(plain_node, "--container", web.container_id))
    assert found["found"] == "10.22.0.2, fd00:22::2: no answer to an echo from this node"


@pytest.mark.parametrize(
    ("subnet", "clashes"),
    [
        ("10.22.0.0/24", True),
        ("10.22.0.128/25", True),
        ("fd00:22::/64", True),
        ("10.0.0.0/8", False),  # ours is the more specific one
        ("10.23.0.0/24", False),
        ("10.22.0.9/32", True),
        ("fd00:22::9/128", True),
    ],
)
@pytest.mark.parametrize("mode", ["bridge", "routed"])
def test_a_subnet_that_another_link_has_too_is_named(
    plain_node: Node, mode: str, subnet: str, *, clashes: bool
) -> None:
    node, config = plain_node, dual_stack(plain_node, mode=mode)
    write_conflist(node, config)
    node.add(config, node.pod())
    node.run("ip", "link", "add", "podman0", "type", "bridge")
    node.run("ip", "link", "set", "podman0", "up")
    node.run("ip", "route", "add", subnet, "dev", "podman0", "metric", "7")
    status = [str(node.bin_dir / "podwire"), "status", "--conf-dir", conf_dir(node)]
    said = node.run(*status, "--bin-dir", str(node.bin_dir), check=False)
    assert (f"found {subnet} on podman0" in said.stdout, said.returncode) == (clashes, int(clashes))
    found = [each for each in examine(node) if each["found"] == f"{subnet} is also behind podman0"]
    assert len(found) == clashes
    node.run("ip", "link", "del", "podman0")
    assert examine(node) == []
