"""The networks that faults are tried on: what we ship, and beside it every mode with every feature.

A mode, a feature or a plugin that is not in any of them fails a test (test_faults.py); to take one in is a
line here, or a file in conf/.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONF = Path(__file__).parents[3] / "conf"
MARKER = "podwire-cni-executable"  # makes a file ours, see delegate.py

# What a runtime says of a pod, to whom lists the capability.
RUNTIME: dict[str, Any] = {
    "portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 5353, "containerPort": 53, "protocol": "udp"},
    ],
    "bandwidth": {
        "ingressRate": 8_000_000,
        "ingressBurst": 800_000,
        "egressRate": 8_000_000,
        "egressBurst": 800_000,
    },
    "mac": "02:00:00:00:00:07",
    "dns": {"servers": ["192.0.2.53"]},
}
# By the name of the feature: the keys that ask for it.
FEATURE_KEYS: dict[str, dict[str, Any]] = {
    "masquerade": {"ipMasq": True, "nonMasqueradeCIDRs": ["198.51.100.0/24"]},
    "bandwidth": {"capabilities": {"bandwidth": True}},
    "sysctl": {"sysctl": {"net.core.somaxconn": "555", "net.ipv4.conf.IFNAME.log_martians": "1"}},
    "spoof": {"spoofCheck": "ip"},
    "sourceValidation": {"sourceValidation": True},
    "isolation": {"portIsolation": True},
    "portmap": {"capabilities": {"portMappings": True}},
    "policy": {"mode": "routed", "networkPolicy": {"timeout": 1}},
}
SUBNETS = ["10.244.2.0/24", "fd00:10:244:2::/64"]
TUNNEL = {"vni": 42, "peers": [{"vtep": "192.0.2.2", "subnets": SUBNETS}]}
GATEWAY = {"peers": [{"addresses": ["192.0.2.2", "2001:db8::2"], "subnets": SUBNETS}]}
# By the name of the mode: its keys, in each of its forms, with every backend.
MODE_KEYS: dict[str, dict[str, dict[str, Any]]] = {
    "bridge": {
        "gateway": {"bridge": "cni0", "isDefaultGateway": True, "hairpinMode": True, "promiscMode": False},
        "promiscuous": {"bridge": "cni0", "isGateway": True, "promiscMode": True, "mtu": 1400},
        "gateways": {"bridge": "cni0", "isDefaultGateway": True, "hostGateway": GATEWAY},
    },
    "vxlan": {
        "flat": {
            "mode": "vxlan",
            "bridge": "cni0",
            "isDefaultGateway": True,
            "vxlan": {"vni": 42, "peers": ["192.0.2.2", "192.0.2.3"]},
        },
        "routed": {"mode": "vxlan", "bridge": "cni0", "isDefaultGateway": True, "vxlan": TUNNEL},
    },
    "routed": {
        "gateway": {"mode": "routed", "hostGateway": GATEWAY},
        "tunnel": {"mode": "routed", "vxlan": TUNNEL},
        "alone": {"mode": "routed"},
    },
}
IPAM: dict[str, Any] = {
    "type": "podwire-ipam",
    "ranges": [
        [{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.10"}],
        [{"subnet": "fd00:10:244:1::/64", "rangeStart": "fd00:10:244:1::a"}],
    ],
}
TERMS = {"sticky": True, "coolDown": 1, "keepForRequests": True}
BRIDGE = {"type": "podwire", "bridge": "cni0", "isDefaultGateway": True}

Network = list[dict[str, Any]]


def all_features(mode: str = "") -> dict[str, Any]:
    """Return the keys of every feature at once that pods of a mode can have."""
    keys: dict[str, Any] = {}
    capabilities: dict[str, bool] = {}
    for each in FEATURE_KEYS.values():
        if each.get("mode", mode) == mode:
            keys |= each
            capabilities |= each.get("capabilities", {})
    return keys | {"capabilities": capabilities}


def shipped() -> dict[str, Network]:
    """Return the plugins of each network in conf/."""
    documents = {path.name: json.loads(path.read_text()) for path in sorted(CONF.glob("*.conflist"))}
    return {f"conf/{name}": document["plugins"] for name, document in documents.items()}


def rich() -> dict[str, Network]:
    """Return each mode in each form with all features, and with all terms of the address manager."""
    return {
        f"{mode}, {form}, all features": [
            {"type": "podwire", **keys, **all_features(mode), "ipam": IPAM | TERMS}
        ]
        for mode, forms in MODE_KEYS.items()
        for form, keys in forms.items()
    }


def plain() -> dict[str, Network]:
    """Return each mode in each form, each feature alone, and who else gives addresses or is a plugin."""
    forms = {
        f"{mode}, {form}": [{"type": "podwire", **keys, "ipam": IPAM}]
        for mode, every in MODE_KEYS.items()
        for form, keys in every.items()
    }
    features = {f"feature {name}": [{**BRIDGE, **keys, "ipam": IPAM}] for name, keys in FEATURE_KEYS.items()}
    static = {"type": "static", "addresses": [{"address": "10.244.1.9/24", "gateway": "10.244.1.1"}]}
    return {
        **forms,
        **features,
        "no addresses": [{"type": "podwire", "bridge": "cni0"}],
        "static addresses": [{**BRIDGE, "ipam": static}],
        "addresses of the Go host-local": [{**BRIDGE, "ipam": IPAM | {"type": "host-local"}, "go": True}],
        "addresses of the Go host-local, routed, masqueraded": [
            {
                "type": "podwire",
                "mode": "routed",
                "ipMasq": True,
                "ipam": IPAM | {"type": "host-local"},
                "go": True,
            }
        ],
        "loopback": [{"type": "loopback"}],
        "addresses alone": [{"type": "podwire-ipam", "ipam": IPAM | TERMS}],
        "tuning of everything": [
            {**BRIDGE, "ipam": IPAM},
            {
                "type": "tuning",
                "capabilities": {"mac": True},
                "mtu": 1400,
                "promisc": True,
                "allmulti": True,
                "txQLen": 77,
                "sysctl": {"net.core.somaxconn": "555"},
            },
        ],
        "firewall, isolated": [
            {**BRIDGE, "ipam": IPAM},
            {"type": "firewall", "ingressPolicy": "isolated"},
        ],
    }


def everything() -> dict[str, Network]:
    """Return all of them by name."""
    return {**shipped(), **rich(), **plain()}


def richest() -> set[str]:
    """Return one of each mode: the first form with all features."""
    return {f"{mode}, {next(iter(forms))}, all features" for mode, forms in MODE_KEYS.items()}


def ordinary() -> list[str]:
    """Return those that are tried in every run: all but what another one contains."""
    contained = {*(rich().keys() - richest()), *(name for name in plain() if name.startswith("feature "))}
    contained |= {f"{mode}, {next(iter(forms))}" for mode, forms in MODE_KEYS.items()}
    contained |= {name for name in shipped() if name.endswith(("-ipv4.conflist", "-ipv6.conflist"))}
    return [name for name in everything() if name not in contained]


def fresh() -> set[str]:
    """Return those whose first ADD on a node makes what no other's does."""
    return {*richest(), "conf/10-bridge-drop-in.conflist", "vxlan, routed", "firewall, isolated"}


def place(network: Network, directory: Path) -> Network:
    """Return the network with everything that it keeps on disk below `directory`."""
    (directory / "peers").write_text("192.0.2.2\n192.0.2.3\n")
    placed: Network = json.loads(json.dumps(network))
    for plugin in placed:
        if "ipam" in plugin:
            plugin["ipam"]["dataDir"] = str(directory / "networks")
        if plugin["type"] == "tuning":
            plugin["dataDir"] = str(directory / "tuning")
        for section in filter(None, (plugin.get("vxlan"), plugin.get("hostGateway"))):
            if "peersFile" in section:
                section["peersFile"] = str(directory / "peers")
    return placed


def stdin_of(plugin: dict[str, Any], *, version: str, **more: Any) -> dict[str, Any]:
    """Return what a runtime writes to the plugin, with its words about the pod where they are listed."""
    listed = plugin.get("capabilities", {})
    runtime = {key: value for key, value in RUNTIME.items() if listed.get(key)}
    rest = {key: value for key, value in plugin.items() if key != "go"}
    return {
        **rest,
        "cniVersion": version,
        "name": "test",
        **({"runtimeConfig": runtime} if runtime else {}),
        **more,
    }
