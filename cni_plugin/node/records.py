"""The runtime's records: what each living attachment was added with, as libcni keeps it.

`/var/lib/cni/results/NETWORK-CONTAINER-INTERFACE` has the configuration, the arguments and the result of an
ADD that succeeded, and goes with its DEL: libcni writes it for containerd and CRI-O, so that we need no
file of our own. Where there is none, store, veth and configuration say it all but for what
the runtime asked of this pod alone: host ports, limits, sysctls. github.com/containernetworking/cni,
libcni/api.go, cachedInfo.
"""

from __future__ import annotations

import base64
import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from cni_plugin.addresses import host_local
from cni_plugin.addresses.delegate import OWN_NAMES, find_delegate
from cni_plugin.attach.bridge_plan import DEFAULT_BRIDGE
from cni_plugin.config.network import ipam_type, parse_alias
from cni_plugin.contract.errors import CNIError
from cni_plugin.contract.request import make_request
from cni_plugin.kernel.addr import list_peer_addresses
from cni_plugin.kernel.link import get_far_end, list_links
from cni_plugin.node.configured import MAIN_TYPES
from ipam.address import render_address
from ipam.errors import IPAMError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from netaddr import IPAddress, IPNetwork

    from cni_plugin.config.network import Label
    from cni_plugin.contract.request import Request
    from cni_plugin.kernel.link import Link
    from cni_plugin.kernel.netns import Namespace
    from cni_plugin.node.configured import ConfiguredNetwork

# Seconds: without a record an attachment may be one whose ADD is under way, which takes a delegate at most.
_SETTLED: Final = 60.0


class Named(Protocol):
    """Whose a record is."""

    @property
    def network(self) -> str:
        """The network's name."""

    @property
    def container_id(self) -> str:
        """The container's, whole."""

    @property
    def ifname(self) -> str:
        """The pod's interface."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A living attachment of ours by its veth, and the ADD of each of its plugins, with the last result.

    `main` is the one that joined it. Both are missing where nothing tells them.
    """

    label: Label
    link: Link
    main: Request | None
    chained: tuple[Request, ...] = ()

    @property
    def remedy(self) -> str:
        """Return the command that has the pod attached anew."""
        namespace, _, name = self.label.pod.partition("/")
        if name:
            return f"kubectl -n {namespace} delete pod {name}"
        return f"crictl stopp {self.label.container_id}"

    def __str__(self) -> str:
        """Return the attachment as an operator knows it."""
        return f"pod {self.label.pod or self.label.container_id} {self.label.ifname}"


def list_joined(
    host: Namespace, results_dir: str, networks: Mapping[str, ConfiguredNetwork], bin_dir: str
) -> Iterator[Joined]:
    """Yield the attachments whose veth is on this node; of a name that was cut nothing else is known."""
    for link in list_links(host.netlink, kind="veth"):
        label = parse_alias(link.alias)
        if label is None:
            continue
        requests: tuple[Request, ...] = ()
        if label.is_whole:
            requests = read_requests(results_dir, label, bin_dir)
            if not requests and label.network in networks:
                requests = _derive_requests(host, link, label, networks[label.network])
        main = [each for each in requests if each.config.string("type") in MAIN_TYPES]
        chained = tuple(each for each in requests if each not in main)
        yield Joined(label=label, link=link, main=main[0] if main else None, chained=chained)


def read_requests(results_dir: str, label: Named, bin_dir: str) -> tuple[Request, ...]:
    """Return the ADD of each plugin as the runtime's record has it; none where there is no record."""
    path = os.path.join(results_dir, f"{label.network}-{label.container_id}-{label.ifname}")
    try:
        with open(path, encoding="utf-8") as file:
            kept = json.load(file)
        config = json.loads(base64.b64decode(kept["config"]))
        return tuple(_request(kept, config, plugin, label, bin_dir) for plugin in _plugins_of(config))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, CNIError):
        return ()


def _plugins_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    return list(config.get("plugins") or [config])


def _request(
    kept: dict[str, Any], config: dict[str, Any], plugin: dict[str, Any], label: Named, bin_dir: str
) -> Request:
    result = kept["result"]
    asked = kept.get("capabilityArgs") or {}
    offered = plugin.get("capabilities") or {}
    sandboxes = [each["sandbox"] for each in result.get("interfaces", []) if each.get("sandbox")]
    # The runtime may have chosen among the configuration's versions; the result has its choice.
    version = result.get("cniVersion") or config.get("cniVersion", "")
    document = {
        **plugin,
        "name": label.network,
        "cniVersion": version,
        "runtimeConfig": {key: value for key, value in asked.items() if offered.get(key)},
        "prevResult": result,
    }
    return make_request(
        "ADD",
        document,
        path=bin_dir,
        CONTAINERID=label.container_id,
        IFNAME=label.ifname,
        NETNS=kept.get("netns") or next(iter(sandboxes), "unknown"),
        ARGS=";".join(f"{key}={value}" for key, value in kept.get("cniArgs") or ()),
    )


def _derive_requests(
    host: Namespace, link: Link, label: Label, network: ConfiguredNetwork
) -> tuple[Request, ...]:
    """Return the ADD that made a veth, as far as the node shows it; none while it may be under way."""
    try:
        if not _is_settled(network.main, label):
            return ()
        found = list_peer_addresses(host.netlink, link)
        inside = get_far_end(host.netlink, link)
        if inside is None or not found:
            return ()
        result = _derive_result(network.main, link, label, inside.mac, found)
        return tuple(_derived(each, label, result) for each in (network.main, *network.chained))
    except (CNIError, IPAMError, OSError):
        return ()


def _is_settled(main: Request, label: Label) -> bool:
    """Tell whether the attachment holds addresses for some time."""
    if ipam_type(main.config) not in OWN_NAMES:
        return False
    directory = host_local.open_store(main).directory
    held = host_local.list_held(_derived(main, label, {}))
    made = [os.stat(os.path.join(directory, render_address(each))).st_mtime for each in held]
    return bool(made) and time.time() - max(made) > _SETTLED


def _derived(plugin: Request, label: Label, result: dict[str, Any]) -> Request:
    namespace, _, name = label.pod.partition("/")
    named = f"K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}" if name else ""
    document: dict[str, Any] = {**plugin.config.raw, **({"prevResult": result} if result else {})}
    return make_request(
        "ADD",
        document,
        path=":".join(plugin.path),
        CONTAINERID=label.container_id,
        IFNAME=label.ifname,
        NETNS="unknown",
        ARGS=named,
    )


def _derive_result(
    main: Request, link: Link, label: Label, mac: str, found: list[IPNetwork]
) -> dict[str, Any]:
    ranges = find_delegate(main).addressing().ranges
    bridge = main.config.string("bridge") or DEFAULT_BRIDGE
    routed = main.config.string("mode") == "routed"
    first = [] if routed else [{"name": bridge}]
    gateways: dict[IPNetwork, IPAddress | None] = {
        each: next((r.gateway for r in ranges if each.ip in r.subnet), None) for each in found
    }
    return {
        "cniVersion": main.cni_version,
        "interfaces": [
            *first,
            {"name": link.name, "mac": link.mac},
            {"name": label.ifname, "mac": mac, "sandbox": "unknown"},
        ],
        "ips": [
            {
                "address": str(address),
                "interface": len(first) + 1,
                **({"gateway": str(gateway)} if gateway and not routed else {}),
            }
            for address, gateway in gateways.items()
        ],
    }
