"""The optional keys of `ipam` as a runtime meets them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tests.harness.answers import assert_ok, assert_refused, unchanged
from tests.harness.networks import V4, V6, network

if TYPE_CHECKING:
    from tests.harness.node import Node

PROGRAM = {"program": "podwire-ipam"}
GO = "/usr/lib/cni/host-local"


def asking(node: Node, *ranges: list[dict[str, Any]], **keys: Any) -> dict[str, Any]:
    config = network(node, *(ranges or (V4, V6)))
    return config | {"ipam": config["ipam"] | keys}


def test_a_term_that_cannot_be_is_code_7_before_anything_is_made(node: Node) -> None:
    pod = node.pod()
    with unchanged(node):
        for key, value, wanted in BAD:
            config = asking(node, **{key: value})
            for options in ({}, PROGRAM):
                assert_refused(node.call("ADD", config, pod, **options), 7, f'"ipam.{key}"', wanted)
            for verb in ("CHECK", "STATUS"):
                answer = node.call(verb, config | {"prevResult": {"cniVersion": "1.1.0"}}, pod, **PROGRAM)
                assert_refused(answer, 7, f'"ipam.{key}"', wanted)
    assert not node.data_dir.exists()


BAD = [
    ("keepForRequests", 1, "true or false"),
    ("keepForRequests", "yes", "true or false"),
    ("sticky", "web-0", "true or false"),
    ("coolDown", -1, "0..86400"),
    ("coolDown", 86401, "0..86400"),
    ("coolDown", 1.5, "an integer"),
    ("coolDown", "60", "an integer"),
    ("coolDown", True, "an integer"),
]


def test_a_term_that_cannot_be_holds_no_address_back(node: Node) -> None:
    pod = node.pod()
    node.add(asking(node), pod)
    for key, value, _ in BAD:
        assert_ok(node.call("DEL", asking(node, **{key: value}), pod))
        assert node.held() == {}


def test_the_band_for_requests_is_left_alone_while_others_are_free(node: Node) -> None:
    config = asking(node, keepForRequests=True)
    first, second = node.pod(), node.pod()
    result = node.add(config, first)
    assert [ip["address"] for ip in result["ips"]] == ["10.22.0.18/24", "fd00:22::102/64"]
    result = node.add(config | {"runtimeConfig": {"ips": ["10.22.0.7"]}}, second)
    assert [ip["address"] for ip in result["ips"]] == ["10.22.0.7/24", "fd00:22::103/64"]


def named(pod: str, ifname: str = "eth0") -> dict[str, str | None]:
    args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={pod}"
    return {"CNI_ARGS": args, "CNI_IFNAME": ifname}


def v4(result: dict[str, Any]) -> str:
    return result["ips"][0]["address"]


def test_a_pod_of_the_same_name_gets_its_addresses_again(node: Node) -> None:
    config, first = asking(node, sticky=True), node.pod()
    before = node.add(config, first, environ=named("web-0"))["ips"]
    node.delete(config, first, environ=named("web-0"))
    assert v4(node.add(config, node.pod(), environ=named("web-1"))) == "10.22.0.3/24"
    assert node.add(config, node.pod(), environ=named("web-0"))["ips"] == before


def test_a_second_interface_of_a_pod_has_addresses_of_its_own(node: Node) -> None:
    config, pod = asking(node, sticky=True), node.pod()
    for _ in range(2):
        given = [v4(node.add(config, pod, environ=named("web-0", ifname))) for ifname in ("eth0", "net1")]
        assert given == ["10.22.0.2/24", "10.22.0.3/24"]
        for ifname in ("eth0", "net1"):
            node.delete(config, pod, environ=named("web-0", ifname))


def test_a_pod_without_a_name_gets_the_next_address(node: Node) -> None:
    config = asking(node, sticky=True)
    for wanted in ("10.22.0.2/24", "10.22.0.3/24"):
        pod = node.pod()
        assert v4(node.add(config, pod)) == wanted
        node.delete(config, pod)


def test_an_address_is_not_reused_before_it_has_cooled_down(node: Node) -> None:
    config, first, second = asking(node, [{"subnet": "10.22.0.0/30"}], coolDown=2), node.pod(), node.pod()
    node.add(config, first)
    node.delete(config, first)
    released = time.monotonic()
    with unchanged(node):
        words = ["10.22.0.1-10.22.0.2", "10.22.0.2 was released", "s more before another pod gets it"]
        assert_refused(node.call("ADD", config, second), 11, *words)
    assert_refused(node.call("STATUS", config), 50, "no IP addresses available")
    time.sleep(max(0.0, released + 2.05 - time.monotonic()))
    assert_ok(node.call("STATUS", config))
    assert v4(node.add(config, second)) == "10.22.0.2/30"


def test_the_go_plugin_on_the_same_directory_knows_of_no_rest_and_disturbs_none(node: Node) -> None:
    config, pods = asking(node, [{"subnet": "10.22.0.0/29"}], coolDown=600), [node.pod() for _ in range(6)]
    theirs = config | {"cniVersion": "0.4.0", "ipam": config["ipam"] | {"type": "host-local"}}
    for pod in pods[:5]:
        node.add(config, pod, **PROGRAM)
    node.delete(theirs, pods[0], program=GO)
    node.delete(config, pods[1], **PROGRAM)
    node.delete(config, pods[2], **PROGRAM)
    assert v4(node.add(config, pods[0], **PROGRAM)) == "10.22.0.2/29"
    assert v4(node.add(theirs, pods[1], program=GO)) == "10.22.0.3/29"
    assert_refused(node.call("ADD", config, pods[5], **PROGRAM), 11, "10.22.0.4 was released")
    assert_ok(node.call("GC", config | {"cni.dev/valid-attachments": []}, **PROGRAM))
    assert node.held() == {}
    assert_refused(node.call("ADD", config, pods[5], **PROGRAM), 11, "10.22.0.4 was released")
