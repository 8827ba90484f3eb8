"""The table of Services: its sets, maps and chains, and what of them a frontend has. Pure.

A verdict map leads from a frontend to the chain that picks one of n endpoints (`pick_n`), and a map from
the frontend and a number below n to the endpoint. There is no chain and no rule per Service or endpoint:
a node port is a frontend at each of the node's addresses. What others translate is left alone, since
everything asks where a connection was sent to first. By hand: `nft list table inet podwire_services`.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

from netaddr import cidr_merge

from cni_plugin.dataplane.services.packed_chains import name_packed
from cni_plugin.dataplane.services.plan import LENGTHS, VERSIONS, Endpoint, Frontend
from cni_plugin.kernel.message import parse_address
from cni_plugin.kernel.nft import FAMILY, Chain, Ruleset, hooked
from cni_plugin.kernel.nft_layout import (
    SERVICE_AFFINITY,
    SERVICE_MASQUERADE,
    SERVICE_OUTPUT,
    SERVICE_PREROUTING,
    SERVICE_RANGES_OUTPUT,
    SERVICE_RANGES_PREROUTING,
    SERVICE_REFUSALS_OUTPUT,
    SERVICE_REFUSALS_PREROUTING,
    SERVICES_TABLE,
)
from cni_plugin.kernel.nft_sets import TypedSet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netaddr import IPNetwork

    from cni_plugin.dataplane.services.plan import FrontendPlan, Surroundings
    from cni_plugin.kernel.nft_message import Value

_ADDRESS = {4: "ipv4_addr", 6: "ipv6_addr"}
# Beyond this many endpoints their number is rounded up to a power of two and some endpoints stand twice,
# so that there is no chain for each number.
_EXACT = 1024
_PORT, _PROTOCOL, _INDEX = struct.Struct("!Hxx"), struct.Struct("Bxxx"), struct.Struct("=I")
_AFFINITY_SIZE = 1024 * 1024  # clients; nft's own default is 65,535

Elements = dict[tuple[str, bytes], "Value"]
"""Elements by the set that they are in and their key."""


def plan_sets() -> list[TypedSet]:
    """Return the sets and maps, of both families."""
    return [each for version in VERSIONS for each in _plan_sets(version)]


def _plan_sets(version: int) -> Iterator[TypedSet]:
    address = (_ADDRESS[version],)
    frontend = (*address, "inet_proto", "inet_service")
    target = (*address, "inet_service")

    def named(name: str, *, key: tuple[str, ...], data: tuple[str, ...] = ()) -> TypedSet:
        return TypedSet(family="inet", table=SERVICES_TABLE, name=f"{name}{version}", key=key, data=data)

    for name in ("svc", "svcin", "stop", "keep", "guard"):
        yield named(name, key=frontend, data=("verdict",))
    for name in ("ep", "epin"):
        yield named(name, key=(*frontend, "mark"), data=target)
    for name in ("snat", "out"):
        yield named(name, key=frontend)
    for name in ("vip", "self", "nodes"):
        yield named(name, key=address)
    yield named("loop", key=(*address, *address))
    for name in ("inside", "cluster"):
        yield TypedSet(
            family="inet", table=SERVICES_TABLE, name=f"{name}{version}", key=address, interval=True
        )
    yield TypedSet(
        family="inet",
        table=SERVICES_TABLE,
        name=f"aff{version}",
        key=(*address, *frontend),
        data=target,
        dynamic=True,
        size=_AFFINITY_SIZE,
    )


def plan_ruleset(around: Surroundings) -> Ruleset:
    """Return the chains that are the same for all Services; the packed ones that they name must be there."""
    networks = {
        f"{name}{version}": [cidr for cidr in cidr_merge(list(cidrs)) if cidr.version == version]
        for name, cidrs in (("inside", around.own_subnets), ("cluster", around.pod_networks))
        for version in VERSIONS
    }
    return Ruleset(
        family="inet",
        table=SERVICES_TABLE,
        title="Services",
        chains=(*_plan_sources(around), *_plan_refusals(around), *_plan_translation()),
        filled=tuple(networks),
        fill=lambda: networks,
        fingerprint=repr(networks),
    )


_KNOWN = "ct state established,related accept"


def _each_family(pattern: str) -> list[str]:
    """Return a rule for each family; in the pattern `ip` stands for its name and `#` for its number."""
    return [pattern.replace("ip ", f"{name} ").replace("#", str(version)) for version, name in FAMILY.items()]


_FRONTEND = "ip daddr . meta l4proto . th dport"


def _plan_translation() -> Iterator[Chain]:
    inside = _each_family(f"ip saddr @inside# {_FRONTEND} vmap @svcin#")
    everybody = _each_family(f"{_FRONTEND} vmap @svc#")
    yield hooked(SERVICE_PREROUTING, (*inside, *everybody))
    yield hooked(SERVICE_OUTPUT, (*_each_family(f"{_FRONTEND} vmap @svcin#"), *everybody))
    ranges = (_KNOWN, *_each_family(f"{_FRONTEND} vmap @guard#"))
    yield hooked(SERVICE_RANGES_PREROUTING, ranges)
    yield hooked(SERVICE_RANGES_OUTPUT, ranges)
    yield hooked(SERVICE_AFFINITY, [f"ct state new ct status dnat jump {name_packed('keep')}"])


def _plan_refusals(around: Surroundings) -> Iterator[Chain]:
    """Return the chains for what is left behind the translation: no endpoints, or no Service.

    NodeLocal DNSCache holds a Service's address itself, and its packets are not tracked.
    """
    unknown = [f"{FAMILY[cidr.version]} daddr {cidr} goto refuse" for cidr in around.cluster_cidrs]
    rules = (
        _KNOWN,
        *_each_family(f"{_FRONTEND} vmap @stop#"),
        "ct state untracked accept",
        "fib daddr type local accept",
        *_each_family("ip daddr @vip# goto refuse"),
        *unknown,
    )
    reset = ("meta l4proto tcp reject with tcp reset", "reject with icmpx port-unreachable")
    yield Chain(name="refuse", rules=reset)
    yield hooked(SERVICE_REFUSALS_PREROUTING, rules)
    yield hooked(SERVICE_REFUSALS_OUTPUT, rules)


def _plan_sources(around: Surroundings) -> Iterator[Chain]:
    """As whom an endpoint sees a client that is not to be seen as itself.

    Pods see the node's own address, and not the tunnel's, which no policy could name.
    """
    for version, family in FAMILY.items():
        own = around.first_address(version)
        named = parse_address(own) if own else None
        snat = (f"{family} daddr @cluster{version} snat {family} to {named} fully-random",) if named else ()
        yield Chain(name=f"source{version}", rules=(*snat, "masquerade fully-random"))
    outside = "ct status dnat ip saddr != @cluster# ip saddr != @nodes# ct original ip daddr @vip#"
    rules = (
        *_each_family("ct status dnat ip saddr . ip daddr @loop# goto source#"),
        *_each_family(f"{outside} goto source#"),
        f"ct status dnat jump {name_packed('original')}",
    )
    yield hooked(SERVICE_MASQUERADE, rules)


def key_of(frontend: Frontend) -> bytes:
    """Return a frontend as the kernel's key."""
    return frontend.address + _PROTOCOL.pack(frontend.protocol) + _PORT.pack(frontend.port)


def index_of(key: bytes) -> int:
    """Return the number that a key of the map of endpoints ends with."""
    return int(_INDEX.unpack(key[-_INDEX.size :])[0])


def value_of(endpoint: Endpoint) -> bytes:
    """Return an endpoint as the kernel's data."""
    return endpoint.address + _PORT.pack(endpoint.port)


def spread(endpoints: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    """Return an endpoint for each number that can be drawn.

    Who stands twice stands half the numbers further: one endpoint more or less changes one or two of them.
    """
    count = len(endpoints)
    if count <= _EXACT:
        return endpoints
    half = 1 << (count - 1).bit_length() - 1
    return endpoints + endpoints[count - half : half]


def name_ranges(sources: tuple[IPNetwork, ...]) -> str:
    """Return the name of the chain that lets only these sources by; Services with the same ones share it."""
    text = " ".join(sorted(map(str, sources)))
    return f"ranges_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def plan_ranges(sources: tuple[IPNetwork, ...], around: Surroundings) -> Ruleset:
    """Return a chain that drops what comes from elsewhere than these sources.

    A node that holds a balancer's address asks it from that address: it may where its own one may.
    """
    rules = [f"{FAMILY[cidr.version]} saddr {cidr.cidr} return" for cidr in sources]
    own = [parse_address(each) for each in around.addresses]
    if any(address in cidr for cidr in sources for address in own):
        rules.append("fib saddr type local return")
    chain = Chain(name=name_ranges(sources), rules=(*rules, "drop"))
    return Ruleset(family="inet", table=SERVICES_TABLE, title="Services", chains=(chain,))


def render_frontend(frontend: Frontend, plan: FrontendPlan) -> Elements:
    """Return the elements that a frontend has alone."""
    version, key = frontend.version, key_of(frontend)
    found: Elements = {}
    for which, endpoints in (("", plan.endpoints), ("in", plan.inside)):
        slots = spread(endpoints or ())
        for index, endpoint in enumerate(slots):
            found[f"ep{which}{version}", key + _INDEX.pack(index)] = value_of(endpoint)
        if slots:
            kind = "sticky" if plan.keep else "pick"
            comment = "" if which else plan.name
            found[f"svc{which}{version}", key] = (f"goto {kind}{which}_{len(slots)}", comment)
    if not plan.endpoints:
        verdict = "goto refuse" if plan.refuses else "drop"
        found[f"stop{version}", key] = (verdict, plan.name)
    if plan.keep:
        found[f"keep{version}", key] = (f"goto keep_{plan.keep}", "")
    if plan.sources is not None:
        found[f"guard{version}", key] = (f"goto {name_ranges(plan.sources)}", "")
    for name, wanted in (("snat", plan.masquerade), ("out", plan.masquerade_node)):
        if wanted:
            found[f"{name}{version}", key] = None
    return found


def render_shared(frontend: Frontend, plan: FrontendPlan, around: Surroundings) -> list[tuple[str, bytes]]:
    """Return the elements that a frontend needs and that others may need, too."""
    version = frontend.version
    found = [(f"vip{version}", frontend.address)] if plan.is_cluster else []
    local = {
        each.address for each in (*plan.endpoints, *(plan.inside or ())) if around.is_own_pod(each.address)
    }
    return [*found, *((f"loop{version}", address + address) for address in local)]


def render_globals(around: Surroundings) -> Elements:
    """Return the elements that no frontend is the reason for."""
    own = {(f"self{_version_of(each)}", each): None for each in around.addresses}
    nodes = {(f"nodes{_version_of(each)}", each): None for each in around.peer_addresses}
    found: Elements = {}
    return found | own | nodes


def _version_of(address: bytes) -> int:
    return 4 if len(address) == 4 else 6


def split_key(key: bytes, version: int) -> Frontend:
    """Return the frontend that a key of the kernel's begins with."""
    length = LENGTHS[version]
    port = int.from_bytes(key[length + 4 : length + 6], "big")
    return Frontend(key[:length], key[length], port)


def parse_endpoint(value: bytes) -> Endpoint:
    """Return the endpoint of the kernel's data."""
    return Endpoint(value[:-4], int.from_bytes(value[-4:-2], "big"))
