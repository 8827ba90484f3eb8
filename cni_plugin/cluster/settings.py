"""The operator's settings of a cluster's network: one JSON object, every key optional.

In a cluster it is a ConfigMap, the same for all nodes; what differs between nodes comes from
their Node objects.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cni_plugin.config.paths import DATA_DIR
from cni_plugin.contract.errors import CNIError, invalid_config
from cni_plugin.contract.fields import Fields
from cni_plugin.contract.inet import parse_cidr
from cni_plugin.contract.request import parse_document

if TYPE_CHECKING:
    from netaddr import IPNetwork

VXLAN, HOST_GATEWAY = "vxlan", "hostGateway"
BACKENDS = (VXLAN, HOST_GATEWAY)
BRIDGE, ROUTED = "bridge", "routed"
ATTACHES = (BRIDGE, ROUTED)
# What `mode` says, one word for both.
MODES = {
    VXLAN: {"attach": BRIDGE, "backend": VXLAN},
    HOST_GATEWAY: {"attach": ROUTED, "backend": HOST_GATEWAY},
}
_FAMILIES = {"": 0, "ipv4": 4, "ipv6": 6}
_KEYS = frozenset(
    {
        "network",
        "mode",
        "attach",
        "backend",
        "vni",
        "port",
        "mtu",
        "mtuOverhead",
        "ipMasq",
        "sourceValidation",
        "services",
        "networkPolicy",
        "clusterCIDRs",
        "nonMasqueradeCIDRs",
        "capabilities",
        "underlay",
        "bridge",
        "dataDir",
    }
)
_CAPABILITIES = {"portMappings": True, "bandwidth": True, "mac": True, "ips": True, "dns": True}


PRIMARY = "primary"
_SERVICE_KEYS = frozenset({"nodePortAddresses", "masqueradeAll", "healthPort", "serviceCIDRs"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """What a node does about Services: nothing unless it is `on`."""

    on: bool = False
    node_port_cidrs: tuple[IPNetwork, ...] = ()
    """Node ports are at the node's addresses in these; without any at its InternalIPs."""
    masquerade_all: bool = False
    """Endpoints see every client of a cluster address as this node."""
    health_port: int = 10256
    """Where load balancers ask whether this node takes connections; 0 for nowhere."""
    cidrs: tuple[IPNetwork, ...] = ()
    """Where the cluster addresses are: they get a route, and those that no Service has are refused."""


_POLICY_KEYS = frozenset({"timeout", "strict"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyOptions:
    """What a node does about NetworkPolicy objects: nothing unless it is `on`."""

    on: bool = False
    timeout: int = 2000
    """Milliseconds that an ADD waits for its pod's policies."""
    strict: bool = False
    """An ADD fails whose pod's policies are not in force in that time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelSettings:
    """The tunnels between nodes."""

    vni: int = 1
    port: int = 4789
    family: int = 0
    """The family (4, 6) of the underlay that they use, 0 for IPv4 where this node has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """The network that every node has a part of. `mtu` (0: automatic) and `mtu_overhead` in bytes."""

    network: str = "podwire"
    attach: str = ROUTED
    """How pods are joined to their node."""
    backend: str = VXLAN
    """How nodes are joined."""
    tunnel: TunnelSettings = field(default_factory=TunnelSettings)
    mtu: int = 0
    mtu_overhead: int = 0
    masquerade: bool = True
    source_validation: bool = True
    cluster_cidrs: tuple[IPNetwork, ...] = ()
    non_masquerade_cidrs: tuple[IPNetwork, ...] = ()
    capabilities: dict[str, object] = field(default_factory=lambda: dict(_CAPABILITIES))
    services: ServiceSettings = field(default_factory=ServiceSettings)
    policy: PolicyOptions = field(default_factory=PolicyOptions)
    bridge: str = "cni0"
    data_dir: str = DATA_DIR


def read_settings(path: str) -> ClusterSettings:
    """Return what the file says, the defaults without a file; CNIError 6 or 7 that names file and key."""
    try:
        with open(path, "rb") as file:
            text = file.read()
    except FileNotFoundError:
        return ClusterSettings()
    except OSError as error:
        raise invalid_config(f"{path}: {error.strerror}") from error
    try:
        return parse_settings(Fields(parse_document(text)))
    except CNIError as error:
        raise CNIError(error.code, f"{path}: {error.msg}", error.details) from error


def parse_settings(fields: Fields) -> ClusterSettings:
    """Return the settings; CNIError 7 for a value that cannot be and for a key that nobody knows."""
    unknown = sorted(set(fields.raw) - _KEYS)
    if unknown:
        raise invalid_config(f"wanted keys of {sorted(_KEYS)}, found {unknown}")
    default = ClusterSettings()
    capabilities = fields.section("capabilities")
    found = ClusterSettings(
        network=fields.string("network") or default.network,
        backend=_parse_choice(fields, "backend", BACKENDS) or default.backend,
        attach=_parse_choice(fields, "attach", ATTACHES) or default.attach,
        tunnel=_parse_tunnel(fields),
        mtu=fields.integer("mtu", 0, 65535) or 0,
        mtu_overhead=fields.integer("mtuOverhead", 0, 1000) or 0,
        masquerade=fields.boolean("ipMasq", default=True),
        source_validation=fields.boolean("sourceValidation", default=True),
        cluster_cidrs=_parse_cidrs(fields, "clusterCIDRs"),
        non_masquerade_cidrs=_parse_cidrs(fields, "nonMasqueradeCIDRs"),
        capabilities=dict(capabilities.raw) if capabilities else default.capabilities,
        services=_parse_services(fields),
        policy=_parse_policy(fields),
        bridge=fields.string("bridge") or default.bridge,
        data_dir=fields.string("dataDir") or default.data_dir,
    )
    if found.services.on and found.attach == BRIDGE:
        # Two pods on one bridge answer each other past the node, which has translated the question.
        raise invalid_config('"services": wanted "attach" "routed" beside it, found "bridge"')
    if found.policy.on and found.attach == BRIDGE:
        raise invalid_config('"networkPolicy": wanted "attach" "routed" beside it, found "bridge"')
    return found


def _parse_choice(fields: Fields, key: str, choices: tuple[str, ...]) -> str:
    """Return what `key` says, else what `mode` says of it; empty when neither is there."""
    mode, asked = fields.string("mode"), fields.string(key)
    if mode and mode not in MODES:
        raise invalid_config(f'"mode" must be one of {list(MODES)}, found "{mode}"')
    if asked and asked not in choices:
        raise invalid_config(f'"{key}" must be one of {list(choices)}, found "{asked}"')
    meant = MODES[mode][key] if mode else ""
    if asked and meant and asked != meant:
        raise invalid_config(f'"mode" "{mode}" means "{key}" "{meant}", found "{key}" "{asked}" beside it')
    return asked or meant


def _parse_tunnel(fields: Fields) -> TunnelSettings:
    default = TunnelSettings()
    return TunnelSettings(
        vni=fields.integer("vni", 1, 2**24 - 1) or default.vni,
        port=fields.integer("port", 1, 65535) or default.port,
        family=_parse_family(fields),
    )


def _parse_policy(fields: Fields) -> PolicyOptions:
    """Return what `networkPolicy` says: a boolean, or an object, which switches it on and says how."""
    if not isinstance(fields.value("networkPolicy"), dict):
        return PolicyOptions(on=fields.boolean("networkPolicy"))
    section = fields.section("networkPolicy") or Fields({})
    unknown = sorted(set(section.raw) - _POLICY_KEYS)
    if unknown:
        raise invalid_config(f'"networkPolicy": wanted keys of {sorted(_POLICY_KEYS)}, found {unknown}')
    timeout = section.integer("timeout", 0, 60000)
    return PolicyOptions(
        on=True,
        timeout=PolicyOptions().timeout if timeout is None else timeout,
        strict=section.boolean("strict"),
    )


def _parse_services(fields: Fields) -> ServiceSettings:
    """Return what `services` says: a boolean, or an object, which switches them on and says how."""
    if not isinstance(fields.value("services"), dict):
        return ServiceSettings(on=fields.boolean("services"))
    section = fields.section("services") or Fields({})
    unknown = sorted(set(section.raw) - _SERVICE_KEYS)
    if unknown:
        raise invalid_config(f'"services": wanted keys of {sorted(_SERVICE_KEYS)}, found {unknown}')
    default = ServiceSettings()
    port = section.integer("healthPort", 0, 65535)
    return ServiceSettings(
        on=True,
        node_port_cidrs=_parse_node_ports(section),
        masquerade_all=section.boolean("masqueradeAll"),
        health_port=default.health_port if port is None else port,
        cidrs=_parse_cidrs(section, "serviceCIDRs"),
    )


def _parse_node_ports(section: Fields) -> tuple[IPNetwork, ...]:
    """Return the networks; none for the word that means the node's InternalIPs, kube-proxy's own."""
    if section.strings("nodePortAddresses") == [PRIMARY]:
        return ()
    return _parse_cidrs(section, "nodePortAddresses")


def _parse_family(fields: Fields) -> int:
    name = fields.string("underlay")
    if name.lower() not in _FAMILIES:
        raise invalid_config(f'"underlay" must be "ipv4" or "ipv6", found "{name}"')
    return _FAMILIES[name.lower()]


def _parse_cidrs(fields: Fields, key: str) -> tuple[IPNetwork, ...]:
    found = tuple(parse_cidr(text, f'"{key}"') for text in fields.strings(key))
    for cidr in found:
        if cidr.ip != cidr.network:
            raise invalid_config(f'"{key}" must have no host bits set, found {cidr}')
    return found
