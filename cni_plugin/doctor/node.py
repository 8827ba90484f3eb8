"""Checks the node's own settings: forwarding, conntrack, and the bridge's filter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cni_plugin.addresses import host_local
from cni_plugin.addresses.delegate import OWN_NAMES
from cni_plugin.config.network import ipam_type, parse_alias
from cni_plugin.contract.errors import CNIError
from cni_plugin.doctor.finding import Finding
from cni_plugin.kernel.addr import list_advertised_links
from cni_plugin.kernel.link import list_links
from cni_plugin.kernel.netconf import accept_ra, accepts_unless_forwarding
from cni_plugin.kernel.netns import open_host
from cni_plugin.kernel.route import list_advertised
from cni_plugin.kernel.sysctl import FORWARDING, get_sysctl, has_sysctl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.contract.request import Request
    from cni_plugin.doctor.site import Examined
    from cni_plugin.kernel.netns import Namespace
    from ipam.ranges import RangeSet

_COUNT: Final = "net/netfilter/nf_conntrack_count"
_LIMIT: Final = "net/netfilter/nf_conntrack_max"
_NEARLY: Final = 0.95
_CALL_IPTABLES: Final = "net/bridge/bridge-nf-call-iptables"
# kube-proxy's, in its three modes.
_KUBE_PROXY: Final = (("ip", "nat", "KUBE-SERVICES"), ("ip", "kube-proxy", "services"))


def check(site: Examined) -> Iterator[Finding]:
    """Yield what is wrong on a node that has pods."""
    with open_host() as host:
        attached = any(parse_alias(link.alias) for link in list_links(host.netlink, kind="veth"))
        if attached:
            yield from _forwarding(site)
        yield from _routers(host)
        yield from judge_conntrack(_number(_COUNT), _number(_LIMIT))
        if attached:
            yield from _bridge_filter(site, host)


def _forwarding(site: Examined) -> Iterator[Finding]:
    for version in sorted(_families(site)):
        key = FORWARDING[version]
        if has_sysctl(key) and get_sysctl(key) == "0":
            yield Finding(
                severity="error",
                object=f"sysctl {key.replace('/', '.')}",
                found="it is 0",
                meaning=f"the node forwards no IPv{version}: pods reach the node and nothing beyond it",
                remedy=f"sysctl -w {key.replace('/', '.')}=1",
            )


def _routers(host: Namespace) -> Iterator[Finding]:
    """Yield the links whose routers' advertisements the node takes no more because it forwards.

    Their routes are gone by then; what is left is an address that the kernel made of an advertisement.
    """
    key = FORWARDING[6]
    if not has_sysctl(key) or get_sysctl(key) == "0":
        return
    taught = list_advertised_links(host.netlink) | {route.index for route in list_advertised(host.netlink)}
    for link in list_links(host.netlink):
        if link.index in taught and accepts_unless_forwarding(host.netlink, link.name):
            yield Finding(
                severity="error",
                object=f"sysctl {accept_ra(link.name)}",
                found=f"it is 1, the node forwards IPv6, and {link.name} has its addresses from a router",
                meaning="the kernel takes no router advertisements then: the default route over "
                f"{link.name} is gone, or goes when it runs out, and node and pods lose the IPv6 world",
                remedy=f"sysctl -w {accept_ra(link.name)}=2",
            )


def _families(site: Examined) -> set[int]:
    """Return the families of what pods of the networks that have a gateway get."""
    return {
        pool.version for request in site.configured.ours if _is_forwarded(request) for pool in _pools(request)
    }


def _is_forwarded(request: Request) -> bool:
    keys = ("isGateway", "isDefaultGateway", "ipMasq")
    config = request.config
    return config.string("mode") == "routed" or any(bool(config.value(key)) for key in keys)


def _pools(request: Request) -> tuple[RangeSet, ...]:
    try:
        return host_local.parse_range_sets(request) if ipam_type(request.config) in OWN_NAMES else ()
    except CNIError:
        return ()


def _number(key: str) -> int:
    return int(get_sysctl(key)) if has_sysctl(key) else 0


def judge_conntrack(count: int, limit: int) -> Iterator[Finding]:
    """Yield a finding when the table of connections is full, or as good as."""
    if limit and count >= limit * _NEARLY:
        yield Finding(
            severity="error",
            object="conntrack table",
            found=f"{count} of {limit} entries are in use",
            meaning='new connections are dropped ("nf_conntrack: table full, dropping packet")',
            remedy=f"sysctl -w {_LIMIT.replace('/', '.')}={2 * limit}",
        )


def _bridge_filter(site: Examined, host: Namespace) -> Iterator[Finding]:
    """Yield a finding where kube-proxy translates, and frames between pods of a bridge pass it by."""
    bridged = any(r.config.string("mode") in {"", "bridge", "vxlan"} for r in site.configured.ours)
    proxied = any(host.nftables.get_chain(*place) is not None for place in _KUBE_PROXY)
    if bridged and proxied and not _number(_CALL_IPTABLES):
        yield Finding(
            severity="warning",
            object=f"sysctl {_CALL_IPTABLES.replace('/', '.')}",
            found="it is 0" if has_sysctl(_CALL_IPTABLES) else "there is none: br_netfilter is not loaded",
            meaning="a pod gets no answer from a Service whose pod is on the same bridge: the answer passes "
            "kube-proxy's translation by",
            remedy=("" if has_sysctl(_CALL_IPTABLES) else "modprobe br_netfilter && ")
            + "sysctl -w net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1",
        )
