"""The layout of our nftables: every table, hook, priority, beginning of a chain's name, and mark bit.

Whoever hooks a chain in takes its place from here, so that the order in which features see a packet is
one list and no accident. docs/dataplane.md prints it; a test compares it with `nft list ruleset`.
Numbers and not words: `dstnat` is -100 in the family inet and -300 in bridge.
"""

from __future__ import annotations

from dataclasses import dataclass

TABLE = "podwire"  # what belongs to pods, in the families inet and bridge
POLICY_TABLE = "podwire_policy"
SERVICES_TABLE = "podwire_services"
OWN_TABLES = (TABLE, POLICY_TABLE, SERVICES_TABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a chain is hooked in; `prefix` is how its name begins, or all of it."""

    family: str = "inet"
    table: str = TABLE
    prefix: str
    kind: str = "filter"
    hook: str
    priority: int
    purpose: str

    def name(self, scope: str = "") -> str:
        """Return the name of the chain that serves `scope`: a device, or some settings."""
        return f"{self.prefix}{scope}"

    @property
    def declaration(self) -> str:
        """Return what a base chain says of itself in the words of `nft`."""
        return f"type {self.kind} hook {self.hook} priority {self.priority}; policy accept;"


# The link group of routed pods' host ends: "pod". An uplink, too, may be called veth.
POD_GROUP = 0x706F64

# Before connection tracking (-200), so that what is dropped here costs no entry there.
SOURCE_VALIDATION = Place(
    prefix="source_", hook="prerouting", priority=-300, purpose="source validation: routes lead back"
)
SPOOF = Place(prefix="spoof", hook="prerouting", priority=-300, purpose="spoof check of routed pods")
BRIDGE_SPOOF = Place(
    family="bridge", prefix="spoof", hook="prerouting", priority=-300, purpose="spoof check of bridged pods"
)
HOSTPORT_GUARD = Place(
    prefix="hostport_guard", hook="prerouting", priority=-300, purpose="nothing from outside for 127.0.0.0/8"
)
TUNNEL_GUARD = Place(
    prefix="guard_", hook="prerouting", priority=-300, purpose="the tunnel is for nodes; not tracked"
)
TUNNEL_UNTRACKED = Place(
    prefix="untracked_", hook="output", priority=-300, purpose="the tunnel's own packets are not tracked"
)
# Where the numbers of `dstnat` are: kube-proxy and the Go portmap translate at -100, too.
HOSTPORT_PREROUTING = Place(
    prefix="hostport_prerouting_", kind="nat", hook="prerouting", priority=-100, purpose="host ports"
)
HOSTPORT_OUTPUT = Place(
    prefix="hostport_output_", kind="nat", hook="output", priority=-100, purpose="host ports, from the node"
)
# Behind every translation and before the route is looked up.
TUNNEL_MARKS = Place(
    prefix="tunnel_", hook="prerouting", priority=-90, purpose="marks what pods send to other nodes"
)
PUBLISHED = Place(
    prefix="published_", hook="prerouting", priority=-90, purpose="marks what goes to published ports"
)
# Services: who may ask, then the translation, then what is left of it. A nat chain's priority orders it among
# nat chains only: translation acts at -100, and 100 behind the routes.
SERVICE_RANGES_PREROUTING = Place(
    table=SERVICES_TABLE,
    prefix="ranges_prerouting",
    hook="prerouting",
    priority=-120,
    purpose="Services, source ranges",
)
SERVICE_PREROUTING = Place(
    table=SERVICES_TABLE,
    prefix="services_prerouting",
    kind="nat",
    hook="prerouting",
    priority=-110,
    purpose="Services",
)
SERVICE_REFUSALS_PREROUTING = Place(
    table=SERVICES_TABLE,
    prefix="refusals_prerouting",
    hook="prerouting",
    priority=-95,
    purpose="Services without endpoints",
)
SERVICE_RANGES_OUTPUT = Place(
    table=SERVICES_TABLE,
    prefix="ranges_output",
    hook="output",
    priority=-120,
    purpose="Services, source ranges, from the node",
)
SERVICE_OUTPUT = Place(
    table=SERVICES_TABLE,
    prefix="services_output",
    kind="nat",
    hook="output",
    priority=-110,
    purpose="Services, from the node",
)
SERVICE_REFUSALS_OUTPUT = Place(
    table=SERVICES_TABLE,
    prefix="refusals_output",
    hook="output",
    priority=-95,
    purpose="Services without endpoints, from the node",
)
SERVICE_AFFINITY = Place(
    table=SERVICES_TABLE,
    prefix="services_affinity",
    hook="postrouting",
    priority=0,
    purpose="Services, session affinity",
)
SERVICE_MASQUERADE = Place(
    table=SERVICES_TABLE,
    prefix="services_masquerade",
    kind="nat",
    hook="postrouting",
    priority=99,
    purpose="Services, masquerade",
)
# Policies, behind every translation and before others' filters: who may send, then who may be reached.
POLICY_EGRESS = Place(
    table=POLICY_TABLE, prefix="egress_", hook="forward", priority=-10, purpose="NetworkPolicy, egress"
)
POLICY_INGRESS = Place(
    table=POLICY_TABLE, prefix="ingress_", hook="forward", priority=-9, purpose="NetworkPolicy, ingress"
)
FIREWALL = Place(prefix="firewall_", hook="forward", priority=0, purpose="firewall")
BRIDGE_FIREWALL = Place(
    family="bridge", prefix="firewall_", hook="forward", priority=0, purpose="firewall between bridged pods"
)
BRIDGE_ISOLATION = Place(
    family="bridge", prefix="isolation", hook="forward", priority=0, purpose="portIsolation beside host ports"
)
TUNNEL_GATEWAY = Place(
    family="bridge", prefix="tunnel_", hook="postrouting", priority=0, purpose="the gateway stays on its node"
)
MASQUERADE = Place(prefix="masquerade_", kind="nat", hook="postrouting", priority=100, purpose="ipMasq")
HOSTPORT_POSTROUTING = Place(
    prefix="hostport_postrouting_",
    kind="nat",
    hook="postrouting",
    priority=100,
    purpose="host ports: what would come back past the node",
)
ISOLATION = Place(
    prefix="isolation", kind="nat", hook="postrouting", priority=100, purpose="host ports of isolated pods"
)

PLACES = (
    SOURCE_VALIDATION,
    SPOOF,
    HOSTPORT_GUARD,
    TUNNEL_GUARD,
    SERVICE_RANGES_PREROUTING,
    SERVICE_PREROUTING,
    HOSTPORT_PREROUTING,
    SERVICE_REFUSALS_PREROUTING,
    TUNNEL_MARKS,
    PUBLISHED,
    TUNNEL_UNTRACKED,
    SERVICE_RANGES_OUTPUT,
    SERVICE_OUTPUT,
    HOSTPORT_OUTPUT,
    SERVICE_REFUSALS_OUTPUT,
    POLICY_EGRESS,
    POLICY_INGRESS,
    FIREWALL,
    SERVICE_AFFINITY,
    SERVICE_MASQUERADE,
    MASQUERADE,
    HOSTPORT_POSTROUTING,
    ISOLATION,
    BRIDGE_SPOOF,
    BRIDGE_FIREWALL,
    BRIDGE_ISOLATION,
    TUNNEL_GATEWAY,
)


# Kept free for what will stand there; whoever comes takes its line into PLACES.
RESERVED = (
    Place(prefix="", hook="input", priority=-10, table=POLICY_TABLE, purpose="egress to the own node"),
    Place(family="bridge", prefix="", hook="prerouting", priority=-290, purpose="redirection to the node"),
)

# Bits of the packet mark. Others' are left alone: 0x2000 the Go portmap's, 0x4000 and 0x8000 kube-proxy's.
ISOLATION_MARK = 0x200
HOSTPORT_MARK = 0x400
PUBLISHED_MARK = 0x800
CROSSING_MARK = 0x1000
MARKS = {
    ISOLATION_MARK: "goes to a published port from one isolated pod to another",
    HOSTPORT_MARK: "translated by a host port, first packet of a connection",
    PUBLISHED_MARK: "goes to a published port, or answers from it",
    CROSSING_MARK: "a pod's to another node's own address: takes the tunnel",
}
