"""What a packet meets on its way through rules: what decides, what is passed over, what is not known."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from cni_plugin.kernel.chain_walk import Packet, walk
from cni_plugin.kernel.iptables import _parse_rule

LEAVING = Packet(iifname="cni0", oifname=None, state="new")
ANSWERING = Packet(iifname=None, oifname="cni0", state="established")


def on(key: str, right: Any, op: str = "==") -> dict[str, Any]:
    kind = "ct" if key == "state" else "meta"
    return {"match": {"op": op, "left": {kind: {"key": key}}, "right": right}}


ACCEPT, DROP, RETURN = {"accept": None}, {"drop": None}, {"return": None}
REJECT = {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}
UNKNOWN = {
    "match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": "10.0.0.1"}
}
COUNTER = {"counter": {"packets": 1, "bytes": 1}}
SEE_STATE = {
    "vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["established", ACCEPT], ["new", DROP]]}}
}


def jump(target: str, word: str = "jump") -> dict[str, Any]:
    return {word: {"target": target}}


@pytest.mark.parametrize(
    ("rules", "leaving", "answering"),
    [
        ([[COUNTER, ACCEPT]], "accept", "accept"),
        ([[DROP]], "drop", "drop"),
        ([[REJECT]], "drop", "drop"),
        ([[RETURN], [DROP]], None, None),
        ([[on("iifname", "cni0"), ACCEPT], [DROP]], "accept", "drop"),
        ([[on("oifname", "cni*"), ACCEPT], [DROP]], "drop", "accept"),
        ([[on("iifname", "docker0"), ACCEPT], [DROP]], "drop", "drop"),
        ([[on("iifname", "docker0", "!="), ACCEPT], [DROP]], "accept", "drop"),
        ([[on("iifname", {"set": ["lo", "cni0"]}), ACCEPT], [DROP]], "accept", "drop"),
        ([[on("iifname", "@trusted"), ACCEPT], [DROP]], "drop", "drop"),
        ([[on("state", ["established", "related"], "in"), ACCEPT], [DROP]], "drop", "accept"),
        ([[SEE_STATE]], "drop", "accept"),
        ([[UNKNOWN, DROP], [ACCEPT]], "accept", "accept"),
        ([[UNKNOWN, ACCEPT], [DROP]], "drop", "drop"),
        ([[on("iifname", "cni0"), UNKNOWN, ACCEPT], [DROP]], "accept", "drop"),
        ([[on("iifname", "cni0"), UNKNOWN, DROP], [ACCEPT]], "accept", "accept"),
        ([[on("iifname", "cni0"), {"xt": None}, ACCEPT], [DROP]], "accept", "drop"),
        ([[{"limit": {"rate": 1, "per": "second"}}, ACCEPT], [DROP]], "drop", "drop"),
        ([[{"quota": {"val": 1}}, DROP], [ACCEPT]], "accept", "accept"),
        ([[{"xt": {"type": "target", "name": "REJECT"}}]], "drop", "drop"),
        ([[jump("zone")], [DROP]], "accept", "drop"),
        ([[jump("zone", "goto")], [DROP]], "accept", None),
        ([[jump("absent")], [DROP]], "drop", "drop"),
        ([[jump("base")], [ACCEPT]], "accept", "accept"),
        ([], None, None),
    ],
)
def test_the_first_rule_that_surely_applies_decides(
    rules: list[list[dict[str, Any]]], leaving: str | None, answering: str | None
) -> None:
    chains = {"base": rules, "zone": [[on("iifname", "cni0"), ACCEPT]]}
    assert (walk(chains, "base", LEAVING), walk(chains, "base", ANSWERING)) == (leaving, answering)


@pytest.mark.parametrize(
    ("line", "leaving", "answering"),
    [
        ("-i cni0 -j ACCEPT", "accept", None),
        ("-i cni+ -j ACCEPT", "accept", None),
        ("! -i docker0 -j ACCEPT", "accept", None),
        ("-o cni0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", None, "accept"),
        ("-s 10.0.0.0/8 -j ACCEPT", None, None),
        ('-m comment --comment "-j DROP" -j REJECT --reject-with icmp-port-unreachable', "drop", "drop"),
    ],
)
def test_rules_of_the_old_iptables_mean_the_same(
    line: str, leaving: str | None, answering: str | None
) -> None:
    chains = {"FORWARD": [list(_parse_rule(shlex.split(line)))]}
    assert (walk(chains, "FORWARD", LEAVING), walk(chains, "FORWARD", ANSWERING)) == (leaving, answering)
