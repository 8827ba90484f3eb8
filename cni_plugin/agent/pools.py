"""How full each address pool is, for a reader that asks every few seconds.

The networks are those of the runtime's files, read anew each time. Counting is bisection in the index of
the store's cache. Where there is none yet, or where no watch is possible, the directory is listed; that
takes at most a hundredth of the agent's time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cni_plugin.addresses import host_local
from cni_plugin.addresses.delegate import OWN_NAMES
from cni_plugin.config.network import ipam_type
from cni_plugin.contract.errors import CNIError
from cni_plugin.node.configured import read_configured

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.contract.request import Request
    from ipam.allocator import Usage

_REST: Final = 100  # times as long as a listing took


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The addresses of one family that a network has for pods."""

    network: str
    family: int
    size: int
    used: int
    free: int


@dataclass(frozen=True, slots=True)
class _Listed:
    usages: list[Usage]
    good_until: float


class Pools:
    """The pools of the networks in a directory; asked by one thread at a time."""

    def __init__(self, conf_dir: str) -> None:
        """Read nothing yet."""
        self._conf_dir = conf_dir
        self._listed: dict[str, _Listed] = {}

    def read(self) -> list[Pool]:
        """Return the pools that can be read; what is wrong with the others STATUS says."""
        named = {request.network: request for request in read_configured(self._conf_dir).ours}
        return [pool for request in named.values() for pool in self._read_network(request)]

    def _read_network(self, request: Request) -> Iterator[Pool]:
        try:
            if ipam_type(request.config) not in OWN_NAMES:
                return
            usages = host_local.cached_usage(request) or self._list(request)
        except CNIError:
            return
        for family in sorted({usage.range_set.version for usage in usages}):
            members = [usage for usage in usages if usage.range_set.version == family]
            yield Pool(
                network=request.network,
                family=family,
                size=sum(usage.range_set.size() for usage in members),
                used=sum(usage.used for usage in members),
                free=sum(usage.free for usage in members),
            )

    def _list(self, request: Request) -> list[Usage]:
        begun = time.monotonic()
        known = self._listed.get(request.network)
        if known is not None and begun < known.good_until:
            return known.usages
        usages = host_local.usage(request)
        ended = time.monotonic()
        self._listed[request.network] = _Listed(usages, ended + _REST * (ended - begun))
        return usages
