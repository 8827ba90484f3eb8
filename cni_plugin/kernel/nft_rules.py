"""Packs rules that `nft` 1.0.6 cannot say, expression by expression, and the chains that hold them.

A rule is a list of small steps on sixteen registers of four bytes: load a field of the packet, look a
concatenation of them up in a map, translate to what was found. Every `nft` lists them as text.
linux/netfilter/nf_tables.h; libnftnl's src/expr
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cni_plugin.kernel import netlink
from cni_plugin.kernel.message import attribute, text
from cni_plugin.kernel.nft_message import (
    FAMILIES,
    PackedChange,
    general,
    nested,
    pack_verdict,
    render_comment,
)

_NEWCHAIN, _NEWRULE, _DELRULE = 3, 6, 8
_CHAIN_TABLE, _CHAIN_NAME = 1, 3
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS, _RULE_USERDATA = 1, 2, 4, 7
_LIST_ELEM, _EXPR_NAME, _EXPR_DATA, _DATA_VALUE, _DATA_VERDICT = 1, 1, 2, 1, 2
_NLM_F_APPEND = 0x800
_FIRST = 8  # NFT_REG32_00
_VERDICT_REGISTER = 0
_META_NFPROTO, _META_L4PROTO = 15, 16
_NETWORK, _TRANSPORT = 1, 2  # NFT_PAYLOAD_*_HEADER
_CT_PROTO_DST = 12
_CT_DST_IP = {4: 20, 6: 22}
_ORIGINAL = 0  # IP_CT_DIR_ORIGINAL
_UPDATE = 1  # NFT_DYNSET_OP_UPDATE
_RANDOM = 1  # NFT_NG_RANDOM
_DNAT = 1
_NFPROTO = {4: 2, 6: 10}
_WORDS = {4: 1, 6: 4}  # registers of an address
_SOURCE, _DESTINATION = {4: 12, 6: 8}, {4: 16, 6: 24}  # offsets in the header


@dataclass(slots=True)
class PackedRule:
    """Expressions of one rule; each load takes the registers behind the last one's."""

    version: int = 0
    packed: bytes = b""
    register: int = _FIRST

    @classmethod
    def of(cls, version: int) -> PackedRule:
        """Return a rule for packets of one family: `meta nfproto ipv4`."""
        rule = cls(version)
        rule._add("meta", _u32(1, _FIRST) + _u32(2, _META_NFPROTO))
        wanted = nested(3, attribute(_DATA_VALUE, bytes([_NFPROTO[version]])))
        rule._add("cmp", _u32(1, _FIRST) + _u32(2, 0) + wanted)
        return rule

    def begin_again(self) -> None:
        """Load into the first registers again: what was loaded has been looked up."""
        self.register = _FIRST

    def load_source(self) -> None:
        """`ip saddr`."""
        self._load_address(_SOURCE)

    def load_destination(self) -> None:
        """`ip daddr`."""
        self._load_address(_DESTINATION)

    def load_protocol(self) -> None:
        """`meta l4proto`."""
        self._add("meta", _u32(1, self._take(1)) + _u32(2, _META_L4PROTO))

    def load_port(self) -> None:
        """`th dport`."""
        self._add("payload", _u32(1, self._take(1)) + _u32(2, _TRANSPORT) + _u32(3, 2) + _u32(4, 2))

    def load_original_destination(self) -> None:
        """`ct original ip daddr`."""
        self._load_original(_CT_DST_IP[self.version], _WORDS[self.version])

    def load_original_port(self) -> None:
        """`ct original proto-dst`."""
        self._load_original(_CT_PROTO_DST, 1)

    def load_random(self, modulus: int) -> None:
        """`numgen random mod MODULUS`, in the machine's byte order."""
        self._add("numgen", _u32(1, self._take(1)) + _u32(2, modulus) + _u32(3, _RANDOM))

    def look_up(self, name: str) -> None:
        """Go on only with what the map has under everything that was loaded: it takes the first registers."""
        self._add("lookup", text(1, name) + _u32(2, _FIRST) + _u32(3, _FIRST))

    def look_up_verdict(self, name: str) -> None:
        """`vmap @NAME`: the verdict of everything that was loaded."""
        self._add("lookup", text(1, name) + _u32(2, _FIRST) + _u32(3, _VERDICT_REGISTER))

    def is_member(self, name: str) -> None:
        """Go on only when everything that was loaded is in the set."""
        self._add("lookup", text(1, name) + _u32(2, _FIRST))

    def translate(self) -> None:
        """`dnat to ADDRESS . PORT`, which a map has given."""
        family = _u32(1, _DNAT) + _u32(2, _NFPROTO[self.version])
        port = _FIRST + _WORDS[self.version]
        registers = _u32(3, _FIRST) + _u32(4, _FIRST) + _u32(5, port) + _u32(6, port)
        self._add("nat", family + registers)

    def update(self, name: str, data: int, seconds: int) -> None:
        """`update @NAME { ... timeout SECONDS : ... }`; `data` is the register at which the value begins."""
        self._add(
            "dynset",
            text(1, name)
            + _u32(3, _UPDATE)
            + _u32(4, _FIRST)
            + _u32(5, data)
            + attribute(6, struct.pack("!Q", seconds * 1000)),
        )

    def go_to(self, chain: str) -> None:
        """`goto CHAIN`."""
        verdict = nested(2, nested(_DATA_VERDICT, pack_verdict(f"goto {chain}")))
        self._add("immediate", _u32(1, _VERDICT_REGISTER) + verdict)

    def _load_address(self, offsets: dict[int, int]) -> None:
        words = _WORDS[self.version]
        place = _u32(2, _NETWORK) + _u32(3, offsets[self.version]) + _u32(4, 4 * words)
        self._add("payload", _u32(1, self._take(words)) + place)

    def _load_original(self, key: int, words: int) -> None:
        self._add("ct", _u32(1, self._take(words)) + _u32(2, key) + attribute(3, bytes([_ORIGINAL])))

    def _take(self, words: int) -> int:
        taken = self.register
        self.register += words
        return taken

    def _add(self, name: str, members: bytes) -> None:
        self.packed += nested(_LIST_ELEM, text(_EXPR_NAME, name) + nested(_EXPR_DATA, members))


def pack_chain(
    family: str, table: str, name: str, rules: list[PackedRule], comment: str
) -> list[PackedChange]:
    """Return the changes that make a chain with these rules and no others; without any it stays as it is."""
    place = f"{family} {table} {name}"
    head = general(FAMILIES[family])
    made = PackedChange(
        command=f"nft add chain {place}",
        kind=_NEWCHAIN,
        flags=netlink.NLM_F_CREATE,
        body=head + text(_CHAIN_TABLE, table) + text(_CHAIN_NAME, name),
    )
    where = head + text(_RULE_TABLE, table) + text(_RULE_CHAIN, name)
    about = attribute(_RULE_USERDATA, render_comment(comment))
    appended = netlink.NLM_F_CREATE | _NLM_F_APPEND
    emptied = PackedChange(command=f"nft flush chain {place}", kind=_DELRULE, flags=0, body=where)
    return [
        made,
        *([emptied] if rules else []),
        *(
            PackedChange(
                command=f"nft add rule {place} # packed",
                kind=_NEWRULE,
                flags=appended,
                body=where + nested(_RULE_EXPRESSIONS, rule.packed) + about,
            )
            for rule in rules
        ),
    ]


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value))
