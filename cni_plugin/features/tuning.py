"""The feature `tuning`: sysctls of the pod's namespace and values of its interface, restored at DEL.

The sysctls alone are built into the main plugin too, which sets them before the link comes up.
What there was before is in a file named CONTAINER_IFNAME.json, see features/tuning_values.py.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cni_plugin.config.network import parse_mac
from cni_plugin.config.paths import TUNING_ALLOWLIST, TUNING_DIR
from cni_plugin.contract.errors import CNIError, Code, invalid_config, run_all
from cni_plugin.contract.fields import Fields
from cni_plugin.features.feature import Feature

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack

    from cni_plugin.config.network import Addressing, Attachment, Network
    from cni_plugin.contract.result import Interface, Result
    from cni_plugin.features.damage import Damage
    from cni_plugin.features.feature import DeleteInput, OwnedObject, Site
    from cni_plugin.features.tuning_values import Values
    from cni_plugin.kernel.link import Link

# No key names another: who may write a network's configuration could then allow anything.
_SWAP = str.maketrans("./", "/.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What is wanted, and the directory that keeps what was there before."""

    values: Values
    directory: str


def parse_all(fields: Fields, network: Network, addressing: Addressing) -> Tuning | None:
    """Return what the plugin `tuning` is asked for; CNIError 7 for what cannot be or is not allowed."""
    del addressing
    from cni_plugin.features.tuning_values import MAX_TX_QUEUE_LENGTH, Values

    extra = _extra(fields)
    mac = extra.string("mac") or network.mac or fields.string("mac")
    mtu = extra.integer("mtu", 68, 65535) or network.mtu
    allmulti = _prefer(extra, fields, "allmulti")
    values = Values(
        mac=parse_mac(mac, '"mac"') if mac else "",
        mtu=mtu,
        host_mtu=mtu,
        promisc=_prefer(extra, fields, "promisc").boolean("promisc") or None,
        allmulti=None if allmulti.value("allmulti") is None else allmulti.boolean("allmulti"),
        tx_queue_length=_prefer(extra, fields, "txQLen").integer("txQLen", 0, MAX_TX_QUEUE_LENGTH),
        sysctls=_parse_sysctls(fields, network),
    )
    directory = _data_dir(fields)
    return Tuning(values=values, directory=directory) if values != Values() else None


def _extra(fields: Fields) -> Fields:
    """Return what the runtime's `args.cni` says, which comes before everything."""
    args = fields.section("args")
    return (args.section("cni") if args else None) or Fields({}, "args.cni")


def _prefer(extra: Fields, fields: Fields, key: str) -> Fields:
    return fields if extra.value(key) is None else extra


def _data_dir(fields: Fields) -> str:
    path = fields.string("dataDir") or TUNING_DIR
    if not path.startswith("/"):
        raise invalid_config(f'"dataDir" must be an absolute path, found "{path}"')
    return path


def parse_sysctls_alone(fields: Fields, network: Network, addressing: Addressing) -> Tuning | None:
    """Return the sysctls that the main plugin is asked for; its MAC and MTU are its own business."""
    del addressing
    from cni_plugin.features.tuning_values import Values

    values = Values(sysctls=_parse_sysctls(fields, network))
    return Tuning(values=values, directory=_own_directory(network.state_dir)) if values.sysctls else None


def _own_directory(state_dir: str) -> str:
    return f"{state_dir}/tuning"


def _parse_sysctls(fields: Fields, network: Network) -> dict[str, str]:
    """Return the values by path below /proc/sys."""
    found: dict[str, str] = {}
    for section in (fields.section("sysctl"), _extra(fields).section("sysctl")):
        asked = {key: section.string(key) for key in section.raw} if section else {}
        parsed = {_parse_key(key, network.attachment.ifname): value for key, value in asked.items()}
        if len(parsed) < len(asked):
            raise invalid_config(f'"sysctl" must name each key once, found {sorted(asked)}')
        found |= parsed
        if wrong := next((value for value in asked.values() if not value.isascii()), None):
            raise invalid_config(f'"sysctl" must have values in ASCII, found "{wrong}"')
    return found


def _parse_key(key: str, ifname: str) -> str:
    """Return the path of a key, as sysctl(8) reads it: the first separator decides what the others mean."""
    first = next((c for c in key if c in "./"), "")
    path = key.translate(_SWAP) if first == "." else key
    parts = path.split("/")
    if parts[0] != "net" or len(parts) < 2 or any(part in {"", ".", ".."} for part in parts):
        raise invalid_config(f'"sysctl" must name keys below net, found "{key}"')
    _refuse_forbidden(path.translate(_SWAP))
    return path.replace("IFNAME", ifname, 1)


def _refuse_forbidden(key: str) -> None:
    """Raise CNIError 7 when there is a list of what is allowed and `key` matches nothing on it."""
    try:
        with open(TUNING_ALLOWLIST, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except FileNotFoundError:
        return
    except OSError as error:
        raise CNIError(Code.IO_FAILURE, f"{TUNING_ALLOWLIST}: {error.strerror}") from error
    try:
        allowed = any(re.search(line, key) for line in lines if line)
    except re.error as error:
        raise invalid_config(
            f"{TUNING_ALLOWLIST}: wanted regular expressions, found one with {error}"
        ) from error
    if not allowed:
        raise invalid_config(f'"sysctl": wanted what {TUNING_ALLOWLIST} allows, found "{key}"')


def prepare(settings: Tuning, site: Site, undo: ExitStack) -> None:
    """Keep the values that are there and set those that are wanted."""
    from cni_plugin.features.tuning_values import apply_values, keep_values, read_values, take_back

    path = _path(settings.directory, site.attachment)
    staged = _staged_path(settings.directory, site.attachment)
    before = read_values(settings.values, site)
    undo.callback(take_back, path, before, site)
    keep_values(path, staged, before, site.attachment, netns=site.present_pod.cookie())
    apply_values(settings.values, site)


def _path(directory: str, attachment: Attachment) -> str:
    return f"{directory}/{attachment.container_id}_{attachment.ifname}.json"


def _staged_path(directory: str, attachment: Attachment) -> str:
    """Return what the file is called while it is written, by which a GC knows whose it was."""
    return f"{directory}/{attachment.network}.{attachment.identity}.new"


def add_all(settings: Tuning, site: Site, result: Result, undo: ExitStack) -> Result:
    """Set the values; the result names the new MAC and MTU."""
    from cni_plugin.kernel.link import get_other_end

    prepare(settings, site, undo)
    inside = _get_inside(site)
    outside = get_other_end(site.host.netlink, inside) if inside and settings.values.mtu else None
    interfaces = tuple(_update(each, settings.values, site, outside) for each in result.interfaces)
    return replace(result, interfaces=interfaces)


def _get_inside(site: Site) -> Link | None:
    from cni_plugin.kernel.link import get_link

    return get_link(site.pod.netlink, site.attachment.ifname) if site.pod else None


def _update(interface: Interface, values: Values, site: Site, outside: Link | None) -> Interface:
    """Return the interface as it is now; an MTU is told where one was told before."""
    mtu = values.mtu if values.mtu and interface.mtu else interface.mtu
    if interface.sandbox and interface.name == site.attachment.ifname:
        return replace(interface, mac=values.mac or interface.mac, mtu=mtu)
    if outside and not interface.sandbox and interface.name == outside.name:
        return replace(interface, mtu=mtu)
    return interface


def add_sysctls(settings: Tuning, site: Site, result: Result, undo: ExitStack) -> Result:
    """Set once more what the attaching itself may have set to its own liking."""
    del undo
    from cni_plugin.features.tuning_values import apply_values

    apply_values(settings.values, site)
    return result


def delete_all(given: DeleteInput, site: Site) -> None:
    """Set the values back."""
    _restore(given.recalled or TUNING_DIR, site)


def delete_sysctls(given: DeleteInput, site: Site) -> None:
    """Set the sysctls back."""
    del given
    if site.state_dir:  # a configuration that ADD would refuse has none
        _restore(_own_directory(site.state_dir), site)


def _restore(directory: str, site: Site) -> None:
    path, staged = _path(directory, site.attachment), _staged_path(directory, site.attachment)
    if os.path.exists(staged) or os.path.exists(path):
        from cni_plugin.features.tuning_values import discard, restore_values

        run_all(lambda: discard(staged), lambda: restore_values(path, site))


def compare(settings: Tuning, site: Site, result: Result) -> Iterator[Damage]:
    """Compare every value that was asked for; they are in the pod, which may have changed them."""
    del result
    from cni_plugin.features.damage import Damage
    from cni_plugin.features.tuning_values import check_values

    if site.netns is None:
        return
    try:
        check_values(settings.values, site)
    except CNIError as error:
        if error.code != Code.CHECK_FAILED:
            raise
        yield Damage(kind="sysctl", said=error.msg, mend=None)


def find_all(network: str, directory: str | None, site: Site) -> Iterator[OwnedObject]:
    """Yield the files of a network's attachments."""
    del site
    from cni_plugin.features.tuning_values import find_values

    yield from find_values(directory or TUNING_DIR, network)


def find_sysctls(network: str, _: None, site: Site) -> Iterator[OwnedObject]:
    """Yield the files of a network's attachments."""
    from cni_plugin.features.tuning_values import find_values

    if site.state_dir:
        yield from find_values(_own_directory(site.state_dir), network)


FEATURE = Feature(
    parse=parse_all,
    add=add_all,
    delete=delete_all,
    takes_args=True,
    compare=compare,
    recall=_data_dir,
    list_owned=find_all,
)
SYSCTLS = Feature(
    parse=parse_sysctls_alone,
    prepare=prepare,
    add=add_sysctls,
    delete=delete_sysctls,
    precedes_link=True,
    compare=compare,
    list_owned=find_sysctls,
)
