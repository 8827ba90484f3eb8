"""The environment: verbs, required variables, CNI_ARGS, and the guard of the node's own namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import in_process
from tests.harness.answers import VERSIONS, assert_ok, assert_refused, unchanged, warm
from tests.harness.chain import install_as
from tests.harness.networks import V4, dual_stack, network

if TYPE_CHECKING:
    from tests.harness.node import Node


@pytest.mark.parametrize("program", ["podwire", "podwire-ipam"])
def test_without_a_command_it_says_who_it_is_and_succeeds(node: Node, program: str) -> None:
    for command in ("", None):
        answer = node.call("", "", program=program, environ={"CNI_COMMAND": command})
        first, second = answer.stderr.splitlines()
        assert (answer.status, answer.stdout) == (0, "")
        assert first.startswith(f"CNI {program} plugin v")
        assert second == f"CNI protocol versions supported: {', '.join(VERSIONS)}"


def test_verbs_are_spelled_exactly(node: Node) -> None:
    for command in ("add", "DELETE", "ADD ", "GC\n"):
        assert_refused(
            node.call(command, network(node, V4), node.pod()), 4, f"unknown CNI_COMMAND: {command}".strip()
        )


def test_all_missing_variables_are_named_in_one_message(node: Node) -> None:
    every = {"CNI_CONTAINERID": None, "CNI_NETNS": "", "CNI_IFNAME": None, "CNI_PATH": None}
    needed = {
        "ADD": "[CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME]",
        "CHECK": "[CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME]",
        "DEL": "[CNI_CONTAINERID,CNI_IFNAME]",
        "GC": "[CNI_PATH]",
    }
    for command, names in needed.items():
        answer = node.call(command, network(node, V4), node.pod(), environ=every)
        assert_refused(answer, 4, f"required env variables {names} missing")
    assert_ok(node.call("STATUS", network(node, V4), environ=every))


MALFORMED = {
    "CNI_CONTAINERID": ["-x", "../x", "a/b", "a b", "id\n", "é", ".x"],
    "CNI_IFNAME": [
        "a/b",
        "a:b",
        "..",
        ".",
        "eth0\n",
        "a b",
        "x" * 16,
        "é" * 8,
        "a\u00a0b",
        "a\u0085b",
        "eth%d",
        "all",
        "default",
        "\udcff",
    ],
}


def test_malformed_names_are_refused_before_anything_is_made(node: Node) -> None:
    pod, config = node.pod(), dual_stack(node)
    with unchanged(node):
        for variable, values in MALFORMED.items():
            for value in values:
                for command in ("ADD", "DEL"):
                    assert_refused(node.call(command, config, pod, environ={variable: value}), 4, variable)


def test_what_a_verb_does_not_need_is_not_looked_at(node: Node) -> None:
    environ = {"CNI_CONTAINERID": "../x", "CNI_IFNAME": "a/b", "CNI_NETNS": "/nowhere"}
    assert_ok(node.call("STATUS", network(node, V4), environ=environ))


def test_the_longest_names_that_fit_are_accepted(node: Node) -> None:
    pod, config = node.pod(), dual_stack(node)
    environ = {"CNI_CONTAINERID": "c" * 200, "CNI_IFNAME": "é" * 7 + "x"}
    node.add(config, pod, environ=environ)
    assert environ["CNI_IFNAME"] in pod.links()
    assert [owner.split() for owner in node.held().values()] == [list(environ.values())] * 2
    node.delete(config, pod, environ=environ)
    assert node.held() == {}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("FOO=1", ["CNI_ARGS", "FOO"]),
        ("IgnoreUnknown=0;FOO=1", ["FOO"]),
        ("IgnoreUnknown=perhaps", ["IgnoreUnknown", "perhaps"]),
        ("mac=02:00:00:00:00:01", ["mac"]),
        ("K8S_POD_NAME", ["KEY=VALUE", "K8S_POD_NAME"]),
        ("K8S_POD_NAME=a=b", ["KEY=VALUE"]),
        ("K8S_POD_NAME=a;", ["KEY=VALUE"]),
    ],
)
def test_cni_args_that_cannot_be_read_are_refused_by_add_but_hold_no_del_up(
    node: Node, args: str, words: list[str]
) -> None:
    pod, config, environ = node.pod(), dual_stack(node), {"CNI_ARGS": args}
    with unchanged(node):
        assert_refused(node.call("ADD", config, pod, environ=environ), 4, *words)
        assert_ok(node.call("DEL", config, pod, environ=environ))


@pytest.mark.parametrize("args", ["FOO=bar", "IgnoreUnknown=perhaps", "a=b=c", "K8S_POD_NAME=a;", "MAC=x"])
@in_process
def test_cni_args_are_nothing_to_a_plugin_that_takes_none(node: Node, args: str) -> None:
    pod, config = node.pod(), dual_stack(node, version="1.0.0")
    result = node.add(config, pod)
    kinds: dict[str, dict[str, Any]] = {
        "portmap": {"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80}]}},
        "firewall": {},
        "bandwidth": {"ingressRate": 10**6, "ingressBurst": 10**6},
        "tuning": {},
    }
    directory = install_as(node, *kinds)
    for kind, keys in kinds.items():
        asked = {"cniVersion": "1.0.0", "name": "test", "type": kind, **keys, "prevResult": result}
        for verb in ("ADD", "CHECK"):
            answer = node.call(verb, asked, pod, program=f"{directory}/{kind}", environ={"CNI_ARGS": args})
            if kind == "tuning":  # which takes the MAC from there
                assert answer.json["code"] in {4, 7}
            else:
                assert answer.status == 0, answer.stdout


def test_ignore_unknown_counts_wherever_it_stands(node: Node) -> None:
    pod, config = node.pod(), dual_stack(node)
    for args in (
        "FOO=1;IgnoreUnknown=1",
        "IgnoreUnknown=TRUE;FOO=1",
        "K8S_POD_NAME=\udcff;IgnoreUnknown=true",
    ):
        environ = {"CNI_ARGS": args}
        node.add(config, pod, environ=environ)
        node.delete(config, pod, environ=environ)


def test_ours_and_the_delegates_args_stand_side_by_side_without_ignore_unknown(node: Node) -> None:
    """In the reference `MAC=...;IP=...` always fails: bridge and host-local refuse each other's key."""
    pod, config = node.pod(), dual_stack(node)
    result = node.add(config, pod, environ={"CNI_ARGS": "MAC=02:00:5e:10:00:01;IP=10.22.0.77"})
    assert result["interfaces"][2]["mac"] == "02:00:5e:10:00:01"
    assert result["ips"][0]["address"] == "10.22.0.77/24"


def test_the_nodes_own_namespace_is_refused_before_anything_is_touched(node: Node) -> None:
    pod, config = node.pod(), dual_stack(node)
    warm(node)
    attached = node.pod()
    result = node.add(config, attached)
    own = {"CNI_NETNS": node.path}
    with unchanged(node):
        for command in ("ADD", "DEL", "CHECK"):
            stdin = config | ({"prevResult": result} if command == "CHECK" else {})
            for container in (pod, attached):
                answer = node.call(command, stdin, container, environ=own)
                assert_refused(answer, 8, node.path, "found the host's own")


def test_the_override_lets_a_pod_be_the_node(node: Node) -> None:
    pod, config = node.pod(), network(node, V4)
    environ = {"CNI_NETNS": node.path, "CNI_NETNS_OVERRIDE": "True"}
    node.add(config, pod, environ=environ)
    assert "eth0" in node.links()
    node.delete(config, pod, environ=environ)
    assert list(node.links()) == ["lo", "cni0"]
    assert node.held() == {}
