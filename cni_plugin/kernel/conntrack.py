"""Conntrack's entries of UDP flows: found by the port that they were first sent to, and forgotten.

A UDP flow that goes on keeps its entry, and with it the translation it began with, whatever the
ruleset says by now. By hand: `conntrack -D -p udp --orig-port-dst PORT`.
linux/netfilter/nfnetlink_conntrack.h
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from netaddr import IPAddress

from cni_plugin.kernel.addr import FAMILY
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST
from cni_plugin.kernel.netlink import parse_attributes as parse
from cni_plugin.kernel.nfnetlink import NETLINK_NETFILTER, attribute, nested, pack

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from cni_plugin.kernel.netns import Namespace

log = logging.getLogger("podwire")

_GET, _DELETE = 0x101, 0x102  # IPCTNL_MSG_CT_GET and _DELETE of NFNL_SUBSYS_CTNETLINK
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_TUPLE_ORIG, _TUPLE_REPLY, _ID, _ZONE, _FILTER, _FILTER_ORIG = 1, 2, 12, 18, 25, 1
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_SRC, _DST = {4: 1, 6: 3}, {4: 2, 6: 4}  # CTA_IP_V4_SRC ...
_PROTO_NUM, _SRC_PORT, _DST_PORT = 1, 2, 3
_BY_PROTOCOL, _BY_PORT = 1 << 3, 1 << 5  # CTA_FILTER_F_CTA_PROTO_NUM, _DST_PORT of nf_conntrack_netlink.c
_UDP = socket.IPPROTO_UDP
_HEADER = struct.Struct("=IHHII")
_BODY = 20  # bytes of struct nlmsghdr and struct nfgenmsg
_BUFFER = 256 * 1024
_ANSWER_TIMEOUT = 30.0  # seconds


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


def forget_flows(host: Namespace, version: int, ports: Collection[int], stale: Callable[[Flow], bool]) -> int:
    """Delete the entries of one family's UDP flows to these ports that are stale; return their number."""
    with host.entered():
        connection = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
        )
    with connection:
        connection.settimeout(_ANSWER_TIMEOUT)
        connection.bind((0, 0))
        found = [flow for flow in _list_flows(connection, version, ports) if stale(flow)]
        for number, flow in enumerate(found, start=2):
            log.debug("%s", flow.command)
            _delete_flow(connection, version, flow, number)
    return len(found)


def _list_flows(connection: socket.socket, version: int, ports: Collection[int]) -> Iterator[Flow]:
    """Yield the flows to the ports; the kernel picks those to a single port where it can (Linux 5.8)."""
    protocol = attribute(_PROTO_NUM, bytes([_UDP]))
    flags = _BY_PROTOCOL
    if len(ports) == 1:
        protocol += attribute(_DST_PORT, struct.pack("!H", *ports))
        flags |= _BY_PORT
    wanted = nested(_TUPLE_ORIG, nested(_TUPLE_PROTO, protocol))
    wanted += nested(_FILTER, attribute(_FILTER_ORIG, struct.pack("=I", flags)))
    question = pack(_GET, NLM_F_REQUEST | NLM_F_DUMP, 1, _general(version) + wanted)
    flows = (_parse(raw, version) for raw in _ask(connection, "conntrack -L -p udp", question))
    return (flow for flow in flows if flow is not None and flow.port in ports)


def _delete_flow(connection: socket.socket, version: int, flow: Flow, number: int) -> None:
    try:
        change = pack(_DELETE, NLM_F_REQUEST | NLM_F_ACK, number, _general(version) + flow.name)
        _ask(connection, flow.command, change)
    except KernelError as error:
        # It ended by itself meanwhile.
        if error.errno != errno.ENOENT:
            raise


def _general(version: int) -> bytes:
    return struct.pack("!BBH", FAMILY[version], 0, 0)


def _ask(connection: socket.socket, command: str, message: bytes) -> list[bytes]:
    """Return the answers to a message; KernelError when the kernel refuses it."""
    connection.send(message)
    number = _HEADER.unpack_from(message)[3]
    answers = []
    while True:
        datagram = connection.recv(_BUFFER)
        offset = 0
        while offset < len(datagram):
            length, answer, _, answered, _ = _HEADER.unpack_from(datagram, offset)
            raw = datagram[offset : offset + length]
            offset += (length + 3) & ~3
            if answered != number:
                continue
            if answer not in {_NLMSG_ERROR, _NLMSG_DONE}:
                answers.append(raw)
                continue
            refusal = -struct.unpack_from("=i", raw, _HEADER.size)[0]
            if refusal:
                raise KernelError(command, refusal)
            return answers


def _parse(raw: bytes, version: int) -> Flow | None:
    found = parse(raw, _BODY)
    original, reply = found.get(_TUPLE_ORIG, b""), parse(found.get(_TUPLE_REPLY, b""))
    sent, answered = parse(original), parse(reply.get(_TUPLE_PROTO, b""))
    ports = parse(sent.get(_TUPLE_PROTO, b""))
    if ports.get(_PROTO_NUM) != bytes([_UDP]):
        return None
    known = {kind: found[kind] for kind in (_ID, _ZONE) if kind in found}
    name = nested(_TUPLE_ORIG, original) + b"".join(attribute(kind, value) for kind, value in known.items())
    return Flow(
        destination=_address(parse(sent[_TUPLE_IP])[_DST[version]]),
        port=int.from_bytes(ports[_DST_PORT], "big"),
        responder=_address(parse(reply[_TUPLE_IP])[_SRC[version]]),
        responder_port=int.from_bytes(answered[_SRC_PORT], "big"),
        name=name,
    )


def _address(packed: bytes) -> IPAddress:
    return IPAddress(int.from_bytes(packed, "big"), 4 if len(packed) == 4 else 6)
