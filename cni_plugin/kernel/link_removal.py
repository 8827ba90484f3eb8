"""Deletes links without waiting until the kernel has freed them.

The answer to RTM_DELLINK comes when the kernel has freed the devices, behind an RCU barrier of about 20 ms
(netdev_run_todo in net/core/dev.c). The links are gone long before: 1.4 ms after the request, measured, the
kernel announces it, and from then on nobody finds them, their names may be used again, and other
requests are served. So a thread makes the request, and the caller waits for whichever comes first.
"""

from __future__ import annotations

import _thread
import errno
import socket
import struct
import sys
import threading
from contextlib import ExitStack, closing
from ctypes import addressof, create_string_buffer
from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.kernel import netlink
from cni_plugin.kernel.link import parse_index
from cni_plugin.kernel.netlink import HEADER, Netlink, NetlinkSocket, answered, log
from ipam.seam import part, step

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cni_plugin.kernel.errors import KernelError
    from cni_plugin.kernel.netlink import Change
    from cni_plugin.kernel.netns import Namespace

# Answers that are waited for behind the callers' backs; beyond them callers wait themselves.
_MOST_ANSWERS = 32
_BUFFER = 64 * 1024
_RTMGRP_LINK = 0x1  # linux/rtnetlink.h
_GLANCE = struct.pack("@ll", 0, 5000)  # struct timeval: how long a refusal may stay unnoticed
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_LOAD_HALF, _EQUAL, _RETURN = 0x28, 0x15, 0x06  # linux/bpf_common.h: LD|H|ABS, JMP|JEQ|K, RET|K
# Of all messages those of this type alone: it is at offset 4, where BPF reads a big-endian number.
_KIND = int.from_bytes(netlink.RTM_DELLINK.to_bytes(2, sys.byteorder), "big")
_CODE = ((_LOAD_HALF, 0, 0, 4), (_EQUAL, 0, 1, _KIND), (_RETURN, 0, 0, _BUFFER), (_RETURN, 0, 0, 0))
_PROGRAM = create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in _CODE))
_FILTER = struct.pack("@HP", len(_CODE), addressof(_PROGRAM))  # struct sock_fprog


def _places() -> threading.BoundedSemaphore:
    return threading.BoundedSemaphore(_MOST_ANSWERS)


def remove_links(host: Namespace, change: Change, indexes: Iterable[int]) -> None:
    """Make a change that removes these links, and return when they are gone.

    Raises KernelError when it was refused.
    """
    log.debug("%s", change.command)
    with answered(change.command):
        refusals = step("netlink", partial(_remove, host, frozenset(indexes)), change)
    for refusal in refusals:
        raise refusal


def _remove(host: Namespace, indexes: frozenset[int], change: Change) -> list[KernelError]:
    places = part(_places)
    if not places.acquire(blocking=False):
        return host.netlink.send(change)
    with ExitStack() as unless_begun:
        unless_begun.callback(places.release)
        with host.entered():
            request, watch = _Request(change, places), _Watch(indexes)
        unless_begun.callback(request.close)
        with closing(watch):
            try:
                # Thread.start() would wait until the thread runs: two switches for every call.
                _thread.start_new_thread(request.make, ())
            except RuntimeError:  # the kernel has no more threads to give
                return host.netlink.send(change)
            unless_begun.pop_all()
            while not request.ended and not watch.saw_all_end():
                pass
    return request.refusals()


class _Request:
    """The change, and the one that waits for its answer and keeps nobody waiting: not even its process."""

    def __init__(self, change: Change, places: threading.BoundedSemaphore) -> None:
        self._change = change
        self._places = places
        self._netlink = Netlink()
        self._refusals: list[KernelError] = []
        self._error: OSError | None = None
        self.ended = False

    def make(self) -> None:
        """Make the change, and give one place among the waiting back."""
        try:
            self._refusals = self._netlink.send(self._change)
        except OSError as error:
            self._error = error
        finally:
            self.ended = True
            self.close()
            self._places.release()

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def refusals(self) -> list[KernelError]:
        """Return what was refused as far as it is known; raise what the socket said."""
        if self._error:
            raise self._error
        return self._refusals


class _Watch:
    """Sees the end of links in the network namespace of the thread that makes it."""

    def __init__(self, indexes: frozenset[int]) -> None:
        self._awaited = set(indexes)
        self._socket = NetlinkSocket(groups=_RTMGRP_LINK, timeout=_GLANCE)
        self._socket.set_option(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _FILTER)

    def saw_all_end(self) -> bool:
        """Wait a moment for news; tell whether the last of the links has gone."""
        try:
            news = self._socket.receive()
        except OSError as error:
            # News that were lost are no worse than none: there will be an answer.
            if error.errno not in {errno.EAGAIN, errno.ENOBUFS}:
                raise
            return False
        ended = [each.raw for each in news if each.kind == netlink.RTM_DELLINK]
        # A bridge announces the end of a port in the same words, as its own family.
        self._awaited -= {parse_index(raw) for raw in ended if raw[HEADER.size] == 0}
        return not self._awaited

    def close(self) -> None:
        self._socket.close()
