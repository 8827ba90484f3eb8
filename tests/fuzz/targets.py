"""What is fuzzed: each target takes any bytes, and raises when something of ours does what it must not.

What may come out: an answer with a code, or the one error that the place is there to raise. Whatever
else, an endless loop included, is a defect. Files are written in the working directory only, see fuzz.py.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from netaddr import AddrFormatError, IPAddress

from cni_plugin.agent import wire
from cni_plugin.backend.peer_list import find_peers
from cni_plugin.backend.stamp import Stamp, read_stamp
from cni_plugin.cli import ipam
from cni_plugin.config.state_file import read_state, require_ready
from cni_plugin.contract import versions
from cni_plugin.contract.dispatch import answer
from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.contract.fields import Fields
from cni_plugin.contract.inet import parse_cidr, parse_ip
from cni_plugin.contract.request import parse_document
from cni_plugin.contract.result import parse_result
from cni_plugin.features import tuning_values
from cni_plugin.kernel import conntrack, link, message, neigh, netlink, nfnetlink, nft_message, route
from cni_plugin.plugins import PLUGINS
from ipam import fsck, sticky
from ipam.allocator import Terms, allocate, release, usage
from ipam.errors import IPAMError
from ipam.ranges import make_range, make_range_sets
from ipam.store import Owner, Store

if TYPE_CHECKING:
    from collections.abc import Callable

PLACE = b"@DIR@"
POOL = make_range_sets([[make_range(subnet="10.1.0.0/29")], [make_range(subnet="fd00::/125")]])
ONE, TWO = Owner(container_id="one", ifname="eth0"), Owner(container_id="two", ifname="eth0")
TERMS = Terms(keep_band=True, sticky="shop/web-0/eth0", cool_down=60)


class UnexpectedError(Exception):
    """Something that must not be."""


class _Log(logging.Handler):
    """Keeps what the program logs as unexpected."""

    seen: Exception | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and isinstance(record.exc_info[1], Exception):
            self.seen = record.exc_info[1]


_log = _Log()
logging.getLogger("podwire").handlers = [_log]
logging.getLogger("podwire").propagate = False


def fuzz_call(data: bytes) -> None:
    """One call of any plugin type: `VERB TYPE`, lines of environment, an empty line, stdin."""
    head, _, stdin = data.partition(b"\n\n")
    first, *lines = os.fsdecode(head).replace("\0", "").split("\n")
    verb, _, kind = first.partition(" ")
    environ = {"CNI_PATH": "/nowhere", "CNI_COMMAND": verb}
    environ |= dict(line.split("=", 1) for line in lines if "=" in line)
    _log.seen = None
    made = answer(
        environ, stdin.replace(PLACE, os.fsencode(Path.cwd())), PLUGINS.get(kind, PLUGINS["podwire"])
    )
    if _log.seen is not None:
        raise UnexpectedError(made.stdout) from _log.seen
    _require_answer(made.status, made.stdout)
    _clear()


def _require_answer(status: int, stdout: bytes) -> None:
    said = json.loads(stdout) if stdout else {}
    codes = {int(code) for code in Code} - {Code.INTERNAL}
    if not isinstance(said, dict) or (status == 0) == ("code" in said) or said.get("code", 1) not in codes:
        raise UnexpectedError(status, stdout)


def fuzz_result(data: bytes) -> None:
    """What an IPAM delegate prints: parsed in one version, it can be said in all that have room for it."""
    with suppress(CNIError):
        document = parse_document(data)
        stated = document.get("cniVersion")
        version = stated if stated in versions.SUPPORTED else "1.1.0"
        result = parse_result(Fields(document, "result"), version)
        for each in versions.SUPPORTED:
            with suppress(CNIError):
                rendered = result.render(each)
                again = parse_result(Fields(rendered), each)
                if again.render(each) != rendered:
                    raise UnexpectedError(each, rendered, again)
                json.dumps(rendered).encode()


def fuzz_transfer(data: bytes) -> None:
    """A file for `podwire ipam import`."""
    with suppress(CNIError, IPAMError):
        for network, (_, owner) in ipam._parse_export(data, "file"):
            Store(Path.cwd(), network)
            if Owner.parse(owner.content) != owner:
                raise UnexpectedError(owner)


def fuzz_store(data: bytes) -> None:
    """What is found in the files of a store and of what it remembers: names and contents by turns."""
    pieces = data.split(b"\0\0")
    for name, content in zip(pieces[::2], pieces[1::2], strict=False):
        path = Path(os.path.normpath("/" + os.fsdecode(name).replace("\0", "")).lstrip("/"))
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    try:
        with suppress(IPAMError):
            _use(Store(Path.cwd(), "net", lock_timeout=1))
    finally:
        _clear()


def _clear() -> None:
    for path in Path().iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _use(store: Store) -> None:
    before = store.owners()
    made = allocate(store, POOL, ONE, terms=TERMS)
    held = store.owners()
    for each in made:
        if (
            before.get(each.address, Owner(container_id="", ifname="")).container_id
            or held[each.address] != ONE
        ):
            raise UnexpectedError(each, before)
    usage(store, POOL, TERMS)
    fsck.check_files(store)
    sticky.recall(store, TERMS.sticky)
    store.cooldown().cools_for(made[0].address, "other", 60)
    if not {each.address for each in made} <= set(release(store, ONE, TERMS)):
        raise UnexpectedError(made)
    allocate(store, POOL, TWO, terms=TERMS)


def fuzz_peers(data: bytes) -> None:
    """A file of peers, the stamp of a network, and peers in its configuration."""
    Path("peers").write_bytes(data)
    with suppress(CNIError):
        _read_peers({"peersFile": str(Path("peers").absolute())}, Stamp())
    with suppress(CNIError):
        _read_peers({"peersFile": "/nowhere"}, read_stamp("peers"))
    with suppress(CNIError):
        _read_peers(parse_document(data), Stamp())


def _read_peers(configuration: dict[str, object], stamp: Stamp) -> None:
    source = find_peers(Fields(configuration), stamp)
    bool(source.digest and source.with_subnets)
    source.read()
    bool(source.nobody)


def fuzz_values(data: bytes) -> None:
    """What tuning has kept of an interface, for DEL and GC."""
    Path("values.json").write_bytes(data)
    with suppress(CNIError):
        kept = tuning_values._read_file("values.json")
        if kept is not None:
            tuning_values._parse_values(kept)
    for each in tuning_values.find_values(".", "net"):
        if each.identity == "0123456789abcdef":
            str(each)


def fuzz_state(data: bytes) -> None:
    """What the cluster's follower says of the node, for STATUS."""
    Path("state").write_bytes(data)
    with suppress(CNIError):
        require_ready("state")
    state = read_state("state")
    if state is not None:
        state.render().encode()


def fuzz_wire(data: bytes) -> None:
    """A client of the agent that says anything, in one piece or two, and leaves."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        theirs.sendall(data[:100_000])
        theirs.shutdown(socket.SHUT_WR)
        try:
            call = wire.receive_call(ours, 2.0)
        except wire.WireError:
            return
        if call is not None:
            if call.netns_fd >= 0:
                raise UnexpectedError(call)
            _log.seen = None
            environ = {**call.environ, "CNI_COMMAND": "VERSION"}
            _require_answer(*_answered(environ, call.stdin))


def _answered(environ: dict[str, str], stdin: bytes) -> tuple[int, bytes]:
    made = answer(environ, stdin, PLUGINS["podwire"])
    return made.status, made.stdout


def fuzz_kernel(data: bytes) -> None:
    """What the kernel answers: nonsense is an error of reading, never an endless loop."""
    for parse in (
        link._parse,
        route._parse,
        neigh._parse,
        neigh._is_permanent,
        conntrack._parse,
        _elements,
        _chains,
    ):
        with suppress(struct.error, ValueError, KeyError, IndexError, AddrFormatError, TypeError):
            parse(data)
    attributes = message.list_attributes(data)
    for kind, value in attributes[:20]:
        if message.find_attribute(data, kind) != next(v for k, v in attributes if k == kind):
            raise UnexpectedError(kind, value)
    nft_message.parse_comment(data)
    _drain(data)


_SET = nft_message.Element(family="inet", set_name="set", key=b"")


def _elements(data: bytes) -> list[nft_message.Element]:
    return list(nft_message.parse_elements(_SET, data))


def _chains(data: bytes) -> list[nfnetlink.ChainHead]:
    return list(nfnetlink._parse_chain(data))


def _drain(data: bytes) -> None:
    with suppress(struct.error):
        list(netlink.split(data))


def fuzz_ranges(data: bytes) -> None:
    """Ranges as a configuration names them: subnet, start, end, gateway, excluded blocks, a line each."""
    text = [line or None for line in data.decode(errors="replace").split("\n")]
    subnet, start, end, gateway, *exclude = [*text, None, None, None, None][: max(len(text), 4)]
    with suppress(IPAMError):
        made = make_range(
            subnet=subnet or "",
            range_start=start,
            range_end=end,
            gateway=gateway,
            exclude=[block for block in exclude if block],
        )
        spans = made.spans()
        if made.size() <= 0 or any(first > last for first, last in spans):
            raise UnexpectedError(made)
        for first, last in (spans[0], spans[-1]):
            for value in (first, last):
                address = IPAddress(value, made.version)
                if not made.allocatable(address) or address == made.gateway:
                    raise UnexpectedError(made, address)
    for parse in (parse_ip, parse_cidr):
        with suppress(CNIError):
            parse(subnet or "", "it")


TARGETS: dict[str, Callable[[bytes], None]] = {
    "call": fuzz_call,
    "result": fuzz_result,
    "transfer": fuzz_transfer,
    "store": fuzz_store,
    "peers": fuzz_peers,
    "values": fuzz_values,
    "state": fuzz_state,
    "wire": fuzz_wire,
    "kernel": fuzz_kernel,
    "ranges": fuzz_ranges,
}
