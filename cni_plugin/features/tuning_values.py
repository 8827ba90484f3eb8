"""The values that `tuning` sets: read, set, kept in a file and restored.

One shape says what is wanted, what is there and what was there before. What was there is kept in a
file until DEL, with the reference's keys in the reference's place, so that either undoes the other's.
By hand: `ip link set IFNAME address MAC mtu N promisc on allmulticast on txqueuelen N`, `sysctl -w`.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from netaddr import IPAddress, valid_ipv6

from cni_plugin.contract.errors import CNIError, Code, broken, run_all
from cni_plugin.contract.fields import Fields
from cni_plugin.contract.result import MAX_MTU
from cni_plugin.features.feature import OwnedObject
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.link import (
    Link,
    get_link,
    get_other_end,
    set_allmulti,
    set_mac,
    set_mtu,
    set_promisc,
    set_tx_queue_length,
)
from cni_plugin.kernel.sysctl import get_sysctl, has_sysctl, set_sysctl
from ipam.seam.files import make_directories, remove_file, replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from cni_plugin.config.network import Attachment
    from cni_plugin.features.feature import Site
    from cni_plugin.kernel.netlink import Change
    from cni_plugin.kernel.netns import Namespace

log = logging.getLogger("podwire")

MAX_TX_QUEUE_LENGTH = 2**31 - 1  # packets
_UNREADABLE = frozenset({errno.EACCES, errno.EIO})


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """Values by what they belong to; an empty one, 0 or None is nobody's business. MTUs in bytes."""

    mac: str = ""
    mtu: int = 0
    host_mtu: int = 0
    """Of the host's end of a veth."""
    promisc: bool | None = None
    allmulti: bool | None = None
    tx_queue_length: int | None = None
    sysctls: Mapping[str, str] = field(default_factory=dict)
    """By their paths below /proc/sys."""

    @property
    def of_link(self) -> bool:
        """Tell whether anything is the interface's."""
        others = (self.promisc, self.allmulti, self.tx_queue_length)
        return bool(self.mac or self.mtu or any(each is not None for each in others))


def read_values(wanted: Values, site: Site) -> Values:
    """Return what can be read of what is wanted; CNIError 100 when there is no such interface."""
    pod = _require_pod(site)
    sysctls = _read_sysctls(pod, wanted.sysctls)
    if not wanted.of_link:
        return Values(sysctls=sysctls)
    link = _require_link(pod, site)
    outside = get_other_end(site.host.netlink, link) if wanted.mtu else None
    return Values(
        mac=link.mac if wanted.mac else "",
        mtu=link.mtu if wanted.mtu else 0,
        host_mtu=outside.mtu if outside else 0,
        promisc=None if wanted.promisc is None else link.promisc,
        allmulti=None if wanted.allmulti is None else link.allmulti,
        tx_queue_length=None if wanted.tx_queue_length is None else link.tx_queue_length,
        sysctls=sysctls,
    )


def _require_pod(site: Site) -> Namespace:
    if site.pod is None:
        raise broken(f"{site.attachment.netns}: wanted the pod's namespace, found none")
    return site.pod


def _require_link(pod: Namespace, site: Site) -> Link:
    ifname = site.attachment.ifname
    link = get_link(pod.netlink, ifname)
    if link is None:
        raise broken(f"interface {ifname} in {site.attachment.netns}: wanted it, found none")
    return link


def _read_sysctls(pod: Namespace, keys: Iterable[str]) -> dict[str, str]:
    """Return the values of the keys that can be read."""
    with pod.entered():
        found = {key: _read_sysctl(key) for key in keys}
    return {key: value for key, value in found.items() if value is not None}


def _read_sysctl(key: str) -> str | None:
    """Return the value, its words apart by a space; None for a trigger and for a secret that is not set."""
    try:
        return " ".join(get_sysctl(key).split())
    except KernelError as error:
        if error.errno in _UNREADABLE:
            return None
        raise


def _is_same(one: str, other: str) -> bool:
    """Compare by words; the kernel writes out an address (stable_secret) in full."""
    if valid_ipv6(one) and valid_ipv6(other):
        return IPAddress(one) == IPAddress(other)
    return one.split() == other.split()


def apply_values(values: Values, site: Site) -> None:
    """Set the values; KernelError for the first that the kernel refuses."""
    for step in _plan_steps(values, site):
        step()


def _plan_steps(values: Values, site: Site) -> Iterator[Callable[[], object]]:
    """Yield a call per value. An MTU comes before sysctls: below 1280 bytes IPv6 has none."""
    pod = _require_pod(site)
    if values.of_link:
        link = _require_link(pod, site)
        outside = get_other_end(site.host.netlink, link) if values.host_mtu else None
        if outside:
            yield partial(site.host.netlink.change, set_mtu(outside.name, values.host_mtu))
        for change in _plan_changes(values, link.name):
            yield partial(pod.netlink.change, change)
    for key, value in values.sysctls.items():
        yield partial(_ensure_sysctl, pod, key, value)


def _plan_changes(values: Values, ifname: str) -> Iterator[Change]:
    if values.mac:
        yield set_mac(ifname, values.mac)
    if values.mtu:
        yield set_mtu(ifname, values.mtu)
    if values.promisc is not None:
        yield set_promisc(ifname, on=values.promisc)
    if values.allmulti is not None:
        yield set_allmulti(ifname, on=values.allmulti)
    if values.tx_queue_length is not None:
        yield set_tx_queue_length(ifname, values.tx_queue_length)


def _ensure_sysctl(pod: Namespace, key: str, value: str) -> None:
    with pod.entered():
        found = _read_sysctl(key)
        if found is None or not _is_same(found, value):
            set_sysctl(key, value)


def check_values(wanted: Values, site: Site) -> None:
    """Raise CNIError 100 for the first value that is another; what cannot be read is taken for right."""
    found = read_values(wanted, site)
    pairs = {
        "MAC": (wanted.mac, found.mac),
        "MTU": (wanted.mtu, found.mtu),
        "MTU of the host's end": (found.host_mtu and wanted.host_mtu, found.host_mtu),
        "promisc": (wanted.promisc, found.promisc),
        "allmulti": (wanted.allmulti, found.allmulti),
        "txQLen": (wanted.tx_queue_length, found.tx_queue_length),
    }
    for what, (want, have) in pairs.items():
        if want != have:
            raise broken(f"interface {site.attachment.ifname}: wanted {what} {want}, found {have}")
    for key, value in found.sysctls.items():
        if not _is_same(value, wanted.sysctls[key]):
            raise broken(f'sysctl {key}: wanted "{wanted.sysctls[key]}", found "{value}"')


def keep_values(path: str, staged: str, values: Values, attachment: Attachment, *, netns: str) -> None:
    """Write what was there before to a file, whole or not at all; CNIError 5 when it cannot be.

    `staged` is what it is called while it is written, `netns` the cookie of the pod's namespace. Of a sysctl
    that another attachment of the container has set already it is what was there before both: whichever of
    them is the last sets that back.
    """
    others = _read_others(path, attachment) if values.sysctls else {}
    document = {
        "network": attachment.network,
        "identity": attachment.identity,
        "netns": netns or None,
        "mac": values.mac or None,
        "mtu": values.mtu or None,
        "hostMtu": values.host_mtu or None,
        "promisc": values.promisc,
        "allmulti": values.allmulti,
        "txQLen": values.tx_queue_length,
        "sysctl": {key: others.get(key, value) for key, value in values.sysctls.items()} or None,
    }
    kept = {key: value for key, value in document.items() if value is not None}
    try:
        make_directories(os.path.dirname(path), 0o700)
        replace_file(path, json.dumps(kept).encode(), new=staged)
    except OSError as error:
        raise CNIError(Code.IO_FAILURE, f"{path}: {error.strerror}") from error


def restore_values(path: str, site: Site) -> None:
    """Set back what the file keeps as far as that is possible, and remove the file; none is fine.

    A sysctl that another attachment of the container has set too stays. CNIError 11 as `take_back`.
    """
    fields = _read_file(path)
    if fields is None:
        return
    values = _parse_kept(fields)
    others = _read_others(path, site.attachment) if values.sysctls else {}
    last = {key: value for key, value in values.sysctls.items() if key not in others}
    take_back(path, replace(values, sysctls=last), _recognize(fields, site))


def _recognize(fields: Fields, site: Site) -> Site:
    """Return the site with a namespace that is the pod's for certain where a file says which that is.

    A file of the Go plugin does not, nor does one of a kernel that has no names for namespaces.
    """
    kept = fields.raw.get("netns")
    if not kept or site.netns is None:
        return site
    known = site.netns.cookie() == kept
    return replace(site, is_own=lambda: known)


def take_back(path: str, values: Values, site: Site) -> None:
    """Set the values as far as that is possible, and remove the file that keeps them; none is fine.

    Raises CNIError 11 with the file kept when a retry may do better.
    """
    try:
        if site.pod is not None:
            run_all(*_plan_steps(_narrow(values, site.pod, site.attachment.ifname), site))
    except CNIError as error:
        if error.code == Code.TRY_AGAIN_LATER:
            raise
        log.warning("%s: not all is as it was: %s", path, error)
    discard(path)


def discard(path: str) -> None:
    """Remove a file; none is fine, CNIError 5 when it stays."""
    if not os.path.lexists(path):
        return
    try:
        remove_file(path)
    except OSError as error:
        raise CNIError(Code.IO_FAILURE, f"{path}: {error.strerror}") from error


def _narrow(values: Values, pod: Namespace, ifname: str) -> Values:
    """Return those of the values that there is still something to set on."""
    with pod.entered():
        sysctls = {key: value for key, value in values.sysctls.items() if has_sysctl(key)}
    return replace(values, sysctls=sysctls) if get_link(pod.netlink, ifname) else Values(sysctls=sysctls)


def _parse_kept(fields: Fields) -> Values:
    """Return what a file keeps, nothing when it is garbage."""
    try:
        return _parse_values(fields)
    except CNIError as error:
        log.warning("%s: not all is as it was: %s", fields.path, error)
        return Values()


def _read_others(path: str, attachment: Attachment) -> Mapping[str, str]:
    """Return the sysctls that the files of the container's other attachments keep beside this one."""
    directory, own = os.path.split(path)
    begin, end = f"{attachment.container_id}_", ".json"
    kept: dict[str, str] = {}
    for name in _list_names(directory):
        if name == own or not name.startswith(begin) or not name.endswith(end):
            continue
        other = replace(attachment, ifname=name.removeprefix(begin).removesuffix(end))
        fields = _read_file(f"{directory}/{name}")
        # A container's name may begin with another's, and the reference keeps no sysctls.
        if fields and fields.raw.get("identity") == other.identity:
            kept |= _parse_values(fields).sysctls
    return kept


def _list_names(directory: str) -> list[str]:
    with suppress(FileNotFoundError):
        return os.listdir(directory)
    return []


def _read_file(path: str) -> Fields | None:
    """Return the file's object, an empty one when it is garbage, None when there is no file."""
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CNIError(Code.IO_FAILURE, f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError):
        document = None
    return Fields(document if isinstance(document, dict) else {}, path)


def _parse_values(fields: Fields) -> Values:
    sysctls = fields.section("sysctl") or Fields({})
    return Values(
        mac=fields.string("mac"),
        mtu=fields.integer("mtu", 0, MAX_MTU) or 0,
        host_mtu=fields.integer("hostMtu", 0, MAX_MTU) or 0,
        promisc=None if fields.value("promisc") is None else fields.boolean("promisc"),
        allmulti=None if fields.value("allmulti") is None else fields.boolean("allmulti"),
        tx_queue_length=fields.integer("txQLen", 0, MAX_TX_QUEUE_LENGTH),
        sysctls={key: sysctls.string(key) for key in sysctls.raw},
    )


def find_values(directory: str, network: str) -> Iterator[OwnedObject]:
    """Yield the files of a network's attachments, and nobody else's."""
    for name in _list_names(directory):
        path = os.path.join(directory, name)
        if label := _read_owner(path, network):
            yield OwnedObject(label=label, what=f"file {path}", remove=partial(discard, path))


def _read_owner(path: str, network: str) -> str:
    """Return whose of the network's attachments a file is; of one that is still staged its name says it."""
    name = os.path.basename(path)
    if name.endswith(".new"):
        begin, _, identity = name.removesuffix(".new").rpartition(".")
        return f"{identity} {network}" if begin == network else ""
    fields = _read_file(path) if name.endswith(".json") else None
    if not fields or fields.raw.get("network") != network:
        return ""
    container_id, _, ifname = name.removesuffix(".json").rpartition("_")
    return f"{fields.raw.get('identity')} {network} {container_id} {ifname}"
