"""`podwire ipam`: look at the address store, find what is wrong with it, and repair it.

Exit status as everywhere, but that `check` is for scripts: 0 when nothing was found, 1 when
something was, 2 when it could not look.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import ipam
from cni_plugin import audit
from cni_plugin.config import DEFAULT_DATA_DIR, Attachment
from cni_plugin.console import add_directories, chosen, table, write
from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.contract.inet import parse_ip
from cni_plugin.kernel.link import get_link
from cni_plugin.kernel.netns import open_host

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its verbs."""
    parser = commands.add_parser("ipam", help="look at the address store and repair it")
    verbs = parser.add_subparsers(title="commands", required=True)
    listing = verbs.add_parser("list", help="the addresses held, and by whom")
    listing.add_argument("network", nargs="?", help="one network only")
    listing.add_argument("--json", action="store_true", help="for scripts")
    listing.set_defaults(run=_list)
    release = verbs.add_parser("release", help="give addresses back whose container is gone")
    release.add_argument("network")
    release.add_argument("address", nargs="+")
    release.set_defaults(run=_release)
    for verb in (listing, release):
        verb.add_argument(
            "--data-dir", default=DEFAULT_DATA_DIR, help=f"the store (default {DEFAULT_DATA_DIR})"
        )
    _add_check(verbs)


def _add_check(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = verbs.add_parser(
        "check",
        help="compare store, configuration and kernel",
        epilog="Exit status: 0 nothing found, 1 something, 2 it could not look.",
    )
    check.add_argument("network", nargs="?", help="one network only")
    check.add_argument("--json", action="store_true", help="for scripts")
    add_directories(check)
    check.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> int:
    problems: list[CNIError] = []
    found: list[audit.Finding] = []
    try:
        for request in chosen(arguments, problems):
            found += audit.audit(request)
    except (CNIError, ipam.IPAMError) as error:
        sys.stderr.write(f"podwire: {error}\n")
        return 2
    if arguments.json:
        write(json.dumps([asdict(each) for each in found], indent=4))
    else:
        write(*(f"network {each.network}: {each.kind}: {each.said}" for each in found))
    for problem in problems:
        sys.stderr.write(f"podwire: {problem}\n")
    return 2 if problems else 1 if found else 0


def _list(arguments: argparse.Namespace) -> int:
    names = [arguments.network] if arguments.network else ipam.list_networks(arguments.data_dir)
    rows = [row for name in names for row in _read_addresses(arguments.data_dir, name)]
    if arguments.json:
        keys = ("network", "address", "container_id", "ifname")
        write(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=4))
    else:
        write(*table(("NETWORK", "ADDRESS", "CONTAINER", "INTERFACE"), rows))
    return 0


def _read_addresses(data_dir: str, network: str) -> list[tuple[str, str, str, str]]:
    held = sorted(ipam.Store(data_dir, network).owners().items())
    return [(network, str(address), owner.container_id, owner.ifname) for address, owner in held]


def _release(arguments: argparse.Namespace) -> int:
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
    write(*(f"released {address}, held by {held[address]}" for address in released))
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
