"""stdin: what is no JSON object, keys in any case, null, and values of the wrong type."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.harness.answers import assert_refused, refusal, unchanged, warm
from tests.harness.networks import V4, dual_stack, network

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.node import Node

NOT_A_DOCUMENT = {
    "not JSON": (b"cniVersion: 1.1.0", "JSON"),
    "empty": (b"", "nothing"),
    "white space": (b" \n", "nothing"),
    "a list": (b"[]", "found a list"),
    "a string": (b'"x"', "found a string"),
    "a number": (b"1.5", "found a number"),
    "null": (b"null", "found null"),
    "two documents": (b"{}{}", "Extra data"),
    "deep": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "too deep"),
    "10 MB": (b'{"a": "' + b"x" * 10_000_000 + b'"}', "bytes or more"),
    "NaN": (b'{"mtu": NaN}', "NaN"),
    "Infinity": (b'{"mtu": -Infinity}', "Infinity"),
    "invalid UTF-8": (b'{"name": "\xff"}', "utf-8"),
    "UTF-16": ('{"name": "x"}'.encode("utf-16"), "utf-8"),
    "a number of 5000 digits": (b'{"mtu": ' + b"9" * 5000 + b"}", "digits"),
}


def test_what_is_no_json_object_is_code_6(node: Node) -> None:
    pod = node.pod()
    with unchanged(node):
        for stdin, word in NOT_A_DOCUMENT.values():
            assert_refused(node.call("ADD", stdin, pod), 6, "network configuration on stdin", word)
        for verb in ("DEL", "CHECK", "GC", "STATUS"):
            assert_refused(node.call(verb, b"", pod), 6, "nothing")


def test_stdin_that_cannot_be_read_is_code_5(node: Node, tmp_path: Path) -> None:
    script = tmp_path / "unreadable"
    script.write_text(f"#!/bin/sh\nexec {node.bin_dir}/podwire 0>{tmp_path}/out\n")
    script.chmod(0o755)
    assert_refused(node.call("ADD", "", node.pod(), program=str(script)), 5, "stdin")
    script.write_text(f"#!/bin/sh\nexec {node.bin_dir}/podwire <&-\n")
    assert_refused(node.call("ADD", "", node.pod(), program=str(script)), 6, "nothing")


def test_the_network_name_is_needed_by_every_verb_but_version(node: Node) -> None:
    pod = node.pod()
    for verb in ("ADD", "DEL", "CHECK", "GC", "STATUS"):
        config = {key: value for key, value in network(node, V4).items() if key != "name"}
        assert_refused(node.call(verb, config, pod), 7, "missing network name")
        assert_refused(node.call(verb, config | {"name": "../x"}, pod), 7, "network name", "../x")
    for name in ("", ".x", "a/b", "x\n", "a b", "\u00e9", "\ud800", "x\u0000"):
        assert refusal(node.call("ADD", json.dumps(network(node, V4) | {"name": name}), pod))[0] == 7
    assert not node.data_dir.exists()


def test_keys_match_in_any_case_and_exactly_first(node: Node) -> None:
    pod, config = node.pod(), dual_stack(node)
    ipam = config.pop("ipam")
    del config["bridge"]
    stdin = config | {"BRIDGE": "br7", "MTU": 1300, "mtu": 1400, "HairpinMode": True, "Mtu": "no number"}
    stdin["IPAM"] = {
        "TYPE": ipam["type"],
        "DataDir": ipam["dataDir"],
        "Ranges": [[{"Subnet": "10.22.0.0/24"}]],
    }
    stdin["Args"] = {"CNI": {"IPS": ["10.22.0.9"]}}
    result = node.add(stdin, pod)
    assert [each["mtu"] for each in result["interfaces"]] == [1400] * 3
    assert result["interfaces"][0]["name"] == "br7"
    assert result["ips"][0]["address"] == "10.22.0.9/24"
    node.delete(stdin, pod)
    assert node.held() == {}


def test_null_leaves_the_default_and_unknown_keys_are_ignored(node: Node) -> None:
    nothing = dict.fromkeys(
        ["mtu", "vlan", "vlanTrunk", "dns", "args", "runtimeConfig", "prevResult", "ipMasq"]
    )
    config = network(node, V4, isGateway=None, bridge=None, whatever={"x": [1]}, **nothing)
    config["ipam"] |= {"routes": None, "resolvConf": None, "subnet": None}
    result = node.add(config, node.pod())
    assert result["interfaces"][0] | {"mac": ""} == {"name": "cni0", "mtu": 1500, "mac": ""}


WRONG = [
    ("mtu", {"mtu": "1500"}),
    ("mtu", {"mtu": 1500.5}),
    ("mtu", {"mtu": True}),
    ("mtu", {"mtu": 10**30}),
    ("isGateway", {"isGateway": "true"}),
    ("isDefaultGateway", {"isDefaultGateway": 1}),
    ("hairpinMode", {"hairpinMode": []}),
    ("bridge", {"bridge": 5}),
    ("bridge", {"bridge": "a/b"}),
    ("bridge", {"bridge": "\ud800"}),
    ("bridge", {"bridge": "x" * 16}),
    ("vlan", {"vlan": "5"}),
    ("vlanTrunk", {"vlanTrunk": {"id": 5}}),
    ("vlanTrunk[1]", {"vlanTrunk": [{"id": 5}, 6]}),
    ("vlanTrunk[0].id", {"vlanTrunk": [{"id": 4095}]}),
    ("vlanTrunk[0]", {"vlanTrunk": [{"minID": 5}]}),
    ("minID", {"vlanTrunk": [{"minID": 9, "maxID": 5}]}),
    ("mode", {"mode": "wormhole"}),
    ("dns", {"dns": []}),
    ("dns.nameservers[0]", {"dns": {"nameservers": [1]}}),
    ("ipam", {"ipam": "podwire-ipam"}),
    ("ipam.type", {"ipam": {"type": 5}}),
    ("ipam.type", {"ipam": {"type": "../x"}}),
    ("args", {"args": []}),
    ("args.cni.mac", {"args": {"cni": {"mac": "02:00"}}}),
    ("args.cni.mac", {"args": {"cni": {"mac": "01:00:5e:00:00:01"}}}),
    ("args.cni.ips", {"args": {"cni": {"ips": "10.22.0.5"}}}),
    ("runtimeConfig", {"runtimeConfig": 1}),
    ("runtimeConfig.mac", {"runtimeConfig": {"mac": 5}}),
    ("runtimeConfig.ips", {"runtimeConfig": {"ips": ["10.22.0.300"]}}),
    ("runtimeConfig.ipRanges[0]", {"runtimeConfig": {"ipRanges": [{"subnet": "10.1.0.0/24"}]}}),
    ("runtimeConfig.dns.servers[0]", {"runtimeConfig": {"dns": {"servers": [7]}}}),
    ("cniVersion", {"cniVersion": 1}),
    ("prevResult", {"prevResult": []}),
    ("prevResult.ips[0].address", {"prevResult": {"ips": [{"address": "10.1.0.5"}]}}),
    ("prevResult.interfaces[0].name", {"prevResult": {"interfaces": [{"name": 5}]}}),
]
WRONG_IPAM = [
    ("ipam.ranges", {"ranges": {}}),
    ("ipam.ranges", {"ranges": []}),
    ("ipam.ranges[0]", {"ranges": [{"subnet": "10.22.0.0/24"}]}),
    ("subnet", {"ranges": [[{"subnet": 10}]]}),
    ("exclude", {"ranges": [[{"subnet": "10.22.0.0/24", "exclude": "10.22.0.8/30"}]]}),
    ("routes", {"routes": {}}),
    ("ipam.routes[0].dst", {"routes": [{"gw": "10.22.0.1"}]}),
    ("ipam.routes[0].dst", {"routes": [{"dst": "10.22.0.0/33"}]}),
    ("ipam.routes[0].gw", {"routes": [{"dst": "0.0.0.0/0", "gw": "x"}]}),
    ("ipam.routes[0]", {"routes": [{"dst": "0.0.0.0/0", "gw": "fd00::1"}]}),
    ("ipam.routes[0].mtu", {"routes": [{"dst": "0.0.0.0/0", "mtu": -1}]}),
    ("ipam.dataDir", {"dataDir": "relative"}),
    ("ipam.dataDir", {"dataDir": "/tmp/a\0b"}),
    ("ipam.dataDir", {"dataDir": "/tmp/\ud800"}),
    ("ipam.dataDir", {"dataDir": 5}),
]


def test_a_wrong_value_is_code_7_that_names_its_key_and_nothing_is_made(node: Node) -> None:
    """On a node that has no bridge yet: configuration errors come before what attachments share."""
    pod, config = node.pod(), dual_stack(node)
    cases = [(key, config | extra) for key, extra in WRONG]
    cases += [(key, config | {"ipam": config["ipam"] | extra}) for key, extra in WRONG_IPAM]
    with unchanged(node):
        answers = [(key, stdin, refusal(node.call("ADD", json.dumps(stdin), pod))) for key, stdin in cases]
        assert [a for a in answers if a[2][0] != 7 or a[0] not in a[2][1]] == []
    assert list(pod.links()) == ["lo"]
    assert not node.data_dir.exists()


def test_a_resolv_conf_that_cannot_be_read_leaves_no_link_and_no_address(node: Node) -> None:
    pod, config = node.pod(), dual_stack(node)
    warm(node)
    with unchanged(node):
        for path in ("/nowhere/resolv.conf", "/tmp/a\0b"):
            stdin = config | {"ipam": config["ipam"] | {"resolvConf": path}}
            assert_refused(node.call("ADD", stdin, pod), 7, "ipam.resolvConf")
