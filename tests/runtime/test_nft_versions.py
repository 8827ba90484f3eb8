"""nft of Debian 12 and today's nft write and read our tables, whoever of them has made them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from netaddr import IPNetwork

from cni_plugin.dataplane.services.plan import Endpoint, Frontend, FrontendPlan, Surroundings
from cni_plugin.dataplane.services.sync import ServicesTable
from cni_plugin.kernel.netns import open_pod
from tests.conftest import in_process
from tests.harness.networks import dual_stack
from tests.harness.runtime import tools

if TYPE_CHECKING:
    from tests.harness.node import Node

pytestmark = in_process

PORTS = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
# Not new and then old: nft 1.0.6 dies of the maps of host ports, which are declared by `type`.
both_ways = pytest.mark.parametrize(("writer", "reader"), [("old", "new"), ("new", "new"), ("old", "old")])


def nft(age: tools.Age) -> str:
    return str(tools.nft(age))


def environ(age: tools.Age) -> dict[str, str | None]:
    """Return the variables with which podwire starts this nft."""
    return {"PATH": f"{tools.nft(age).parent}:{os.environ['PATH']}"}


def config_of(node: Node) -> dict[str, Any]:
    """Return a network that uses all that we have in nftables."""
    wishes = {"ipMasq": True, "macspoofchk": True, "runtimeConfig": {"portMappings": PORTS}}
    return dual_stack(node, capabilities={"portMappings": True}, **wishes)


def lines(listing: str) -> list[str]:
    return [line.strip() for line in listing.splitlines()]


@both_ways
def test_a_listing_names_the_pod_of_each_element_and_can_be_loaded_again(
    node: Node, writer: tools.Age, reader: tools.Age
) -> None:
    pod = node.pod()
    node.add(config_of(node), pod, environ=environ(writer))
    listing = node.run(nft(reader), "list", "ruleset").stdout
    assert f"{pod.container_id} eth0" in listing
    shown = json.loads(node.run(nft(reader), "-j", "list", "ruleset").stdout)
    assert f"{pod.container_id} eth0" in json.dumps(shown)
    copy = node.pod()
    copy.run(nft(reader), "-f", "-", input=listing)
    assert sorted(lines(copy.run(nft(reader), "list", "ruleset").stdout)) == sorted(lines(listing))


@both_ways
def test_what_one_has_made_the_other_checks_and_deletes(
    node: Node, writer: tools.Age, reader: tools.Age
) -> None:
    config = config_of(node)
    first, second = node.pod(), node.pod()
    del config["runtimeConfig"]
    node.add(config, first, environ=environ(writer))
    before = node.run(nft(reader), "list", "ruleset").stdout
    result = node.add(config, second, environ=environ(writer))
    checked = node.check(config, result, second, environ=environ(reader))
    assert checked.status == 0, checked.stdout
    node.delete(config, second, environ=environ(reader))
    assert lines(node.run(nft(reader), "list", "ruleset").stdout) == lines(before)
    node.delete(config, first, environ=environ(reader))
    assert " eth0" not in node.run(nft(reader), "list", "ruleset").stdout


@both_ways
def test_rules_that_another_loads_beside_ours_change_nothing_of_them(
    node: Node, writer: tools.Age, reader: tools.Age
) -> None:
    config, pod = config_of(node), node.pod()
    result = node.add(config, pod, environ=environ(writer))
    tables = ("inet podwire", "bridge podwire")
    ours = [node.run(nft(reader), "list", "table", *table.split()).stdout for table in tables]
    others = (
        "table inet others\ndelete table inet others\ntable inet others {\n set s { type ipv4_addr; }\n}\n"
    )
    for _ in range(2):  # as a service that is restarted does
        node.run(nft(reader), "-f", "-", input=others)
    assert [node.run(nft(reader), "list", "table", *table.split()).stdout for table in tables] == ours
    # A second pod has podwire write with what it finds.
    node.add({**config, "runtimeConfig": {}}, node.pod(), environ=environ(reader))
    assert node.check(config, result, pod, environ=environ(reader)).status == 0
    assert "table inet others" in node.run(nft(reader), "list", "tables").stdout


def test_an_nft_that_dies_of_a_newer_ones_sets_is_what_the_error_names(node: Node) -> None:
    """A program that ends as nft 1.0.6 does: a distribution may have mended its own."""
    dying = node.tmp / "dying"
    dying.mkdir()
    (dying / "nft").write_text("#!/bin/sh\nkill -SEGV $$\n")
    (dying / "nft").chmod(0o755)
    path = {"PATH": f"{dying}:{os.environ['PATH']}"}
    answer = node.call("ADD", config_of(node), node.pod(), environ=path)
    assert (answer.status, answer.json["code"]) == (1, 11)
    assert "SIGSEGV" in answer.json["msg"]
    assert "1.1.2" in answer.json["msg"]


@pytest.mark.parametrize(("writer", "reader"), [("old", "new"), ("new", "old")])
def test_the_table_of_services_is_written_by_one_and_read_and_written_by_the_other(
    node: Node, writer: tools.Age, reader: tools.Age, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = {Frontend(b"\x0a\x60\0\x0a", 6, 80): PLAN, Frontend(b"\xfd" + bytes(14) + b"\1", 17, 53): PLAN6}
    before = os.environ["PATH"]
    with open_pod(node.path) as host, host.entered():
        monkeypatch.setenv("PATH", f"{tools.nft(writer).parent}:{before}")
        ServicesTable().sync(host.nftables, plans, AROUND)
        listing = node.run(nft(reader), "list", "ruleset").stdout
        assert "10.96.0.10 . tcp . 80 comment" in listing
        assert "numgen random mod 2 map @ep4" in listing
        monkeypatch.setenv("PATH", f"{tools.nft(reader).parent}:{before}")
        assert ServicesTable().sync(host.nftables, plans, AROUND).elements == 0
        # Another node's address changes the static part: the other nft writes it.
        moved = replace(AROUND, addresses=(b"\xc0\0\2\7",))
        table = ServicesTable()
        table.sync(host.nftables, plans, moved)
        assert "snat ip to 192.0.2.7" in node.run(nft(writer), "list", "ruleset").stdout


ENDPOINTS = (Endpoint(b"\x0a\xf4\1\2", 8080), Endpoint(b"\x0a\xf4\2\2", 8080))
PLAN = FrontendPlan(name="shop/web:http", endpoints=ENDPOINTS, keep=60, is_cluster=True)
PLAN6 = FrontendPlan(name="shop/dns:udp", endpoints=(Endpoint(b"\xfd" + bytes(14) + b"\2", 53),))
AROUND = Surroundings(addresses=(b"\xc0\0\2\1",), pod_networks=(IPNetwork("10.244.0.0/16"),))
