"""Removing what the Go reference `bridge` left in iptables: nothing here adds a rule.

With ipMasq it keeps one chain per container in the nat table, named by a hash, and one jump
to it per address in POSTROUTING. `iptables -t nat -D POSTROUTING ... -j CNI-HASH; -F; -X`.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import shlex
import shutil
import subprocess

from cni_plugin.kernel.errors import KernelError

log = logging.getLogger("podwire")

_PROGRAMS = ("iptables", "ip6tables")
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
    return subprocess.run(argv, capture_output=True, text=True, check=False)
