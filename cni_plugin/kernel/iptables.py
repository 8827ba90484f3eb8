"""iptables of others: what the Go reference `bridge` left there, and what the old one forwards.

Nothing here adds a rule. With ipMasq the Go `bridge` keeps one chain per container in the nat
table, named by a hash, and one jump to it per address in POSTROUTING.
`iptables -t nat -D POSTROUTING ... -j CNI-HASH; -F; -X`.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import shlex
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cni_plugin.kernel.errors import KernelError
from seam import step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.kernel.walk import Rules

log = logging.getLogger("podwire")

_PROGRAMS = ("iptables", "ip6tables")
_INTERFACES = {"-i": "iifname", "-o": "oifname"}
_LOCK_WAIT = "5"  # seconds for the xtables lock


def reference_chain(network: str, container_id: str) -> str:
    """Return the name of the chain of the reference's ipMasq."""
    return "CNI-" + hashlib.sha512((network + container_id).encode()).hexdigest()[:24]


def delete_reference_chains(network: str, container_id: str) -> None:
    """Remove the container's masquerade chains of both families, where iptables is installed."""
    chain = reference_chain(network, container_id)
    for program in filter(None, map(shutil.which, _PROGRAMS)):
        if _run(program, "-n", "-L", chain).returncode == 0:
            _delete_chain(program, chain)


def _delete_chain(program: str, chain: str) -> None:
    listing = _run(program, "-S", "POSTROUTING").stdout
    jumps = [words for words in map(shlex.split, listing.splitlines()) if words[-2:] == ["-j", chain]]
    for words in jumps:
        _change(program, "-D", *words[1:])
    _change(program, "-F", chain)
    _change(program, "-X", chain)


def _change(program: str, *arguments: str) -> None:
    log.debug("%s -t nat %s", program, shlex.join(arguments))
    done = _run(program, *arguments)
    if done.returncode != 0:
        raise KernelError(f"{program} -t nat {shlex.join(arguments)}", errno.EIO, done.stderr.strip())


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [program, "-w", _LOCK_WAIT, "-t", "nat", *arguments]
    return _start(argv)


def _start(argv: list[str]) -> subprocess.CompletedProcess[str]:
    run = partial(subprocess.run, capture_output=True, text=True, check=False)
    try:
        return step("program", run, argv)
    except OSError as error:
        raise KernelError(shlex.join(argv), error.errno or 0, "it cannot be started") from error


def legacy_in_use(program: str) -> bool:
    """Tell whether the old `iptables` (or `ip6tables`) has a filter table that we can read."""
    family = program.removesuffix("tables")
    try:
        names = Path(f"/proc/thread-self/net/{family}_tables_names").read_text().split()
    except OSError:
        return False
    return "filter" in names and shutil.which(f"{program}-legacy") is not None


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
