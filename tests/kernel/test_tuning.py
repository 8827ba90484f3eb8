"""`tuning`: what is set is what was asked, within what is allowed, and DEL sets back what was before."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import in_process
from tests.harness.answers import assert_ok, assert_refused, unchanged, warm
from tests.harness.chain import REFERENCE, Chain, install_as
from tests.harness.networks import dual_stack, reference, routed

if TYPE_CHECKING:
    from tests.harness.node import Node, Pod

MAC = "02:AB:00:00:00:01"
SYSCTLS = {
    "net.core.somaxconn": "555",
    "net.ipv4.ip_local_port_range": "20000 30000",
    "net.ipv4.conf.IFNAME.arp_ignore": "1",
    "net/ipv6/conf/IFNAME/hop_limit": "33",
}
EVERYTHING = {"mac": MAC, "mtu": 1400, "promisc": True, "allmulti": True, "txQLen": 77, "sysctl": SYSCTLS}


def tuned(node: Node, bridge: str = "ours", **keys: Any) -> Chain:
    """Return a chain of tuning behind a bridge, ours or the Go reference's."""
    names = ("tuning", "bridge", "host-local") if bridge == "ours" else ("tuning",)
    first = {key: value for key, value in reference(node).items() if key not in {"name", "cniVersion"}}
    plugin = {"type": "tuning", "dataDir": str(node.tmp / "kept")} | keys
    return Chain(node=node, plugins=[first, plugin], path=[install_as(node, *names), REFERENCE])


def sysctl(pod: Pod, key: str) -> str:
    path = key if "/" in key else key.replace(".", "/")
    return " ".join(pod.run("cat", f"/proc/sys/{path}").stdout.split())


def state(node: Node, pod: Pod, ifname: str = "eth0") -> dict[str, Any]:
    """Return everything that is tuned, as iproute2 and sysctl show it."""
    link = pod.links()[ifname]
    outside = next(each for each in node.links().values() if each["ifname"].startswith("veth"))
    return {
        "mac": link["address"],
        "mtu": (link["mtu"], outside["mtu"]),
        "promisc": "PROMISC" in link["flags"],
        "allmulti": "ALLMULTI" in link["flags"],
        "txQLen": link.get("txqlen", 0),
        "sysctl": [sysctl(pod, key.replace(".", "/").replace("IFNAME", ifname)) for key in SYSCTLS],
    }


def kept(node: Node) -> list[str]:
    return [path.name for path in node.tmp.rglob("*.json*")]


def bridged(chain: Chain, pod: Pod) -> dict[str, Any]:
    """ADD only what is before tuning in the chain; return its result."""
    answer = chain.call("ADD", chain.plugins[0], pod)
    assert answer.status == 0, answer.stdout
    return answer.json


@pytest.mark.parametrize("bridge", ["ours", "reference"])
def test_everything_is_set_told_checked_and_set_back(node: Node, bridge: str) -> None:
    chain, pod = tuned(node, bridge, **EVERYTHING), node.pod()
    previous = bridged(chain, pod)
    before = state(node, pod)
    answer = chain.call("ADD", chain.plugins[1], pod, previous)
    assert answer.status == 0, answer.stdout
    assert state(node, pod) == {
        "mac": MAC.lower(),
        "mtu": (1400, 1400),
        "promisc": True,
        "allmulti": True,
        "txQLen": 77,
        "sysctl": list(SYSCTLS.values()),
    }
    names = {each["name"]: each["mac"] for each in answer.json["interfaces"]}
    assert names == {each["name"]: each["mac"] for each in previous["interfaces"]} | {"eth0": MAC.lower()}
    assert_ok(chain.check(pod, answer.json))
    assert pod.ping("10.22.0.1")
    assert kept(node) == [f"{pod.container_id}_eth0.json"]
    assert_ok(chain.call("DEL", chain.plugins[1], pod, answer.json))
    assert state(node, pod) == before
    assert kept(node) == []
    assert_ok(chain.call("DEL", chain.plugins[0], pod, answer.json))


def test_the_main_plugin_sets_sysctls_before_its_link_comes_up(node: Node) -> None:
    """Whether a link makes itself a link-local address is decided when it comes up."""
    keys = {"sysctl": {"net.ipv6.conf.IFNAME.addr_gen_mode": "1", "net.core.somaxconn": "555"}}
    pod, config = node.pod(), dual_stack(node, **keys)
    before = sysctl(pod, "net.core.somaxconn")
    result = node.add(config, pod)
    assert "fe80" not in pod.run("ip", "addr", "show", "dev", "eth0").stdout
    assert pod.ping("10.22.0.1")
    assert_ok(node.check(config, result, pod))
    pod.run("sysctl", "-qw", "net.core.somaxconn=556")
    assert_refused(node.check(config, result, pod), 100, "net/core/somaxconn", "555", "556")
    node.delete(config, pod)
    assert (sysctl(pod, "net.core.somaxconn"), kept(node)) == (before, [])


def test_what_the_main_plugin_sets_itself_does_not_win(node: Node) -> None:
    config = dual_stack(node, sysctl={"net.ipv6.conf.IFNAME.accept_dad": "1"})
    pod = node.pod()
    assert_ok(node.check(config, node.add(config, pod), pod))
    assert sysctl(pod, "net.ipv6.conf.eth0.accept_dad") == "1"


@in_process
@pytest.mark.parametrize("lost", ["nothing", "prevResult", "namespace", "link", "configuration"])
@pytest.mark.parametrize("form", ["built in", "chained"])
def test_nothing_is_left_whatever_is_missing_at_del(node: Node, form: str, lost: str) -> None:
    warm(node)
    with unchanged(node):
        keys = {"sysctl": SYSCTLS} if form == "built in" else EVERYTHING
        config, pod = dual_stack(node, sysctl=SYSCTLS) if form == "built in" else dual_stack(node), node.pod()
        before = sysctl(pod, "net.core.somaxconn")
        result = node.add(config, pod)
        last = {"cniVersion": "1.1.0", "name": "test", "type": "tuning", "dataDir": str(node.tmp / "kept")}
        program = f"{install_as(node, 'tuning')}/tuning"
        if form == "chained":
            result = node.add({**last, **keys, "prevResult": result}, pod, program=program)
        assert kept(node) == [f"{pod.container_id}_eth0.json"]
        asked: dict[str, Any] = {} if lost == "prevResult" else {"prevResult": result}
        if lost == "configuration":
            keys = {"sysctl": 5, "mac": "x", "promisc": 7}
        if lost == "link":
            pod.run("ip", "link", "del", "eth0")
        if lost == "namespace":
            pod.remove()
        if form == "chained":
            node.delete({**last, **keys, **asked}, pod, program=program)
        node.delete({**config, **(keys if form == "built in" else {}), **asked}, pod)
        assert kept(node) == []
        if lost != "namespace":
            assert sysctl(pod, "net.core.somaxconn") == before


def formed(node: Node, form: str, **keys: Any) -> Chain:
    """Return a network whose pods get the keys by `tuning` in a chain, or by the main plugin."""
    if form == "chained":
        return tuned(node, **keys)
    path = [install_as(node, "podwire"), str(node.bin_dir)]
    return Chain(node=node, plugins=[routed(node, **keys)], path=path)


FORMS = pytest.mark.parametrize("form", ["built in", "chained"])


@in_process
@FORMS
@pytest.mark.parametrize("leaves", ["eth0", "net1"])
def test_a_sysctl_of_two_attachments_is_set_back_when_the_last_one_leaves(
    node: Node, form: str, leaves: str
) -> None:
    chain, pod = formed(node, form, sysctl=SYSCTLS), node.pod()
    before = sysctl(pod, "net.core.somaxconn")
    results: dict[str, Any] = {}
    for name in ("eth0", "net1"):
        chain.environ = {"CNI_IFNAME": name}
        results[name] = chain.add(pod)
    for name in (leaves, *(results.keys() - {leaves})):
        chain.environ = {"CNI_IFNAME": name}
        assert_ok(chain.check(pod, results[name]))
        chain.delete(pod, results[name])
    assert (sysctl(pod, "net.core.somaxconn"), kept(node)) == (before, [])


@in_process
@FORMS
def test_a_failed_attachment_takes_back_what_it_set_beside_another(node: Node, form: str) -> None:
    chain, pod = formed(node, form, sysctl={"net.core.somaxconn": "555"}), node.pod()
    before, result = sysctl(pod, "net.core.somaxconn"), chain.add(pod)
    wrong = formed(node, form, sysctl={"net.core.somaxconn": "666", "net.ipv4.ip_forward": "much"})
    wrong.environ = {"CNI_IFNAME": "net1"}
    assert_refused(wrong.try_add(pod), 999, "net/ipv4/ip_forward")
    assert_ok(chain.check(pod, result))
    chain.delete(pod, result)
    assert (sysctl(pod, "net.core.somaxconn"), kept(node)) == (before, [])


@in_process
@FORMS
def test_a_sysctl_that_cannot_be_read_is_written_and_compared_as_far_as_it_can_be(
    node: Node, form: str
) -> None:
    """A secret that nobody has set yet is an error of reading, and a trigger is never read."""
    secret = "net/ipv6/conf/eth0/stable_secret"
    asked = {"net.ipv6.conf.IFNAME.stable_secret": "2001:DB8::1", "net.ipv4.route.flush": "1"}
    chain, pod = formed(node, form, sysctl=asked), node.pod()
    result = chain.add(pod)
    assert sysctl(pod, secret) == "2001:0db8:0000:0000:0000:0000:0000:0001"
    assert_ok(chain.check(pod, result))
    pod.run("sysctl", "-qw", f"{secret}=2001:db8::2")
    assert_refused(chain.call("CHECK", chain.plugins[-1], pod, result), 100, "stable_secret", "2001:DB8::1")
    chain.delete(pod, result)
    assert kept(node) == []


@pytest.mark.parametrize("ours_adds", [True, False], ids=["ours-adds", "reference-adds"])
def test_ours_and_the_references_set_back_what_the_other_set(node: Node, ours_adds: bool) -> None:
    # Debian's 1.1.1 knows no txQLen, sets no MTU of the host's end, and sets no sysctl back.
    ours = tuned(node, "reference", mac=MAC, promisc=True, allmulti=True)
    theirs = Chain(node=node, plugins=ours.plugins, path=[REFERENCE])
    pod = node.pod()
    previous = bridged(ours, pod)
    before = state(node, pod)
    adds, deletes = (ours, theirs) if ours_adds else (theirs, ours)
    added = adds.call("ADD", ours.plugins[1], pod, previous).json
    assert state(node, pod) != before
    assert_ok(deletes.call("DEL", ours.plugins[1], pod, added))
    assert (state(node, pod), kept(node)) == (before, [])


CHANGES = {
    "mac": ("ip link set eth0 address 02:00:00:00:00:09", "MAC"),
    "mtu": ("ip link set eth0 mtu 1300", "1300"),
    "promisc": ("ip link set eth0 promisc off", "promisc"),
    "allmulti": ("ip link set eth0 allmulticast off", "allmulti"),
    "txQLen": ("ip link set eth0 txqueuelen 78", "txQLen"),
    "sysctl": ("sysctl -qw net.ipv4.conf.eth0.arp_ignore=2", "net/ipv4/conf/eth0/arp_ignore"),
}


@in_process
@pytest.mark.parametrize("key", CHANGES)
def test_check_names_what_is_not_as_it_was(node: Node, key: str) -> None:
    chain, pod = tuned(node, **{key: EVERYTHING[key]}), node.pod()
    result = chain.add(pod)
    command, said = CHANGES[key]
    pod.run(*command.split())
    answer = chain.call("CHECK", chain.plugins[1], pod, result)
    assert_refused(answer, 100, said)


def test_check_does_not_mind_what_was_not_asked_for(node: Node) -> None:
    chain, pod = tuned(node, mtu=1400), node.pod()
    result = chain.add(pod)
    pod.run("ip", "link", "set", "eth0", "promisc", "on")
    assert_ok(chain.check(pod, result))


def test_the_runtimes_words_come_before_the_configurations(node: Node) -> None:
    macs = [f"02:00:00:00:00:0{i}" for i in range(4)]
    chain, pod = tuned(node, mac=macs[0], mtu=1400, sysctl={"net.core.somaxconn": "1"}), node.pod()
    previous = bridged(chain, pod)
    plugin = chain.plugins[1] | {"capabilities": {"mac": True}}

    def mac_after(environ: dict[str, str | None]) -> str:
        chain.environ = environ
        answer = chain.call("ADD", plugin, pod, previous)
        assert answer.status == 0, answer.stdout
        return str(pod.links()["eth0"]["address"])

    assert mac_after({}) == macs[0]
    asked: dict[str, str | None] = {"CNI_ARGS": f"MAC={macs[1]}"}
    assert mac_after(asked) == macs[1]
    chain.runtime = {"mac": macs[2]}
    assert mac_after(asked) == macs[2]
    plugin["args"] = {"cni": {"mac": macs[3], "mtu": 1350, "sysctl": {"net.core.somaxconn": "2"}}}
    assert mac_after(asked) == macs[3]
    assert (pod.links()["eth0"]["mtu"], sysctl(pod, "net.core.somaxconn")) == (1350, "2")


def test_an_interface_with_a_dot_in_its_name_has_its_own_sysctls(node: Node) -> None:
    chain, pod = tuned(node, sysctl=SYSCTLS), node.pod()
    chain.environ = {"CNI_IFNAME": "eth0.5"}
    result = chain.add(pod)
    assert state(node, pod, "eth0.5")["sysctl"] == list(SYSCTLS.values())
    assert_ok(chain.check(pod, result))


WRONG = {
    "outside net": {"kernel.panic": "1"},
    "net itself": {"net": "1"},
    "up and out": {"net/../kernel/panic": "1"},
    "dots": {"net.ipv4...conf": "1"},
    "twice": {"net.core.somaxconn": "1", "net/core/somaxconn": "2"},
    "a number": {"net.core.somaxconn": 1},
}


@pytest.mark.parametrize("what", WRONG)
def test_bad_sysctls_are_refused_before_anything_is_made(node: Node, what: str) -> None:
    said = "somaxconn" if what in {"twice", "a number"} else next(iter(WRONG[what]))
    with unchanged(node):
        assert_refused(node.call("ADD", dual_stack(node, sysctl=WRONG[what]), node.pod()), 7, said)
    chain, pod = tuned(node, mtu=1400, sysctl=WRONG[what]), node.pod()
    assert_refused(chain.try_add(pod), 7, said)
    assert (pod.links()["eth0"]["mtu"], kept(node)) == (1500, [])


def test_what_the_kernel_refuses_is_taken_back_whole(node: Node) -> None:
    chain, pod = tuned(node, **EVERYTHING), node.pod()
    previous = bridged(chain, pod)
    before = state(node, pod)
    plugin = chain.plugins[1] | {"sysctl": SYSCTLS | {"net.ipv4.conf.IFNAME.forwarding": "much"}}
    assert_refused(chain.call("ADD", plugin, pod, previous), 999, "net/ipv4/conf/eth0/forwarding")
    assert (state(node, pod), kept(node)) == (before, [])


def test_a_sysctl_that_there_is_not_takes_the_attachment_back(node: Node) -> None:
    warm(node)
    with unchanged(node):
        config, pod = dual_stack(node, sysctl={"net.ipv4.nonsense": "1"}), node.pod()
        assert_refused(node.call("ADD", config, pod), 999, "net/ipv4/nonsense")
    assert list(pod.links()) == ["lo"]


def test_only_what_is_on_the_allow_list_is_set(plain_node: Node) -> None:
    """The list's place is fixed, so the test gives the process an /etc of its own."""
    node = plain_node
    etc = node.tmp / "etc"
    (etc / "cni/tuning").mkdir(parents=True)
    (etc / "cni/tuning/allowlist.conf").write_text("^net.core.somaxconn$\n\n^net.ipv4.conf.IFNAME.[a-z_]*$\n")
    program = node.tmp / "podwire"
    inner = f"mount --bind {etc} /etc && exec {node.bin_dir}/podwire"
    program.write_text(f"#!/bin/sh\nexec unshare --mount sh -c '{inner}'\n")
    program.chmod(0o755)
    pod = node.pod()
    allowed = {"net.core.somaxconn": "555", "net/ipv4/conf/IFNAME/arp_ignore": "1"}
    with unchanged(node):
        for key in ("net.ipv4.ip_forward", "net.ipv4.conf.eth0.arp_ignore", "net.core.somaxconn2"):
            config = dual_stack(node, sysctl=allowed | {key: "1"})
            assert_refused(node.call("ADD", config, pod, program=str(program)), 7, key, "allowlist.conf")
    node.add(dual_stack(node, sysctl=allowed), pod, program=str(program))
    assert sysctl(pod, "net.ipv4.conf.eth0.arp_ignore") == "1"
    (etc / "cni/tuning/allowlist.conf").write_text("net.core.(\n")
    answer = node.call("ADD", dual_stack(node, sysctl=allowed), node.pod(), program=str(program))
    assert_refused(answer, 7, "allowlist.conf", "regular expression")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"mac": "02:00"}, "mac"),
        ({"mac": "01:00:5e:00:00:01"}, "mac"),
        ({"mtu": 67}, "mtu"),
        ({"promisc": "yes"}, "promisc"),
        ({"txQLen": -1}, "txQLen"),
        ({"sysctl": []}, "sysctl"),
        ({"dataDir": "kept", "mtu": 1400}, "dataDir"),
        ({"args": {"cni": {"allmulti": 1}}}, "args.cni.allmulti"),
    ],
)
@in_process
def test_bad_keys_are_refused_before_anything_is_made(node: Node, keys: dict[str, Any], said: str) -> None:
    chain, pod = tuned(node, **keys), node.pod()
    assert_refused(chain.try_add(pod), 7, said)
    assert kept(node) == []


def test_gc_takes_the_files_of_what_is_not_listed_and_no_others(node: Node) -> None:
    chain, pods = tuned(node, mtu=1400), [node.pod(), node.pod()]
    chain.version = "1.1.0"
    for pod in pods:
        chain.add(pod)
    (node.tmp / "kept/theirs_eth0.json").write_text(json.dumps({"mtu": 1500}))
    other = Chain(node=node, plugins=chain.plugins, path=chain.path, version="1.1.0", name="other")
    nobody = chain.plugins[1] | {"cni.dev/valid-attachments": []}
    assert_ok(other.call("GC", nobody, None))
    assert len(kept(node)) == 3
    listed = [{"containerID": pods[1].container_id, "ifname": "eth0"}]
    assert_ok(chain.call("GC", nobody | {"cni.dev/valid-attachments": listed}, None))
    assert sorted(kept(node)) == sorted([f"{pods[1].container_id}_eth0.json", "theirs_eth0.json"])
