"""Rules and routes for traffic between pods and other nodes' own addresses, in a routed VXLAN network.

This traffic goes through the tunnel, both ways and without translation: the underlay may have no routes to
pods, and strict rp_filter drops there what the routes expect from the tunnel. The pods' packets are
marked, and a rule leads them to a table with the peers' addresses; the routes to the peers' subnets have
the node's own address as their source. Answers to a connection to a host port of this node leave on the
underlay, where the connection came from. `ip rule`, `nft list chain inet podwire tunnel_vxlan42`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_plugin.kernel.netconf import loosen_rp_filter
from cni_plugin.kernel.nft import Ruleset, hooked
from cni_plugin.kernel.nft_layout import CROSSING_MARK, TUNNEL_MARKS
from cni_plugin.kernel.rule import RuleSpec
from cni_plugin.kernel.sysctl import get_sysctl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netaddr import IPAddress, IPNetwork

    from cni_plugin.backend.tunnel import Tunnel
    from cni_plugin.kernel.netlink import Netlink

_NFT_FAMILY = {4: "ip", 6: "ip6"}
_STRICT = 1  # rp_filter, RFC 3704


def list_rules(subnets: Iterable[IPNetwork], table: int) -> frozenset[RuleSpec]:
    """Return the rules for what the pods of these subnets send."""
    return frozenset(RuleSpec(src=subnet, mark=CROSSING_MARK, table=table) for subnet in subnets)


def plan_marks(tunnel: Tunnel) -> Ruleset:
    """Return what marks the pods' packets to the peers' own addresses.

    Behind the translation of Services (dstnat), so that the real destination counts, and before the route
    is looked up.
    """
    versions = sorted({subnet.version for subnet in tunnel.subnets})
    marks = (
        f"{_NFT_FAMILY[s.version]} saddr {s} {_NFT_FAMILY[s.version]} daddr @{_set_name(tunnel, s.version)} "
        f"meta mark set meta mark or {CROSSING_MARK:#x}"
        for s in tunnel.subnets
    )
    rules = ("ct direction reply ct status dnat accept", *marks)
    return Ruleset(
        family="inet",
        title=f"{tunnel.network} pods to nodes",
        chains=(hooked(TUNNEL_MARKS, rules, tunnel.device),),
        sets=tuple((f"set {_set_name(tunnel, v)}", f"typeof {_NFT_FAMILY[v]} saddr;") for v in versions),
        filled=tuple(_set_name(tunnel, v) for v in versions),
        fingerprint=tunnel.source.digest,
        fill=lambda: {_set_name(tunnel, v): _list_addresses(tunnel, v) for v in versions},
    )


def _set_name(tunnel: Tunnel, version: int) -> str:
    return f"nodes{version}_{tunnel.device}"


def _list_addresses(tunnel: Tunnel, version: int) -> list[IPAddress]:
    return [a for peer in tunnel.source.read() for a in peer.addresses if a.version == version]


def accept_answers(nl: Netlink, device: str) -> None:
    """Let answers from the peers' own addresses come out of the tunnel.

    The route to such an address leads over the underlay for everybody but marked packets, so strict rp_filter
    would drop them; the larger value of `all` and the device's own counts.
    """
    if drops_answers(device):
        loosen_rp_filter(nl, device)


def drops_answers(device: str) -> bool:
    """Tell whether rp_filter drops them."""
    keys = (f"net/ipv4/conf/{name}/rp_filter" for name in ("all", device))
    return max(int(get_sysctl(key)) for key in keys) == _STRICT
