"""The plugin type `loopback`: brings `lo` up in the pod's namespace, never the host's.

CNI_IFNAME is asked for and ignored, as the reference has it: the interface is always `lo`. Its alias says
whose namespace it is, so that a late DEL does not take down what is another pod's by now.
By hand: `ip -n POD link set lo up`.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from cni_plugin.config.network import identity_of_alias, parse_attachment, render_alias
from cni_plugin.contract.dispatch import Plugin
from cni_plugin.contract.errors import CNIError, Code, broken
from cni_plugin.contract.result import Interface, IPConfig, Result, parse_prev_result
from cni_plugin.kernel.addr import list_addresses
from cni_plugin.kernel.link import IFF_UP, Link, get_link, set_alias, set_down, set_up
from cni_plugin.kernel.netns import find_pod, open_pod
from ipam.seam.undo import Undo

if TYPE_CHECKING:
    from cni_plugin.contract.request import Request
    from cni_plugin.kernel.netns import Namespace

_LO = "lo"
_NO_MAC = "00:00:00:00:00:00"


def add(request: Request) -> Result:
    """Bring `lo` up; return prevResult, or `lo` and its addresses when there is none.

    Raises CNIError 8 for the host's namespace, 4 when `lo` has addresses that are no loopback's.
    """
    previous = parse_prev_result(request.config, request.cni_version)
    with open_pod(request.netns, opened=request.netns_fd) as pod, Undo() as undo:
        link = _require_lo(pod)
        _refuse_foreign_addresses(pod, link)
        # The alias is what a DEL goes by: it comes first and goes last, each in a request of its own.
        undo.callback(pod.netlink.change, set_alias(_LO, link.alias))
        pod.netlink.change(set_alias(_LO, render_alias(parse_attachment(request), "")))
        if not link.flags & IFF_UP:
            undo.callback(pod.netlink.change, set_down(_LO))
        pod.netlink.change(set_up(_LO))
        result = previous or _result(request, pod, link)
        undo.pop_all()
        return result


def _require_lo(pod: Namespace) -> Link:
    link = get_link(pod.netlink, _LO)
    if link is None:
        raise broken(f"interface {_LO}: wanted it, found none")
    return link


def _refuse_foreign_addresses(pod: Namespace, link: Link) -> None:
    found = [str(each) for each in list_addresses(pod.netlink, link.index) if not each.ip.is_loopback()]
    if found:
        raise CNIError(Code.INVALID_ENVIRONMENT, f"interface {_LO}: wanted loopback addresses, found {found}")


def _result(request: Request, pod: Namespace, link: Link) -> Result:
    """Return what the reference says: no MAC to speak of, the first address of each family."""
    addresses = {each.version: each for each in reversed(list_addresses(pod.netlink, link.index))}
    ips = (IPConfig(address=addresses[version], interface=0) for version in sorted(addresses))
    return Result(interfaces=(Interface(name=_LO, mac=_NO_MAC, sandbox=request.netns),), ips=tuple(ips))


def delete(request: Request) -> None:
    """Take `lo` down where its alias says that it is the attachment's; a namespace that is gone is fine."""
    with find_pod(request.netns, opened=request.netns_fd) or nullcontext() as pod:
        link = get_link(pod.netlink, _LO) if pod else None
        if pod and link and identity_of_alias(link.alias) == parse_attachment(request).identity:
            pod.netlink.change(set_down(_LO))
            pod.netlink.change(set_alias(_LO, ""))


def check(request: Request) -> None:
    """Raise CNIError 100 unless `lo` is up."""
    with open_pod(request.netns, opened=request.netns_fd) as pod:
        if not _require_lo(pod).flags & IFF_UP:
            raise broken(f"interface {_LO}: wanted it up, found it down")


def _nothing(request: Request) -> None:
    del request


PLUGIN = Plugin(add=add, delete=delete, check=check, gc=_nothing, status=_nothing)
