"""The configurations that are measured: the same for everybody but for the names of the plugins.

A bridge takes 1,023 ports, so pods from number 1,000 on are on a second network of the same node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from bench.contenders import Contender
    from bench.lanes import Network

V4, V6, DUAL = (4,), (6,), (4, 6)
ON_ONE_BRIDGE = 1000
_SUBNETS = {4: "10.9{}.0.0/16", 6: "fd00:9{}::/64"}
# Bits per second and bits; the kernel need not shape anything to be asked for it.
_LIMITS = {"ingressRate": 10**9, "ingressBurst": 10**8, "egressRate": 10**9, "egressBurst": 10**8}
_SYSCTL = {"net.core.somaxconn": "1024"}


class Bridge:
    """A network of one plugin, for pods with addresses of these families; `more` are its further keys."""

    def __init__(self, families: tuple[int, ...], version: str = "1.0.0", **more: object) -> None:
        """Keep what the configuration is made from."""
        self._families = families
        self._version = version
        self._more = more

    @property
    def translates(self) -> bool:
        """Tell whether it masquerades, so that it matters with what."""
        return "ipMasq" in self._more

    def __call__(self, contender: Contender, store: Path, pod: int) -> Network:
        """Return the one plugin's configuration."""
        backend = {"ipMasqBackend": contender.backend} if contender.backend else {}
        return [self._common(pod) | self._own(contender, store, pod) | self._more | backend]

    def _common(self, pod: int) -> dict[str, Any]:
        return {"cniVersion": self._version, "name": f"bench{_side(pod)}"}

    def _own(self, contender: Contender, store: Path, pod: int) -> dict[str, Any]:
        ranges = [[{"subnet": _SUBNETS[family].format(_side(pod))}] for family in self._families]
        ipam = {"type": contender.manager, "dataDir": str(store), "ranges": ranges}
        bridge = f"br{_side(pod)}"
        return {"type": contender.plugin, "bridge": bridge, "isDefaultGateway": True, "ipam": ipam}


class Chain(Bridge):
    """Masquerade, a host port, limits, a firewall and a sysctl: what the reference takes five plugins for."""

    def __init__(self) -> None:
        """Dual-stack, with masquerade."""
        super().__init__(DUAL, ipMasq=True)

    def __call__(self, contender: Contender, store: Path, pod: int) -> Network:
        """Return the five configurations."""
        backend = {"backend": contender.backend} if contender.backend else {}
        further: list[dict[str, Any]] = [
            {"type": "portmap", "runtimeConfig": _ports(pod), **backend},
            {"type": "bandwidth", **_LIMITS},
            {"type": "firewall"},
            {"type": "tuning", "sysctl": _SYSCTL},
        ]
        return super().__call__(contender, store, pod) + [self._common(pod) | plugin for plugin in further]


class OnePlugin(Chain):
    """The same for the reference; ours does ports and limits in the plugin that joins the pod."""

    def __call__(self, contender: Contender, store: Path, pod: int) -> Network:
        """Return one configuration for ours."""
        if not contender.ours:
            return super().__call__(contender, store, pod)
        runtime = {"runtimeConfig": _ports(pod) | {"bandwidth": _LIMITS}}
        return [plugin | runtime for plugin in Bridge.__call__(self, contender, store, pod)]


class Manager(Bridge):
    """The address manager alone."""

    def __call__(self, contender: Contender, store: Path, pod: int) -> Network:
        """Return the configuration that the bridge would hand on."""
        return [plugin | {"type": contender.manager} for plugin in super().__call__(contender, store, pod)]


def _side(pod: int) -> int:
    return pod // ON_ONE_BRIDGE


def _ports(pod: int) -> dict[str, Any]:
    return {"portMappings": [{"hostPort": 20000 + pod, "containerPort": 80, "protocol": "tcp"}]}
