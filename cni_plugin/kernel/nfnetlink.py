"""nftables over netlink: the elements of sets and maps, one by one, and the comments of rules.

What a pod has in nftables is elements, and an element costs the kernel 0.01 ms where the `nft`
program costs some milliseconds (the static chains are its business: kernel/nft.py). Changes
travel in a batch, which the kernel takes whole or not at all. A batch that names a generation of
the ruleset is refused when somebody changed it since: what was read before is then still true.
By hand: `nft add element inet podwire SET { KEY comment "..." }`. linux/netfilter/nf_tables.h
"""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.kernel import netlink
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.message import attribute, parse_text, text
from cni_plugin.kernel.message import parse_attributes as parse
from cni_plugin.kernel.netlink import HEADER, NETFILTER, NLMSG_ERROR, NetlinkSocket, answered, log, pack
from cni_plugin.kernel.nft_layout import TABLE
from cni_plugin.kernel.nft_message import (
    BODY,
    DATA_VALUE,
    ELEM_KEY,
    FAMILIES,
    SUBSYSTEM,
    Element,
    ElementChange,
    PackedChange,
    Value,
    element_list,
    gather,
    general,
    nested,
    pack_message,
    parse_comment,
    parse_elements,
    parse_pairs,
)
from ipam.seam import step, waits

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

# linux/netfilter/nfnetlink.h, nf_tables.h
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_GETCHAIN, _GETRULE, _GETSET, _GETSETELEM, _GETGEN = 4, 7, 10, 13, 16
_NFNL_BATCH_GENID = _NFTA_GEN_ID = 1
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _HOOK_NUMBER = 1, 3, 4, 5, 1
_RULE_TABLE, _RULE_CHAIN, _RULE_USERDATA, _SET_TABLE, _SET_NAME = 1, 2, 7, 1, 2
_ANY_TABLE = 1  # what each object calls its table
# EINVAL is what a kernel without nf_tables says to everything.
_ABSENT = frozenset({0, errno.ENOENT, errno.EINVAL})
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h
# Bytes; a batch is one datagram, and a range of ports some thousand elements.
_LARGEST_BATCH = 4 * 1024 * 1024
_LOOKS = 5
_PATIENCE = 10.0  # seconds that others may keep changing the ruleset under us


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainHead:
    """A chain of anybody's; `hook` is None for one that only others jump to."""

    family: str
    table: str
    name: str
    hook: int | None
    drops: bool
    """Its policy is drop."""


def find_table(raw: bytes) -> str:
    """Return the name of the table that a message of `nft monitor` is about."""
    return parse_text(parse(raw, BODY).get(_ANY_TABLE, b""))


class Nftables:
    """A socket to the nftables of the namespace of the thread that makes it."""

    def __init__(self) -> None:
        """Open the socket here and now."""
        self._socket = NetlinkSocket(NETFILTER)
        self._socket.set_option(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _LARGEST_BATCH)

    def close(self) -> None:
        """Close the socket; after a deletion the kernel waits 16 ms for its readers here (RCU)."""
        self._socket.close()

    def get(self, family: str, set_name: str, key: bytes, *, table: str = TABLE) -> Element | None:
        """Return the element with this key; None when there is none, or no such set."""
        place = Element(family=family, table=table, set_name=set_name, key=key)
        body = element_list(place, [nested(ELEM_KEY, attribute(DATA_VALUE, key))])
        found = self._ask(f"nft get element {family} {table} {set_name}", _GETSETELEM, family, body)
        return next((e for raw in found for e in parse_elements(place, raw)), None)

    def list_elements(
        self, family: str, set_name: str, naming: str = "", *, table: str = TABLE
    ) -> list[Element]:
        """Return the elements of a set whose comment holds `naming`; none when there is no such set.

        The kernel sends them all, some hundreds a message; only those that hold the word are parsed.
        """
        word = naming.encode()
        place = Element(family=family, table=table, set_name=set_name, key=b"")
        command = f"nft list set {family} {table} {set_name}"
        answers = self._ask(command, _GETSETELEM, family, element_list(place), netlink.NLM_F_DUMP)
        found = (e for raw in answers if word in raw for e in parse_elements(place, raw, word))
        return [element for element in found if naming in element.comment]

    def list_pairs(self, family: str, set_name: str, *, table: str = TABLE) -> dict[bytes, Value]:
        """Return all elements of a set by their keys; none when there is no such set."""
        place = Element(family=family, table=table, set_name=set_name, key=b"")
        command = f"nft list set {family} {table} {set_name}"
        answers = self._ask(command, _GETSETELEM, family, element_list(place), netlink.NLM_F_DUMP)
        return {key: value for raw in answers for key, value in parse_pairs(raw)}

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

    def list_sets(self, family: str, prefix: str = "", *, table: str = TABLE) -> list[str]:
        """Return the names of a table's sets and maps that begin with `prefix`."""
        body = text(_SET_TABLE, table)
        answers = self._ask(f"nft list sets {family}", _GETSET, family, body, netlink.NLM_F_DUMP)
        names = (parse_text(parse(raw, BODY).get(_SET_NAME, b"")) for raw in answers)
        return [name for name in names if name.startswith(prefix)]

    def list_chains(self) -> list[ChainHead]:
        """Return the chains of all tables of the families that we know, 0.01 ms each."""
        answers = self._ask("nft list chains", _GETCHAIN, "", b"", netlink.NLM_F_DUMP)
        return [head for raw in answers for head in _parse_chain(raw)]

    def list_chain_names(self, family: str, *, table: str) -> list[str]:
        """Return the names of a table's chains; none when there is no such table."""
        return [head.name for head in self.list_chains() if (head.family, head.table) == (family, table)]

    def get_chain(self, family: str, table: str, name: str) -> ChainHead | None:
        """Return a chain of anybody's; None when there is none of this name."""
        body = text(_CHAIN_TABLE, table) + text(_CHAIN_NAME, name)
        answers = self._ask(f"nft list chain {family} {table} {name}", _GETCHAIN, family, body)
        return next((head for raw in answers for head in _parse_chain(raw)), None)

    def list_comments(self, family: str, chain: str, *, table: str = TABLE) -> list[str]:
        """Return the comment of each rule of a chain; none when there is no such chain."""
        body = text(_RULE_TABLE, table) + text(_RULE_CHAIN, chain)
        answers = self._ask(f"nft list chain {family} {chain}", _GETRULE, family, body, netlink.NLM_F_DUMP)
        return [parse_comment(parse(raw, BODY).get(_RULE_USERDATA, b"")) for raw in answers]

    def update(self, decide: Callable[[], list[ElementChange]]) -> list[ElementChange]:
        """Make the changes that `decide` returns after reading, in a ruleset as it has read it.

        `decide` runs again when somebody changed the ruleset meanwhile. Returns what was changed;
        KernelError for a refusal, CNIError 11 when others do not leave the ruleset alone.
        """
        for _ in waits.looks(_PATIENCE):
            generation = self._generation()
            changes = decide()
            with suppress(_MovedError):
                self._commit(changes, generation)
                return changes
        raise CNIError(
            Code.TRY_AGAIN_LATER,
            f"nftables: wanted the ruleset at rest once in {_PATIENCE:.0f} s, found it changing",
        )

    def _generation(self) -> int:
        (answer,) = self._ask("nft monitor", _GETGEN, "inet", b"")
        return int.from_bytes(parse(answer, BODY)[_NFTA_GEN_ID], "big")

    def apply(self, changes: Sequence[ElementChange | PackedChange]) -> None:
        """Make the changes in whatever ruleset there is, all or none, many elements in one message.

        For who alone fills its sets: an element that is there already, as it shall be, is no error. One
        batch is one datagram of 4 MiB at most, some 40,000 elements. Raises KernelError, which names the
        first element of the refused message.
        """
        self._commit(changes, None)

    def _commit(self, changes: Sequence[ElementChange | PackedChange], generation: int | None) -> None:
        if not changes:
            return
        for change in changes:
            log.debug("%s", change.command)
        with answered(changes[0].command):
            step("nftables", partial(self._send, generation), *changes)

    def _send(self, generation: int | None, *changes: ElementChange | PackedChange) -> None:
        """Make all of the changes, or none and raise; of a generation each in a message of its own."""
        messages = gather(changes) if generation is None else [[change] for change in changes]
        first = self._socket.number()
        subsystem = general(0, SUBSYSTEM)
        named = b"" if generation is None else attribute(_NFNL_BATCH_GENID, generation.to_bytes(4, "big"))
        batch = [pack(_BATCH_BEGIN, 0, subsystem + named, first)]
        flags = 0 if generation is None else netlink.NLM_F_EXCL
        sent = {self._socket.number(): message for message in messages}
        last = max(sent)
        for number, message in sent.items():
            ack = netlink.NLM_F_ACK if number == last else 0
            batch.append(pack_message(message, number, ack, flags))
        batch.append(pack(_BATCH_END, 0, subsystem, self._socket.number()))
        self._socket.send(*batch)
        self._await(first, {number: message[0] for number, message in sent.items()})

    def _await(self, first: int, sent: dict[int, ElementChange | PackedChange]) -> None:
        """Read the answers: to each change that is refused, to the last, or to the batch's own header."""
        failures = []
        answered, last = 0, max(sent)
        while answered not in {first, last}:
            for message in self._socket.receive():
                if message.kind != NLMSG_ERROR or message.sequence < first:
                    continue
                answered = message.sequence
                if answered == first and message.refusal == errno.ERESTART:
                    raise _MovedError
                if message.refusal:
                    command = sent[answered].command if answered in sent else "nft -f"
                    failures.append(KernelError(command, message.refusal))
        if failures:
            raise failures[0]

    def _ask(self, command: str, kind: int, family: str, body: bytes, flags: int = 0) -> list[bytes]:
        """Return the answers to a question; none when what it is about does not exist."""
        message = general(FAMILIES[family]) + body
        return self.ask(command, SUBSYSTEM << 8 | kind, message, flags, absent=_ABSENT)

    def ask(
        self, command: str, kind: int, body: bytes, flags: int = 0, *, absent: Collection[int] = (0,)
    ) -> list[bytes]:
        """Return the answers to a message of any of netfilter's subsystems.

        Raises KernelError for a refusal but the errnos that say that there is nothing.
        """
        ack = 0 if flags & netlink.NLM_F_DUMP else netlink.NLM_F_ACK
        with answered(command):
            *answers, end = self._socket.ask(kind, ack | flags, body)
        if end.refusal not in absent:
            raise KernelError(command, end.refusal)
        return [message.raw for message in answers]


class _MovedError(Exception):
    """The ruleset is of another generation than the batch was made for."""


def _parse_chain(raw: bytes) -> Iterator[ChainHead]:
    found = parse(raw, BODY)
    hook = parse(found.get(_CHAIN_HOOK, b"")).get(_HOOK_NUMBER)
    for family, number in FAMILIES.items():
        if number == raw[HEADER.size]:
            yield ChainHead(
                family=family,
                table=parse_text(found[_CHAIN_TABLE]),
                name=parse_text(found[_CHAIN_NAME]),
                hook=None if hook is None else int.from_bytes(hook, "big"),
                drops=hook is not None and not any(found.get(_CHAIN_POLICY, b"\1")),
            )
