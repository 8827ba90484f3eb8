"""Ranges beside a model that enumerates every address with the standard library."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from hypothesis import assume, event, given
from hypothesis import strategies as st
from netaddr import IPAddress

from ipam.errors import IPAMError
from ipam.ranges import make_range, make_range_sets

if TYPE_CHECKING:
    from ipam.ranges import Range

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
BASES = {4: ("10.1.0.0", 32), 6: ("fd00::", 128)}


@st.composite
def networks(draw: st.DrawFn, least: int = 22) -> Network:
    """Return a block small enough to be counted."""
    base, width = BASES[draw(st.sampled_from((4, 6)))]
    number = int(ipaddress.ip_address(base)) + draw(st.integers(0, 1023))
    prefix = draw(st.integers(least + width - 32, width))
    return ipaddress.ip_network((number, prefix), strict=False)


@st.composite
def keys(draw: st.DrawFn) -> tuple[Network, dict[str, Any]]:
    """Return a subnet and the other keys of a range, many of them senseless."""
    subnet = draw(networks())
    near = st.integers(-3, subnet.num_addresses + 3).map(
        lambda n: str(type(subnet.network_address)(int(subnet.network_address) + n))
    )
    optional = st.none() | near
    gateway = st.sampled_from((None, "none", "192.0.2.1", "fe80::1")) | near
    return subnet, {
        "range_start": draw(optional),
        "range_end": draw(optional),
        "gateway": draw(gateway),
        "exclude": [str(each) for each in draw(st.lists(networks(24), max_size=3))],
    }


def model(subnet: Network, found: dict[str, Any]) -> tuple[set[str], list[str]] | None:
    """Return what may be given and the bounds; None for what cannot be."""
    every = [subnet[i] for i in range(subnet.num_addresses)]
    hosts = every if len(every) <= 2 else every[1:-1] if subnet.version == 4 else every[1:]
    start = ipaddress.ip_address(found["range_start"] or hosts[0])
    end = ipaddress.ip_address(found["range_end"] or hosts[-1])
    if {start.version, end.version} != {subnet.version} or start not in subnet or end not in subnet:
        return None
    excluded = [ipaddress.ip_network(block) for block in found["exclude"]]
    if any(block.version != subnet.version for block in excluded):
        return None
    gateway = found["gateway"] or ("none" if len(every) <= 2 else str(every[1]))
    inside = [each for each in every if start <= each <= end]
    left = {
        str(each) for each in inside if str(each) != gateway and not any(each in block for block in excluded)
    }
    return (left, [str(each) for each in inside]) if left else None


def given_by(made: Range) -> list[str]:
    return [str(IPAddress(n, made.version)) for first, last in made.spans() for n in range(first, last + 1)]


@given(keys())
def test_a_range_gives_out_what_counting_says(drawn: tuple[Network, dict[str, Any]]) -> None:
    subnet, found = drawn
    wanted = model(subnet, found)
    try:
        made = make_range(subnet=str(subnet), **found)
    except IPAMError:
        event("refused")
        assert wanted is None
        return
    assert wanted is not None
    left, inside = wanted
    everything = given_by(made)
    assert len(everything) == len(set(everything)) == made.size()
    assert set(everything) == left
    assert everything == [each for each in inside if each in left]
    for each in inside[:3] + inside[-3:]:
        address = IPAddress(each)
        assert made.contains(address)
        assert made.allocatable(address) == (each in left)


@given(st.lists(keys(), min_size=1, max_size=3), st.integers(0, 1100), st.integers(0, 40))
def test_the_round_robin_passes_every_address_once(
    drawn: list[tuple[Network, dict[str, Any]]], offset: int, band: int
) -> None:
    ranges = []
    for subnet, found in drawn:
        try:
            ranges.append(make_range(subnet=str(subnet), **found))
        except IPAMError:
            continue
    assume(ranges)
    try:
        (made,) = make_range_sets([ranges])
    except IPAMError:
        bounds = [(each.version, int(each.start), int(each.end)) for each in ranges]
        overlap = any(
            a[0] == b[0] and a[1] <= b[2] and b[1] <= a[2] for i, a in enumerate(bounds) for b in bounds[:i]
        )
        assert overlap or len({each.version for each in ranges}) > 1
        return
    plain = [each for one in ranges for each in given_by(one)]
    after = IPAddress(int(ipaddress.ip_address(BASES[made.version][0])) + offset, made.version)
    walked = [
        str(IPAddress(n, made.version))
        for _, first, last in made.spans_after(after, band)
        for n in range(first, last + 1)
    ]
    assert sorted(walked) == sorted(plain[band:])
    # From behind the address in its range, then on, and round again.
    later = [
        str(each)
        for i, one in enumerate(ranges)
        for each in map(IPAddress, given_by(one))
        if (index := next((j for j, r in enumerate(ranges) if r.contains(after)), None)) is not None
        and (i, int(each)) > (index, int(after))
        and str(each) in set(plain[band:])
    ]
    assert walked[: len(later)] == later
    assert [
        str(IPAddress(n, made.version)) for _, a, b in made.band_spans() for n in range(a, b + 1)
    ] == plain[: made.band()]
