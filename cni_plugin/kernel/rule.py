"""Rules that choose a routing table: `ip rule add from SUBNET fwmark MARK/MARK lookup TABLE`.

A sync owns the rules that lead to the table whose number is its priority. Attributes:
linux/fib_rules.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.kernel import netlink
from cni_plugin.kernel.message import FAMILY, ip, parse_attributes, parse_network, parse_number, u8, u32
from cni_plugin.kernel.netlink import HEADER, Change, Query
from cni_plugin.kernel.route import PODWIRE_PROTO, SYNC_PRIORITY

if TYPE_CHECKING:
    from netaddr import IPNetwork

    from cni_plugin.kernel.netlink import Netlink

_HEAD = struct.Struct(
    "=8BI"
)  # struct fib_rule_hdr: family, dst_len, src_len, tos, table, -, -, action, flags
_FR_ACT_TO_TBL = 1
_FRA_SRC, _FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK, _FRA_PROTOCOL = 2, 6, 10, 15, 16, 21
PREFERENCE = 30112  # before the main table's 32766, after what operators number by hand


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSpec:
    """What comes from a subnet and carries all bits of a mark is looked up in a table first."""

    src: IPNetwork
    mark: int
    table: int


def add_rule(spec: RuleSpec) -> Change:
    """Return the change that adds the rule; an equal one already there is EEXIST."""
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
    body = _body(spec) + u32(_FRA_PRIORITY, PREFERENCE) + u8(_FRA_PROTOCOL, PODWIRE_PROTO)
    command = f"{_command('add', spec)} pref {PREFERENCE} protocol {PODWIRE_PROTO}"
    return Change(command, netlink.RTM_NEWRULE, body, flags)


def remove_rule(spec: RuleSpec) -> Change:
    """Return the change that deletes the rule, whoever made it and wherever it stands."""
    return Change(_command("del", spec), netlink.RTM_DELRULE, _body(spec))


def _command(verb: str, spec: RuleSpec) -> str:
    mark = f" fwmark {spec.mark:#x}/{spec.mark:#x}" if spec.mark else ""
    return f"ip -{spec.src.version} rule {verb} from {spec.src}{mark} lookup {spec.table}"


def _body(spec: RuleSpec) -> bytes:
    head = _HEAD.pack(FAMILY[spec.src.version], 0, spec.src.prefixlen, 0, 0, 0, 0, _FR_ACT_TO_TBL, 0)
    mark = u32(_FRA_FWMARK, spec.mark) + u32(_FRA_FWMASK, spec.mark) if spec.mark else b""
    return head + ip(_FRA_SRC, spec.src.ip) + mark + u32(_FRA_TABLE, spec.table)


def list_rules(nl: Netlink, version: int, table: int) -> list[RuleSpec]:
    """Return the rules of one family (4 or 6) that lead to a table."""
    return [spec for spec in _list(nl, version) if spec.table == table]


def list_own_rules(nl: Netlink, version: int) -> list[RuleSpec]:
    """Return the rules of one family that lead to the table of any sync."""
    return [spec for spec in _list(nl, version) if spec.table >= SYNC_PRIORITY]


def is_own_rule(raw: bytes) -> bool:
    """Tell whether a message is about a rule that leads to the table of a sync."""
    spec = _parse(raw)
    return spec is not None and spec.table >= SYNC_PRIORITY


def _list(nl: Netlink, version: int) -> list[RuleSpec]:
    body = _HEAD.pack(FAMILY[version], 0, 0, 0, 0, 0, 0, 0, 0)
    found = nl.dump(Query(f"ip -{version} rule show", netlink.RTM_GETRULE, body))
    return [spec for spec in map(_parse, found) if spec is not None]


def _parse(raw: bytes) -> RuleSpec | None:
    """Return the rule; None for one without a source, which is none of ours."""
    _, _, length, _, table, *_ = _HEAD.unpack_from(raw, HEADER.size)
    found = parse_attributes(raw, HEADER.size + _HEAD.size)
    if _FRA_SRC not in found:
        return None
    return RuleSpec(
        src=parse_network(found[_FRA_SRC], length),
        mark=parse_number(found.get(_FRA_FWMARK)),
        table=parse_number(found.get(_FRA_TABLE)) or table,
    )
