"""Who is dead by what proof, and what is read out of a runtime's answers."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from dataclasses import replace

import pytest

from cni_plugin.config.network import Attachment, host_ifname, render_alias
from cni_plugin.contract.errors import CNIError
from cni_plugin.kernel.link import Link
from cni_plugin.node import runtime
from cni_plugin.node.evidence import Evidence, with_links
from cni_plugin.node.liveness import Proof, State, judge
from cni_plugin.node.runtime import RuntimeState
from tests.harness.runtime.cri import messages

ATTACHMENT = Attachment(network="net", container_id="box", ifname="eth0", netns="")
IDENTITY = ATTACHMENT.identity
EVIDENCE = Evidence(
    network="net",
    identity=IDENTITY,
    container_id="box",
    ifname="eth0",
    what=("address 10.1.0.2",),
    reservations=(),
    joined_here=True,
)
CUT = replace(EVIDENCE, container_id="bo", ifname="", joined_here=False)
LEGACY = replace(EVIDENCE, identity="", ifname="", joined_here=False)
LEGACY_OF_EARLIER_BOOT = replace(LEGACY, of_earlier_boot=True)
NONE: tuple[Link, ...] = ()


def veth(name: str, alias: str, index: int = 7) -> Link:
    return Link(
        index=index,
        name=name,
        kind="veth",
        mac="02:00:00:00:00:07",
        mtu=1500,
        flags=1,
        tx_queue_length=0,
        carrier_seen=True,
        master=0,
        peer=2,
        peer_nsid=0,
        alias=alias,
        group=0,
        vlan_filtering=False,
        port=None,
    )


NAMED = (veth(host_ifname(IDENTITY), ""),)
RENAMED = (veth("pod0", render_alias(ATTACHMENT, "shop/web")),)
ANOTHER = (veth("veth0", render_alias(replace(ATTACHMENT, container_id="other"), ""), 8),)
NOBODY = RuntimeState(sandboxes=frozenset(), networks=frozenset({"net"}))
BOX = replace(NOBODY, sandboxes=frozenset({"box"}))
ELSEWHERE = replace(NOBODY, networks=frozenset({"other"}))


EVIDENCES = {
    "of an earlier boot": replace(EVIDENCE, joined_here=False, of_earlier_boot=True),
    "joined elsewhere": replace(EVIDENCE, joined_here=False),
    "legacy of an earlier boot": LEGACY_OF_EARLIER_BOOT,
    "cut name, joined here": replace(CUT, joined_here=True),
    "no name": replace(CUT, container_id=""),
    "debris": replace(LEGACY, container_id=""),
    "joined here": EVIDENCE,
    "cut name": CUT,
    "legacy": LEGACY,
}
VETHS = {
    "no veth": NONE,
    "veth of another": ANOTHER,
    "veth by its name": NAMED,
    "veth renamed": RENAMED,
}
RUNTIMES = {
    "no runtime": None,
    "runtime has nobody": NOBODY,
    "runtime of other networks": ELSEWHERE,
    "runtime has it": BOX,
}


@pytest.mark.parametrize(
    ("evidence", "veths", "runtime", "proof"),
    [
        ("joined here", "no veth", "no runtime", Proof.KERNEL),
        ("joined here", "veth of another", "no runtime", Proof.KERNEL),
        ("joined here", "no veth", "runtime has nobody", Proof.KERNEL),
        ("joined here", "no veth", "runtime of other networks", Proof.KERNEL),
        ("joined here", "no veth", "runtime has it", None),
        ("joined here", "veth by its name", "runtime has nobody", Proof.NONE),
        ("joined here", "veth renamed", "runtime has nobody", Proof.NONE),
        ("joined here", "veth renamed", "runtime of other networks", None),
        ("joined here", "veth renamed", "runtime has it", None),
        ("joined here", "veth renamed", "no runtime", None),
        ("joined elsewhere", "no veth", "no runtime", Proof.NONE),
        ("joined elsewhere", "no veth", "runtime has nobody", Proof.RUNTIME),
        ("joined elsewhere", "no veth", "runtime of other networks", Proof.NONE),
        ("joined elsewhere", "no veth", "runtime has it", None),
        ("of an earlier boot", "no veth", "no runtime", Proof.BOOT),
        ("of an earlier boot", "no veth", "runtime of other networks", Proof.BOOT),
        ("of an earlier boot", "no veth", "runtime has it", None),
        ("legacy of an earlier boot", "no veth", "no runtime", Proof.BOOT),
        ("legacy of an earlier boot", "veth renamed", "no runtime", None),
        ("cut name", "no veth", "runtime has nobody", Proof.NONE),
        ("cut name", "no veth", "runtime has it", None),
        ("cut name, joined here", "no veth", "runtime has nobody", Proof.KERNEL),
        ("cut name, joined here", "no veth", "runtime has it", None),
        # A network's name may be so long that a comment has no room for the container's.
        ("no name", "no veth", "no runtime", Proof.NONE),
        ("no name", "no veth", "runtime has nobody", Proof.NONE),
        ("no name", "veth renamed", "no runtime", None),
        ("legacy", "no veth", "no runtime", Proof.NONE),
        ("legacy", "no veth", "runtime has nobody", Proof.RUNTIME),
        ("legacy", "no veth", "runtime has it", None),
        ("legacy", "veth renamed", "runtime has nobody", Proof.NONE),
        ("debris", "no veth", "no runtime", Proof.DEBRIS),
    ],
)
def test_who_is_dead(evidence: str, veths: str, runtime: str, proof: Proof | None) -> None:
    (found, *_) = with_links("net", [EVIDENCES[evidence]], VETHS[veths])
    liveness = judge(found, RUNTIMES[runtime])
    states = {None: State.ALIVE, Proof.NONE: State.UNKNOWN}
    assert liveness.state is states.get(proof, State.DEAD)
    assert proof is None or liveness.proof is proof
    assert liveness.reason


def test_in_a_shared_store_the_runtimes_word_is_not_enough() -> None:
    for old in (False, True):
        evidence = replace(EVIDENCE, joined_here=False, of_earlier_boot=old, shared=True)
        assert judge(evidence, NOBODY).state is State.UNKNOWN


def test_each_veth_is_found_with_its_attachment_or_is_one_of_its_own() -> None:
    found = with_links("net", [EVIDENCE], (*ANOTHER, *RENAMED))
    assert [(each.container_id, each.pod, each.link and each.link.name) for each in found] == [
        ("box", "shop/web", "pod0"),
        ("other", "", "veth0"),
    ]
    assert found[1].what == ("link veth0",)
    # One of a file that names no interface is not told twice.
    assert [each.ifname for each in with_links("net", [LEGACY], RENAMED)] == [""]
    # Another network's veth is not this network's attachment.
    assert with_links("elsewhere", [], RENAMED) == []


def test_sandboxes_and_networks_are_found_among_all_else_that_a_runtime_says() -> None:
    ids = [f"{number:064x}" for number in range(300)]
    listed = messages().ListPodSandboxResponse(items=[{"id": each} for each in ids]).SerializeToString()
    # Fields that we do not know, of every kind that the encoding has: 15 as number, 64 bits, text, 32 bits.
    unknown = b"\x78\x96\x01" + b"\x79" + bytes(8) + b"\x7a\x03abc" + b"\x7d" + bytes(4)
    assert runtime._parse_sandboxes(unknown + listed + unknown) == set(ids)
    config = {"Networks": [{"Config": {"Name": "a"}, "IFName": "eth0"}, {"Config": {"Name": "b"}}]}
    told = messages().StatusResponse(info={"other": "{", "cniconfig": json.dumps(config)})
    assert runtime._parse_networks(unknown + told.SerializeToString()) == {"a", "b"}
    assert runtime._parse_networks(messages().StatusResponse(info={"x": "y"}).SerializeToString()) == set()


@pytest.mark.parametrize(
    "said", ["", "{", "[]", "{}", '{"Networks": []}', '{"Networks": [{"Config": null}]}']
)
def test_a_runtime_that_does_not_tell_its_networks_uses_none(said: str) -> None:
    answer = messages().StatusResponse(info={"cniconfig": said}).SerializeToString()
    assert runtime._parse_networks(answer) == set()


def test_an_answer_that_is_none_is_an_error_and_not_an_empty_list() -> None:
    listed = messages().ListPodSandboxResponse(items=[{"id": "a" * 64}] * 3).SerializeToString()
    for cut in range(1, len(listed)):
        if cut % (len(listed) // 3):
            with pytest.raises(CNIError, match="wanted a protobuf message"):
                runtime._parse_sandboxes(listed[:cut])
    chosen = random.Random(1)
    for _ in range(2000):
        with suppress(CNIError):
            runtime._parse_sandboxes(b"\x0a\x14\x0a\x12" + chosen.randbytes(40))
