"""Ranges of addresses: pure arithmetic, nothing is read or written.

A range is a part of a subnet with a gateway and excluded blocks; a range set is one pool of
several ranges of one family, and an allocation takes one address from each set. What may be
handed out is kept as spans of integers, so that a /64 or an excluded /16 costs one step.
The rules are those of the reference `host-local` (plugins/ipam/host-local/backend/allocator),
and ours beside them: no gateway, excluded blocks, /31, /32, /127 and /128.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Final

from netaddr import IPAddress, IPNetwork

from ipam.address import Version, parse_address, render_address
from ipam.errors import InvalidRange

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Span = tuple[int, int]
SpanOf = tuple[int, int, int]  # the number of the range in its set, first, last

NO_GATEWAY: Final = "none"
# How many of a set's addresses are kept for requests, as Kubernetes keeps them of a Service range:
# https://kubernetes.io/docs/concepts/services-networking/cluster-ip-allocation/
_BAND_LEAST: Final = 16
_BAND_MOST: Final = 256
_BAND_SHARE: Final = 16
_WIDTH: Final[dict[int, int]] = {4: 32, 6: 128}
_LONGEST_SHOWN: Final = 60  # longer than any address


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The addresses `start` to `end` of `subnet`, without the gateway and the excluded blocks."""

    subnet: IPNetwork
    start: IPAddress
    end: IPAddress
    gateway: IPAddress | None
    exclude: tuple[IPNetwork, ...] = ()

    @property
    def version(self) -> Version:
        """The family, 4 or 6."""
        return 4 if self.subnet.version == 4 else 6

    def contains(self, address: IPAddress) -> bool:
        """Say whether the address lies within the bounds, be it allocatable or not."""
        return bool(address.version == self.version and self.start <= address <= self.end)

    def allocatable(self, address: IPAddress) -> bool:
        """Say whether the address can be handed out: in bounds, not gateway, not excluded."""
        value = int(address)
        return self.contains(address) and any(a <= value <= b for a, b in self.spans())

    def size(self) -> int:
        """Return how many addresses can be handed out."""
        return sum(last - first + 1 for first, last in self.spans())

    def spans(self) -> tuple[Span, ...]:
        """Return what can be handed out as inclusive, ascending spans of integers."""
        spans, cursor, end = [], int(self.start), int(self.end)
        for first, last in sorted(self._holes()):
            if first > end:
                break
            if cursor < first:
                spans.append((cursor, first - 1))
            cursor = max(cursor, last + 1)
        return (*spans, (cursor, end)) if cursor <= end else tuple(spans)

    def _holes(self) -> Iterator[Span]:
        if self.gateway is not None and self.gateway.version == self.version:
            yield int(self.gateway), int(self.gateway)
        for block in self.exclude:
            yield block.first, block.last

    def __str__(self) -> str:
        """Return the bounds as the reference prints them."""
        return f"{render_address(self.start)}-{render_address(self.end)}"


RangeSpan = tuple[Range, int, int]  # first and last number of a part of the range


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeSet:
    """One pool: at least one range, all of one family, none overlapping another."""

    ranges: tuple[Range, ...]

    @property
    def version(self) -> Version:
        """The family, 4 or 6."""
        return self.ranges[0].version

    def range_of(self, address: IPAddress) -> Range | None:
        """Return the range whose bounds hold the address."""
        return next((each for each in self.ranges if each.contains(address)), None)

    def size(self) -> int:
        """Return how many addresses can be handed out."""
        return sum(each.size() for each in self.ranges)

    def band(self) -> int:
        """Return how many of its first addresses may be kept for requests; none of a tiny set."""
        size = self.size()
        return 0 if size <= _BAND_LEAST else min(max(_BAND_LEAST, size // _BAND_SHARE), _BAND_MOST)

    def band_spans(self) -> tuple[RangeSpan, ...]:
        """Return the spans of the addresses that may be kept for requests."""
        return tuple((self.ranges[i], a, b) for i, a, b in _split(self._spans(), self.band())[0])

    def in_band(self, address: IPAddress) -> bool:
        """Say whether the address may be kept for requests."""
        spans = self.band_spans()
        return any(within.contains(address) and a <= int(address) <= b for within, a, b in spans)

    def _spans(self) -> list[SpanOf]:
        return [(i, a, b) for i, each in enumerate(self.ranges) for a, b in each.spans()]

    def spans_after(self, after: IPAddress | None, band: int = 0) -> Iterator[RangeSpan]:
        """Yield every allocatable address once, in spans, round robin from behind `after`.

        Without an address that lies in the set the walk begins at the first range. The set's first
        `band` addresses are left out.
        """
        index, value = pivot = self._pivot(after)
        _, spans = _split(self._spans(), band)
        later = ((i, a if (i, a) > pivot else value + 1, b) for i, a, b in spans if (i, b) > pivot)
        earlier = ((i, a, min(b, value) if i == index else b) for i, a, b in spans if (i, a) <= pivot)
        for i, first, last in chain(later, earlier):
            yield self.ranges[i], first, last

    def _pivot(self, after: IPAddress | None) -> tuple[int, int]:
        for index, each in enumerate(self.ranges):
            if after is not None and each.contains(after):
                return index, int(after)
        return -1, -1

    def __str__(self) -> str:
        """Return the bounds of all ranges as the reference prints them."""
        return ",".join(map(str, self.ranges))


def _split(spans: list[SpanOf], count: int) -> tuple[list[SpanOf], list[SpanOf]]:
    """Return the spans of the first `count` addresses and those of the others."""
    low, high = [], []
    for i, first, last in spans:
        middle = first + min(count, last - first + 1)
        count -= middle - first
        low += [(i, first, middle - 1)] if first < middle else []
        high += [(i, middle, last)] if middle <= last else []
    return low, high


def make_range(
    *,
    subnet: str,
    range_start: str | None = None,
    range_end: str | None = None,
    gateway: str | None = None,
    exclude: Sequence[str] = (),
) -> Range:
    """Return the range that a configuration describes, its defaults filled in.

    `gateway` is an address, "none", or None for the default (the subnet's first address, but
    none in a subnet of one or two addresses). Raises InvalidRange.
    """
    network = _parse_network(subnet, "subnet")
    first, last = _default_bounds(network)
    made = Range(
        subnet=network,
        start=_parse_bound(network, "range start", range_start, first),
        end=_parse_bound(network, "range end", range_end, last),
        gateway=_parse_gateway(network, gateway),
        exclude=tuple(_parse_excluded(network, block) for block in exclude),
    )
    _check_not_empty(made)
    return made


def make_range_sets(sets: Sequence[Sequence[Range]]) -> tuple[RangeSet, ...]:
    """Return the sets; raises InvalidRange for an empty, a mixed or an overlapping one."""
    made = tuple(_make_range_set(index, ranges) for index, ranges in enumerate(sets))
    if not made:
        raise InvalidRange(subject="ranges", wanted="at least one range set", found="none")
    everything = sorted(
        ((each, index) for index, one in enumerate(made) for each in one.ranges),
        key=lambda pair: (pair[0].version, int(pair[0].start)),
    )
    for (left, i), (right, j) in pairwise(everything):
        if left.contains(right.start):
            subject = f"range {right} of range set {j}"
            raise InvalidRange(
                subject=subject, wanted="no overlap", found=f"overlap with {left} of range set {i}"
            )
    return made


def _make_range_set(index: int, ranges: Sequence[Range]) -> RangeSet:
    versions = sorted({each.version for each in ranges})
    if len(versions) != 1:
        found = "IPv4 and IPv6" if versions else "none"
        raise InvalidRange(subject=f"range set {index}", wanted="ranges of one family", found=found)
    return RangeSet(ranges=tuple(ranges))


def _parse_network(text: str, what: str) -> IPNetwork:
    address, slash, length = text.partition("/")
    base, prefix = parse_address(address), _parse_prefix(length)
    if base is None or prefix is None or not slash:
        raise InvalidRange(subject=what, wanted="an address block such as 10.1.0.0/16", found=_show(text))
    if prefix > _WIDTH[base.version]:  # a mapped ::ffff:10.1.0.0/112 too, as in the reference
        raise InvalidRange(subject=f"{what} {text}", wanted="a valid prefix length", found=f"/{length}")
    network = IPNetwork((int(base), prefix), version=base.version)
    if network.first != int(base):
        wanted = f"no host bits set, {render_address(network.network)}/{prefix}"
        raise InvalidRange(subject=what, wanted=wanted, found=text)
    return network


def _parse_prefix(text: str) -> int | None:
    # Python makes no number of more than 4,300 digits.
    canonical = text.isascii() and text.isdigit() and len(text) <= 3 and text == str(int(text))
    return int(text) if canonical else None


def _show(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}...")


def _default_bounds(network: IPNetwork) -> tuple[IPAddress, IPAddress]:
    first, last = network.first, network.last
    if not _is_tiny(network):
        first, last = first + 1, last - (network.version == 4)  # only IPv4 has a broadcast address
    return IPAddress(first, network.version), IPAddress(last, network.version)


def _is_tiny(network: IPNetwork) -> bool:
    """RFC 3021 and RFC 6164: one or two addresses, all of them hosts."""
    return bool(network.prefixlen >= _WIDTH[network.version] - 1)


def _parse_bound(network: IPNetwork, what: str, text: str | None, default: IPAddress) -> IPAddress:
    if text is None:
        return default
    address = parse_address(text)
    subject = f"{what} of {network}"
    if address is None:
        raise InvalidRange(subject=subject, wanted="an address", found=_show(text))
    if address.version != network.version:
        raise InvalidRange(subject=subject, wanted=f"an IPv{network.version} address", found=text)
    if not network.first <= int(address) <= network.last:
        raise InvalidRange(subject=subject, wanted="an address of the subnet", found=text)
    return address


def _parse_gateway(network: IPNetwork, text: str | None) -> IPAddress | None:
    """Neither the subnet nor the family is checked: on-link gateways outside of it are in use."""
    if text == NO_GATEWAY or (text is None and _is_tiny(network)):
        return None
    if text is None:
        return IPAddress(network.first + 1, network.version)
    address = parse_address(text)
    if address is None:
        wanted = f'an address or "{NO_GATEWAY}"'
        raise InvalidRange(subject=f"gateway of {network}", wanted=wanted, found=_show(text))
    return address


def _parse_excluded(network: IPNetwork, text: str) -> IPNetwork:
    block = _parse_network(text, f"excluded block of {network}")
    if block.version != network.version:
        wanted = f"an IPv{network.version} block"
        raise InvalidRange(subject=f"excluded block of {network}", wanted=wanted, found=text)
    return block


def _check_not_empty(made: Range) -> None:
    if made.start > made.end:
        wanted = "a start that is not above the end"
        raise InvalidRange(subject=f"range of {made.subnet}", wanted=wanted, found=str(made))
    if made.spans():
        return
    taken = f"all of {made} is gateway or excluded (gateway {made.gateway or NO_GATEWAY})"
    wanted = "at least one allocatable address"
    raise InvalidRange(subject=f"range of {made.subnet}", wanted=wanted, found=taken)
