"""The IPAM plugin `static`: the addresses that are named, as a plugin and in process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.answers import assert_ok, assert_refused, unchanged
from tests.harness.chain import REFERENCE, install_as

if TYPE_CHECKING:
    from tests.harness.node import Completed, Node, Pod

IPAM: dict[str, Any] = {
    "type": "static",
    "addresses": [
        {"address": "10.10.0.1/24", "gateway": "10.10.0.254"},
        {"address": "3ffe:ffff:0:1ff::1/64", "gateway": "3ffe:ffff::1"},
    ],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.0.2.0/24", "gw": "10.10.5.1"}],
    "dns": {"nameservers": ["8.8.8.8"], "domain": "example.com", "search": ["example.com"]},
}
ARGS = {"CNI_ARGS": "IP=10.10.0.7/24,198.51.100.9/24;GATEWAY=198.51.100.1"}
LISTED = {"args": {"cni": {"ips": ["203.0.113.5/24"]}}}
RUNTIME = {"runtimeConfig": {"ips": ["203.0.113.77/24", "fd00::7/64"]}}
ASKED: dict[str, tuple[dict[str, Any], dict[str, str | None]]] = {
    "configuration": ({}, {}),
    "CNI_ARGS": ({}, ARGS),
    "args.cni": (LISTED, ARGS),
    "runtimeConfig": (LISTED | RUNTIME, ARGS),
}


def network(version: str = "1.0.0", **keys: Any) -> dict[str, Any]:
    return {"cniVersion": version, "name": "test", "type": "bridge", "bridge": "cni0", "ipam": IPAM} | keys


def call(node: Node, verb: str, config: dict[str, Any], pod: Pod | None, **environ: str | None) -> Completed:
    program = f"{install_as(node, 'static')}/static"
    return node.call(verb, config, pod, program=program, environ=environ)


@pytest.mark.parametrize("source", ASKED)
def test_the_answer_is_the_references_whoever_asks(node: Node, source: str) -> None:
    pod, (keys, environ) = node.pod(), ASKED[source]
    ours = call(node, "ADD", network(**keys), pod, **environ)
    theirs = node.call("ADD", network(**keys), pod, program=f"{REFERENCE}/static", environ=environ)
    assert ours.json == theirs.json


def test_check_misses_an_address_and_finds_another_gateway(node: Node) -> None:
    pod, config = node.pod(), network()
    result = call(node, "ADD", config, pod).json
    assert_ok(call(node, "CHECK", config | {"prevResult": result}, pod))
    for wrong, said in (
        ({"ips": result["ips"][:1]}, "3ffe:ffff:0:1ff::1/64"),
        ({"ips": [result["ips"][0] | {"gateway": "10.10.0.253"}, result["ips"][1]]}, "10.10.0.253"),
    ):
        assert_refused(call(node, "CHECK", config | {"prevResult": result | wrong}, pod), 100, said)
    assert_refused(call(node, "CHECK", config, pod), 7, "prevResult")


def test_verbs_that_have_nothing_to_do_succeed_whatever_is_configured(node: Node) -> None:
    pod, config = node.pod(), network("1.1.0", ipam={"addresses": 5})
    assert_ok(call(node, "DEL", config, pod))
    assert_ok(call(node, "GC", config | {"cni.dev/valid-attachments": []}, None))
    assert_ok(call(node, "STATUS", config, None))


@pytest.mark.parametrize(
    ("ipam", "said"),
    [
        ({"addresses": [{"address": "10.10.0.1"}]}, "ipam.addresses[0].address"),
        ({"addresses": [{"gateway": "10.10.0.1"}]}, "ipam.addresses[0].address"),
        ({"addresses": [{"address": "10.10.0.1/24", "gateway": "x"}]}, "ipam.addresses[0].gateway"),
        ({"addresses": "10.10.0.1/24"}, "ipam.addresses"),
        ({"addresses": []}, "ipam.addresses"),
        ({"addresses": [{"address": "10.10.0.1/24"}], "routes": [{"dst": "x"}]}, "ipam.routes[0].dst"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(node: Node, ipam: dict[str, Any], said: str) -> None:
    """In process too: what takes no address for itself is refused by the bridge that wants one."""
    named = install_as(node, "static", "bridge")
    config = network(ipam={"type": "static"} | ipam)
    with unchanged(node):
        environ = {"CNI_PATH": named}
        answer = node.call("ADD", config, node.pod(), program=f"{named}/bridge", environ=environ)
        assert_refused(answer, 7, said)


def test_one_address_per_family_is_all_that_an_old_version_can_say(node: Node) -> None:
    config = network("0.2.0", ipam={"addresses": [{"address": f"10.10.0.{i}/24"} for i in (1, 2)]})
    assert_refused(call(node, "ADD", config, node.pod()), 7, "ipam.addresses")


@pytest.mark.parametrize("side", ["ours", "reference"])
def test_a_bridge_has_its_addresses_from_it(node: Node, side: str) -> None:
    """Ours is called in process: the executable named `static` is nothing but a name there."""
    named = install_as(node, "static", "bridge")
    path = named if side == "ours" else f"{REFERENCE}:{named}"
    pod, config = node.pod(), network(isGateway=True, ipam=IPAM | {"routes": []})
    options: dict[str, Any] = {"program": f"{named}/bridge", "environ": {"CNI_PATH": path}}
    result = node.add(config, pod, **options)
    assert pod.addresses("eth0") == ["10.10.0.1/24", "3ffe:ffff:0:1ff::1/64"]
    assert_ok(node.check(config, result, pod, **options))
    if side == "ours":
        lost = result | {"ips": result["ips"][1:]}
        assert_refused(node.check(config, lost, pod, **options), 100, "10.10.0.1/24")
    node.delete(config, pod, **options)
    assert not [name for name in node.links() if name.startswith("veth")]


def test_a_routed_pod_keeps_its_address_and_passes_check(node: Node) -> None:
    named = install_as(node, "static")
    environ: dict[str, str | None] = {"CNI_PATH": named}
    pod, config = node.pod(), network(type="podwire", mode="routed", ipam=IPAM | {"routes": []})
    result = node.add(config, pod, environ=environ)
    assert "10.10.0.1/32" in pod.addresses("eth0")
    assert_ok(node.check(config, result, pod, environ=environ))
    node.delete(config, pod, environ=environ)
