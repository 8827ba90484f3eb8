"""Deletes veths in groups, by `link_removal`: those that are pending together go in one request.

All deletions of a node take turns in the kernel, and a hundred links take one turn together as well as
one. So the first few delete at once and wait for nobody; who comes meanwhile is deleted together by
the next: `ip link set VETH group N` for each, then `ip link del group N`. In a process of one call
there is never anybody else.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cni_plugin.kernel import netlink
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.link import ABSENT, IFLA_GROUP, IFLA_MTU, deletion, get_link, link_body, set_link
from cni_plugin.kernel.link_removal import remove_links
from cni_plugin.kernel.message import u32
from cni_plugin.kernel.netlink import Change
from ipam.seam import part, waits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cni_plugin.kernel.link import Link
    from cni_plugin.kernel.netlink import Netlink
    from cni_plugin.kernel.netns import Namespace

log = logging.getLogger("podwire")

# Requests under way at once: the waits of some overlap, and each of many takes the kernel's time.
_LEADERS = 4
_NO_MTU = 2**32 - 1


@dataclass(slots=True, eq=False)
class _Deletion:
    links: tuple[Link, ...]
    turn: threading.Event = field(default_factory=threading.Event)
    batch: list[_Deletion] = field(default_factory=list)
    """Those that it is to delete, itself among them; none when another one does."""
    existed: bool = False
    error: Exception | None = None


class _Line:
    """Who waits for a deletion in one namespace."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: list[_Deletion] = []
        self._leaders = 0

    def delete(self, host: Namespace, *links: Link) -> bool:
        own = _Deletion(links)
        with self._guard:
            if self._leaders < _LEADERS:
                self._leaders += 1
                own.batch = [own]
            else:
                self._waiting.append(own)
        if not own.batch:
            own.turn.wait()
        if own.batch:
            self._lead(host, own.batch)
        if own.error:
            raise own.error
        return own.existed

    def _lead(self, host: Namespace, batch: list[_Deletion]) -> None:
        """Delete for everybody in the batch; of those who came meanwhile the first leads next."""
        try:
            _commit(host, batch)
        finally:
            with self._guard:
                successors, self._waiting = self._waiting, []
                self._leaders -= not successors
            for first in successors[:1]:
                first.batch = successors
            for each in (*batch, *successors[:1]):
                each.turn.set()


class _Lines:
    """The lines of this process, by the inode number of the namespace."""

    def __init__(self) -> None:
        self.by_namespace: dict[int, _Line] = {}


def delete_links(host: Namespace, *links: Link) -> bool:
    """Delete a pod's links, maybe together with other pods'; tell whether the first was still there.

    Raises KernelError for these links' own deletion only.
    """
    # A namespace's inode number may come again after its end; by then nobody waits in its line.
    line = part(_Lines).by_namespace.setdefault(os.fstat(host.fd).st_ino, _Line())
    with waits.waiting():
        return line.delete(host, *links)


def _commit(host: Namespace, batch: list[_Deletion]) -> None:
    gone: set[int] = set()
    links = {link.index: link for pending in batch for link in pending.links}
    if len(links) > 1:
        gone = delete_together(host, links, new_group())
    for pending in batch:
        pending.existed = pending.links[0].index in gone
        for link in pending.links:
            if link.index not in gone:
                _delete_alone(host, pending, link)


def _delete_alone(host: Namespace, pending: _Deletion, link: Link) -> None:
    try:
        remove_links(host, deletion(link), (link.index,))
    except (KernelError, OSError) as error:
        if not isinstance(error, KernelError) or error.errno not in ABSENT:
            pending.error = error
    else:
        pending.existed |= link is pending.links[0]


def new_group() -> int:
    """Return the number of a link group that nobody else is likely to use; 0 is everybody's."""
    return int.from_bytes(os.urandom(4), "big") >> 2 | 1 << 30


def delete_together(host: Namespace, links: Mapping[int, Link], group: int) -> set[int]:
    """Delete the links in one request and return the indexes of those that are gone.

    The kernel deletes every link of the group: when one is in it that is not among `links`, by
    index, name and alias, none is deleted.
    """
    nl = host.netlink
    if _has_members(nl, group):
        log.warning("ip link del group %d: not done, somebody's link is in it", group)
        return set()
    # One that is gone by now is refused; the others of the same send are moved all the same.
    with suppress(KernelError):
        nl.change(*(set_link(link.name, f"group {group}", u32(IFLA_GROUP, group)) for link in links.values()))
    found = [each for link in links.values() if (each := get_link(nl, link.name)) is not None]
    strangers = [each.name for each in found if not _is_same(each, links.get(each.index))]
    if strangers:
        log.warning("ip link del group %d: not done, links %s are not ours", group, strangers)
        return set()
    # One that was not moved stays there.
    moved = {each.index for each in found if each.group == group}
    body = link_body(u32(IFLA_GROUP, group))
    try:
        remove_links(host, Change(f"ip link del group {group}", netlink.RTM_DELLINK, body), moved)
    except KernelError as error:
        log.warning("%s; each is deleted alone", error)
        return set()
    return moved


def _has_members(nl: Netlink, group: int) -> bool:
    """Tell whether the group has a link.

    The kernel does not list a group, and all links of a full node take it 16 ms. But it asks the
    group's links to take an MTU, and every link refuses this one (dev_validate_mtu, net/core/dev.c).
    """
    body = link_body(u32(IFLA_GROUP, group), u32(IFLA_MTU, _NO_MTU))
    try:
        nl.change(Change(f"ip link set group {group} mtu {_NO_MTU}", netlink.RTM_NEWLINK, body))
    except KernelError:
        return True
    return False


def _is_same(found: Link, link: Link | None) -> bool:
    """Tell whether the kernel's link is still this one of ours."""
    return link is not None and (found.name, found.alias) == (link.name, link.alias)
