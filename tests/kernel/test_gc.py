"""`podwire gc` on a real node: what the dead have left goes, and nothing of who may live."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from ipam import boot_mark
from tests.conftest import in_process
from tests.harness.chain import REFERENCE, Chain, install_as
from tests.harness.garbage import GC, configure, counts, gc, kill, listing, run_gc
from tests.harness.hostports import DNS, WEB
from tests.harness.networks import V4, V6, calm, dual_stack, eventually, network, reference
from tests.harness.node import make_node

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.garbage import Listing
    from tests.harness.node import Node

# Everything that the main plugin can have made for a pod.
EVERYTHING = {
    "ipMasq": True,
    "macspoofchk": True,
    "ingressRate": 8_000_000,
    "ingressBurst": 800_000,
    "egressRate": 8_000_000,
    "egressBurst": 800_000,
    "sysctl": {"net.ipv4.conf.IFNAME.arp_ignore": "1"},
    "runtimeConfig": {"portMappings": [WEB, DNS]},
}
FORMS: dict[str, dict[str, Any]] = {
    "bridge": EVERYTHING,
    "spoof-ip": EVERYTHING | {"spoofCheck": "ip"},
    "routed": {key: value for key, value in EVERYTHING.items() if key != "macspoofchk"} | {"mode": "routed"},
}


@pytest.fixture
def runtime(node: Node) -> Iterator[Listing]:
    with listing(node.tmp / "cri.sock", "test") as made:
        yield made


def state(node: Node) -> str:
    """Return what a pod can leave behind: the node's transcript and the files beside the store."""
    private = node.data_dir / ".podwire"
    files = sorted(str(path) for path in private.rglob("*.json")) if private.exists() else []
    return "\n".join([calm(node), *files])


def form(node: Node, name: str) -> dict[str, Any]:
    config = dual_stack(node, **FORMS[name])
    if "mode" in FORMS[name]:
        del config["bridge"]
    return config


def test_what_is_of_an_earlier_boot_goes_whoever_made_it_and_without_a_runtime(node: Node) -> None:
    config = dual_stack(node)
    configure(node, config)
    dead, unseen = node.pod(), node.pod()
    for pod in (dead, unseen):
        node.add(config | {"type": "podwire-ipam"}, pod, program="podwire-ipam")
    store = node.data_dir / "test"
    for name, content in node.held().items():
        if dead.container_id in content:
            os.setxattr(store / name, boot_mark.BOOT_MARK, b"1b4e28ba-2fa1-11d2-883f-b9a761bde3fb")
    said = gc(node)
    assert {(item["container_id"], item["kind"], item["action"]) for item in said["items"]} == {
        (dead.container_id, "boot", "reclaimed"),
        (unseen.container_id, "none", "kept"),
    }
    assert all(unseen.container_id in content for content in node.held().values())
    assert len(node.held()) == 2


@pytest.mark.parametrize("name", FORMS)
def test_everything_that_a_dead_pod_has_left_goes_and_the_living_keep_theirs(node: Node, name: str) -> None:
    config = form(node, name)
    configure(node, config)
    first, living, dead = node.pod(), node.pod(), node.pod()
    node.add(config, first)
    node.delete(config, first)
    ports = {"runtimeConfig": {"portMappings": [{**WEB, "hostPort": 8081}]}}
    result = node.add(config | ports, living)
    before = state(node)
    node.add(config, dead)
    kill(node, dead)
    said = gc(node, "--dry-run")
    assert counts(said) == (1, 0, 0)
    [item] = said["items"]
    assert (item["container_id"], item["ifname"], item["kind"]) == (dead.container_id, "eth0", "kernel")
    assert item["action"] == "reclaimable"
    assert {each.split()[0] for each in item["what"]} == {"address", "nft", "link", "file"}
    assert state(node) != before
    assert counts(gc(node)) == (1, 1, 0)
    assert state(node) == before
    assert counts(gc(node)) == (0, 0, 0)
    assert node.check(config | ports, result, living).status == 0


def test_a_dry_run_and_a_real_one_say_what_and_why_in_words(node: Node) -> None:
    config, pod = dual_stack(node, ipMasq=True), node.pod()
    configure(node, config)
    address = node.add(config, pod)["ips"][0]["address"].split("/")[0]
    kill(node, pod)
    said = run_gc(node, "--dry-run")
    assert said.returncode == 1
    reason = "podwire joined it here, and its veth is gone"
    assert f"network test: {pod.container_id} eth0: reclaimable: {reason}; address {address}" in said.stdout
    assert "1 left by the dead, 0 reclaimed, 0 kept unproven" in said.stdout
    done = run_gc(node, "test")
    assert (done.returncode, node.held()) == (0, {})
    assert "1 left by the dead, 1 reclaimed, 0 kept unproven" in done.stdout


def test_what_lives_is_not_even_mentioned(node: Node) -> None:
    config, pods = dual_stack(node, **EVERYTHING), [node.pod(), node.pod()]
    configure(node, config)
    node.add(config, pods[0])
    node.add(config | {"runtimeConfig": {}}, pods[1], environ={"CNI_IFNAME": "net1"})
    before = state(node)
    assert gc(node)["items"] == []
    assert state(node) == before


@in_process
def test_a_pod_whose_veth_was_renamed_lives(node: Node) -> None:
    config, pod = dual_stack(node), node.pod()
    configure(node, config)
    name = node.add(config, pod)["interfaces"][1]["name"]
    for words in (("down",), ("name", "pod0"), ("up",)):
        node.run("ip", "link", "set", "pod0" if words == ("up",) else name, *words)
    assert gc(node)["items"] == []
    assert len(node.held()) == 2


def test_from_another_network_namespace_nobody_is_dead(node: Node) -> None:
    """A gc in the wrong namespace sees no veth at all."""
    config, pod = dual_stack(node), node.pod()
    configure(node, config)
    node.add(config, pod)
    other = make_node(node.tmp, node.bin_dir)
    try:
        assert counts(gc(other)) == (0, 0, 1)
        kill(node, pod)
        assert counts(gc(other)) == (0, 0, 1)
    finally:
        other.remove()
    assert counts(gc(node)) == (1, 1, 0)


@in_process
def test_of_a_store_that_was_copied_only_the_runtime_knows_who_lives(node: Node, runtime: Listing) -> None:
    config, pods = dual_stack(node), [node.pod(), node.pod()]
    configure(node, config)
    for pod in pods:
        node.add(config, pod)
    kill(node, pods[1])
    subprocess.run(["cp", "-r", "test", "copy"], cwd=node.data_dir, check=True)
    shutil.rmtree(node.data_dir / "test")
    (node.data_dir / "copy").rename(node.data_dir / "test")
    report = gc(node)
    assert counts(report) == (0, 0, 1)
    assert "--runtime-endpoint" in report["items"][0]["reason"]
    # The first has its veth: it lives, whoever lists it.
    report = gc(node, "--runtime-endpoint", runtime.endpoint)
    assert counts(report) == (1, 1, 1)
    assert "its veth is here, and the runtime does not list it" in str(report)
    assert {owner.split()[0] for owner in node.held().values()} == {pods[0].container_id}


@in_process
def test_what_the_runtime_lists_lives_though_its_veth_is_gone(node: Node, runtime: Listing) -> None:
    config, pod = dual_stack(node, ipMasq=True), node.pod()
    configure(node, config)
    node.add(config, pod)
    kill(node, pod)
    runtime.sandboxes = {"other", pod.container_id}
    before = state(node)
    assert gc(node, "--runtime-endpoint", runtime.endpoint)["items"] == []
    assert state(node) == before
    runtime.sandboxes = {"other"}
    assert counts(gc(node, "--runtime-endpoint", runtime.endpoint)) == (1, 1, 0)


class Foreign:
    """A pod of which podwire's main plugin knows nothing, and how it is attached."""

    def __init__(self, node: Node, kind: str) -> None:
        self.node, self.kind, self.pod = node, kind, node.pod()
        self.config = self._config()
        configure(node, self.config)

    def _config(self) -> dict[str, Any]:
        if self.kind == "macvlan":
            self.node.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
            for end in ("up0", "up1"):
                self.node.run("ip", "link", "set", end, "up")
            config = network(self.node, V4, V6, type="macvlan", master="up0", version="1.0.0")
            del config["bridge"]
            return config
        if self.kind == "go-bridge":
            return reference(self.node) | {"ipam": dual_stack(self.node)["ipam"]}
        if self.kind == "go-host-local":
            return reference(self.node)
        # Our main plugin, with the addresses of the Go host-local.
        return dual_stack(self.node, version="1.0.0") | {"ipam": reference(self.node)["ipam"]}

    def add(self) -> None:
        own = install_as(self.node, "podwire-ipam")
        path = {"CNI_PATH": f"{REFERENCE}:{own}"}
        kind = self.config["type"]
        program = f"{REFERENCE}/{kind}" if kind != "podwire" else "podwire"
        self.node.add(self.config, self.pod, program=program, environ=path)


KINDS = ("macvlan", "go-bridge", "go-host-local", "ours-with-go-host-local")


@in_process
@pytest.mark.parametrize("kind", KINDS)
def test_addresses_of_others_are_released_on_the_runtimes_word_alone(
    node: Node, runtime: Listing, kind: str
) -> None:
    foreign = Foreign(node, kind)
    foreign.add()
    held = node.held()
    assert len(held) == 2
    endpoint = ("--runtime-endpoint", runtime.endpoint)
    alive = (0, 0, 0) if kind.startswith("ours") else (0, 0, 1)
    assert counts(gc(node)) == alive
    runtime.sandboxes = {foreign.pod.container_id}
    assert counts(gc(node, *endpoint)) == (0, 0, 0)
    # Dead, and still listed: the runtime will say DEL.
    kill(node, foreign.pod)
    assert counts(gc(node, *endpoint)) == (0, 0, 0)
    assert counts(gc(node)) == (0, 0, 1)
    assert node.held() == held
    runtime.sandboxes = {"other"}
    report = gc(node, *endpoint)
    assert counts(report) == (1, 1, 0)
    assert report["items"][0]["kind"] == "runtime"
    assert node.held() == {}


def verdicts(node: Node) -> dict[str, tuple[int, set[str]]]:
    """Return what status, `ipam check` and gc answer: exit status, and what each holds of attachments."""
    places = ("--conf-dir", str(node.tmp / "net.d"))
    program = (*GC[:-1], "status", *places, "--bin-dir", REFERENCE, "--json")
    status = node.run(*program, check=False)
    seen = json.loads(status.stdout)
    checked = node.run(*GC[:-1], "ipam", "check", *places, "--bin-dir", REFERENCE, "--json", check=False)
    dry = run_gc(node, "--dry-run", "--json")
    kinds = {"leaked": "dead", "unknown": "unknown"}
    actions = {"reclaimable": "dead", "kept": "unknown"}
    said = {"dead" for each in seen["problems"] if "which has no interface here" in each}
    return {
        "status": (status.returncode, said | {each["state"] for each in seen["attachments"]} - {"alive"}),
        "check": (checked.returncode, {kinds[each["kind"]] for each in json.loads(checked.stdout)}),
        "gc": (dry.returncode, {actions[each["action"]] for each in json.loads(dry.stdout)["items"]}),
    }


@in_process
@pytest.mark.parametrize("kind", ["go-bridge", "ours"])
def test_status_check_and_gc_answer_alike(node: Node, kind: str) -> None:
    """One verdict: a living pod of the Go bridge is nobody's to release, and nothing is wrong with it."""
    if kind == "go-bridge":
        foreign = Foreign(node, kind)
        foreign.add()
        pod, alive = foreign.pod, {"unknown"}
    else:
        pod, config, alive = node.pod(), dual_stack(node, ipMasq=True, version="1.0.0"), set()
        configure(node, config)
        node.add(config, pod)
    commands = ("status", "check", "gc")
    assert verdicts(node) == dict.fromkeys(commands, (0, alive))
    kill(node, pod)
    dead = (0, {"unknown"}) if kind == "go-bridge" else (1, {"dead"})
    assert verdicts(node) == dict.fromkeys(commands, dead)


@in_process
def test_what_go_reserved_in_an_earlier_boot_is_known_by_the_next_one(node: Node) -> None:
    foreign = Foreign(node, "go-host-local")
    foreign.add()
    kill(node, foreign.pod)
    files = [node.data_dir / "test" / name for name in node.held()]
    # A dry run marks nothing. A real one does: nobody knows when Go reserved it, so it is of this boot.
    assert counts(gc(node, "--dry-run")) == (0, 0, 1)
    assert [os.listxattr(path) for path in files] == [[], []]
    assert counts(gc(node)) == (0, 0, 1)
    assert {os.getxattr(path, boot_mark.BOOT_MARK) for path in files} == {boot_mark.current()}
    for path in files:
        os.setxattr(path, boot_mark.BOOT_MARK, b"1b4e28ba-2fa1-11d2-883f-b9a761bde3fb")
    assert counts(gc(node)) == (1, 1, 0)


@in_process
def test_a_file_of_tuning_is_of_an_earlier_boot_like_the_address_beside_it(node: Node) -> None:
    config, pod = dual_stack(node, sysctl={"net.ipv4.conf.IFNAME.arp_ignore": "1"}), node.pod()
    configure(node, config)
    node.add(config, pod)
    kill(node, pod)
    for name in node.held():
        path = node.data_dir / "test" / name
        os.removexattr(path, boot_mark.NETNS_MARK)
        os.setxattr(path, boot_mark.BOOT_MARK, b"1b4e28ba-2fa1-11d2-883f-b9a761bde3fb")
    report = gc(node)
    assert counts(report) == (1, 1, 0)
    assert report["items"][0]["kind"] == "boot"
    assert list((node.data_dir / ".podwire" / "tuning").iterdir()) == []


@in_process
def test_the_runtimes_word_counts_for_the_networks_that_it_uses(node: Node) -> None:
    """Another runtime's pods may be on a network in the same directory, such as podman's."""
    foreign = Foreign(node, "go-host-local")
    foreign.add()
    with listing(node.tmp / "other.sock", "another") as other:
        report = gc(node, "--runtime-endpoint", other.endpoint)
        assert counts(report) == (0, 0, 1)
        assert "does not say that it uses this network" in report["items"][0]["reason"]
        assert len(node.held()) == 2
        assert counts(gc(node, "test", "--runtime-endpoint", other.endpoint)) == (1, 1, 0)


@in_process
def test_a_shared_store_is_not_one_runtimes_affair(node: Node, runtime: Listing) -> None:
    foreign = Foreign(node, "go-bridge")
    foreign.config["ipam"]["shared"] = True
    configure(node, foreign.config)
    foreign.add()
    assert counts(gc(node, "test", "--runtime-endpoint", runtime.endpoint)) == (0, 0, 1)
    assert len(node.held()) == 2


@in_process
def test_a_chain_behind_the_go_bridge_keeps_what_it_made_until_the_runtime_speaks(
    node: Node, runtime: Listing
) -> None:
    limits = {"egressRate": 8_000_000, "egressBurst": 800_000}
    plugins = [
        {key: value for key, value in reference(node).items() if key not in {"name", "cniVersion"}},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "firewall"},
        {"type": "bandwidth"} | limits,
        {"type": "tuning", "dataDir": str(node.tmp / "tuning"), "sysctl": {"net.ipv4.ip_forward": "1"}},
    ]
    ours = install_as(node, "portmap", "firewall", "bandwidth", "tuning")
    (node.tmp / "go").mkdir()
    for name in ("bridge", "host-local"):
        (node.tmp / "go" / name).symlink_to(f"{REFERENCE}/{name}")
    chain = Chain(node, plugins, [ours, str(node.tmp / "go")], {"portMappings": [WEB, DNS]})
    configure(node, *plugins)
    first, living, dead = node.pod(), node.pod(), node.pod()
    chain.delete(first, chain.add(first))
    chain.runtime = {"portMappings": [{**WEB, "hostPort": 8081}]}
    chain.add(living)
    # The reference does not wait until the gateway's address is no duplicate.
    assert eventually(lambda: node.run("ip", "-6", "addr", "show", "tentative").stdout, "") == ""
    before = [state(node), *map(str, (node.tmp / "tuning").glob("*.json"))]
    chain.runtime = {"portMappings": [WEB, DNS]}
    chain.add(dead)
    kill(node, dead)
    left = state(node)
    assert counts(gc(node)) == (0, 0, 2)
    assert state(node) == left
    runtime.sandboxes = {living.container_id}
    report = gc(node, "--runtime-endpoint", runtime.endpoint)
    assert counts(report) == (1, 1, 0)
    assert {each.split()[0] for each in report["items"][0]["what"]} == {"address", "nft", "link", "file"}
    assert [state(node), *map(str, (node.tmp / "tuning").glob("*.json"))] == before


@in_process
def test_without_an_address_the_masquerade_of_a_dead_pod_still_shows_whose_it_was(node: Node) -> None:
    config, pod = dual_stack(node, ipMasq=True), node.pod()
    configure(node, config)
    node.add(config, pod)
    kill(node, pod)
    shutil.rmtree(node.data_dir / "test")
    report = gc(node)
    assert counts(report) == (1, 1, 0)
    assert {each.split()[0] for each in report["items"][0]["what"]} == {"nft"}
    assert "test eth0" not in node.run("nft", "list", "ruleset").stdout


@in_process
def test_host_ports_alone_name_their_pod_to_the_runtime(node: Node, runtime: Listing) -> None:
    config, pod = dual_stack(node, runtimeConfig={"portMappings": [WEB, DNS]}), node.pod()
    configure(node, config)
    node.add(config, pod)
    kill(node, pod)
    shutil.rmtree(node.data_dir / "test")
    report = gc(node)
    assert counts(report) == (0, 0, 1)
    assert report["items"][0]["container_id"] == pod.container_id
    runtime.sandboxes = {pod.container_id}
    assert gc(node, "--runtime-endpoint", runtime.endpoint)["items"] == []
    runtime.sandboxes = set()
    assert counts(gc(node, "--runtime-endpoint", runtime.endpoint)) == (1, 1, 0)
    assert pod.container_id not in node.run("nft", "list", "ruleset").stdout


@in_process
def test_a_network_that_is_no_longer_configured_is_looked_at_too(node: Node) -> None:
    gone, kept, pod = dual_stack(node, name="gone", ipMasq=True), dual_stack(node), node.pod()
    node.add(gone, pod)
    configure(node, kept)
    kill(node, pod)
    assert counts(gc(node)) == (1, 1, 0)
    assert node.held("gone") == {}
    assert pod.container_id not in node.run("nft", "list", "ruleset").stdout


@in_process
def test_debris_of_a_crash_goes_and_files_that_are_no_addresses_stay(node: Node) -> None:
    config = dual_stack(node)
    configure(node, config)
    store = node.data_dir / "test"
    store.mkdir(parents=True)
    for name in ("10.22.0.9", "fd00:22::9", "note", "lock"):
        (store / name).touch()
    report = gc(node)
    assert (counts(report), report["items"][0]["kind"]) == ((1, 1, 0), "debris")
    assert sorted(path.name for path in store.iterdir()) == ["lock", "note"]


@in_process
def test_a_reclaimed_address_cools_down(node: Node) -> None:
    config = network(node, [{"subnet": "10.22.0.0/30"}])
    config["ipam"]["coolDown"] = 600
    configure(node, config)
    pod = node.pod()
    node.add(config, pod)
    kill(node, pod)
    assert counts(gc(node)) == (1, 1, 0)
    answer = node.call("ADD", config, node.pod())
    assert (answer.status, answer.json["code"]) == (1, 11)


def start_gc(node: Node, *words: str, **options: Any) -> subprocess.Popen[str]:
    """Start it in the background and let it have its first look."""
    command = ["nsenter", f"--net={node.path}", *GC, "--json"]
    places = ["--conf-dir", str(node.tmp / "net.d")]
    process = subprocess.Popen([*command, *places, *words], stdout=subprocess.PIPE, text=True, **options)
    time.sleep(1)
    return process


@in_process
def test_who_comes_back_or_comes_anew_between_the_looks_is_left_alone(node: Node) -> None:
    config, pods = dual_stack(node, ipMasq=True), [node.pod() for _ in range(3)]
    back, gone, new = pods
    configure(node, config)
    for pod in (back, gone):
        node.add(config, pod)
    kill(node, back, gone)
    with start_gc(node, "--grace", "3") as process:
        # The same container id, the same interface and, as likely as not, the same address.
        node.delete(config, back)
        subprocess.run(["ip", "netns", "add", back.name], check=True)
        result = node.add(config, back)
        node.add(config, new)
        report = json.loads(process.stdout.read())
    assert [item["container_id"] for item in report["items"]] == [gone.container_id]
    assert {owner.split()[0] for owner in node.held().values()} == {back.container_id, new.container_id}
    assert node.check(config, result, back).status == 0


@in_process
def test_nothing_is_reclaimed_for_an_agent_that_has_ended(node: Node) -> None:
    config, pod = dual_stack(node), node.pod()
    configure(node, config)
    node.add(config, pod)
    kill(node, pod)
    with start_gc(node, "--grace", "60", "--until-eof", stdin=subprocess.PIPE) as process:
        process.stdin.close()
        assert json.loads(process.stdout.read())["items"] == []
    assert len(node.held()) == 2


@in_process
def test_a_runtime_that_does_not_answer_stops_everything(node: Node) -> None:
    config, pod = dual_stack(node), node.pod()
    configure(node, config)
    node.add(config, pod)
    kill(node, pod)
    for endpoint, said in (
        (f"unix://{node.tmp}/none.sock", "UNAVAILABLE"),
        ("tcp://localhost:1", "wanted unix:///PATH"),
    ):
        done = run_gc(node, "--runtime-endpoint", endpoint)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr
    assert len(node.held()) == 2


@in_process
def test_without_grpcio_it_says_what_to_install(node: Node) -> None:
    config, pod = dual_stack(node), node.pod()
    configure(node, config)
    node.add(config, pod)
    program = (
        "import sys; sys.modules['grpc'] = None; "
        "from cni_plugin.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["gc", "--conf-dir", str(node.tmp / "net.d"), "--runtime-endpoint", "unix:///x"]
    done = node.run(sys.executable, "-c", program, *words, check=False)
    assert done.returncode == 2
    assert "scripts/install --with runtime" in done.stderr


@in_process
def test_a_configuration_that_cannot_be_read_is_told_and_the_others_are_collected(node: Node) -> None:
    config, pod = dual_stack(node), node.pod()
    configure(node, config)
    node.add(config, pod)
    kill(node, pod)
    (node.tmp / "net.d" / "00-broken.conflist").write_text("{")
    configure(node, config | {"ipam": config["ipam"] | {"dataDir": "relative"}}, name="odd")
    done = run_gc(node)
    assert (done.returncode, node.held()) == (2, {})
    assert "00-broken.conflist" in done.stderr
    assert '10-odd.conflist: "ipam.dataDir"' in done.stderr
    assert run_gc(node, "nowhere").returncode == 2


@in_process
def test_what_cannot_be_removed_is_told(node: Node) -> None:
    config, pod = dual_stack(node), node.pod()
    configure(node, config)
    node.add(config, pod)
    kill(node, pod)
    lock = node.data_dir / "test" / "lock"
    lock.unlink()
    lock.mkdir()
    done = run_gc(node, "--json")
    [item] = json.loads(done.stdout)["items"]
    assert (done.returncode, item["action"]) == (1, "failed")
    assert str(lock) in item["reason"]
    lock.rmdir()
    assert counts(gc(node)) == (1, 1, 0)


@in_process
def test_what_cannot_be_removed_is_found_again_and_holds_nobody_else_up(node: Node) -> None:
    """Whose file of `tuning` stays keeps its address, too: that is what proves the pod's death."""
    config = dual_stack(node, sysctl={"net.ipv4.conf.IFNAME.arp_ignore": "1"}, ipMasq=True)
    configure(node, config)
    stuck, other = node.pod(), node.pod()
    for pod in (stuck, other):
        node.add(config, pod)
    kill(node, stuck, other)
    [file] = (node.data_dir / ".podwire" / "tuning").glob(f"{stuck.container_id}*")
    node.run("chattr", "+i", str(file))
    try:
        done = run_gc(node, "--json")
    finally:
        node.run("chattr", "-i", str(file))
    actions = {item["container_id"]: item["action"] for item in json.loads(done.stdout)["items"]}
    assert (done.returncode, actions) == (1, {stuck.container_id: "failed", other.container_id: "reclaimed"})
    assert len(node.held()) == 2
    assert counts(gc(node)) == (1, 1, 0)
    assert (node.held(), file.exists()) == ({}, False)
