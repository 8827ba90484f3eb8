"""Follows a packet through the rules of a chain: interfaces, addresses, states and UDP ports.

Rules are as `nft -j` lists them (libnftables-json(5)): a list of conditions and statements each. A
condition is true, false, or about something that we do not know. A rule with an unknown condition
counts only when it names the packet's interface and does not drop. Where a packet is dropped so, the
rules are walked once more with every unknown condition true: if it passes then, nobody can say.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from netaddr import AddrFormatError, IPNetwork

Rule = list[dict[str, Any]]
Rules = dict[str, list[Rule]]
RuleOutcome = Literal["accept", "drop", "unknown"]
_DEEPEST = 16  # jumps, NFT_JUMP_STACK_SIZE
_DROPS = frozenset({"drop", "reject"})
_ENDS = frozenset({"accept", "drop", "reject", "return", "jump", "goto"})

_NAMING = frozenset({"iifname", "oifname", "dport", "saddr", "daddr"})
_KNOWN_XT = frozenset({"REJECT", "comment", "conntrack"})
_KNOWN = _ENDS | {"match", "vmap", "counter", "log", "mangle", "notrack", "flow"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """What is known of a packet; None for an interface, a network or a port of UDP that is not.

    `saddr` and `daddr` are networks: the packet stands for one of any address in them.
    """

    iifname: str | None
    oifname: str | None
    state: str
    port: int | None = None
    saddr: IPNetwork | None = None
    daddr: IPNetwork | None = None


def decide(rules: Rules, chain: str, packet: Packet, *, drops: bool) -> RuleOutcome:
    """Return what becomes of a packet in a base chain whose policy `drops` or accepts."""
    policy: RuleOutcome = "drop" if drops else "accept"
    if (walk(rules, chain, packet) or policy) == "accept":
        return "accept"
    return "unknown" if (walk(rules, chain, packet, hopeful=True) or policy) == "accept" else "drop"


def walk(
    rules: Rules, chain: str, packet: Packet, *, hopeful: bool = False, depth: int = 0
) -> Literal["accept", "drop"] | None:
    """Return `accept` or `drop` when a rule decides, None at the end of the chain.

    `hopeful` takes every condition that is not known as true, but for rules that drop.
    """
    for rule in rules.get(chain, ()) if depth < _DEEPEST else ():
        for verdict, target in _verdicts(rule, packet, hopeful=hopeful):
            if verdict == "return":
                return None
            if verdict in {"accept", "drop"}:
                return "accept" if verdict == "accept" else "drop"
            decided = walk(rules, target, packet, hopeful=hopeful, depth=depth + 1)
            if decided or verdict == "goto":
                return decided
    return None


def _verdicts(rule: Rule, packet: Packet, *, hopeful: bool) -> list[tuple[str, str]]:
    """Return what the rule does with the packet, and where it jumps to; nothing where it does not apply."""
    truths = [_is_true(step["match"], packet) for step in rule if "match" in step]
    truths += [_is_stateful(packet) for step in rule if _xt(step) == "conntrack"]
    unknown = None in truths or any(_is_unknown(step) for step in rule)
    if False in truths or (unknown and not hopeful and not _names(rule, packet)):
        return []
    found = [verdict for step in rule for verdict in _verdict(step, packet)]
    return [v for v in found if not (unknown and v[0] == "drop")]


def _is_unknown(step: dict[str, Any]) -> bool:
    """Tell whether a step may be a condition that we do not know: a limit, a match of iptables."""
    return not step.keys() <= _KNOWN and _xt(step) not in _KNOWN_XT


def _xt(step: dict[str, Any]) -> str:
    """Return the name of a match or target of iptables; nft does not say more of it."""
    name: str = (step.get("xt") or {}).get("name", "")
    return name


def _is_stateful(packet: Packet) -> bool:
    """Tell whether a rule with iptables' `conntrack` is about the packet: nearly all are for what answers."""
    return packet.state != "new"


def _names(rule: Rule, packet: Packet) -> bool:
    """Tell whether somebody wrote the rule for the interface, or the port: a true condition is about it."""
    matches = [step["match"] for step in rule if "match" in step]
    named = [m for m in matches if m["op"] in {"==", "in"} and _key(m["left"]) in _NAMING]
    return any(_is_true(match, packet) for match in named)


def _verdict(step: dict[str, Any], packet: Packet) -> list[tuple[str, str]]:
    if _xt(step) == "REJECT":
        return [("drop", "")]
    if "vmap" in step:
        return _look_up(step["vmap"], packet)
    for name in _ENDS & step.keys():
        return [("drop" if name in _DROPS else name, (step[name] or {}).get("target", ""))]
    return []


def _look_up(vmap: dict[str, Any], packet: Packet) -> list[tuple[str, str]]:
    """Return the verdict of the entry for the packet; a named map is not read."""
    value, data = _value(vmap["key"], packet), vmap["data"]
    entries = data.get("set", []) if isinstance(data, dict) else []
    found = [step for key, step in entries if value is not None and _equals(key, value)]
    return _verdict(found[0], packet) if found else []


def _is_true(match: dict[str, Any], packet: Packet) -> bool | None:
    if (key := _key(match["left"])) in {"saddr", "daddr"}:
        return _is_within(match, packet.saddr if key == "saddr" else packet.daddr)
    value = _value(match["left"], packet)
    wanted = match["right"]
    if value is None or (isinstance(wanted, str) and wanted.startswith("@")):
        return None
    members = wanted.get("set", []) if isinstance(wanted, dict) else wanted
    equal = any(_equals(each, value) for each in (members if isinstance(members, list) else [members]))
    return equal != bool(match["op"] == "!=")


def _is_within(match: dict[str, Any], network: IPNetwork | None) -> bool | None:
    """Tell whether all addresses of a network fulfil a condition; None where nobody knows it of all."""
    right = match["right"]
    members = right.get("set", [right]) if isinstance(right, dict) else right
    wanted = [_network(each) for each in (members if isinstance(members, list) else [members])]
    if network is None or None in wanted:
        return None
    inside = any(network in each for each in wanted if each is not None)
    if not inside and any(each in network for each in wanted if each is not None):
        return None
    return inside != bool(match["op"] == "!=")


def _network(value: object) -> IPNetwork | None:
    """Return an address or a prefix as nft lists it; None for a range, a named set or something else."""
    if isinstance(value, dict) and "prefix" in value:
        value = f"{value['prefix']['addr']}/{value['prefix']['len']}"
    try:
        return IPNetwork(value) if isinstance(value, str) else None
    except (AddrFormatError, ValueError):
        return None


def _value(left: dict[str, Any], packet: Packet) -> str | None:
    udp = packet.port is not None
    known = {
        "iifname": packet.iifname,
        "oifname": packet.oifname,
        "state": packet.state,
        "l4proto": "udp" if udp else None,
        "dport": str(packet.port) if udp else None,
    }
    return known.get(_key(left))


def _key(left: dict[str, Any]) -> str:
    """Return what a condition is about: an interface, the state of the connection, a protocol or port."""
    if not isinstance(left, dict):
        return ""
    payload = left.get("payload") or {}
    if (field := payload.get("field")) in {"saddr", "daddr"} and payload.get("protocol") in {"ip", "ip6"}:
        return str(field)
    if payload.get("field") == "dport":
        return "dport" if payload.get("protocol") in {"udp", "th"} else "tcp dport"
    if payload.get("field") in {"protocol", "nexthdr"}:
        return "l4proto"
    key: str = (left.get("meta") or left.get("ct") or {}).get("key", "")
    return {"iif": "iifname", "oif": "oifname"}.get(key, key)


def _equals(wanted: object, value: str) -> bool:
    """Compare as nft does; `veth*` as a value stands for every such interface."""
    if isinstance(wanted, dict) and "range" in wanted and value.isdecimal():
        first, last = wanted["range"]
        return bool(int(first) <= int(value) <= int(last))
    if isinstance(wanted, int):
        return str(wanted) == value
    return isinstance(wanted, str) and (wanted == value or fnmatchcase(value, wanted))
