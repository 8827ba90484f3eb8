"""`podwire ipam`: lists, checks, repairs, exports and imports the address store.

Exit status as everywhere, but that `check` is for scripts: 0 when nothing was found, 1 when
something was, 2 when it could not look.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from cni_plugin.cli.console import add_directories, chosen, table, write
from cni_plugin.config.network import Attachment
from cni_plugin.config.paths import DATA_DIR
from cni_plugin.contract.errors import CNIError, Code, invalid_config
from cni_plugin.contract.fields import kind_of_json, objects
from cni_plugin.contract.inet import parse_ip
from cni_plugin.kernel.link import get_link
from cni_plugin.kernel.netns import open_host
from cni_plugin.node import audit
from ipam.address import render_address
from ipam.errors import IPAMError
from ipam.store import Owner, Store, list_networks
from ipam.transfer import reserve_all

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from ipam.transfer import Claim

_WORD = re.compile(r"\S+")


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
    export = verbs.add_parser("export", help="the addresses held as JSON, for a backup or another directory")
    export.add_argument("network", nargs="?", help="one network only")
    export.set_defaults(run=_export)
    import_ = verbs.add_parser("import", help="reserve what an export says: of each network all or nothing")
    import_.add_argument("file", help="an export; - for stdin")
    import_.set_defaults(run=_import)
    for verb in (listing, release, export, import_):
        verb.add_argument("--data-dir", default=DATA_DIR, help=f"the store (default {DATA_DIR})")
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
    found: list[audit.Disagreement] = []
    try:
        for request in chosen(arguments, problems):
            found += audit.audit(request)
    except (CNIError, IPAMError) as error:
        sys.stderr.write(f"podwire: {error}\n")
        return 2
    if arguments.json:
        write(json.dumps([asdict(each) for each in found], indent=4))
    else:
        write(*(f"network {each.network}: {each.kind}: {each.said}" for each in found))
    for problem in problems:
        sys.stderr.write(f"podwire: {problem}\n")
    return 2 if problems else int(any(each.kind != audit.UNKNOWN for each in found))


def _list(arguments: argparse.Namespace) -> int:
    rows = _read_rows(arguments)
    if arguments.json:
        _write_json(rows)
    else:
        write(*table(("NETWORK", "ADDRESS", "CONTAINER", "INTERFACE"), rows))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    """Write what `import` reads; the debris of a crash, which nobody holds, is left out."""
    _write_json([row for row in _read_rows(arguments) if row[2]])
    return 0


def _read_rows(arguments: argparse.Namespace) -> list[tuple[str, str, str, str]]:
    known = list_networks(arguments.data_dir)
    if arguments.network and arguments.network not in known:
        raise invalid_config(f"{arguments.data_dir}: wanted network {arguments.network}, found {known}")
    names = [arguments.network] if arguments.network else known
    return [
        (name, render_address(address), owner.container_id, owner.ifname)
        for name in names
        for address, owner in sorted(Store(arguments.data_dir, name).owners().items())
    ]


def _write_json(rows: list[tuple[str, str, str, str]]) -> None:
    keys = ("network", "address", "container_id", "ifname")
    write(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=4))


def _release(arguments: argparse.Namespace) -> int:
    store = Store(arguments.data_dir, arguments.network)
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


def _refuse_living(network: str, owners: Iterable[Owner]) -> None:
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


def _import(arguments: argparse.Namespace) -> int:
    claims: dict[str, list[Claim]] = {}
    for network, claim in _parse_export(_read(arguments.file), arguments.file):
        claims.setdefault(network, []).append(claim)
    stores = {network: Store(arguments.data_dir, network) for network in claims}
    return max(
        [_import_network(store, network, claims[network]) for network, store in stores.items()], default=0
    )


def _import_network(store: Store, network: str, claims: list[Claim]) -> int:
    try:
        new = reserve_all(store, claims)
    except IPAMError as error:
        sys.stderr.write(f"podwire: network {network}: nothing imported: {error}\n")
        return 1
    write(f"network {network}: {len(new)} imported, {len(claims) - len(new)} held already")
    return 0


def _read(path: str) -> bytes:
    try:
        if path == "-":
            return sys.stdin.buffer.read()
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise CNIError(Code.IO_FAILURE, f"{path}: {error.strerror}") from error


def _parse_export(content: bytes, path: str) -> Iterator[tuple[str, Claim]]:
    """Yield network and reservation; CNIError names the one that cannot be."""
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise invalid_config(f"{path}: wanted what podwire ipam export writes, found {error}") from error
    if not isinstance(rows, list):
        raise invalid_config(f"{path}: wanted a list, found {kind_of_json(rows)}")
    for row in objects(rows, path):
        owner = Owner(container_id=row.string("container_id"), ifname=row.string("ifname"))
        if not _WORD.fullmatch(owner.container_id) or not _WORD.fullmatch(owner.ifname or "eth0"):
            raise invalid_config(f'"{row.path}": wanted a container id and an interface, found "{owner}"')
        yield row.string("network"), (parse_ip(row.string("address"), f'"{row.path}.address"'), owner)
