"""Events about links, addresses and routes: `ip monitor link address route`.

Who listens wants to know when to look, never what happened: messages are lost when too many come at
once, and then something happened too. Groups: rtnetlink(7), linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from cni_plugin.kernel import netlink
from cni_plugin.kernel.addr import is_link_local
from cni_plugin.kernel.link import read_name
from cni_plugin.kernel.netlink import NetlinkSocket
from cni_plugin.kernel.route import is_synchronized

if TYPE_CHECKING:
    from cni_plugin.kernel.netlink import Message

_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV4_ROUTE = 0x1, 0x10, 0x40
_RTMGRP_IPV6_IFADDR, _RTMGRP_IPV6_ROUTE = 0x100, 0x400
_GROUPS = _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV4_ROUTE | _RTMGRP_IPV6_IFADDR | _RTMGRP_IPV6_ROUTE
_PODS = ("veth", "bwp")  # how the names of a pod's links on the node begin


class Monitor:
    """A socket in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        """Listen from now on."""
        self._socket = NetlinkSocket(groups=_GROUPS)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when there is news."""
        return self._socket.fileno()

    def drain(self) -> bool:
        """Take all news; tell whether some is about more than a pod.

        Most is not: every pod makes a veth, link-local addresses and routes of its own.
        """
        concerned = False
        while True:
            try:
                news = self._socket.glance()
            except BlockingIOError:
                return concerned
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                concerned = True
            else:
                concerned = concerned or any(map(_concerns_node, news))

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()


def _concerns_node(message: Message) -> bool:
    kind, raw = message.kind, message.raw
    if kind in {netlink.RTM_NEWLINK, netlink.RTM_DELLINK}:
        return not read_name(raw).startswith(_PODS)
    if kind in {netlink.RTM_NEWADDR, netlink.RTM_DELADDR}:
        return not is_link_local(raw)
    return is_synchronized(raw)
