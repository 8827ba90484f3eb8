"""Whether other firewalls let pods' packets through: one line at ADD, code 51 at STATUS.

ADD goes on, because pods of one node reach each other all the same. What is asked of the kernel
then costs the same however many rules there are; STATUS reads the rules of the tables in question.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.forward import find_suspects

if TYPE_CHECKING:
    from collections.abc import Collection

    from cni_plugin.contract.result import Result
    from cni_plugin.kernel.netns import Namespace

log = logging.getLogger("podwire")


def warn_of_drops(host: Namespace, interface: str, result: Result) -> None:
    """Log the well-known chains with policy drop that packets of pods behind the interface must pass."""
    if not interface:
        return
    versions = {ip.address.version for ip in result.ips}
    with suppress(KernelError, OSError):  # what cannot be read is no reason to refuse a pod
        for suspect in find_suspects(host.nftables, interface, versions):
            log.warning("policy drop: unless a rule there accepts it, %s", suspect)


def require_open(host: Namespace, interface: str, versions: Collection[int]) -> None:
    """Raise CNIError 51 that names every chain that would drop the pods' packets, and what opens it."""
    from cni_plugin.kernel.obstacles import find_obstacles  # no ADD needs it

    found = find_obstacles(host.nftables, interface, versions) if interface else []
    if found:
        raise CNIError(Code.LIMITED_CONNECTIVITY, "; ".join(map(str, found)))
