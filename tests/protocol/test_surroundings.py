"""What surrounds a call and must not matter: environment, working directory, names, paths, CNI_PATH."""

from __future__ import annotations

import os
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.answers import assert_ok, assert_refused, unchanged, warm
from tests.harness.networks import V4, dual_stack, network

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Node

OURS = ("cni_plugin", "ipam", "json", "os", "socket", "logging", "netaddr", "sitecustomize", "usercustomize")


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """Return a directory of modules with the names of ours, which leave a file when they are imported."""
    made = tmp_path / "trap"
    made.mkdir()
    for name in OURS:
        (made / f"{name}.py").write_text(f"open({str(made / 'sprung')!r}, 'w')\n")
    return made


def hostile_environment(trap: Path) -> dict[str, str | None]:
    home = trap / "lib/python3/site-packages"
    home.mkdir(parents=True)
    return {
        "PYTHONPATH": str(trap),
        "PYTHONHOME": str(trap),
        "PYTHONUSERBASE": str(trap),
        "PYTHONSTARTUP": str(trap / "json.py"),
        "PYTHONWARNINGS": "error",
        "PYTHONINSPECT": "1",
        "PYTHONDEBUG": "1",
        "PYTHONPLATLIBDIR": "trap",
        "PYTHONPYCACHEPREFIX": str(trap / "cache"),
        "PYTHONBREAKPOINT": "json.trap",
        "HOME": str(trap),
    }


def test_no_variable_changes_what_python_imports(
    node: Node, trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ, pod, config = hostile_environment(trap), node.pod(), dual_stack(node)
    monkeypatch.chdir(trap)
    result = node.add(config, pod, environ=environ)
    assert_ok(node.check(config, result, pod, environ=environ))
    node.delete(config, pod, environ=environ)
    assert sorted(path.name for path in trap.iterdir()) == sorted(["lib", *(f"{name}.py" for name in OURS)])


def test_the_trap_is_one(trap: Path) -> None:
    subprocess.run(["/usr/bin/python3", "-c", "import netaddr"], cwd=trap, check=True)
    assert (trap / "sprung").exists()


def test_what_lies_in_cni_path_and_path_is_run_only_when_it_is_named(node: Node) -> None:
    directory, sprung = node.tmp / "theirs", node.tmp / "sprung"
    directory.mkdir()
    for name in ("host-local", "dhcp", "portmap", "ip", "iptables", "modprobe", "sh", "python3", "bridge"):
        (directory / name).write_text(f"#!/bin/sh\ntouch {sprung}\n")
        (directory / name).chmod(0o755)
    environ: dict[str, str | None] = {"CNI_PATH": str(directory), "PATH": f"{directory}:{os.environ['PATH']}"}
    config, pod = dual_stack(node), node.pod()
    result = node.add(config, pod, environ=environ)
    assert_ok(node.check(config, result, pod, environ=environ))
    assert_ok(node.call("STATUS", config, environ=environ))
    node.delete(config, pod, environ=environ)
    assert_ok(node.call("GC", config | {"cni.dev/valid-attachments": []}, environ=environ))
    assert not sprung.exists()


@pytest.mark.parametrize("node", ["shim"], indirect=True)
@pytest.mark.parametrize("kind", ["../host-local", "/bin/sh", "a/b", "..", ".", "sh\n", "sh\0"])
def test_a_delegate_is_a_name_in_cni_path_and_no_way_out_of_it(node: Node, kind: str) -> None:
    config, pod = network(node, V4), node.pod()
    config["ipam"]["type"] = kind
    with unchanged(node):
        assert_refused(node.call("ADD", config, pod), 7, '"ipam.type"')


NAMES = ["..", ".", "../x", "a/../../x", "/etc/x", ".podwire", "a\nb", "a\0b", "a b", "é", "\ud800", ""]


@pytest.mark.parametrize("node", ["shim"], indirect=True)
@pytest.mark.parametrize("program", ["podwire", "podwire-ipam"])
def test_no_name_of_a_network_leaves_the_store(node: Node, program: str) -> None:
    warm(node)
    before = below(node.tmp)
    with unchanged(node):
        for name in NAMES:
            config, pod = network(node, V4) | {"name": name}, node.pod()
            for verb in ("ADD", "DEL"):
                assert_refused(node.call(verb, config, pod, program=program), 7, '"name"')
    assert below(node.tmp) == before


@pytest.mark.parametrize("node", ["shim"], indirect=True)
def test_no_name_of_a_container_leaves_the_store(node: Node) -> None:
    """Nor does one in the list of a GC, or of a pod in CNI_ARGS."""
    config = dual_stack(node, sysctl={"net.core.somaxconn": "99"})
    config["ipam"] |= {"sticky": True}
    holder = node.pod()
    node.add(config, holder)
    before = below(node.tmp)
    for name in ("..", "../../x", "/etc/x", "a\nb", "a/b", "é"):
        pod = node.pod()
        for verb in ("ADD", "DEL"):
            answer = node.call(verb, config, pod, environ={"CNI_CONTAINERID": name})
            assert_refused(answer, 4, "CNI_CONTAINERID")
        args = f"K8S_POD_NAMESPACE=../..;K8S_POD_NAME={name}/../../x"
        node.add(config, pod, environ={"CNI_ARGS": args})
        node.delete(config, pod, environ={"CNI_ARGS": args})
        kept = [{"containerID": each, "ifname": "eth0"} for each in (name, holder.container_id)]
        assert_ok(node.call("GC", config | {"cni.dev/valid-attachments": kept}))
    changing = {"last_reserved_ip.0", "last_reserved_ip.1", "test.sticky"}
    assert {path for path in below(node.tmp) ^ before if path.rpartition("/")[2] not in changing} == set()


def below(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


@pytest.fixture
def odd(tmp_path: Path, node: Node) -> Iterator[dict[str, tuple[int, str]]]:
    """Return paths that lead to no pod's namespace, with the code of the refusal, by what they are."""
    fifo, there, listening = (tmp_path / name for name in ("fifo", "link", "sock"))
    os.mkfifo(fifo)
    there.symlink_to(node.path)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(listening))
    others = {
        f"a namespace of {kind}": (4, f"/proc/self/ns/{kind}") for kind in ("mnt", "uts", "pid", "user")
    }
    with subprocess.Popen(["nsenter", f"--net={node.path}", "sleep", "60"]) as inside:
        yield {
            "a FIFO": (4, str(fifo)),
            "a socket": (4, str(listening)),
            "a device": (4, "/dev/zero"),
            "a terminal": (4, "/dev/ptmx"),
            "a text with NUL's neighbour": (4, f"{node.path}\x01"),
            **others,
            "a link to the node's": (8, str(there)),
            "the node's by a process": (8, f"/proc/{inside.pid}/ns/net"),
            "the caller's own": (8, "/proc/self/ns/net"),
        }
        inside.kill()


@pytest.mark.parametrize("node", ["process", "shim"], indirect=True)
def test_no_path_but_a_pods_namespace_is_one(node: Node, odd: dict[str, tuple[int, str]]) -> None:
    """None is waited for, and none is the node's own."""
    config, pod = dual_stack(node), node.pod()
    warm(node)
    with unchanged(node):
        for code, path in odd.values():
            answer = node.call("ADD", config, pod, environ={"CNI_NETNS": path})
            assert_refused(answer, code, f"CNI_NETNS {path}")


@pytest.mark.parametrize("node", ["agent", "shim"], indirect=True)
def test_a_del_by_an_odd_path_neither_waits_nor_touches_the_node(
    node: Node, odd: dict[str, tuple[int, str]]
) -> None:
    config: dict[str, Any] = dual_stack(node)
    warm(node)
    with unchanged(node):
        for code, path in odd.values():
            answer = node.call("DEL", config, node.pod(), environ={"CNI_NETNS": path})
            if code == 8:
                assert_refused(answer, 8, f"CNI_NETNS {path}")
            else:
                assert_ok(answer)


@pytest.mark.parametrize("node", ["shim"], indirect=True)
def test_no_name_of_a_pod_means_anything_to_those_who_are_told_it(node: Node) -> None:
    """It is in the link's alias, in comments of nftables' elements, in the hints of sticky addresses."""
    config = dual_stack(node, ipMasq=True, spoofCheck="ip")
    config["ipam"] |= {"sticky": True}
    config["runtimeConfig"] = {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}
    pod = node.pod()
    node.add(config, pod)
    node.delete(config, pod)
    with unchanged(node):
        for name in (
            'a"b',
            "a' }",
            "a\nb",
            "a\\",
            "}{ # x",
            "$(id)",
            "`id`",
            "é" * 200,
            "\udcff",
            "x" * 4000,
        ):
            pod, environ = node.pod(), {"CNI_ARGS": f"K8S_POD_NAMESPACE={name};K8S_POD_NAME={name}"}
            result = node.add(config, pod, environ=environ)
            assert_ok(node.check(config, result, pod, environ=environ))
            node.delete(config, pod, environ=environ)
