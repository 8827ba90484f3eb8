"""Conntrack entries: those of UDP flows to a port, and those of an address; found and deleted.

A UDP flow that goes on keeps its entry, and with it the translation it began with, whatever the
ruleset says by now. It is asked for on the socket of nftables: closing another one would wait 16 ms when
elements were just deleted. By hand: `conntrack -D -p udp --orig-port-dst PORT`.
linux/netfilter/nfnetlink_conntrack.h
"""

from __future__ import annotations

import errno
import logging
import struct
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.kernel.message import FAMILY, attribute, parse_address
from cni_plugin.kernel.message import parse_attributes as parse
from cni_plugin.kernel.netlink import NLM_F_DUMP
from cni_plugin.kernel.nft_message import general, nested
from ipam.seam import step

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from netaddr import IPAddress

    from cni_plugin.kernel.nfnetlink import Nftables

log = logging.getLogger("podwire")

_GET, _DELETE = 0x101, 0x102  # IPCTNL_MSG_CT_GET and _DELETE of NFNL_SUBSYS_CTNETLINK
_TUPLE_ORIG, _TUPLE_REPLY, _ID, _ZONE, _FILTER, _FILTER_ORIG = 1, 2, 12, 18, 25, 1
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_SRC, _DST = (1, 3), (2, 4)  # CTA_IP_V4_SRC, CTA_IP_V6_SRC, ...
_PROTO_NUM, _SRC_PORT, _DST_PORT = 1, 2, 3
_BY_PROTOCOL, _BY_PORT = 1 << 3, 1 << 5  # CTA_FILTER_F_CTA_PROTO_NUM, _DST_PORT of nf_conntrack_netlink.c
_UDP = 17
_BYTES = {4: 4, 6: 16}  # of an address
_BODY = 20  # bytes of struct nlmsghdr and struct nfgenmsg


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A UDP flow: where it was sent to, and who answers it, which differs where it is translated."""

    destination: IPAddress
    port: int
    responder: IPAddress
    responder_port: int
    name: bytes
    """The attributes by which the kernel knows the entry."""

    @property
    def command(self) -> str:
        """Return the command that forgets the flow by hand."""
        answered = f"--reply-src {self.responder} --reply-port-src {self.responder_port}"
        return f"conntrack -D -p udp --orig-dst {self.destination} --orig-port-dst {self.port} {answered}"


def forget_flows(
    nftables: Nftables, version: int, ports: Collection[int], stale: Callable[[Flow], bool]
) -> None:
    """Delete the entries of one family's UDP flows to these ports that are stale."""
    for flow in [flow for flow in _list_flows(nftables, version, ports) if stale(flow)]:
        log.debug("%s", flow.command)
        # It may have ended by itself meanwhile.
        forget = partial(nftables.ask, absent=(0, errno.ENOENT))
        step("conntrack", forget, flow.command, _DELETE, general(FAMILY[version]) + flow.name)


def _list_flows(nftables: Nftables, version: int, ports: Collection[int]) -> Iterator[Flow]:
    """Yield the flows to the ports; the kernel picks those to a single port where it can (Linux 5.8)."""
    protocol = attribute(_PROTO_NUM, bytes([_UDP]))
    flags = _BY_PROTOCOL
    if len(ports) == 1:
        protocol += attribute(_DST_PORT, struct.pack("!H", *ports))
        flags |= _BY_PORT
    wanted = nested(_TUPLE_ORIG, nested(_TUPLE_PROTO, protocol))
    wanted += nested(_FILTER, attribute(_FILTER_ORIG, struct.pack("=I", flags)))
    answers = nftables.ask("conntrack -L -p udp", _GET, general(FAMILY[version]) + wanted, NLM_F_DUMP)
    flows = map(_parse, answers)
    return (flow for flow in flows if flow is not None and flow.port in ports)


def _parse(raw: bytes) -> Flow | None:
    found = parse(raw, _BODY)
    original, reply = found.get(_TUPLE_ORIG, b""), parse(found.get(_TUPLE_REPLY, b""))
    sent, answered = parse(original), parse(reply.get(_TUPLE_PROTO, b""))
    ports = parse(sent.get(_TUPLE_PROTO, b""))
    if ports.get(_PROTO_NUM) != bytes([_UDP]):
        return None
    known = {kind: found[kind] for kind in (_ID, _ZONE) if kind in found}
    name = nested(_TUPLE_ORIG, original) + b"".join(attribute(kind, value) for kind, value in known.items())
    return Flow(
        destination=_pick_address(sent[_TUPLE_IP], _DST),
        port=int.from_bytes(ports[_DST_PORT], "big"),
        responder=_pick_address(reply[_TUPLE_IP], _SRC),
        responder_port=int.from_bytes(answered[_SRC_PORT], "big"),
        name=name,
    )


def _pick_address(raw: bytes, kinds: tuple[int, int]) -> IPAddress:
    found = parse(raw)
    return parse_address(next(found[kind] for kind in kinds if kind in found))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """A connection of any protocol: who began it, who answers, where. Addresses are packed.

    The port is the one that the answering side has, behind every translation; 0 where the protocol has none.
    """

    source: bytes
    responder: bytes
    protocol: int
    port: int
    name: bytes
    """The attributes by which the kernel knows the entry."""


def list_tracked(nftables: Nftables, version: int, addresses: Collection[bytes]) -> list[Tracked]:
    """Return the connections of one family that one of these addresses is an end of."""
    answers = nftables.ask("conntrack -L", _GET, general(FAMILY[version]), NLM_F_DUMP)
    wanted = [address for address in addresses if len(address) == _BYTES[version]]
    # Most are others': their bytes are looked at once, and nothing is parsed.
    some = (raw for raw in answers if any(address in raw for address in wanted))
    found = filter(None, map(_parse_tracked, some))
    return [each for each in found if {each.source, each.responder} & set(wanted)]


def forget_tracked(nftables: Nftables, version: int, tracked: Tracked) -> None:
    """Delete an entry; one that has ended by itself is no error."""
    command = f"conntrack -D -s {parse_address(tracked.source)} -r {parse_address(tracked.responder)}"
    log.debug("%s", command)
    forget = partial(nftables.ask, absent=(0, errno.ENOENT))
    step("conntrack", forget, command, _DELETE, general(FAMILY[version]) + tracked.name)


def _parse_tracked(raw: bytes) -> Tracked | None:
    found = parse(raw, _BODY)
    original = found.get(_TUPLE_ORIG, b"")
    sent, answered = parse(original), parse(found.get(_TUPLE_REPLY, b""))
    if _TUPLE_IP not in sent or _TUPLE_IP not in answered:
        return None
    sender, responder = parse(sent[_TUPLE_IP]), parse(answered[_TUPLE_IP])
    ports = parse(answered.get(_TUPLE_PROTO, b""))
    known = {kind: found[kind] for kind in (_ID, _ZONE) if kind in found}
    name = nested(_TUPLE_ORIG, original) + b"".join(attribute(kind, value) for kind, value in known.items())
    return Tracked(
        source=next(sender[kind] for kind in _SRC if kind in sender),
        responder=next(responder[kind] for kind in _SRC if kind in responder),
        protocol=int.from_bytes(ports.get(_PROTO_NUM, b""), "big"),
        port=int.from_bytes(ports.get(_SRC_PORT, b""), "big"),
        name=name,
    )
