"""The operator's command line: what is on this node, and repairing the address store.

Human-readable by default, `--json` for scripts. Exit status 0 when all is well, 1 when
something is wrong, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import ipam
from cni_plugin import __version__, report
from cni_plugin.agent import server
from cni_plugin.config import DEFAULT_DATA_DIR, Attachment
from cni_plugin.contract.errors import CNIError, Code, combine, invalid_config
from cni_plugin.contract.inet import parse_ip
from cni_plugin.kernel.link import get_link
from cni_plugin.kernel.netns import open_host
from cni_plugin.plugins import podwire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cni_plugin.contract.request import Request

_EPILOG = "Without arguments, and with CNI_COMMAND set, this is a CNI plugin: https://www.cni.dev/docs/spec/"


def main(argv: Sequence[str]) -> int:
    """Run one command and return the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except (CNIError, ipam.IPAMError) as error:
        sys.stderr.write(f"podwire: {error}\n")
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="podwire", description="Pod networks of this node.", epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"podwire {__version__}")
    commands = parser.add_subparsers(title="commands", required=True)
    _add_status(commands)
    _add_networks(commands, "sync", _sync, "make devices, routes and neighbours equal to the configuration")
    _add_networks(commands, "mtu", _mtu, "explain the MTU of a network's pods")
    _add_ipam(commands)
    _add_agent(commands)
    return parser


def _add_status(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    status = commands.add_parser("status", help="networks, pools, attachments, and what is wrong")
    _add_directories(status)
    status.add_argument("--json", action="store_true", help="for scripts")
    status.set_defaults(run=_status)


def _add_networks(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    purpose: str,
) -> None:
    parser = commands.add_parser(name, help=purpose)
    parser.add_argument("network", nargs="?", help="one network only")
    _add_directories(parser)
    parser.set_defaults(run=run)


def _add_directories(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--conf-dir", default="/etc/cni/net.d", help="the runtime's network configurations")
    parser.add_argument("--bin-dir", default="/opt/cni/bin", help="the runtime's plugins")


def _add_ipam(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("ipam", help="look at the address store and repair it")
    verbs = parser.add_subparsers(title="commands", required=True)
    listing = verbs.add_parser("list", help="the addresses held, and by whom")
    listing.add_argument("network", nargs="?", help="one network only")
    listing.add_argument("--json", action="store_true", help="for scripts")
    listing.set_defaults(run=_ipam_list)
    release = verbs.add_parser("release", help="give addresses back whose container is gone")
    release.add_argument("network")
    release.add_argument("address", nargs="+")
    release.set_defaults(run=_ipam_release)
    for verb in (listing, release):
        verb.add_argument(
            "--data-dir", default=DEFAULT_DATA_DIR, help=f"the store (default {DEFAULT_DATA_DIR})"
        )


def _add_agent(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    agent = commands.add_parser("agent", help="serve the executables' calls from one warm process")
    # A call waits for the kernel's lock on links most of the time, behind all the others.
    workers = 8 * (os.cpu_count() or 1)
    agent.add_argument("--socket", default=server.DEFAULT_SOCKET, help=f"default {server.DEFAULT_SOCKET}")
    agent.add_argument(
        "--workers", type=_count, default=workers, help=f"calls at once (default 8 a core: {workers})"
    )
    agent.add_argument(
        "--queue",
        type=_count,
        default=server.DEFAULT_QUEUE,
        help=f"calls that may wait; further ones are told to try again (default {server.DEFAULT_QUEUE})",
    )
    agent.set_defaults(run=_agent)


def _count(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def _agent(arguments: argparse.Namespace) -> int:
    settings = server.Settings(
        socket=os.path.abspath(arguments.socket), workers=arguments.workers, queue=arguments.queue
    )
    return server.run(settings)


def _status(arguments: argparse.Namespace) -> int:
    seen = report.look(arguments.conf_dir, arguments.bin_dir)
    if arguments.json:
        _write(json.dumps(asdict(seen), indent=4))
    else:
        _write(*_render_status(seen, arguments.conf_dir))
    return 1 if seen.problems else 0


def _sync(arguments: argparse.Namespace) -> int:
    return _each(
        arguments, lambda request: [f"network {request.network}: {podwire.synchronize(request)} changes"]
    )


def _mtu(arguments: argparse.Namespace) -> int:
    return _each(
        arguments, lambda request: [f"network {request.network}:", *_indent(podwire.explain_mtu(request))]
    )


def _indent(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _each(arguments: argparse.Namespace, explain: Callable[[Request], Iterable[str]]) -> int:
    """Write what there is to say of each network, and raise what went wrong at the end as one error."""
    problems: list[CNIError] = []
    for request in _chosen(arguments, problems):
        try:
            _write(*explain(request))
        except CNIError as error:
            problems.append(CNIError(error.code, f"network {request.network}: {error.msg}", error.details))
    if problems:
        raise combine(problems)
    return 0


def _chosen(arguments: argparse.Namespace, problems: list[CNIError]) -> list[Request]:
    """Return the networks that a command is about; CNIError when there is none."""
    requests = report.list_requests(arguments.conf_dir, arguments.bin_dir, problems)
    chosen = [r for r in requests if arguments.network in (None, r.network)]
    if not chosen and not problems:
        named = arguments.network or "a network"
        raise invalid_config(f"{arguments.conf_dir}: wanted {named} of podwire's, found none")
    return chosen


def _render_status(seen: report.NodeReport, conf_dir: str) -> Iterable[str]:
    if not seen.networks:
        yield f"no podwire network in {conf_dir}"
    for network in seen.networks:
        yield f"network {network.name}: {network.mode}, addresses from {network.ipam} ({network.file})"
        for pool in network.pools:
            yield f"  pool {pool.ranges}: {pool.used} used, {pool.free} free"
        pods = [a for a in seen.attachments if a.network == network.name]
        rows = [(a.pod or a.container_id, a.ifname, a.host_ifname, " ".join(a.addresses)) for a in pods]
        yield from _table(("POD", "INTERFACE", "HOST END", "ADDRESSES"), rows)
    yield from (f"wrong: {problem}" for problem in seen.problems)
    if seen.networks and not seen.problems:
        yield "nothing is wrong"


def _ipam_list(arguments: argparse.Namespace) -> int:
    names = [arguments.network] if arguments.network else ipam.list_networks(arguments.data_dir)
    rows = [row for name in names for row in _read_addresses(arguments.data_dir, name)]
    if arguments.json:
        keys = ("network", "address", "container_id", "ifname")
        _write(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=4))
    else:
        _write(*_table(("NETWORK", "ADDRESS", "CONTAINER", "INTERFACE"), rows))
    return 0


def _read_addresses(data_dir: str, network: str) -> list[tuple[str, str, str, str]]:
    held = sorted(ipam.Store(data_dir, network).owners().items())
    return [(network, str(address), owner.container_id, owner.ifname) for address, owner in held]


def _ipam_release(arguments: argparse.Namespace) -> int:
    store = ipam.Store(arguments.data_dir, arguments.network)
    held = store.owners()
    named = [parse_ip(text, "address") for text in arguments.address]
    absent = [str(address) for address in named if address not in held]
    if absent:
        sys.stderr.write(f"podwire: network {arguments.network}: wanted {absent} held, found them free\n")
        return 1
    _refuse_living(arguments.network, [held[address] for address in named])
    with store.locked():
        released = store.remove_all((address, held[address]) for address in named)
    _write(*(f"released {address}, held by {held[address]}" for address in released))
    return 0


def _refuse_living(network: str, owners: Iterable[ipam.Owner]) -> None:
    """Raise CNIError when an owner still has its interface: its address is in use."""
    with open_host() as host:
        for owner in owners:
            attachment = Attachment(
                network=network, container_id=owner.container_id, ifname=owner.ifname, netns=""
            )
            if get_link(host.netlink, attachment.host_ifname) is not None:
                raise CNIError(
                    Code.INTERNAL,
                    f"{attachment}: wanted a container that is gone, found its interface "
                    f"{attachment.host_ifname}; stop the pod instead",
                )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterable[str]:
    """Return the rows under their heads, in columns; nothing when there is no row."""
    if not rows:
        return
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _write(*lines: str) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")
