"""A foreign IPAM plugin: how it is called, and what it may do wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.conftest import in_process
from tests.harness.answers import assert_ok, assert_refused, unchanged, warm
from tests.harness.foreign import ADDRESS, delegated, foreign, says
from tests.harness.networks import V4, network

if TYPE_CHECKING:
    from tests.harness.foreign import Foreign
    from tests.harness.node import Node, Pod

HANG = "sleep 300 & echo $! >child; exec sleep 300"


def test_it_gets_our_stdin_and_our_environment_with_only_the_command_replaced(node: Node) -> None:
    plugin, pod = foreign(node, add=says(ADDRESS)), node.pod()
    config = delegated(runtimeConfig={"x": [1]}, whatever="é")
    environ = plugin.environ | {"CNI_ARGS": "IgnoreUnknown=1;A=b", "TRACEPARENT": "00-1"}
    result = node.add(config, pod, environ=environ)
    assert_ok(node.check(config, result, pod, environ=environ))
    node.delete(config, pod, environ=environ)
    assert_ok(node.call("STATUS", config, environ=environ))
    assert_ok(node.call("GC", config | {"cni.dev/valid-attachments": []}, environ=environ))
    assert plugin.calls == ["ADD", "CHECK", "DEL", "VERSION", "STATUS", "VERSION", "GC"]
    for verb in ("ADD", "DEL"):
        seen, stdin = plugin.seen(verb)
        assert stdin == json.dumps(config).encode()
        ours = {"CNI_COMMAND": verb, "CNI_CONTAINERID": pod.container_id, "CNI_NETNS": pod.path}
        assert (ours | {"CNI_IFNAME": "eth0"} | environ).items() <= seen.items()


def test_its_result_becomes_ours_with_the_gateway_added(node: Node) -> None:
    answer = {"ips": [{"version": "4", "address": "10.9.0.7/24"}], "routes": [{"dst": "198.51.100.0/24"}]}
    plugin, pod = foreign(node, add=says(answer | {"dns": {"domain": "a.test"}})), node.pod()
    result = node.add(delegated(cniVersion="0.4.0"), pod, environ=plugin.environ)
    ip = {"version": "4", "interface": 2, "address": "10.9.0.7/24", "gateway": "10.9.0.1"}
    assert (result["ips"], result["routes"]) == ([ip], answer["routes"])
    assert result["dns"] == {"domain": "a.test"}
    assert node.addresses("cni0") == ["10.9.0.1/24"]


def test_what_it_says_on_stderr_is_heard(node: Node) -> None:
    plugin = foreign(node, add=f"echo a word of warning >&2\n{says(ADDRESS)}")
    answer = node.call("ADD", delegated(), node.pod(), environ=plugin.environ)
    assert (answer.status, answer.stderr) == (0, "a word of warning\n")


def test_the_reference_names_are_ours_where_cni_path_finds_our_executable_first(node: Node) -> None:
    ours = node.tmp / "ours"
    ours.mkdir()
    for name in ("bridge", "host-local"):
        shutil.copy(node.bin_dir / "podwire", ours / name)
    plugin = foreign(node, name="host-local", add=says(ADDRESS))
    config = network(node, V4, isGateway=True) | {"type": "bridge"}
    config["ipam"]["type"] = "host-local"
    for path, address in ((f"{ours}:{plugin.path}", "10.22.0.2/24"), (plugin.path, "10.9.0.7/24")):
        pod, environ = node.pod(), {"CNI_PATH": path}
        options = {"program": str(ours / "bridge"), "environ": environ}
        stdin = config | {"forceAddress": True}
        assert node.add(stdin, pod, **options)["ips"][0]["address"] == address
        node.delete(stdin, pod, **options)
    assert plugin.calls == ["ADD", "DEL"]
    assert node.held() == {}


def test_an_oldest_shape_of_result_is_understood(node: Node) -> None:
    plugin = foreign(node, add=says({"ip4": {"ip": "10.9.0.7/24", "routes": [{"dst": "0.0.0.0/0"}]}}))
    result = node.add(delegated(cniVersion="0.2.0"), node.pod(), environ=plugin.environ)
    assert result["ip4"] == {"ip": "10.9.0.7/24", "gateway": "10.9.0.1", "routes": [{"dst": "0.0.0.0/0"}]}


def test_a_result_of_another_version_is_read_as_it_says(node: Node) -> None:
    """What we print is in the configuration's."""
    shapes: dict[str, dict[str, Any]] = {
        "0.2.0": {"ip4": {"ip": "10.9.0.7/24"}, "ip6": {"ip": "fd00:9::7/64"}},
        "0.4.0": {
            "ips": [{"version": "4", "address": "10.9.0.7/24"}, {"version": "6", "address": "fd00:9::7/64"}]
        },
        "1.0.0": {"ips": [{"address": "10.9.0.7/24"}, {"address": "fd00:9::7/64"}]},
    }
    for config, version in (("1.0.0", "0.4.0"), ("1.0.0", "0.2.0"), ("0.4.0", "1.0.0"), ("0.4.0", "0.2.0")):
        plugin = foreign(node, add=says({"cniVersion": version} | shapes[version]))
        pod, network = node.pod(), delegated(cniVersion=config)
        result = node.add(network, pod, environ=plugin.environ)
        assert (result["cniVersion"], len(result["ips"])) == (config, 2)
        assert pod.addresses("eth0") == ["10.9.0.7/24", "fd00:9::7/64"]
        last = {"prevResult": {"cniVersion": version} | shapes[version]}
        node.delete(network | last, pod, environ=plugin.environ)


def test_one_that_is_missing_is_found_out_before_anything_is_made(node: Node) -> None:
    with unchanged(node):
        for kind in ("nobody", "sub/dir", ".."):
            assert_refused(node.call("ADD", delegated(kind), node.pod()), 7, "ipam.type", kind)
        # Our own executable under a name that is no address manager's would call itself for ever.
        assert_refused(node.call("ADD", delegated("podwire"), node.pod()), 7, "podwire under that name")
        plugin = foreign(node, add=says(ADDRESS))
        late = delegated(delegateTimeout="soon")
        assert_refused(node.call("ADD", late, node.pod(), environ=plugin.environ), 7, "delegateTimeout")
    assert plugin.calls == []


WRONG = {
    "garbage": ("echo nonsense", 6, ["elsewhere", "wanted a JSON object", "nonsense"]),
    "nothing": ("true", 6, ["elsewhere", "wanted a JSON object"]),
    "two documents": ("echo '{}{}'", 6, ["elsewhere", "wanted a JSON object"]),
    "bytes": (r"printf '\377\376'", 6, ["elsewhere", "wanted a JSON object"]),
    "exit 1 with garbage": ("echo nonsense; exit 1", 999, ["elsewhere", "exited with 1", "nonsense"]),
    "exit 1 with nothing": ("exit 1", 999, ["elsewhere", "exited with 1"]),
    "killed": ("kill -9 $$", 999, ["elsewhere", "exited with -9"]),
    "an error object": (
        says({"code": 123, "msg": "no lease", "details": "why"}, 1),
        123,
        ["elsewhere", "no lease", "why"],
    ),
    "an error without a code": (says({"msg": "no lease"}, 1), 999, ["elsewhere", "no lease"]),
    "an error with code 0": (says({"code": 0, "msg": "no lease"}, 1), 999, ["elsewhere", "no lease"]),
    "an error of the wrong shape": (says({"code": "x", "msg": 5}, 2), 999, ["elsewhere", "exited with 2"]),
    "no address": (says({"cniVersion": "1.1.0"}), 7, ["elsewhere", "at least one address"]),
    "an address of no family": (
        says({"ips": [{"address": "10.9.0.300/24"}]}),
        7,
        ["elsewhere", "ips[0].address"],
    ),
    "an address without prefix": (
        says({"ips": [{"address": "10.9.0.3"}]}),
        7,
        ["elsewhere", "ips[0].address"],
    ),
    "an unknown version": (says(ADDRESS | {"cniVersion": "9.0"}), 1, ["1.1.0", "9.0"]),
    "a route to nowhere": (says(ADDRESS | {"routes": [{"dst": "?"}]}), 7, ["elsewhere", "routes[0].dst"]),
    "an address twice": (says({"ips": ADDRESS["ips"] * 2}), 999, ["10.9.0.7"]),
    "no room for a gateway": (says({"ips": [{"address": "10.9.0.7/32"}]}), 7, ["10.9.0.7/32", "gateway"]),
}


def test_its_failure_is_ours_and_its_del_follows(node: Node) -> None:
    pod = node.pod()
    # The bridge has the gateway's address already, so that nothing shared is added.
    warm(node)
    node.run("ip", "addr", "flush", "dev", "cni0")
    node.run("ip", "addr", "add", "10.9.0.1/24", "brd", "10.9.0.255", "dev", "cni0")
    for add, code, words in WRONG.values():
        plugin = foreign(node, add=add)
        with unchanged(node):
            assert_refused(node.call("ADD", delegated(), pod, environ=plugin.environ), code, *words)
        assert plugin.calls == ["ADD", "DEL"]
        assert list(pod.links()) == ["lo"]


def test_a_failing_clean_up_does_not_hide_why_the_add_failed(node: Node) -> None:
    broken = says({"code": 124, "msg": "cannot release"}, 1)
    plugin = foreign(node, add=says({"code": 123, "msg": "no lease"}, 1), delete=broken)
    warm(node)
    with unchanged(node):
        answer = node.call("ADD", delegated(), node.pod(), environ=plugin.environ)
        assert_refused(answer, 123, "no lease")
    assert "cannot release" in answer.stderr
    assert plugin.calls == ["ADD", "DEL"]


def test_one_that_cannot_be_executed_says_so(node: Node) -> None:
    plugin = foreign(node, add="")
    (plugin.directory / "elsewhere").chmod(0o644)
    warm(node)
    with unchanged(node):
        answer = node.call("ADD", delegated(), node.pod(), environ=plugin.environ)
        assert_refused(answer, 5, "elsewhere", "Permission denied")


def test_one_that_hangs_is_ended_with_its_children_when_the_time_is_up(node: Node) -> None:
    plugin = foreign(node, add=HANG)
    warm(node)
    with unchanged(node):
        begun = time.monotonic()
        answer = node.call("ADD", delegated(delegateTimeout=1), node.pod(), environ=plugin.environ)
        assert_refused(answer, 11, "elsewhere", "ADD in 1 s")
        assert time.monotonic() - begun < 5
    assert plugin.calls == ["ADD", "DEL"]
    assert is_gone(plugin)


def is_gone(plugin: Foreign) -> bool:
    """Tell whether the child that a hanging plugin started is no more, or will never run again."""
    status = Path("/proc") / (plugin.directory / "child").read_text().strip() / "stat"
    return not status.exists() or status.read_text().split(") ")[1][0] == "Z"


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 10
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


def start(node: Node, config: dict[str, Any], pod: Pod, plugin: Foreign) -> subprocess.Popen[str]:
    """Start an ADD and return the process."""
    environ = plugin.environ | {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": pod.container_id}
    environ |= {"CNI_NETNS": pod.path, "CNI_IFNAME": "eth0", "PATH": os.environ["PATH"]}
    argv = ["nsenter", f"--net={node.path}", str(node.bin_dir / "podwire")]
    pipe = subprocess.PIPE
    process = subprocess.Popen(argv, env=environ, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    process.stdin.write(json.dumps(config))
    process.stdin.close()
    process.stdin = None
    return process


@in_process
def test_a_runtime_that_loses_patience_gets_the_undo_too(node: Node) -> None:
    plugin, pod = foreign(node, add=HANG), node.pod()
    warm(node)
    with unchanged(node):
        process = start(node, delegated(), pod, plugin)
        wait_for(plugin.directory / "child")
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=10)
        assert (process.returncode, json.loads(stdout)["code"], stderr) == (1, 11, "")
    assert plugin.calls == ["ADD", "DEL"]
    assert is_gone(plugin)


def test_a_namespace_that_vanishes_in_the_middle_of_add_undoes_it(node: Node) -> None:
    pod = node.pod()
    plugin = foreign(node, add=f"umount --lazy {pod.path}; rm {pod.path}\n{says(ADDRESS)}")
    warm(node)
    with unchanged(node):
        # No gateway: its address on the bridge is shared and would stay.
        answer = node.call("ADD", delegated(isGateway=False), pod, environ=plugin.environ)
        assert_refused(answer, 4, f"CNI_NETNS {pod.path}", "vanished")
    assert plugin.calls == ["ADD", "DEL"]


def test_a_namespace_whose_path_is_taken_by_another_undoes_the_add(node: Node) -> None:
    pod, other = node.pod(), node.pod()
    plugin = foreign(node, add=f"mount --bind {other.path} {pod.path}\n{says(ADDRESS)}")
    warm(node)
    with unchanged(node):
        answer = node.call("ADD", delegated(isGateway=False), pod, environ=plugin.environ)
        assert_refused(answer, 4, f"CNI_NETNS {pod.path}", "vanished")
    node.run("umount", pod.path)
    assert list(pod.links()) == list(other.links()) == ["lo"]


def test_an_add_that_fails_beside_one_that_succeeds_leaves_the_new_bridge(node: Node) -> None:
    failing, succeeding = node.pod(), node.pod()
    plugin = foreign(node, add="echo >waiting x; while [ ! -e go ]; do sleep 0.02; done; exit 1")
    process = start(node, delegated(), failing, plugin)
    wait_for(plugin.directory / "waiting")
    config = network(node, V4, isGateway=True)
    result = node.add(config, succeeding)
    (plugin.directory / "go").touch()
    stdout, _ = process.communicate(timeout=10)
    assert (process.returncode, json.loads(stdout)["code"]) == (1, 999)
    assert_ok(node.check(config, result, succeeding))
    assert succeeding.ping("10.22.0.1")
    assert [name for name in node.links() if name.startswith("veth")] == [result["interfaces"][1]["name"]]
