"""Asks the container runtime (CRI): its pod sandboxes, and the networks that it uses.

Speaks the Container Runtime Interface (runtime.v1) over its Unix socket with grpcio, the extra
`podwire[runtime]`. Two calls with three fields need no generated code: the answers are taken apart
here, and whatever else is in them is passed over. By hand: `crictl pods`, `crictl info`.
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cni_plugin.contract.errors import CNIError, Code, invalid_config
from cni_plugin.contract.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from cni_plugin.node.evidence import Evidence

_PATIENCE = 10.0  # seconds
_LARGEST = 64 * 1024 * 1024  # bytes; ten thousand sandboxes with their annotations
_VERBOSE = b"\x08\x01"  # StatusRequest { bool verbose = 1; }
_VARINT, _LENGTH = 0, 2
_FIXED = {1: 8, 5: 4}  # bytes
_LONGEST_VARINT = 10  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeState:
    """The sandboxes that a runtime lists, stopped ones included, and the networks that it uses.

    `unready` is why it has no network for pods, in its own words; empty when it has one.
    """

    sandboxes: frozenset[str]
    networks: frozenset[str]
    unready: str = ""

    def lists(self, evidence: Evidence) -> bool:
        """Tell whether an attachment's container is listed; of a cut name its beginning decides."""
        if evidence.container_id in self.sandboxes:
            return True
        cut = bool(evidence.identity) and not evidence.is_whole
        return cut and any(each.startswith(evidence.container_id) for each in self.sandboxes)

    def about(self, networks: Collection[str]) -> RuntimeState:
        """Return the same with these networks among those that the runtime uses."""
        return replace(self, networks=self.networks.union(networks))


def ask(endpoint: str) -> RuntimeState:
    """Ask a runtime; CNIError when it does not answer, or grpcio is missing."""
    try:
        import grpc
    except ImportError as error:
        raise CNIError(
            Code.IO_FAILURE,
            "--runtime-endpoint: wanted the package grpcio, found none; "
            "install it: scripts/install --with runtime",
        ) from error
    options = [("grpc.max_receive_message_length", _LARGEST)]
    with grpc.insecure_channel(_address(endpoint), options=options) as channel:

        def call(method: str, request: bytes) -> bytes:
            return bytes(
                channel.unary_unary(f"/runtime.v1.RuntimeService/{method}")(request, timeout=_PATIENCE)
            )

        try:
            # The networks first: a sandbox made meanwhile may then be listed, but never missed.
            status = call("Status", _VERBOSE)
            return RuntimeState(
                sandboxes=_parse_sandboxes(call("ListPodSandbox", b"")),
                networks=_parse_networks(status),
                unready=_parse_unready(status),
            )
        except grpc.RpcError as error:
            raise CNIError(Code.IO_FAILURE, f"{endpoint}: {error.code().name}: {error.details()}") from error


def _address(endpoint: str) -> str:
    path = endpoint.removeprefix("unix://")
    if not path.startswith("/"):
        raise invalid_config(f"--runtime-endpoint: wanted unix:///PATH, found {endpoint!r}")
    return f"unix:{path}"


def _parse_sandboxes(answer: bytes) -> frozenset[str]:
    """Return the ids of ListPodSandboxResponse { repeated PodSandbox items = 1 { string id = 1; } }."""
    items = [value for number, value in _fields(answer) if number == 1]
    return frozenset(
        value.decode("ascii", "replace") for item in items for number, value in _fields(item) if number == 1
    )


def _parse_networks(answer: bytes) -> frozenset[str]:
    """Return the networks of StatusResponse { map<string, string> info = 2; }, as containerd tells them."""
    entries = [dict(_fields(value)) for number, value in _fields(answer) if number == 2]
    told = {entry.get(1, b""): entry.get(2, b"") for entry in entries}
    try:
        document = json.loads(told.get(b"cniconfig", b"{}"))
    except ValueError:
        return frozenset()
    fields = Fields(document if isinstance(document, dict) else {})
    configs = (member.section("Config") for member in fields.objects("Networks"))
    return frozenset(config.string("Name") for config in configs if config)


def _parse_unready(answer: bytes) -> str:
    """Return the message of the condition NetworkReady, which has none when it is true.

    StatusResponse { RuntimeStatus status = 1 { repeated RuntimeCondition conditions = 1 {
    string type = 1; bool status = 2; string reason = 3; string message = 4; } } }.
    """
    conditions = [
        dict(_fields(condition))
        for number, status in _fields(answer)
        if number == 1
        for each, condition in _fields(status)
        if each == 1
    ]
    said = [each.get(4, b"") for each in conditions if each.get(1) == b"NetworkReady"]
    return b"; ".join(said).decode(errors="replace")


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the fields of a message that have a length: texts and messages. CNIError for what is none."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            _, place = _varint(message, place)
            continue
        length, place = _varint(message, place) if kind == _LENGTH else (_FIXED.get(kind, -1), place)
        value, place = message[place : place + length], place + length
        if len(value) != length:
            raise _undecodable()
        if kind == _LENGTH:
            yield number, value


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """Return a number and where the next one begins."""
    value = 0
    for index, byte in enumerate(message[place : place + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, place + index + 1
    raise _undecodable()


def _undecodable() -> CNIError:
    return CNIError(Code.DECODING_FAILURE, "the runtime's answer: wanted a protobuf message, found none")
