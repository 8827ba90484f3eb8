"""Packs and parses the bytes of nftables' messages: elements, and what a batch is made of.

A change of an element knows how it is done by hand; many of one set travel in one message. What is no
element (a set, a chain, a rule that `nft` cannot say) is packed elsewhere and travels as it is.
linux/netfilter/nf_tables.h
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.kernel import netlink
from cni_plugin.kernel.message import attribute, list_attributes, parse_text, text
from cni_plugin.kernel.message import parse_attributes as parse
from cni_plugin.kernel.netlink import pack
from cni_plugin.kernel.nft_layout import TABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

FAMILIES = {"": 0, "inet": 1, "ip": 2, "bridge": 7, "ip6": 10}  # NFPROTO_*, "" for all
SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES, linux/netfilter/nfnetlink.h
NEWSETELEM, DELSETELEM = 12, 14
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_ELEM = 1, 2, 3, 1
ELEM_KEY, DATA_VALUE = 1, 1
_ELEM_DATA, _ELEM_USERDATA, _ELEM_KEY_END = 2, 6, 10
_DATA_VERDICT, _VERDICT_CODE, _VERDICT_CHAIN = 2, 1, 2
# linux/netfilter.h and enum nft_verdicts
_VERDICTS = {"drop": 0, "accept": 1, "continue": -1, "jump": -3, "goto": -4, "return": -5}
_COMMENT = 0  # libnftnl's NFTNL_UDATA_*_COMMENT
MAX_COMMENT = 127  # bytes, NFTNL_UDATA_COMMENT_MAXLEN less the terminating zero
_NESTED = 0x8000
BODY = 20  # bytes of struct nlmsghdr and struct nfgenmsg
# Of one message: the list of its elements is an attribute, whose length has 16 bits.
_MOST_IN_ONE, _MOST_PAIRS = 200, 400
# Length and kind of nested attributes: the element, its key, the key's value; its data, their value.
_PAIR_HEAD, _DATA_HEAD = struct.Struct("=6H"), struct.Struct("=4H")


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """An element of a set, or of a map when it has `data`; key and data as the kernel holds them."""

    family: str
    table: str = TABLE
    set_name: str
    key: bytes
    data: bytes = b""
    end: bytes = b""
    """The last of its keys when it has several; it is found by each."""
    verdict: str = ""
    """Of a verdict map, in the words of `nft`: `drop`, `accept`, `goto CHAIN`."""
    comment: str = ""

    @property
    def command(self) -> str:
        """Return what it is in the words of `nft`, its key in hexadecimal."""
        keys = "-".join(key.hex() for key in (self.key, self.end) if key)
        comment = f' comment "{self.comment}"' if self.comment else ""
        verdict = f" : {self.verdict}" if self.verdict else ""
        return f"element {self.family} {self.table} {self.set_name} {{ {keys}{comment}{verdict} }}"


@dataclass(frozen=True, slots=True)
class ElementChange:
    """An element to be added, or deleted when it is not `present`."""

    element: Element
    present: bool

    @property
    def command(self) -> str:
        """Return the command that does the same by hand."""
        return f"nft {'add' if self.present else 'delete'} {self.element.command}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedChange:
    """A change of something else than elements, packed by whoever knows it; `command` does it by hand."""

    command: str
    kind: int
    """NFT_MSG_*."""
    flags: int
    body: bytes
    """What follows the header, struct nfgenmsg included."""


def gather(changes: Iterable[ElementChange | PackedChange]) -> list[list[ElementChange | PackedChange]]:
    """Return the changes in order, elements of one set and one kind that follow each other together."""
    messages: list[list[ElementChange | PackedChange]] = []
    place: object = None
    for change in changes:
        here = _place_of(change)
        if here is None or here != place or len(messages[-1]) == _MOST_IN_ONE:
            messages.append([])
        messages[-1].append(change)
        place = here
    return messages


def _place_of(change: ElementChange | PackedChange) -> object:
    """Return what changes that may travel in one message have in common; None for one that travels alone."""
    if isinstance(change, PackedChange):
        return None
    element = change.element
    return element.family, element.table, element.set_name, change.present


def pack_message(
    changes: Sequence[ElementChange | PackedChange], number: int, ack: int, exclusive: int
) -> bytes:
    """Return one message: of elements of one set, all added or all deleted, or of something else."""
    first = changes[0]
    if isinstance(first, PackedChange):
        return pack(SUBSYSTEM << 8 | first.kind, ack | first.flags, first.body, number)
    members = [_pack_element(change) for change in changes if isinstance(change, ElementChange)]
    kind = NEWSETELEM if first.present else DELSETELEM
    flags = ack | (netlink.NLM_F_CREATE | exclusive if first.present else 0)
    body = general(FAMILIES[first.element.family]) + element_list(first.element, members)
    return pack(SUBSYSTEM << 8 | kind, flags, body, number)


# What an element of a map holds: data, or a verdict in the words of `nft` and a comment; None in a set.
Value = bytes | tuple[str, str] | None


def pack_pairs(
    place: Element, pairs: Sequence[tuple[bytes, Value]], *, present: bool
) -> Iterator[PackedChange]:
    """Yield the changes that add many elements to the set of `place`, or delete them, 2 us each.

    For who alone fills its sets. A deletion needs the key alone.
    """
    kind, flags = (NEWSETELEM, netlink.NLM_F_CREATE) if present else (DELSETELEM, 0)
    head = general(FAMILIES[place.family]) + text(_LIST_TABLE, place.table) + text(_LIST_SET, place.set_name)
    verb = "add" if present else "delete"
    for start in range(0, len(pairs), _MOST_PAIRS):
        some = pairs[start : start + _MOST_PAIRS]
        members = b"".join(_pack_pair(key, value if present else None) for key, value in some)
        yield PackedChange(
            command=f"nft {verb} element {place.family} {place.table} {place.set_name} # {len(some)} of them",
            kind=kind,
            flags=flags,
            body=head + nested(_LIST_ELEMENTS, members),
        )


def _pack_pair(key: bytes, value: Value) -> bytes:
    """Return an element of a list; lengths of keys and data are multiples of four."""
    if isinstance(value, bytes):
        data = _DATA_HEAD.pack(8 + len(value), _ELEM_DATA | _NESTED, 4 + len(value), DATA_VALUE) + value
    elif value is not None:
        data = nested(_ELEM_DATA, nested(_DATA_VERDICT, pack_verdict(value[0])))
        data += attribute(_ELEM_USERDATA, render_comment(value[1])) if value[1] else b""
    else:
        data = b""
    size = len(key)
    outer = 12 + size + len(data), _LIST_ELEM | _NESTED
    return _PAIR_HEAD.pack(*outer, 8 + size, ELEM_KEY | _NESTED, 4 + size, DATA_VALUE) + key + data


def parse_pairs(raw: bytes) -> Iterator[tuple[bytes, Value]]:
    """Yield the elements of a set in a message, as `pack_pairs` takes them."""
    for _, member in list_attributes(parse(raw, BODY).get(_LIST_ELEMENTS, b"")):
        found = parse(member)
        data = parse(found.get(_ELEM_DATA, b""))
        value: Value = data.get(DATA_VALUE)
        if _DATA_VERDICT in data:
            value = (_parse_verdict(data[_DATA_VERDICT]), parse_comment(found.get(_ELEM_USERDATA, b"")))
        yield _parse_value(found.get(ELEM_KEY, b"")), value


def _pack_element(change: ElementChange) -> bytes:
    element = change.element
    members = nested(ELEM_KEY, attribute(DATA_VALUE, element.key))
    if element.end:
        members += nested(_ELEM_KEY_END, attribute(DATA_VALUE, element.end))
    if change.present and element.data:
        members += nested(_ELEM_DATA, attribute(DATA_VALUE, element.data))
    if change.present and element.verdict:
        members += nested(_ELEM_DATA, nested(_DATA_VERDICT, pack_verdict(element.verdict)))
    if change.present and element.comment:
        members += attribute(_ELEM_USERDATA, render_comment(element.comment))
    return members


def pack_verdict(verdict: str) -> bytes:
    """Return the members of a verdict, which is in the words of `nft`."""
    word, _, chain = verdict.partition(" ")
    code = attribute(_VERDICT_CODE, _VERDICTS[word].to_bytes(4, "big", signed=True))
    return code + (text(_VERDICT_CHAIN, chain) if chain else b"")


def _parse_verdict(raw: bytes) -> str:
    found = parse(raw)
    code = int.from_bytes(found.get(_VERDICT_CODE, b""), "big", signed=True)
    word = next((word for word, number in _VERDICTS.items() if number == code), str(code))
    return f"{word} {parse_text(found.get(_VERDICT_CHAIN))}".rstrip()


def element_list(place: Element, elements: list[bytes] | None = None) -> bytes:
    """Return the body of a message about elements of the set that `place` names."""
    body = text(_LIST_TABLE, place.table) + text(_LIST_SET, place.set_name)
    members = b"".join(nested(_LIST_ELEM, element) for element in elements or ())
    return body + (nested(_LIST_ELEMENTS, members) if members else b"")


def general(family: int, resource: int = 0) -> bytes:
    """Return the struct nfgenmsg that every message begins with."""
    return struct.pack("!BBH", family, 0, resource)


def nested(kind: int, members: bytes) -> bytes:
    """Return an attribute that holds attributes, which here must say so."""
    return attribute(kind | _NESTED, members)


def render_comment(comment: str) -> bytes:
    """Return a comment as `nft` keeps it with an object."""
    value = comment.encode() + b"\0"
    return bytes([_COMMENT, len(value)]) + value


def parse_comment(userdata: bytes) -> str:
    """Return the comment among the type, length, value triples that `nft` keeps with an object."""
    while len(userdata) > 2:
        kind, length = userdata[:2]
        if kind == _COMMENT:
            return parse_text(userdata[2 : 2 + length])
        userdata = userdata[2 + length :]
    return ""


def parse_elements(place: Element, raw: bytes, word: bytes = b"") -> Iterator[Element]:
    """Yield the elements of a set in a message whose bytes hold `word`."""
    members = list_attributes(parse(raw, BODY).get(_LIST_ELEMENTS, b""))
    for found in (parse(member) for _, member in members if word in member):
        data = parse(found.get(_ELEM_DATA, b""))
        yield Element(
            family=place.family,
            table=place.table,
            set_name=place.set_name,
            key=_parse_value(found.get(ELEM_KEY, b"")),
            data=data.get(DATA_VALUE, b""),
            end=_parse_value(found.get(_ELEM_KEY_END, b"")),
            verdict=_parse_verdict(data[_DATA_VERDICT]) if _DATA_VERDICT in data else "",
            comment=parse_comment(found.get(_ELEM_USERDATA, b"")),
        )


def _parse_value(raw: bytes) -> bytes:
    return parse(raw).get(DATA_VALUE, b"")
