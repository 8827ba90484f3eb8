"""Host ports in the kernel: whose they are, what is left of them, and what is refused."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import in_process
from tests.harness.answers import assert_ok, assert_refused, unchanged, warm
from tests.harness.hostports import DNS, WEB, call_portmap, chain, elements, map_ports, mapped
from tests.harness.networks import call_reference, dual_stack, eventually, host_end, network, reference

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.node import Node, Pod

# A bridge of the Go plugins has its own names; so has every port a comment.
FOREIGN = """
table ip nat {
    map ports { type inet_service : ipv4_addr; elements = { 8080 : 198.18.0.1 } }
    chain PREROUTING { type nat hook prerouting priority dstnat; policy accept;
        ip daddr 198.18.0.0/15 dnat to tcp dport map @ports;
    }
}
table inet filter {
    set admins { type ipv4_addr; elements = { 192.0.2.77 } }
    chain input { type filter hook input priority filter; policy accept; ip saddr @admins accept; }
}
"""
CHAINS = ("hostport_", "hostport_prerouting_", "hostport_output_", "hostport_postrouting_")


def attached(node: Node, *entries: dict[str, Any], **keys: Any) -> tuple[dict[str, Any], Pod, dict[str, Any]]:
    config, pod = mapped(node, *entries, **keys), node.pod()
    return config, pod, node.add(config, pod)


def refused_for(node: Node, holder: Pod, *entries: dict[str, Any], **keys: Any) -> None:
    """Assert that nobody else gets these ports, and that the answer names their holder."""
    answer = node.call("ADD", mapped(node, *entries, **keys), node.pod())
    assert_refused(answer, 11, holder.container_id, "8080/tcp")


def test_a_port_is_an_element_per_family_and_a_pod_one_per_address(node: Node) -> None:
    _, pod, _ = attached(node, WEB, DNS)
    found = elements(node)
    assert len(found) == 6
    assert all(f"{pod.container_id} eth0" in line for line in found)


@in_process
def test_sctp_is_mapped_as_tcp_is(node: Node) -> None:
    """There are no sockets of it here: what is compared is the element as nft shows it."""
    attached(node, {**WEB, "protocol": "sctp"})
    found = [line.partition(" comment")[0] + line.rpartition('"')[2] for line in elements(node, "sctp")]
    assert found == ["sctp . 8080 : 10.22.0.2 . 80", "sctp . 8080 : fd00:22::2 . 80"]


@in_process
def test_without_port_mappings_nothing_is_made(node: Node) -> None:
    for runtime in ({}, {"portMappings": []}, {"portMappings": None}):
        node.add(dual_stack(node) | {"runtimeConfig": runtime}, node.pod())
    result = node.add(dual_stack(node, version="1.0.0"), pod := node.pod())
    map_ports(node, chain(), result, pod)
    assert "hostport" not in node.run("nft", "list", "ruleset").stdout


@in_process
def test_the_result_is_passed_on_as_it_came(node: Node) -> None:
    pod = node.pod()
    result = node.add(dual_stack(node, version="1.0.0"), pod)
    answer = call_portmap(node, "ADD", chain(WEB) | {"prevResult": result}, pod)
    assert answer.json == result


@pytest.mark.parametrize(
    "lost", ["nothing", "prevResult", "namespace", "link", "ports", "port list", "configuration", "all"]
)
def test_nothing_is_left_whatever_is_missing_at_del(node: Node, lost: str) -> None:
    warm(node)
    kept_config, kept, kept_result = attached(node, {**WEB, "hostPort": 8081})
    node.delete(kept_config | {"prevResult": kept_result}, kept)
    with unchanged(node):
        config, pod, result = attached(node, WEB, DNS, {**WEB, "hostIP": "192.0.2.1", "hostPort": 81})
        asked = {**config, "prevResult": result}
        if lost in {"prevResult", "all"}:
            del asked["prevResult"]
        if lost in {"ports", "all"}:
            del asked["runtimeConfig"]
        if lost == "port list":
            asked["runtimeConfig"] = {"portMappings": []}
        if lost == "configuration":
            asked |= {"runtimeConfig": {"portMappings": [{"hostPort": "x"}]}, "snat": 7, "backend": "pf"}
        if lost == "link":
            node.run("ip", "link", "del", host_end(result))
        if lost in {"namespace", "all"}:
            pod.remove()
        node.delete(asked, pod)


OTHER_LISTS = {
    "one of two": [WEB],
    "none of them": [{**WEB, "hostPort": 9090}],
    "as many others": [{**WEB, "hostPort": 9090}, {**WEB, "hostPort": 9091}],
    "more": [WEB, {**WEB, "hostPort": 8081}, {**WEB, "hostPort": 9090}],
    "another family": [WEB | {"hostIP": "::"}, {**WEB, "hostPort": 8081, "hostIP": "::"}],
}


@pytest.mark.parametrize("case", OTHER_LISTS)
@in_process
def test_del_with_another_list_of_ports_than_add_leaves_none(node: Node, case: str) -> None:
    """As a runtime has it whose configuration was changed in between."""
    before = elements(node)
    pod = node.pod()
    plain = dual_stack(node, version="1.0.0")
    result = node.add(plain, pod)
    map_ports(node, chain(WEB, {**WEB, "hostPort": 8081}), result, pod)
    asked = chain(*OTHER_LISTS[case]) | {"prevResult": result}
    assert_ok(call_portmap(node, "DEL", asked, pod))
    assert elements(node) == before
    node.delete(plain | {"prevResult": result}, pod)


def test_a_chained_del_needs_nothing_but_names(node: Node) -> None:
    pod = node.pod()
    result = node.add(dual_stack(node, version="1.0.0"), pod)
    map_ports(node, chain(WEB, DNS), result, pod)
    bare = {"cniVersion": "1.0.0", "name": "test", "type": "portmap"}
    for _ in range(2):
        assert_ok(call_portmap(node, "DEL", bare, pod, environ={"CNI_NETNS": None}))
        assert elements(node) == []


CONFLICTS = {
    "any twice": ({}, {}),
    "any, then one address": ({}, {"hostIP": "192.0.2.1"}),
    "one address, then any": ({"hostIP": "192.0.2.1"}, {}),
    "one address twice": ({"hostIP": "2001:db8::1"}, {"hostIP": "2001:db8::1"}),
    "0.0.0.0 is any": ({"hostIP": "0.0.0.0"}, {"hostIP": "192.0.2.1"}),
    "within a range": ({}, {"hostPort": 8070, "hostPortEnd": 8090}),
}


@pytest.mark.parametrize("case", CONFLICTS)
@in_process
def test_a_port_of_another_pod_is_refused_and_he_is_named(node: Node, case: str) -> None:
    first, second = CONFLICTS[case]
    config = mapped(node, WEB | first)
    holder = node.pod()
    named = {"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0"}
    node.add(config, holder, environ=named)
    before = elements(node)
    answer = node.call("ADD", mapped(node, WEB | second), node.pod())
    assert_refused(answer, 11, holder.container_id, "shop/web-0", "8080/tcp")
    assert elements(node) == before
    assert len(node.held()) == 2


@pytest.mark.parametrize("keys", [{"snat": False}, {"conditionsV4": ["iifname", "u0"]}, {"masqAll": True}])
@in_process
def test_ports_conflict_however_they_are_treated(node: Node, keys: dict[str, Any]) -> None:
    _, holder, _ = attached(node, WEB)
    refused_for(node, holder, WEB, **keys)


@in_process
def test_what_two_sockets_could_have_two_pods_can(node: Node) -> None:
    for entry in (
        WEB,
        WEB | {"protocol": "udp"},
        WEB | {"hostPort": 8081, "hostIP": "192.0.2.1"},
        WEB | {"hostPort": 8081, "hostIP": "192.0.2.2"},
        WEB | {"hostPort": 8081, "hostIP": "::"},
    ):
        attached(node, entry)


AT = {"hostIP": "192.0.2.1"}
SECOND: dict[str, str | None] = {"CNI_IFNAME": "eth1"}


def attached_twice(
    node: Node, first: dict[str, Any], second: dict[str, Any]
) -> tuple[Pod, list[dict[str, Any]], str]:
    """Attach a container to two networks, as a runtime that asks for its ports on both.

    Return the configurations for the other verbs and what the second ADD said on stderr.
    """
    config, pod, result = attached(node, first)
    other = network(node, [{"subnet": "10.23.0.0/24"}], name="other", bridge="cni1", isGateway=True)
    other |= {"runtimeConfig": {"portMappings": [second]}}
    answer = node.call("ADD", other, pod, environ=SECOND)
    assert answer.status == 0, answer.stdout
    return pod, [config | {"prevResult": result}, other | {"prevResult": answer.json}], answer.stderr


@pytest.mark.parametrize(("first", "second"), [({}, {}), ({}, AT), (AT, AT)])
@in_process
def test_of_a_containers_networks_the_first_has_the_port_until_it_goes(
    node: Node, first: dict[str, Any], second: dict[str, Any]
) -> None:
    pod, (one, two), said = attached_twice(node, WEB | first, WEB | second)
    assert "8080/tcp" in said
    ports = elements(node, ". 8080 comment")
    assert {line in elements(node, f" {pod.container_id} eth0") for line in ports} == {True}
    assert_ok(node.call("CHECK", one, pod))
    assert_ok(node.call("CHECK", two, pod, environ=SECOND))
    node.delete(two, pod, environ=SECOND)
    assert elements(node, ". 8080 comment") == ports
    assert elements(node, "eth1") == []
    assert_ok(node.call("CHECK", one, pod))
    node.delete(one, pod)
    assert elements(node, pod.container_id) == []


@in_process
def test_when_the_first_of_a_containers_networks_goes_its_port_is_free(node: Node) -> None:
    pod, (one, two), _ = attached_twice(node, WEB, WEB)
    node.delete(one, pod)
    assert elements(node, ". 8080 comment") == []
    assert_refused(node.call("CHECK", two, pod, environ=SECOND), 100, "found none")
    attached(node, WEB)
    node.delete(two, pod, environ=SECOND)
    assert len(elements(node, ". 8080 comment")) == 2
    assert elements(node, pod.container_id) == []


@in_process
def test_a_port_of_one_address_leaves_those_of_others_to_the_next_network(node: Node) -> None:
    pod, (one, two), said = attached_twice(node, WEB | AT, WEB)
    assert said == ""
    assert len(elements(node, ". 8080 comment")) == 2
    assert_ok(node.call("CHECK", one, pod))
    assert_ok(node.call("CHECK", two, pod, environ=SECOND))


def test_a_port_whose_holder_has_no_link_any_more_is_taken_over(node: Node) -> None:
    """As a namespace leaves it behind that went without a DEL; treated as another, too."""
    config, dead, result = attached(node, WEB, snat=False)
    dead.remove()
    gone = host_end(result)
    assert eventually(lambda: gone in node.links(), wanted=False) is False
    _, heir, _ = attached(node, WEB)
    assert all(heir.container_id in line for line in elements(node, "8080"))
    node.delete(config | {"prevResult": result}, dead)
    assert len(elements(node, heir.container_id)) == 4
    assert elements(node, dead.container_id) == []


@in_process
def test_a_pod_of_the_go_bridge_keeps_its_port_while_it_lives(node: Node) -> None:
    config, holder = reference(node), node.pod()
    result = call_reference(node, "ADD", config, holder).json
    map_ports(node, chain(WEB), result, holder)
    refused_for(node, holder, WEB)
    node.run("ip", "link", "set", host_end(result), "down")
    node.run("ip", "link", "set", host_end(result), "name", "renamed0")
    refused_for(node, holder, WEB)
    node.run("ip", "link", "del", "renamed0")
    attached(node, WEB)


@in_process
def test_a_pod_whose_link_nobody_knows_keeps_its_port(node: Node) -> None:
    """An interface that is no veth has no end on the host that would tell when the pod dies."""
    pod = node.pod()
    pod.run("ip", "tuntap", "add", "dev", "eth0", "mode", "tap")
    result = {
        "interfaces": [{"name": "eth0", "sandbox": pod.path}],
        "ips": [{"address": "198.51.100.7/24", "interface": 0}],
    }
    map_ports(node, chain(WEB), result, pod)
    pod.run("ip", "link", "del", "eth0")
    refused_for(node, pod, WEB)


def test_a_late_del_leaves_the_port_and_the_address_to_whom_they_were_given(node: Node) -> None:
    config, first, result = attached(node, WEB, DNS)
    node.delete(config | {"prevResult": result}, first)
    for name in (node.data_dir / "test").glob("last_reserved_ip.*"):
        name.unlink()
    _, second, again = attached(node, WEB, DNS)
    assert again["ips"] == result["ips"]
    before = elements(node)
    for asked in (config | {"prevResult": result}, config, dual_stack(node)):
        assert_ok(node.call("DEL", asked, first))
    assert elements(node) == before
    assert all(second.container_id in line for line in before)


@in_process
def test_an_element_that_was_made_by_hand_stays(node: Node) -> None:
    attached(node, DNS)
    name = named(node, "map hostport4_")
    node.run("nft", "add", "element", "inet", "podwire", name, "{ tcp . 8080 : 198.18.0.1 . 80 }")
    answer = node.call("ADD", mapped(node, WEB), node.pod())
    assert_refused(answer, 11, "8080/tcp", "without a comment")
    assert "198.18.0.1" in node.run("nft", "list", "ruleset").stdout


@in_process
def test_a_failed_add_gives_its_ports_back(node: Node) -> None:
    _, holder, _ = attached(node, WEB)
    before = elements(node)
    refused_for(node, holder, DNS, WEB)
    assert elements(node) == before


@in_process
def test_one_may_ask_for_the_same_port_twice_but_not_for_two_targets(node: Node) -> None:
    attached(node, WEB, WEB)
    answer = node.call("ADD", mapped(node, DNS, DNS | {"ContainerPort": 54}), node.pod())
    assert_refused(answer, 7, "runtimeConfig.portMappings[1]", "5353/udp")


@in_process
def test_only_the_families_and_the_interface_of_the_pod_count(node: Node) -> None:
    config = network(node, [{"subnet": "10.22.0.0/24"}], isGateway=True)
    node.add(
        config | {"runtimeConfig": {"portMappings": [WEB, WEB | {"hostIP": "::", "hostPort": 1}]}}, node.pod()
    )
    assert [line.split(" comment")[0] for line in elements(node)] == ["tcp . 8080", "10.22.0.2 . 10.22.0.2"]
    pod = node.pod()
    result = node.add(dual_stack(node, version="1.0.0"), pod)
    result["interfaces"].append({"name": "eth1", "sandbox": pod.path})
    result["ips"].insert(0, {"address": "198.51.100.9/24", "interface": 3})
    map_ports(node, chain(DNS), result, pod)
    assert "198.51.100.9" not in node.run("nft", "list", "ruleset").stdout


@in_process
def test_what_others_own_is_never_touched(node: Node) -> None:
    node.run("nft", "-f", "-", input=FOREIGN)
    before = node.run("nft", "list", "ruleset").stdout
    config, pod, result = attached(node, WEB, DNS)
    assert node.run("nft", "list", "ruleset").stdout.startswith(before)
    node.delete({**config, "prevResult": result}, pod)
    node.run("nft", "delete", "table", "inet", "podwire")
    assert node.run("nft", "list", "ruleset").stdout == before


def test_gc_takes_the_ports_of_what_is_not_listed_and_no_others(node: Node) -> None:
    attached(node, DNS)
    _, kept, _ = attached(node, WEB)
    listed = [{"containerID": kept.container_id, "ifname": "eth0"}]
    asked = {"cniVersion": "1.1.0", "name": "test", "type": "portmap", "cni.dev/valid-attachments": listed}
    other = asked | {"name": "other", "cni.dev/valid-attachments": []}
    assert_ok(call_portmap(node, "GC", other))
    assert len(elements(node)) == 8
    assert_ok(call_portmap(node, "GC", asked))
    assert [kept.container_id in line for line in elements(node)] == [True] * 4


def test_check_names_the_element_that_is_gone(node: Node) -> None:
    config, pod, result = attached(node, WEB, DNS)
    assert_ok(node.check(config, result, pod))
    name = named(node, "map hostport6_")
    node.run("nft", "delete", "element", "inet", "podwire", name, "{ udp . 5353 }")
    assert_refused(node.check(config, result, pod), 100, name, "found none")


def named(node: Node, declaration: str) -> str:
    """Return the name of the set, map or chain whose declaration begins so."""
    lines = (line.strip() for line in node.run("nft", "list", "ruleset").stdout.splitlines())
    return next(line.split()[1] for line in lines if line.startswith(declaration) and "at_" not in line)


@pytest.mark.parametrize("prefix", [*CHAINS, "hostport_guard"])
@in_process
def test_check_finds_a_changed_chain_and_the_next_add_mends_it(node: Node, prefix: str) -> None:
    config, pod, result = attached(node, WEB)
    chains = json.loads(node.run("nft", "-j", "list", "chains").stdout)["nftables"]
    names = sorted(each["chain"]["name"] for each in chains if "chain" in each)
    name = next(
        n for n in names if n.startswith(prefix) and (n == prefix or n.count("_") == prefix.count("_"))
    )
    before = node.run("nft", "list", "chain", "inet", "podwire", name).stdout
    node.run("nft", "flush", "chain", "inet", "podwire", name)
    assert_refused(node.check(config, result, pod), 100, name)
    attached(node, DNS)
    assert_ok(node.check(config, result, pod))
    assert node.run("nft", "list", "chain", "inet", "podwire", name).stdout == before


def test_check_finds_the_switches_off(node: Node) -> None:
    config, pod, result = attached(node, WEB)
    node.run("ip", "link", "set", host_end(result), "type", "bridge_slave", "hairpin", "off")
    assert_refused(node.check(config, result, pod), 100, host_end(result), "hairpin")
    node.run("ip", "link", "set", host_end(result), "type", "bridge_slave", "hairpin", "on")
    node.run("sysctl", "-qw", "net.ipv4.conf.cni0.route_localnet=0")
    assert_refused(node.check(config, result, pod), 100, "cni0/route_localnet")


MAPPING = "runtimeConfig.portMappings[0]"
BAD = {
    "host port 0": ([WEB | {"hostPort": 0}], {}, f"{MAPPING}.hostPort"),
    "host port 65536": ([WEB | {"hostPort": 65536}], {}, f"{MAPPING}.hostPort"),
    "host port negative": ([WEB | {"hostPort": -1}], {}, f"{MAPPING}.hostPort"),
    "host port as text": ([WEB | {"hostPort": "80"}], {}, f"{MAPPING}.hostPort"),
    "host port true": ([WEB | {"hostPort": True}], {}, f"{MAPPING}.hostPort"),
    "no host port": ([{"containerPort": 80, "protocol": "tcp"}], {}, f"{MAPPING}.hostPort"),
    "no container port": ([{"hostPort": 80, "protocol": "tcp"}], {}, f"{MAPPING}.containerPort"),
    "container port 0": ([WEB | {"containerPort": 0}], {}, f"{MAPPING}.containerPort"),
    "ranges differ": ([WEB | {"hostPortEnd": 8082, "containerPortEnd": 81}], {}, f"{MAPPING}.containerPort"),
    "range to a port": ([WEB | {"containerPortEnd": 81}], {}, f"{MAPPING}.containerPort"),
    "range backwards": ([WEB | {"hostPortEnd": 8079}], {}, f"{MAPPING}.hostPortEnd"),
    "range past the end": (
        [WEB | {"containerPort": 65535, "hostPortEnd": 8081}],
        {},
        f"{MAPPING}.containerPort",
    ),
    "range too long": ([WEB | {"hostPortEnd": 10000}], {}, MAPPING),
    "ranges too many": (
        [{**WEB, "hostPortEnd": 9000}, {**WEB, "hostPort": 10000, "hostPortEnd": 10900}],
        {},
        "1024",
    ),
    "protocol": ([WEB | {"protocol": "icmp"}], {}, f"{MAPPING}.protocol"),
    "host address": ([WEB | {"hostIP": "localhost"}], {}, f"{MAPPING}.hostIP"),
    "host address ::1": ([WEB | {"hostIP": "::1"}], {}, "::1"),
    "localhost without snat": ([WEB | {"hostIP": "127.0.0.1"}], {"snat": False}, "snat"),
    "entry": (["8080:80"], {}, MAPPING),
    "list": ({"hostPort": 80}, {}, "runtimeConfig.portMappings"),
    "snat": ([WEB], {"snat": "yes"}, "snat"),
    "masqAll": ([WEB], {"masqAll": 1}, "masqAll"),
    "bit": ([WEB], {"markMasqBit": 32}, "markMasqBit"),
    "backend": ([WEB], {"backend": "iptables"}, "nftables"),
    "unknown backend": ([WEB], {"backend": "pf"}, "nftables"),
    "conditions that end": ([WEB], {"conditionsV4": ["accept;", "counter"]}, "conditionsV4"),
    "conditions of two lines": ([WEB], {"conditionsV6": ["accept\n"]}, "conditionsV6"),
    "conditions that hide": ([WEB], {"conditionsV6": ["accept", "#"]}, "conditionsV6"),
    "conditions of no rule": ([WEB], {"conditionsV4": ["frob", "1"]}, "frob"),
    "conditions that close": ([WEB], {"conditionsV4": ["}", "chain", "x", "{"]}, "conditionsV4"),
    "conditions that quote": ([WEB], {"conditionsV4": ["iifname", '"u0']}, "conditionsV4"),
    "conditions of iptables": ([WEB], {"conditionsV4": ["-i", "u0"]}, "conditionsV4"),
}


@pytest.mark.parametrize("case", BAD)
@in_process
def test_bad_keys_are_refused_before_anything_is_made(node: Node, case: str) -> None:
    entries, keys, said = BAD[case]
    asked = dual_stack(node, **keys) | {"runtimeConfig": {"portMappings": entries}}
    with unchanged(node):
        assert_refused(node.call("ADD", asked, node.pod()), 7, said)


CHAINED = {
    "iptables option": ({"conditionsV4": ["-m", "set"]}, 2, "conditionsV4"),
    "option without value": ({"conditionsV6": ["-s"]}, 2, "conditionsV6"),
    "other family": ({"conditionsV6": ["-s", "10.0.0.0/8"]}, 7, "conditionsV6"),
    "two marks": ({"externalSetMarkChain": "KUBE", "markMasqBit": 3}, 7, "externalSetMarkChain"),
}


@pytest.mark.parametrize("case", CHAINED)
@in_process
def test_what_iptables_alone_can_is_refused_by_name(node: Node, case: str) -> None:
    keys, code, said = CHAINED[case]
    pod = node.pod()
    result = node.add(dual_stack(node, version="1.0.0"), pod)
    with unchanged(node):
        answer = call_portmap(node, "ADD", chain(WEB, **keys) | {"prevResult": result}, pod)
        assert_refused(answer, code, said)


@pytest.mark.parametrize("keys", [{"backend": "iptables"}, {"externalSetMarkChain": "KUBE-MARK-MASQ"}])
def test_the_references_iptables_is_served_with_a_warning(node: Node, keys: dict[str, Any]) -> None:
    pod = node.pod()
    result = node.add(dual_stack(node, version="1.0.0"), pod)
    answer = call_portmap(node, "ADD", chain(WEB, **keys) | {"prevResult": result}, pod)
    assert answer.status == 0, answer.stdout
    assert answer.stderr.count("\n") == 1
    assert "nftables" in answer.stderr
    assert len(elements(node)) == 4
    asked = mapped(node, WEB, externalSetMarkChain="KUBE-MARK-MASQ")
    assert_refused(node.call("ADD", asked, node.pod()), 2, "externalSetMarkChain")


def test_without_prev_result_the_chain_is_refused(node: Node) -> None:
    assert_refused(call_portmap(node, "ADD", chain(WEB), node.pod()), 7, "prevResult")


@in_process
def test_a_thousand_ports_come_and_go_at_once(node: Node) -> None:
    entry = WEB | {"hostPort": 20000, "hostPortEnd": 21023, "containerPort": 1000}
    config, pod, result = attached(node, entry)
    assert len(elements(node, "tcp . ")) == 2048
    node.delete({**config, "prevResult": result}, pod)
    assert elements(node) == []


@in_process
def test_without_nft_nothing_is_made_and_status_says_why(node: Node, tmp_path: Path) -> None:
    (tmp_path / "nsenter").symlink_to(shutil.which("nsenter"))
    nowhere = {"PATH": str(tmp_path)}
    status = {"cniVersion": "1.1.0", "name": "test", "type": "portmap"}
    assert_ok(call_portmap(node, "STATUS", status))
    assert_refused(call_portmap(node, "STATUS", status, environ=nowhere), 50, "nft")
    with unchanged(node):
        assert_refused(node.call("ADD", mapped(node, WEB), node.pod(), environ=nowhere), 50, "nft")


def test_a_container_with_long_names_has_its_port_on_several_networks(node: Node) -> None:
    """The comments of the elements have no room for them: identities are compared."""
    pod = node.pod()
    names = {"CNI_CONTAINERID": "default-" + "ab" * 32}
    configs = [mapped(node, WEB) | {"name": f"{'network' * 6}{i}", "bridge": f"cni{i}"} for i in (0, 1)]
    configs[1]["ipam"]["ranges"] = [[{"subnet": "10.23.0.0/24"}]]
    environs = [names | {"CNI_IFNAME": f"eth{i}"} for i in (0, 1)]
    results = [node.add(config, pod, environ=e) for config, e in zip(configs, environs, strict=True)]
    for config, result, environ in zip(configs, results, environs, strict=True):
        assert node.check(config, result, pod, environ=environ).status == 0
    other = mapped(node, WEB) | {"name": "other"}
    assert (
        node.call("ADD", other, node.pod(), environ={"CNI_CONTAINERID": "default-" + "ac" * 32}).status == 1
    )
    for config, environ in zip(configs, environs, strict=True):
        node.delete(config, pod, environ=environ)
