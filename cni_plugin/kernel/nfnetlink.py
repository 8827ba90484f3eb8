"""nftables over netlink: the elements of sets and maps, one by one, and the comments of rules.

What a pod has in nftables is elements, and an element costs the kernel 0.01 ms where the `nft`
program costs some milliseconds (the static chains are its business: kernel/nft.py). Changes
travel in a batch, which the kernel takes whole or not at all. A batch that names a generation of
the ruleset is refused when somebody changed it since: what was read before is then still true.
By hand: `nft add element inet podwire SET { KEY comment "..." }`. linux/netfilter/nf_tables.h
"""

from __future__ import annotations

import _thread
import errno
import os
import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.kernel import netlink
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.message import attribute, list_attributes, parse_text, text
from cni_plugin.kernel.message import parse_attributes as parse
from cni_plugin.kernel.netlink import HEADER, answered, log, pack
from ipam.seam import step

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

_NETLINK_NETFILTER = 12
_FAMILIES = {"": 0, "inet": 1, "ip": 2, "bridge": 7, "ip6": 10}  # NFPROTO_*, "" for all
TABLE = "podwire"
# linux/netfilter/nfnetlink.h, nf_tables.h
_BATCH_BEGIN, _BATCH_END, _SUBSYSTEM = 0x10, 0x11, 10
_GETCHAIN, _GETRULE, _GETSET, _NEWSETELEM, _GETSETELEM, _DELSETELEM, _GETGEN = 4, 7, 10, 12, 13, 14, 16
_NFNL_BATCH_GENID = _NFTA_GEN_ID = 1
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _HOOK_NUMBER = 1, 3, 4, 5, 1
_RULE_TABLE, _RULE_CHAIN, _RULE_USERDATA, _SET_TABLE, _SET_NAME = 1, 2, 7, 1, 2
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_ELEM = 1, 2, 3, 1
_ELEM_KEY, _ELEM_DATA, _ELEM_USERDATA, _ELEM_KEY_END, _DATA_VALUE = 1, 2, 6, 10, 1
_COMMENT = 0  # libnftnl's NFTNL_UDATA_*_COMMENT
MAX_COMMENT = 127  # bytes, NFTNL_UDATA_COMMENT_MAXLEN less the terminating zero
_NLMSG_ERROR, _NLMSG_DONE, _NESTED = 2, 3, 0x8000
# EINVAL is what a kernel without nf_tables says to everything.
_ABSENT = frozenset({0, errno.ENOENT, errno.EINVAL})
_BODY = 20  # bytes of struct nlmsghdr and struct nfgenmsg
# The largest piece of a dump that the kernel makes, twice.
_BUFFER = 64 * 1024
_ANSWER_TIMEOUT = struct.pack("@ll", 30, 0)  # struct timeval
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h
# Bytes; a batch is one datagram, and a range of ports some thousand elements.
_LARGEST_BATCH = 4 * 1024 * 1024
_LOOKS = 5
_PATIENCE = 10.0  # seconds that others may keep changing the ruleset under us


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """An element of a set, or of a map when it has `data`; key and data as the kernel holds them."""

    family: str
    set_name: str
    key: bytes
    data: bytes = b""
    end: bytes = b""
    """The last of its keys when it has several; it is found by each."""
    comment: str = ""

    @property
    def command(self) -> str:
        """Return what it is in the words of `nft`, its key in hexadecimal."""
        keys = "-".join(key.hex() for key in (self.key, self.end) if key)
        return f'element {self.family} {TABLE} {self.set_name} {{ {keys} comment "{self.comment}" }}'


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
class ChainHead:
    """A chain of anybody's; `hook` is None for one that only others jump to."""

    family: str
    table: str
    name: str
    hook: int | None
    drops: bool
    """Its policy is drop."""


class Nftables:
    """A socket to the nftables of the namespace of the thread that makes it."""

    def __init__(self) -> None:
        """Open the socket here and now."""
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
        )
        # Not settimeout(), which polls before every call.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _ANSWER_TIMEOUT)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _LARGEST_BATCH)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        """Close the socket; after a deletion the kernel waits 16 ms for its readers here (RCU)."""
        self._socket.close()

    def get(self, family: str, set_name: str, key: bytes) -> Element | None:
        """Return the element with this key; None when there is none, or no such set."""
        body = _element_list(set_name, [nested(_ELEM_KEY, attribute(_DATA_VALUE, key))])
        found = self._ask(f"nft get element {family} {TABLE} {set_name}", _GETSETELEM, family, body)
        return next((e for raw in found for e in _parse_elements(family, set_name, raw)), None)

    def list_elements(self, family: str, set_name: str, naming: str = "") -> list[Element]:
        """Return the elements of a set whose comment holds `naming`; none when there is no such set.

        The kernel sends them all, some hundreds a message; only those that hold the word are parsed.
        """
        word = naming.encode()
        command = f"nft list set {family} {TABLE} {set_name}"
        answers = self._ask(command, _GETSETELEM, family, _element_list(set_name), netlink.NLM_F_DUMP)
        found = (e for raw in answers if word in raw for e in _parse_elements(family, set_name, raw, word))
        return [element for element in found if naming in element.comment]

    def search(self, look: Callable[[], Iterable[Element]]) -> list[Element]:
        """Return what `look` finds in a ruleset at rest, else all that several looks have found.

        When a set changes while the kernel lists it, an element is told twice, or not at all
        (nft_rhash_walk counts the elements that it has told).
        """
        found: dict[Element, None] = {}
        for _ in range(_LOOKS):
            generation = self._generation()
            found |= dict.fromkeys(look())
            if self._generation() == generation:
                break
        return list(found)

    def list_sets(self, family: str, prefix: str = "") -> list[str]:
        """Return the names of our table's sets and maps that begin with `prefix`."""
        body = text(_SET_TABLE, TABLE)
        answers = self._ask(f"nft list sets {family}", _GETSET, family, body, netlink.NLM_F_DUMP)
        names = (parse_text(parse(raw, _BODY).get(_SET_NAME, b"")) for raw in answers)
        return [name for name in names if name.startswith(prefix)]

    def list_chains(self) -> list[ChainHead]:
        """Return the chains of all tables of the families that we know, 0.01 ms each."""
        answers = self._ask("nft list chains", _GETCHAIN, "", b"", netlink.NLM_F_DUMP)
        return [head for raw in answers for head in _parse_chain(raw)]

    def get_chain(self, family: str, table: str, name: str) -> ChainHead | None:
        """Return a chain of anybody's; None when there is none of this name."""
        body = text(_CHAIN_TABLE, table) + text(_CHAIN_NAME, name)
        answers = self._ask(f"nft list chain {family} {table} {name}", _GETCHAIN, family, body)
        return next((head for raw in answers for head in _parse_chain(raw)), None)

    def list_comments(self, family: str, chain: str) -> list[str]:
        """Return the comment of each rule of a chain; none when there is no such chain."""
        body = text(_RULE_TABLE, TABLE) + text(_RULE_CHAIN, chain)
        answers = self._ask(f"nft list chain {family} {chain}", _GETRULE, family, body, netlink.NLM_F_DUMP)
        return [_parse_comment(parse(raw, _BODY).get(_RULE_USERDATA, b"")) for raw in answers]

    def update(self, decide: Callable[[], list[ElementChange]]) -> list[ElementChange]:
        """Make the changes that `decide` returns after reading, in a ruleset as it has read it.

        `decide` runs again when somebody changed the ruleset meanwhile. Returns what was changed;
        KernelError for a refusal, CNIError 11 when others do not leave the ruleset alone.
        """
        deadline = time.monotonic() + _PATIENCE
        while True:
            generation = self._generation()
            changes = decide()
            try:
                self._commit(changes, generation)
            except _MovedError as moved:
                if time.monotonic() > deadline:
                    raise CNIError(
                        Code.TRY_AGAIN_LATER,
                        f"nftables: wanted the ruleset at rest once in {_PATIENCE:.0f} s, found it changing",
                    ) from moved
            else:
                return changes

    def _generation(self) -> int:
        (answer,) = self._ask("nft monitor", _GETGEN, "inet", b"")
        return int.from_bytes(parse(answer, _BODY)[_NFTA_GEN_ID], "big")

    def _commit(self, changes: list[ElementChange], generation: int) -> None:
        if not changes:
            return
        for change in changes:
            log.debug("%s", change.command)
        with answered(changes[0].command):
            step("nftables", partial(self._send, generation), *changes)

    def _send(self, generation: int, *changes: ElementChange) -> None:
        """Make all of the changes, or none and raise."""
        first = self._number()
        subsystem = general(0, _SUBSYSTEM)
        named = attribute(_NFNL_BATCH_GENID, generation.to_bytes(4, "big"))
        batch = [pack(_BATCH_BEGIN, 0, subsystem + named, first)]
        sent = {}
        for change in changes:
            number = self._number()
            sent[number] = change
            batch.append(_pack_change(change, number, netlink.NLM_F_ACK if change is changes[-1] else 0))
        batch.append(pack(_BATCH_END, 0, subsystem, self._number()))
        self._socket.send(b"".join(batch))
        self._await(first, sent)

    def _await(self, first: int, sent: dict[int, ElementChange]) -> None:
        """Read the answers: to each change that is refused, to the last, or to the batch's own header."""
        failures = []
        answered, last = 0, max(sent)
        while answered not in {first, last}:
            for number, kind, raw in self._receive():
                if kind != _NLMSG_ERROR or number < first:
                    continue
                answered = number
                refusal = -struct.unpack_from("=i", raw, HEADER.size)[0]
                if number == first and refusal == errno.ERESTART:
                    raise _MovedError
                if refusal:
                    command = sent[number].command if number in sent else "nft -f"
                    failures.append(KernelError(command, refusal))
        if failures:
            raise failures[0]

    def _ask(self, command: str, kind: int, family: str, body: bytes, flags: int = 0) -> list[bytes]:
        """Return the answers to a question; none when what it is about does not exist."""
        message = general(_FAMILIES[family]) + body
        return self.ask(command, _SUBSYSTEM << 8 | kind, message, flags, absent=_ABSENT)

    def ask(
        self, command: str, kind: int, body: bytes, flags: int = 0, *, absent: Collection[int] = (0,)
    ) -> list[bytes]:
        """Return the answers to a message of any of netfilter's subsystems.

        Raises KernelError for a refusal but the errnos that say that there is nothing.
        """
        with answered(command):
            return self._list_answers(command, kind, body, flags, absent)

    def _list_answers(
        self, command: str, kind: int, body: bytes, flags: int, absent: Collection[int]
    ) -> list[bytes]:
        number = self._number()
        ack = 0 if flags & netlink.NLM_F_DUMP else netlink.NLM_F_ACK
        self._socket.send(pack(kind, ack | flags, body, number))
        answers: list[bytes] = []
        while True:
            for sequence, answer, raw in self._receive():
                if sequence != number:
                    continue
                if answer not in {_NLMSG_ERROR, _NLMSG_DONE}:
                    answers.append(raw)
                    continue
                refusal = -struct.unpack_from("=i", raw, HEADER.size)[0]
                if refusal not in absent:
                    raise KernelError(command, refusal)
                return answers

    def _number(self) -> int:
        self._sequence += 1
        return self._sequence

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield sequence number, type and whole message of everything in one datagram."""
        datagram = self._socket.recv(_BUFFER)
        offset = 0
        while offset < len(datagram):
            length, kind, _, sequence, _ = HEADER.unpack_from(datagram, offset)
            yield sequence, kind, datagram[offset : offset + length]
            offset += (length + 3) & ~3 or HEADER.size


class _MovedError(Exception):
    """The ruleset is of another generation than the batch was made for."""


_idle: list[Nftables] = []


def borrow(namespace: int) -> Nftables:
    """Return a socket of the namespace, a descriptor of it, that the calling thread is in.

    One of the namespace that this process began in is kept by `give_back`: closing costs 16 ms.
    """
    if _idle and _is_own(namespace):
        with suppress(IndexError):  # another thread was faster
            return _idle.pop()
    return Nftables()


def give_back(namespace: int, nftables: Nftables) -> None:
    """Keep the socket for the next call, or have it closed behind the caller's back."""
    if _is_own(namespace):
        _idle.append(nftables)
    else:
        try:
            _thread.start_new_thread(nftables.close, ())
        except RuntimeError:  # the kernel has no more threads to give
            nftables.close()


def _is_own(namespace: int) -> bool:
    return os.path.samestat(os.fstat(namespace), os.stat("/proc/self/ns/net"))


def _pack_change(change: ElementChange, number: int, ack: int) -> bytes:
    element = change.element
    members = nested(_ELEM_KEY, attribute(_DATA_VALUE, element.key))
    if element.end:
        members += nested(_ELEM_KEY_END, attribute(_DATA_VALUE, element.end))
    if change.present and element.data:
        members += nested(_ELEM_DATA, attribute(_DATA_VALUE, element.data))
    if change.present and element.comment:
        members += attribute(_ELEM_USERDATA, _render_comment(element.comment))
    kind = _NEWSETELEM if change.present else _DELSETELEM
    flags = ack | (netlink.NLM_F_CREATE | netlink.NLM_F_EXCL if change.present else 0)
    body = general(_FAMILIES[element.family]) + _element_list(element.set_name, [members])
    return pack(_SUBSYSTEM << 8 | kind, flags, body, number)


def _element_list(set_name: str, elements: list[bytes] | None = None) -> bytes:
    body = text(_LIST_TABLE, TABLE) + text(_LIST_SET, set_name)
    members = b"".join(nested(_LIST_ELEM, element) for element in elements or ())
    return body + (nested(_LIST_ELEMENTS, members) if members else b"")


def general(family: int, resource: int = 0) -> bytes:
    """Return the struct nfgenmsg that every message begins with."""
    return struct.pack("!BBH", family, 0, resource)


def nested(kind: int, members: bytes) -> bytes:
    """Return an attribute that holds attributes, which here must say so."""
    return attribute(kind | _NESTED, members)


def _render_comment(comment: str) -> bytes:
    value = comment.encode() + b"\0"
    return bytes([_COMMENT, len(value)]) + value


def _parse_chain(raw: bytes) -> Iterator[ChainHead]:
    found = parse(raw, _BODY)
    hook = parse(found.get(_CHAIN_HOOK, b"")).get(_HOOK_NUMBER)
    for family, number in _FAMILIES.items():
        if number == raw[HEADER.size]:
            yield ChainHead(
                family=family,
                table=parse_text(found[_CHAIN_TABLE]),
                name=parse_text(found[_CHAIN_NAME]),
                hook=None if hook is None else int.from_bytes(hook, "big"),
                drops=hook is not None and not any(found.get(_CHAIN_POLICY, b"\1")),
            )


def _parse_comment(userdata: bytes) -> str:
    """Return the comment among the type, length, value triples that `nft` keeps with an object."""
    while len(userdata) > 2:
        kind, length = userdata[:2]
        if kind == _COMMENT:
            return parse_text(userdata[2 : 2 + length])
        userdata = userdata[2 + length :]
    return ""


def _parse_elements(family: str, set_name: str, raw: bytes, word: bytes = b"") -> Iterator[Element]:
    """Yield the elements in a message whose bytes hold `word`."""
    members = list_attributes(parse(raw, _BODY).get(_LIST_ELEMENTS, b""))
    for found in (parse(member) for _, member in members if word in member):
        yield Element(
            family=family,
            set_name=set_name,
            key=_parse_value(found.get(_ELEM_KEY, b"")),
            data=_parse_value(found.get(_ELEM_DATA, b"")),
            end=_parse_value(found.get(_ELEM_KEY_END, b"")),
            comment=_parse_comment(found.get(_ELEM_USERDATA, b"")),
        )


def _parse_value(raw: bytes) -> bytes:
    return parse(raw).get(_DATA_VALUE, b"")
