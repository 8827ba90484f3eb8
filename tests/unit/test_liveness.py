"""Who is dead by what proof, and what is read out of a runtime's answers."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from dataclasses import replace

import pytest

from cni_plugin.config.network import Attachment
from cni_plugin.contract.errors import CNIError
from cni_plugin.node import runtime
from cni_plugin.node.leftovers import Leftover, Veths, host_ifname
from cni_plugin.node.liveness import Proof, judge
from cni_plugin.node.runtime import RuntimeState
from tests.harness.runtime.cri import messages

IDENTITY = Attachment(network="net", container_id="box", ifname="eth0", netns="").identity
LEFTOVER = Leftover(
    network="net",
    identity=IDENTITY,
    container_id="box",
    ifname="eth0",
    what=("address 10.1.0.2",),
    reservations=(),
    joined_here=True,
)
CUT = replace(LEFTOVER, container_id="bo", ifname="", joined_here=False)
LEGACY = replace(LEFTOVER, identity="", ifname="", joined_here=False)
LEGACY_OF_EARLIER_BOOT = replace(LEGACY, of_earlier_boot=True)
NONE = Veths(names=frozenset(), identities=frozenset(), container_ids=frozenset())
NOBODY = RuntimeState(sandboxes=frozenset(), networks=frozenset({"net"}))
BOX = replace(NOBODY, sandboxes=frozenset({"box"}))
ELSEWHERE = replace(NOBODY, networks=frozenset({"other"}))


@pytest.mark.parametrize(
    ("leftover", "veths", "state", "proof"),
    [
        (LEFTOVER, NONE, None, Proof.KERNEL),
        (LEFTOVER, NONE, NOBODY, Proof.KERNEL),
        (LEFTOVER, NONE, ELSEWHERE, Proof.KERNEL),
        (LEFTOVER, NONE, BOX, None),
        (LEFTOVER, replace(NONE, names=frozenset({host_ifname(IDENTITY)})), NOBODY, Proof.NONE),
        (LEFTOVER, replace(NONE, identities=frozenset({IDENTITY})), NOBODY, Proof.NONE),
        (LEFTOVER, replace(NONE, identities=frozenset({IDENTITY})), ELSEWHERE, None),
        (LEFTOVER, replace(NONE, identities=frozenset({IDENTITY})), BOX, None),
        (LEFTOVER, replace(NONE, identities=frozenset({IDENTITY})), None, None),
        (replace(LEFTOVER, joined_here=False), NONE, None, Proof.NONE),
        (replace(LEFTOVER, joined_here=False), NONE, NOBODY, Proof.RUNTIME),
        (replace(LEFTOVER, joined_here=False), NONE, ELSEWHERE, Proof.NONE),
        (replace(LEFTOVER, joined_here=False), NONE, BOX, None),
        (replace(LEFTOVER, joined_here=False, of_earlier_boot=True), NONE, None, Proof.BOOT),
        (replace(LEFTOVER, joined_here=False, of_earlier_boot=True), NONE, ELSEWHERE, Proof.BOOT),
        (replace(LEFTOVER, joined_here=False, of_earlier_boot=True), NONE, BOX, None),
        (LEGACY_OF_EARLIER_BOOT, NONE, None, Proof.BOOT),
        (LEGACY_OF_EARLIER_BOOT, replace(NONE, container_ids=frozenset({"box"})), None, None),
        (CUT, NONE, NOBODY, Proof.NONE),
        (CUT, NONE, BOX, None),
        (replace(CUT, joined_here=True), NONE, NOBODY, Proof.KERNEL),
        (replace(CUT, joined_here=True), NONE, BOX, None),
        # A network's name may be so long that a comment has no room for the container's.
        (replace(CUT, container_id=""), NONE, None, Proof.NONE),
        (replace(CUT, container_id=""), NONE, NOBODY, Proof.NONE),
        (replace(CUT, container_id=""), replace(NONE, identities=frozenset({IDENTITY})), None, None),
        (LEGACY, NONE, None, Proof.NONE),
        (LEGACY, NONE, NOBODY, Proof.RUNTIME),
        (LEGACY, NONE, BOX, None),
        (LEGACY, replace(NONE, container_ids=frozenset({"box"})), NOBODY, Proof.NONE),
        (replace(LEGACY, container_id=""), NONE, None, Proof.DEBRIS),
    ],
)
def test_who_is_dead(
    leftover: Leftover, veths: Veths, state: RuntimeState | None, proof: Proof | None
) -> None:
    liveness = judge(leftover, veths, state, shared=False)
    assert (liveness.proof if liveness else None) == proof


def test_in_a_shared_store_the_runtimes_word_is_not_enough() -> None:
    for old in (False, True):
        leftover = replace(LEFTOVER, joined_here=False, of_earlier_boot=old)
        liveness = judge(leftover, NONE, NOBODY, shared=True)
        assert liveness
        assert liveness.proof is Proof.NONE


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
