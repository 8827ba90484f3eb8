"""Warns when another firewall (Docker, firewalld, ufw) would drop the pods' packets.

ADD goes on, because pods of one node reach each other all the same. What is asked of the kernel
then costs the same however many rules there are. `podwire status` and doctor read the rules of the tables
in question. So does STATUS with the key `strictStatus`, and answers 51: without it STATUS fails only for
what would make an ADD fail, because a runtime takes any failure as "the node is not ready".
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.foreign_chains import find_suspects

if TYPE_CHECKING:
    from cni_plugin.config.network import Addressing
    from cni_plugin.contract.result import Result
    from cni_plugin.kernel.foreign_chains import Obstacle
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


def list_obstacles(host: Namespace, interface: str, addressing: Addressing) -> list[Obstacle]:
    """Return the chains of others that drop the pods' packets, and those of which nobody can say it."""
    from cni_plugin.kernel.forward_verdict import Forwarded, find_obstacles  # no ADD needs it

    if not interface:
        return []
    networks = [each.subnet for each in addressing.ranges]
    forwarded = Forwarded(interface=interface, versions=addressing.families, networks=networks)
    return find_obstacles(host.nftables, forwarded)


def require_open(obstacles: list[Obstacle]) -> None:
    """Raise CNIError 51 that names every chain that drops the pods' packets, and what opens it."""
    found = [str(each) for each in obstacles if each.certain]
    if found:
        raise CNIError(Code.LIMITED_CONNECTIVITY, "; ".join(found))
