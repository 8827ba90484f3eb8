"""`podwire install-shim` and `podwire uninstall`: puts our files on a node, and removes them again.

A runtime may be executing the file that is replaced, so each is put in place by a temporary file in
the same directory and rename(2). Other plugins' files are left alone.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from cni_plugin.addresses.delegate import is_ours
from cni_plugin.agent.handover import only_agent
from cni_plugin.cli.console import add_directories, write
from cni_plugin.config.paths import BIN_DIR, INSTALLED, SHIM_IN_IMAGE, SOCKET
from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.kernel.link import delete_link, list_links
from cni_plugin.kernel.netns import open_host
from cni_plugin.kernel.nft import run_nft
from cni_plugin.kernel.nft_layout import OWN_TABLES, TABLE
from cni_plugin.kernel.route import PODWIRE_PROTO, list_routes, remove_route
from cni_plugin.kernel.rule import list_own_rules, remove_rule
from cni_plugin.node import report
from cni_plugin.plugins import PLUGINS
from ipam.seam import files

if TYPE_CHECKING:
    import argparse

    from cni_plugin.kernel.netlink import Netlink

# How the aliases of what pods share begin; a pod's veth has no space there.
_SHARED = "podwire: "
_NAMES = ("podwire", "podwire-ipam")
# containerd before version 2 calls it for every pod, whatever the network is.
_IF_ABSENT = ("loopback",)
_RECORDED = b"executable "


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    install = commands.add_parser(
        "install-shim", help="put the executables where the runtime looks for plugins"
    )
    install.add_argument("--source", default=SHIM_IN_IMAGE, help=f"the executable (default {SHIM_IN_IMAGE})")
    install.add_argument("--bin-dir", default=BIN_DIR, help="the runtime's plugins")
    install.set_defaults(run=_install)
    uninstall = commands.add_parser("uninstall", help="remove configuration, executables and kernel objects")
    add_directories(uninstall)
    uninstall.add_argument(
        "--socket",
        default=SOCKET,
        help=f"of the agent, which must have ended (default {SOCKET})",
    )
    uninstall.add_argument(
        "--record", default=INSTALLED, help=f"what scripts/install has written down (default {INSTALLED})"
    )
    uninstall.add_argument("--conflist", default="10-podwire.conflist", help="the configuration to remove")
    uninstall.set_defaults(run=_uninstall)


def _install(arguments: argparse.Namespace) -> int:
    with open(arguments.source, "rb") as file:
        content = file.read()
    files.make_directories(arguments.bin_dir)
    places = {name: os.path.join(arguments.bin_dir, name) for name in (*_NAMES, *_IF_ABSENT)}
    for name, place in places.items():
        if _read(place) != content and not (name in _IF_ABSENT and os.path.exists(place)):
            files.replace_file(place, content, 0o755, published=True)
            write(f"{place}: installed")
    return 0


def _read(path: str) -> bytes:
    with suppress(FileNotFoundError), open(path, "rb") as file:
        return file.read()
    return b""


def _uninstall(arguments: argparse.Namespace) -> int:
    """Remove all that is ours, unless a pod needs it; what is gone already is no error."""
    # An agent that follows a cluster would make everything again.
    with only_agent(arguments.socket):
        _require_no_pods()
        _remove_all(arguments)
    write("podwire is removed from this node; the addresses' store stays")
    if os.path.exists(arguments.record):
        write("the program itself stays: scripts/install --uninstall removes it")
    return 0


def _remove_all(arguments: argparse.Namespace) -> None:
    _remove(os.path.join(arguments.conf_dir, arguments.conflist))
    for path in _list_executables(arguments.bin_dir, arguments.record):
        _remove_executable(path)
    with open_host() as host:
        _remove_objects(host.netlink)
    tables = [f"bridge {TABLE}", *(f"inet {name}" for name in OWN_TABLES)]
    run_nft([line for table in tables for line in _drop_table(table)])


def _list_executables(bin_dir: str, record: str) -> list[str]:
    """Return where our executables may be: in this directory, and where scripts/install has put them."""
    recorded = [
        os.fsdecode(line[len(_RECORDED) :])
        for line in _read(record).splitlines()
        if line.startswith(_RECORDED)
    ]
    return sorted({*(os.path.join(bin_dir, name) for name in PLUGINS), *recorded})


def _remove_executable(path: str) -> None:
    """Remove it if it is ours, and put back what scripts/install kept when it replaced that."""
    there = os.path.lexists(path)
    if there and not is_ours(path):
        return
    directory, name = os.path.split(path)
    kept = os.path.join(directory, f".{name}.before-podwire")
    if os.path.lexists(kept):
        files.replace_file(path, _read(kept), 0o755, published=True)
        files.remove_file(kept)
        write(f"{path}: put back what was there before")
    elif there:
        _remove(path)


def _require_no_pods() -> None:
    """Raise CNIError when a pod has a network of ours: without configuration its runtime cannot stop it."""
    pods = [a.pod or a.container_id for a in report.list_attachments()]
    if pods:
        raise CNIError(
            Code.TRY_AGAIN_LATER, f"wanted no pod on a network of podwire's, found {' '.join(pods)}"
        )


def _remove(path: str) -> None:
    if os.path.lexists(path):
        files.remove_file(path)
        write(f"{path}: removed")


def _remove_objects(netlink: Netlink) -> None:
    for version in (4, 6):
        for rule in list_own_rules(netlink, version):
            netlink.change(remove_rule(rule))
        for route in list_routes(netlink, version):
            if route.proto == PODWIRE_PROTO:
                netlink.change(remove_route(route))
    for link in list_links(netlink):
        if link.alias.startswith(_SHARED) and delete_link(netlink, link.name):
            write(f"{link.name}: removed")


def _drop_table(table: str) -> list[str]:
    # Adding first makes deleting succeed in any case.
    return [f"add table {table}", f"delete table {table}"]
