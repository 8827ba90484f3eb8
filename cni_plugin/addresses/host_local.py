"""Our address manager as an IPAM plugin: keys of `host-local` in, a CNI result out.

`plan` reads the `ipam` section once, with every key of the reference host-local and our own (`exclude`,
`"gateway": "none"`, the terms). The others call the `ipam` package and translate its errors. Releasing
needs only names and `dataDir`, so an error in the ranges cannot keep an address reserved.
"""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from cni_plugin.config.network import KNOWN_ARGS, Addressing, RangeFacts, data_dir
from cni_plugin.contract import versions
from cni_plugin.contract.errors import CNIError, Code, invalid_config
from cni_plugin.contract.fields import Fields, kind_of_json, objects
from cni_plugin.contract.inet import is_assignable, parse_ip_or_cidr, with_prefix
from cni_plugin.contract.request import parse_args, parse_valid_attachments
from cni_plugin.contract.result import DNS, IPConfig, Result, Route, parse_routes
from ipam import allocator
from ipam.allocator import Terms, Usage
from ipam.cache import StoreCache
from ipam.errors import (
    AddressTaken,
    DuplicateAllocation,
    InvalidNetwork,
    InvalidRange,
    IPAMError,
    LockTimeout,
    NotInRange,
    PoolExhausted,
    StoreUnavailable,
)
from ipam.ranges import Range, RangeSet, make_range, make_range_sets
from ipam.seam import part
from ipam.store import Owner, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from netaddr import IPAddress

    from cni_plugin.config.network import LiveAttachment
    from cni_plugin.contract.request import Request
    from ipam.namespace_mark import Reservation

log = logging.getLogger("podwire")


class _Remembered:
    """Of use to the agent; a process that makes one call looks once, which is not remembered."""

    def __init__(self) -> None:
        self.stores = StoreCache()
        # A network's ranges come with every call, and are the same text every time.
        self.make_range = lru_cache(maxsize=256)(make_range)


_LONGEST_REST: Final = 24 * 3600  # seconds

_CODES: tuple[tuple[type[IPAMError], Code], ...] = (
    (InvalidRange, Code.INVALID_CONFIG),
    (InvalidNetwork, Code.INVALID_CONFIG),
    (NotInRange, Code.INVALID_CONFIG),
    # Like an interface that exists already: a DEL must come first.
    (DuplicateAllocation, Code.INVALID_ENVIRONMENT),
    (AddressTaken, Code.TRY_AGAIN_LATER),
    (PoolExhausted, Code.TRY_AGAIN_LATER),
    (LockTimeout, Code.TRY_AGAIN_LATER),
    (StoreUnavailable, Code.IO_FAILURE),
)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except IPAMError as error:
        code = next((code for kind, code in _CODES if isinstance(error, kind)), Code.INTERNAL)
        raise CNIError(code, str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPlan:
    """What an ADD, CHECK or STATUS asks of the address manager."""

    network: str
    store: Store
    owner: Owner
    range_sets: tuple[RangeSet, ...]
    requested: tuple[IPAddress, ...]
    terms: Terms
    routes: tuple[Route, ...]
    resolv_conf: str
    """The path of a file, empty for none."""


def plan(request: Request) -> LocalPlan:
    """Return what the configuration asks for; CNIError 4 or 7 for what ADD could not serve."""
    section = _section(request)
    return LocalPlan(
        network=request.network,
        range_sets=parse_range_sets(request),
        requested=tuple(parse_requested(request)),
        routes=parse_routes(section),
        terms=parse_terms(request),
        store=open_store(request),
        owner=_owner(request),
        resolv_conf=section.string("resolvConf"),
    )


def rebuild(plan: LocalPlan, living: Callable[[], Iterable[LiveAttachment]], netns_mark: str) -> None:
    """Hold the addresses of living pods again if the network's directory is gone: somebody moved it aside.

    Raises CNIError 5 or 11 when that cannot be, since the next address could be one of theirs.
    """
    store = plan.store
    if os.path.lexists(store.directory):
        return
    ranges = [each for range_set in plan.range_sets for each in range_set.ranges]
    claims = [
        (address, Owner(container_id=each.attachment.container_id, ifname=each.attachment.ifname))
        for each in living()
        for address in each.addresses
        if any(within.contains(address) for within in ranges)
    ]
    if claims:
        from ipam.rebuild import rebuild as rebuild_directory

        with _translated():
            made = rebuild_directory(store, claims, netns_mark)
        log.warning("%s was gone; held again: %s addresses, made: %s", store.directory, len(claims), made)


def allocate(plan: LocalPlan, netns_mark: str = "") -> Result:
    """Take one address from each range set; `netns_mark` names the node's own network namespace.

    Raises CNIError 4 when the attachment holds addresses already, 7 for requested addresses that no
    range has, 11 when the pool is exhausted, an address is taken or the lock is not had in time, 5 when
    the store fails.
    """
    dns = _read_resolv_conf(plan.resolv_conf)
    terms = replace(plan.terms, netns_mark=netns_mark)
    with _translated():
        allocations = allocator.allocate(plan.store, plan.range_sets, plan.owner, plan.requested, terms)
    ips = tuple(
        IPConfig(address=with_prefix(a.address, a.subnet.prefixlen), gateway=a.gateway) for a in allocations
    )
    return Result(ips=ips, routes=plan.routes, dns=dns)


def release(request: Request) -> None:
    """Release every address of the attachment; none is fine, and a `dataDir` that no ADD takes has none."""
    try:
        data_dir(request.config)
    except CNIError as error:
        log.warning("%s; no address is released", error.msg)
        return
    with _translated():
        allocator.release(open_store(request), _owner(request), _terms_if_readable(request))


def _terms_if_readable(request: Request) -> Terms:
    """Return the terms for a release or a look; what cannot be read holds no address back."""
    with suppress(CNIError):
        return parse_terms(request)
    return Terms()


def check(plan: LocalPlan, previous: Result) -> None:
    """Raise CNIError 100 unless the attachment holds the addresses that prevResult gives it."""
    with _translated():
        held = set(allocator.held(plan.store, plan.owner, plan.terms))
    ours = {ip.address.ip for ip in previous.ips if any(s.range_of(ip.address.ip) for s in plan.range_sets)}
    if not held or ours - held:
        wanted = sorted(map(str, ours)) or "an address"
        raise CNIError(
            Code.CHECK_FAILED,
            f"store of network {plan.network}: wanted {wanted} held by {plan.owner.container_id} "
            f"{plan.owner.ifname}, found {sorted(map(str, held))}",
        )


def list_held(request: Request) -> list[IPAddress]:
    """Return the addresses that the store of the network holds for the attachment, whoever gave them."""
    with _translated():
        store = Store(data_dir(request.config), request.network, cache=part(_Remembered).stores)
        return allocator.held(store, _owner(request))


def collect(request: Request) -> None:
    """Release what no attachment in the runtime's list holds; without a list release nothing."""
    valid = parse_valid_attachments(request.config)
    if valid is None:
        return
    owners = {Owner(container_id=member.container_id, ifname=member.ifname) for member in valid}
    with _translated():
        allocator.collect(open_store(request), owners, _terms_if_readable(request))


def mark_boot(request: Request) -> None:
    """Say of addresses that nobody has marked that they are of this boot, so that the next one knows."""
    from ipam.boot_mark import mark_unmarked  # no call of the contract needs it

    with _translated():
        mark_unmarked(open_store(request))


def give_up(request: Request, dead: Collection[Reservation]) -> None:
    """Release these reservations, as long as nobody has made them anew."""
    with _translated():
        allocator.give_up(open_store(request), dead, _terms_if_readable(request))


def status(plan: LocalPlan) -> None:
    """Raise CNIError 50 when no address could be given: the pool is exhausted or the store fails."""
    try:
        with _translated():
            plan.store.check_writable()
            usages = _look_at_usage(plan)
    except CNIError as error:
        raise CNIError(Code.NOT_AVAILABLE, error.msg, error.details) from error
    for usage in usages:
        if usage.free == 0:
            raise CNIError(
                Code.NOT_AVAILABLE,
                f"no IP addresses available in range set: {usage.range_set} ({usage.used} in use)",
            )


def _look_at_usage(plan: LocalPlan) -> list[Usage]:
    """Return how full each range set is: as the cache says, unless one is full: a walk knows more."""
    if not plan.terms.cool_down:
        plan.store.look()
        cached = allocator.cached_usage(part(_Remembered).stores, plan.store, plan.range_sets)
        if cached and all(each.free for each in cached):
            return cached
    return allocator.usage(plan.store, plan.range_sets, plan.terms)


def usage(request: Request) -> list[Usage]:
    """Return how full each range set is; a walk, however many addresses there are."""
    with _translated():
        return allocator.usage(open_store(request), parse_range_sets(request), parse_terms(request))


def cached_usage(request: Request) -> list[Usage] | None:
    """Return the same without a walk; None where this process remembers too little."""
    range_sets = parse_range_sets(request)
    if parse_terms(request).cool_down:
        return None  # what cools down is in use, and is remembered elsewhere
    with _translated():
        store = Store(data_dir(request.config), request.network)
        return allocator.cached_usage(part(_Remembered).stores, store, range_sets)


def addressing(plan: LocalPlan) -> Addressing:
    """Return what the ranges say before any address is taken."""
    ranges = [r for range_set in plan.range_sets for r in range_set.ranges]
    without = next((str(r.subnet) for r in ranges if not r.gateway or r.gateway.version != r.version), "")
    return Addressing(
        stated_families=frozenset(s.version for s in plan.range_sets),
        without_gateway=without,
        ranges=tuple(_facts(r) for r in ranges),
    )


def _facts(found: Range) -> RangeFacts:
    whole = part(_Remembered).make_range(subnet=str(found.subnet), gateway="none")
    covers = found.start <= whole.start and found.end >= whole.end and not found.exclude
    return RangeFacts(subnet=found.subnet, gateway=found.gateway, whole=covers)


def open_store(request: Request) -> Store:
    """Return the network's store; nothing is touched on disk until it is used."""
    _section(request)
    with _translated():
        return Store(data_dir(request.config), request.network, cache=part(_Remembered).stores)


def _section(request: Request) -> Fields:
    section = request.config.section("ipam")
    if section is None:
        raise invalid_config('"ipam": wanted an object with the address ranges, found none')
    return section


def _owner(request: Request) -> Owner:
    return Owner(container_id=request.container_id, ifname=request.ifname)


def parse_range_sets(request: Request) -> tuple[RangeSet, ...]:
    """Return the range sets in the reference's order: the runtime's, the legacy single range, `ranges`."""
    section = _section(request)
    runtime = request.config.section("runtimeConfig")
    sets = _parse_sets(runtime, "ipRanges") if runtime else []
    if section.string("subnet"):
        sets.append([_parse_range(section)])
    sets += _parse_sets(section, "ranges")
    if not sets:
        raise invalid_config('"ipam.ranges": wanted at least one range, found none')
    with _translated():
        range_sets = make_range_sets(sets)
    _refuse_many_per_family(range_sets, request.cni_version)
    return range_sets


def _parse_sets(fields: Fields, key: str) -> list[list[Range]]:
    return [_parse_set(member, f"{fields.name(key)}[{i}]") for i, member in enumerate(fields.items(key))]


def _parse_set(member: object, path: str) -> list[Range]:
    if not isinstance(member, list):
        raise invalid_config(f'"{path}" must be a list of ranges, found {kind_of_json(member)}')
    return [_parse_range(fields) for fields in objects(member, path)]


def _parse_range(fields: Fields) -> Range:
    with _translated():
        made = part(_Remembered).make_range(
            subnet=fields.string("subnet"),
            range_start=fields.string("rangeStart") or None,
            range_end=fields.string("rangeEnd") or None,
            gateway=fields.string("gateway") or None,
            exclude=tuple(fields.strings("exclude")),
        )
    for address in (made.start, made.end, *([made.gateway] if made.gateway else [])):
        if not is_assignable(address):
            raise invalid_config(f"range {made}: wanted addresses that a host can have, found {address}")
    return made


def _refuse_many_per_family(range_sets: tuple[RangeSet, ...], version: str) -> None:
    families = [range_set.version for range_set in range_sets]
    if len(set(families)) < len(families) and not versions.at_least(version, "0.3.0"):
        raise invalid_config(
            f'"ipam.ranges": a result of version {version} has one address per family, found {families}'
        )


def parse_requested(request: Request) -> list[IPAddress]:
    """Return the addresses asked for by runtimeConfig, args.cni and CNI_ARGS, each once."""
    runtime = request.config.section("runtimeConfig")
    extra = request.config.section("args")
    cni = extra.section("cni") if extra else None
    named = [(text, "runtimeConfig.ips") for text in (runtime.strings("ips") if runtime else [])]
    named += [(text, "args.cni.ips") for text in (cni.strings("ips") if cni else [])]
    asked = parse_args(request, KNOWN_ARGS).get("IP", "")
    named += [(asked, "CNI_ARGS IP")] if asked else []
    return list(dict.fromkeys(parse_ip_or_cidr(text, f'"{key}"') for text, key in named))


def parse_terms(request: Request) -> Terms:
    """Return what the network asks of its addresses beyond what host-local does."""
    section = _section(request)
    return Terms(
        keep_band=section.boolean("keepForRequests"),
        sticky=_sticky_name(request) if section.boolean("sticky") else "",
        cool_down=section.integer("coolDown", 0, _LONGEST_REST) or 0,
    )


def _sticky_name(request: Request) -> str:
    """Return what a pod's interface is called in its next life, too; empty if the runtime names no pod."""
    args = parse_args(request, KNOWN_ARGS)
    words = (args.get("K8S_POD_NAMESPACE", ""), args.get("K8S_POD_NAME", ""), request.ifname)
    name = "/".join(words)
    return name if all(words) and name.isprintable() and " " not in name else ""


def _read_resolv_conf(path: str) -> DNS:
    """Return the resolver settings in a file, see resolv.conf(5); later lines win as they do there."""
    if not path:
        return DNS()
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file if line[:1] not in {"#", ";"}]
    except OSError as error:
        raise invalid_config(f'"ipam.resolvConf" {path}: {error.strerror}') from error
    said = [(words[0], words[1:]) for words in lines if len(words) > 1]
    return DNS(
        nameservers=tuple(words[0] for key, words in said if key == "nameserver"),
        domain=next((words[0] for key, words in reversed(said) if key == "domain"), ""),
        search=next((tuple(words) for key, words in reversed(said) if key == "search"), ()),
        options=tuple(word for key, words in said if key == "options" for word in words),
    )
