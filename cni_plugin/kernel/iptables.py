"""iptables rules of others: deletes what the Go plugins left, reads what legacy iptables drops.

Nothing here adds a rule, and no program is started for a chain that the kernel does not have.
`iptables -t nat -D POSTROUTING ... -j CNI-HASH; -F; -X`.
"""

from __future__ import annotations

import errno
import logging
import shlex
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cni_plugin.kernel.errors import KernelError
from ipam.seam import step

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from cni_plugin.kernel.chain_walk import Rules
    from cni_plugin.kernel.netns import Namespace

log = logging.getLogger("podwire")

_PROGRAMS = ("iptables", "ip6tables")
_INTERFACES = {"-i": "iifname", "-o": "oifname"}
_ADDRESSES = {"-s": "saddr", "-d": "daddr"}
_LOCK_WAIT = "5"  # seconds for the xtables lock


def delete_chain(host: Namespace, chain: str, entry: str) -> None:
    """Remove a chain of both families' nat tables, and the jumps to it that are in another."""
    for program in _list_programs(host, "nat", chain):
        _delete_rules(program, "nat", entry, lambda words: words[-2:] == ["-j", chain])
        _change(program, "nat", "-F", chain)
        _change(program, "nat", "-X", chain)


def delete_rules(host: Namespace, chain: str, rules: Collection[list[str]]) -> None:
    """Remove rules, as `-S` lists them behind the chain's name, of both families' filter tables."""
    for program in _list_programs(host, "filter", chain):
        _delete_rules(program, "filter", chain, lambda words: words in rules)


def _list_programs(host: Namespace, table: str, chain: str) -> Iterator[str]:
    """Yield the programs of the families that have a chain."""
    for program in filter(shutil.which, _PROGRAMS):
        family = program.removesuffix("tables")
        known = host.nftables.get_chain(family, table, chain) or table in _list_legacy_tables(program)
        if known and _run(program, table, "-n", "-L", chain).returncode == 0:
            yield program


def _delete_rules(program: str, table: str, chain: str, may_go: Callable[[list[str]], bool]) -> None:
    listing = _run(program, table, "-S", chain).stdout
    for command, _, *words in map(shlex.split, listing.splitlines()):
        if command == "-A" and may_go(words):
            _change(program, table, "-D", chain, *words)


def _change(program: str, table: str, *arguments: str) -> None:
    command = f"{program} -t {table} {shlex.join(arguments)}"
    log.debug("%s", command)
    done = _run(program, table, *arguments)
    if done.returncode != 0:
        raise KernelError(command, errno.EIO, done.stderr.strip())


def _run(program: str, table: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return _start([program, "-w", _LOCK_WAIT, "-t", table, *arguments])


def _start(argv: list[str]) -> subprocess.CompletedProcess[str]:
    run = partial(subprocess.run, capture_output=True, text=True, check=False)
    try:
        return step("program", run, argv)
    except OSError as error:
        raise KernelError(shlex.join(argv), error.errno or 0, "it cannot be started") from error


def legacy_in_use(program: str) -> bool:
    """Tell whether the old `iptables` (or `ip6tables`) has a filter table that we can read."""
    return "filter" in _list_legacy_tables(program) and shutil.which(f"{program}-legacy") is not None


def _list_legacy_tables(program: str) -> list[str]:
    family = program.removesuffix("tables")
    try:
        return Path(f"/proc/thread-self/net/{family}_tables_names").read_text().split()
    except OSError:
        return []


def list_legacy_rules(program: str) -> tuple[Rules, str]:
    """Return the rules of the filter table as `nft -j` would list them, and FORWARD's policy."""
    done = _start([program, "-w", _LOCK_WAIT, "-S"])
    rules: Rules = {}
    policy = ""
    for command, chain, *words in map(shlex.split, done.stdout.splitlines()):
        rules.setdefault(chain, [])
        if command == "-A":
            rules[chain].append(list(_parse_rule(words)))
        if (command, chain) == ("-P", "FORWARD"):
            (policy,) = words
    return rules, policy


def _parse_rule(words: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the conditions and the verdict of a rule; what we do not know as `xt`, as nft does."""
    rest, op = iter(words), "=="
    for word in rest:
        if word == "!":
            op = "!="
            continue
        if word in {"-m", "--comment"}:
            next(rest)
        elif word in _INTERFACES:
            name = next(rest).replace("+", "*")
            yield {"match": {"op": op, "left": {"meta": {"key": _INTERFACES[word]}}, "right": name}}
        elif word in _ADDRESSES:
            left = {"payload": {"protocol": "ip", "field": _ADDRESSES[word]}}
            yield {"match": {"op": op, "left": left, "right": next(rest)}}
        elif word == "--ctstate":
            states = next(rest).lower().split(",")
            yield {"match": {"op": op, "left": {"ct": {"key": "state"}}, "right": states}}
        elif word in {"-j", "-g"}:
            yield _parse_target(word, next(rest))
            return  # what follows are the target's own options
        else:
            yield {"xt": None}
        op = "=="


def _parse_target(word: str, target: str) -> dict[str, Any]:
    if target in {"ACCEPT", "DROP", "REJECT", "RETURN"}:
        return {target.lower(): None}
    return {"goto" if word == "-g" else "jump": {"target": target}}
