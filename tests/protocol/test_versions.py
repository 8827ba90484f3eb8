"""Every version of the specification: the shape of results, and which verbs there are."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.answers import (
    VERSIONS,
    WITHOUT_CHECK,
    WITHOUT_GC,
    assert_ok,
    assert_refused,
    refusal,
    unchanged,
)
from tests.harness.networks import V4, dual_stack, network

if TYPE_CHECKING:
    from tests.harness.node import Node, Pod

WITH_IPS = VERSIONS[2:]
METRICS = {"mtu": 1400, "advmss": 1360, "priority": 7, "table": 100, "scope": 0}


def interfaces(result: dict[str, Any], pod: Pod, version: str) -> list[dict[str, Any]]:
    """Return what `interfaces` must be, names and MACs taken from the result itself."""
    names = ["cni0", result["interfaces"][1]["name"], "eth0"]
    wanted = [{"name": n, "mac": i["mac"]} for n, i in zip(names, result["interfaces"], strict=True)]
    wanted[2]["sandbox"] = pod.path
    return [each | ({"mtu": 1500} if version == "1.1.0" else {}) for each in wanted]


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_the_oldest_results_have_one_address_per_family_with_its_own_routes(node: Node, version: str) -> None:
    config = dual_stack(node, version=version)
    config["ipam"]["routes"] = [{"dst": "192.0.2.0/24", "gw": "10.22.0.9", **METRICS}, {"dst": "fd01::/48"}]
    assert node.add(config, node.pod()) == {
        "cniVersion": version,
        "ip4": {
            "ip": "10.22.0.2/24",
            "gateway": "10.22.0.1",
            "routes": [{"dst": "192.0.2.0/24", "gw": "10.22.0.9"}, {"dst": "0.0.0.0/0", "gw": "10.22.0.1"}],
        },
        "ip6": {
            "ip": "fd00:22::2/64",
            "gateway": "fd00:22::1",
            "routes": [{"dst": "fd01::/48"}, {"dst": "::/0", "gw": "fd00:22::1"}],
        },
        "dns": {},
    }


@pytest.mark.parametrize("version", WITH_IPS)
def test_a_dual_stack_result_has_exactly_the_fields_of_its_version(node: Node, version: str) -> None:
    pod = node.pod()
    config = dual_stack(node, version=version, dns={"nameservers": ["192.0.2.1"], "search": ["a.test"]})
    config["ipam"]["routes"] = [{"dst": "192.0.2.0/24", "gw": "10.22.0.9", **METRICS}]
    result = node.add(config, pod)
    old = version not in {"1.0.0", "1.1.0"}
    families = [{"version": "4"}, {"version": "6"}] if old else [{}, {}]
    assert result == {
        "cniVersion": version,
        "interfaces": interfaces(result, pod, version),
        "ips": [
            families[0] | {"interface": 2, "address": "10.22.0.2/24", "gateway": "10.22.0.1"},
            families[1] | {"interface": 2, "address": "fd00:22::2/64", "gateway": "fd00:22::1"},
        ],
        "routes": [
            {"dst": "192.0.2.0/24", "gw": "10.22.0.9"} | (METRICS if version == "1.1.0" else {}),
            {"dst": "0.0.0.0/0", "gw": "10.22.0.1"},
            {"dst": "::/0", "gw": "fd00:22::1"},
        ],
        "dns": {"nameservers": ["192.0.2.1"], "search": ["a.test"]},
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_empty_is_left_out_of_a_result(node: Node, version: str) -> None:
    pod, config = node.pod(), network(node, V4, version=version)
    result = node.add(config, pod)
    if version in {"0.1.0", "0.2.0"}:
        assert result == {
            "cniVersion": version,
            "ip4": {"ip": "10.22.0.2/24", "gateway": "10.22.0.1"},
            "dns": {},
        }
        return
    old = version not in {"1.0.0", "1.1.0"}
    ip = {"interface": 2, "address": "10.22.0.2/24", "gateway": "10.22.0.1"}
    assert result == {
        "cniVersion": version,
        "interfaces": interfaces(result, pod, version),
        "ips": [ip | ({"version": "4"} if old else {})],
        **({"dns": {}} if old else {}),
    }


@pytest.mark.parametrize("version", WITH_IPS)
def test_an_attachment_without_addresses_reports_its_interfaces(node: Node, version: str) -> None:
    pod, config = node.pod(), network(node, version=version)
    result = node.add(config, pod)
    dns = {} if version in {"1.0.0", "1.1.0"} else {"dns": {}}
    assert result == {"cniVersion": version, "interfaces": interfaces(result, pod, version)} | dns
    node.delete(config, pod)


@pytest.mark.parametrize("stated", [{"cniVersion": "0.1.0"}, {"cniVersion": "0.2.0"}, {}])
def test_the_oldest_versions_refuse_an_attachment_without_addresses_before_making_it(
    node: Node, stated: dict[str, str]
) -> None:
    config = {key: value for key, value in network(node).items() if key != "cniVersion"} | stated
    pod = node.pod()
    with unchanged(node):
        assert_refused(node.call("ADD", config, pod), 7, '"ipam"', "0.3.0 or newer")
    assert list(pod.links()) == ["lo"]


def test_the_oldest_versions_refuse_two_pools_of_one_family_before_anything_is_made(node: Node) -> None:
    config = network(node, V4, [{"subnet": "10.23.0.0/24"}], version="0.2.0")
    with unchanged(node):
        assert_refused(node.call("ADD", config, node.pod()), 7, "ranges", "one address per family")


def test_check_came_with_0_4_0(node: Node) -> None:
    pod = node.pod()
    for version in VERSIONS:
        config = dual_stack(node, version=version)
        result = node.add(config, pod)
        answer = node.check(config, result, pod)
        if version in WITHOUT_CHECK:
            assert_refused(answer, 1, version, "CHECK", "0.4.0")
        else:
            assert_ok(answer)
        node.delete(config | {"prevResult": result}, pod)
    assert node.held() == {}


def test_gc_and_status_came_with_1_1_0(node: Node) -> None:
    for verb in ("GC", "STATUS"):
        for version in VERSIONS:
            config = dual_stack(node, version=version) | {"cni.dev/valid-attachments": []}
            answer = node.call(verb, config)
            if version in WITHOUT_GC:
                assert_refused(answer, 1, version, verb, "1.1.0")
            else:
                assert_ok(answer)


def test_a_version_that_nobody_speaks_is_code_1_with_the_list_of_ours(node: Node) -> None:
    for version in ("1.0", "v1.0.0", "2.0.0", "0.3.1 ", "1.1.0\n"):
        answer = node.call("ADD", network(node, V4, version=version), node.pod())
        assert_refused(answer, 1, "incompatible CNI versions", *VERSIONS)
        assert answer.json["cniVersion"] == "1.1.0"


def test_an_error_carries_the_version_of_the_configuration(node: Node) -> None:
    for version in VERSIONS:
        answer = node.call("ADD", {"cniVersion": version, "name": "../x", "type": "podwire"}, node.pod())
        assert refusal(answer)[0] == 7
        assert answer.json["cniVersion"] == version


def test_version_echoes_what_it_is_asked_and_lists_all_seven(node: Node) -> None:
    stdins = [(f'{{"cniVersion": "{version}"}}', version) for version in VERSIONS]
    stdins += [(garbage, "1.1.0") for garbage in ("", "not JSON", '{"cniVersion": "9.9.9"}', "[]", "{}")]
    for stdin, version in stdins:
        answer = node.call("VERSION", stdin)
        assert answer.status == 0
        assert answer.json == {"cniVersion": version, "supportedVersions": list(VERSIONS)}


@pytest.mark.parametrize("program", ["podwire", "podwire-ipam"])
def test_version_answers_with_its_stdin_closed(node: Node, program: str) -> None:
    shell = f"CNI_COMMAND=VERSION exec {node.bin_dir / program} <&-"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert '"supportedVersions"' in done.stdout
