"""Ranges and range sets as tables: what is valid, what is refused and in which words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from netaddr import IPAddress

from ipam.address import parse_address, render_address
from ipam.errors import InvalidRange
from ipam.ranges import make_range, make_range_sets

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ipam.ranges import RangeSet, RangeSpan


@pytest.mark.parametrize(
    ("keys", "bounds", "gateway", "size"),
    [
        ({"subnet": "10.1.0.0/24"}, "10.1.0.1-10.1.0.254", "10.1.0.1", 253),
        ({"subnet": "10.1.0.0/16"}, "10.1.0.1-10.1.255.254", "10.1.0.1", 65533),
        ({"subnet": "10.1.0.0/30"}, "10.1.0.1-10.1.0.2", "10.1.0.1", 1),
        ({"subnet": "10.1.0.0/31"}, "10.1.0.0-10.1.0.1", None, 2),
        ({"subnet": "10.1.0.7/32"}, "10.1.0.7-10.1.0.7", None, 1),
        ({"subnet": "10.1.0.0/31", "gateway": "10.1.0.0"}, "10.1.0.0-10.1.0.1", "10.1.0.0", 1),
        ({"subnet": "fd00::/64"}, "fd00::1-fd00::ffff:ffff:ffff:ffff", "fd00::1", 2**64 - 2),
        ({"subnet": "fd00::/126"}, "fd00::1-fd00::3", "fd00::1", 2),
        ({"subnet": "fd00::/127"}, "fd00::-fd00::1", None, 2),
        ({"subnet": "fd00::9/128"}, "fd00::9-fd00::9", None, 1),
        ({"subnet": "10.1.0.0/24", "gateway": "none"}, "10.1.0.1-10.1.0.254", None, 254),
        ({"subnet": "10.1.0.0/24", "gateway": "192.0.2.1"}, "10.1.0.1-10.1.0.254", "192.0.2.1", 254),
        ({"subnet": "10.1.0.0/24", "gateway": "fe80::1"}, "10.1.0.1-10.1.0.254", "fe80::1", 254),
        ({"subnet": "10.1.0.0/24", "range_start": "10.1.0.0", "range_end": "10.1.0.255"},
         "10.1.0.0-10.1.0.255", "10.1.0.1", 255),
        ({"subnet": "10.1.0.0/24", "range_start": "::ffff:10.1.0.9"}, "10.1.0.9-10.1.0.254",
         "10.1.0.1", 246),
        ({"subnet": "10.1.0.0/24", "exclude": ["10.1.0.0/25"]}, "10.1.0.1-10.1.0.254",
         "10.1.0.1", 127),
        ({"subnet": "10.1.0.0/24", "exclude": ["10.1.0.64/26", "10.1.0.96/27", "10.0.0.0/24"]},
         "10.1.0.1-10.1.0.254", "10.1.0.1", 189),
        ({"subnet": "10.0.0.0/8", "exclude": ["10.1.0.0/16"]}, "10.0.0.1-10.255.255.254",
         "10.0.0.1", 2**24 - 3 - 2**16),
        ({"subnet": "255.255.255.0/24"}, "255.255.255.1-255.255.255.254", "255.255.255.1", 253),
        ({"subnet": "64:ff9b::/96"}, "64:ff9b::1-64:ff9b::ffff:ffff", "64:ff9b::1", 2**32 - 2),
    ],
)  # fmt: skip
def test_a_range_has_the_reference_defaults(
    keys: dict[str, Any], bounds: str, gateway: str | None, size: int
) -> None:
    made = make_range(**keys)
    assert str(made) == bounds
    assert made.gateway == (gateway and IPAddress(gateway))
    assert made.size() == size


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"subnet": "10.1.0.1/24"}, "subnet: wanted no host bits set, 10.1.0.0/24, found 10.1.0.1/24"),
        ({"subnet": "fd00::1/64"}, "subnet: wanted no host bits set, fd00::/64, found fd00::1/64"),
        *(
            ({"subnet": text}, f"subnet: wanted an address block such as 10.1.0.0/16, found {text!r}")
            for text in ("", "10.1.0.0", "10.1/16", "10.1.0.0/", "10.1.0.0/-1", "10.1.0.0/+8",
                         "10.1.0.0/016", " 10.1.0.0/16", "10.1.0.0/16\n", "010.1.0.0/16",
                         "10.1.0.0/255.255.0.0", "10.1.0.0/16/16", "fe80::%1/64", "10.1.0.0/\uff11\uff16")
        ),
        ({"subnet": "10.1.0.0/33"}, "subnet 10.1.0.0/33: wanted a valid prefix length, found /33"),
        ({"subnet": "fd00::/129"}, "subnet fd00::/129: wanted a valid prefix length, found /129"),
        ({"subnet": "::ffff:10.1.0.0/112"}, "wanted a valid prefix length, found /112"),
        ({"subnet": "10.1.0.0/24", "range_start": "10.1"},
         "range start of 10.1.0.0/24: wanted an address, found '10.1'"),
        ({"subnet": "10.1.0.0/24", "range_end": "10.1.0.07"},
         "range end of 10.1.0.0/24: wanted an address, found '10.1.0.07'"),
        ({"subnet": "10.1.0.0/24", "range_start": "fd00::1"},
         "range start of 10.1.0.0/24: wanted an IPv4 address, found fd00::1"),
        ({"subnet": "10.1.0.0/24", "range_end": "10.2.0.1"},
         "range end of 10.1.0.0/24: wanted an address of the subnet, found 10.2.0.1"),
        ({"subnet": "10.1.0.0/24", "range_start": "10.1.0.255"},
         "wanted a start that is not above the end, found 10.1.0.255-10.1.0.254"),
        ({"subnet": "10.1.0.0/24", "range_start": "10.1.0.9", "range_end": "10.1.0.8"},
         "range of 10.1.0.0/24: wanted a start that is not above the end, found 10.1.0.9-10.1.0.8"),
        ({"subnet": "10.1.0.0/24", "gateway": "router"},
         'gateway of 10.1.0.0/24: wanted an address or "none", found \'router\''),
        ({"subnet": "10.1.0.0/24", "exclude": ["fd00::/64"]},
         "excluded block of 10.1.0.0/24: wanted an IPv4 block, found fd00::/64"),
        ({"subnet": "10.1.0.0/24", "exclude": ["10.1.0.9"]}, "wanted an address block such as"),
        ({"subnet": "10.1.0.0/24", "range_end": "10.1.0.1"},
         "wanted at least one allocatable address, found all of 10.1.0.1-10.1.0.1 is gateway"),
        ({"subnet": "10.1.0.0/24", "exclude": ["10.1.0.0/24"]}, "found all of 10.1.0.1-10.1.0.254"),
        ({"subnet": "10.1.0.7/32", "gateway": "10.1.0.7"}, "(gateway 10.1.0.7)"),
    ],
)  # fmt: skip
def test_an_invalid_range_is_refused_in_words(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRange) as caught:
        make_range(**keys)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([], "ranges: wanted at least one range set, found none"),
        ([["10.1.0.0/24"], []], "range set 1: wanted ranges of one family, found none"),
        ([["10.1.0.0/24", "fd00::/64"]], "range set 0: wanted ranges of one family, found IPv4 and IPv6"),
        ([["10.1.0.0/24", "10.1.0.0/25"]],
         "range set 0: wanted no overlap, found overlap with 10.1.0.1-10.1.0.254"),
        ([["fd00::/64"], ["10.1.0.0/24"], ["10.1.0.128/25"]],
         "range set 2: wanted no overlap, found overlap with 10.1.0.1-10.1.0.254 of range set 1"),
        ([["10.0.0.0/8", "10.200.0.0/24"], ["10.1.0.0/24"]], "overlap with 10.0.0.1-10.255.255.254"),
    ],
)  # fmt: skip
def test_invalid_range_sets_are_refused_in_words(sets: list[list[str]], message: str) -> None:
    with pytest.raises(InvalidRange) as caught:
        make_range_sets([[make_range(subnet=each) for each in one] for one in sets])
    assert message in str(caught.value)


def test_disjoint_parts_of_one_subnet_are_no_overlap() -> None:
    low = make_range(subnet="10.1.0.0/24", range_end="10.1.0.99")
    high = make_range(subnet="10.1.0.0/24", range_start="10.1.0.100")
    (pool,) = make_range_sets([[low, high]])
    assert str(pool) == "10.1.0.1-10.1.0.99,10.1.0.100-10.1.0.254"
    assert (pool.version, pool.size()) == (4, 98 + 155)
    assert pool.range_of(IPAddress("10.1.0.100")) is high
    assert pool.range_of(IPAddress("10.2.0.1")) is None
    assert pool.range_of(IPAddress("fd00::1")) is None


@pytest.mark.parametrize(
    ("address", "allocatable"),
    [("10.1.0.1", False), ("10.1.0.2", True), ("10.1.0.8", False), ("10.1.0.15", False),
     ("10.1.0.16", True), ("10.1.0.0", False), ("10.1.0.255", False), ("10.2.0.2", False),
     ("fd00::2", False)],
)  # fmt: skip
def test_gateway_excluded_and_foreign_addresses_are_not_allocatable(address: str, allocatable: bool) -> None:
    made = make_range(subnet="10.1.0.0/24", exclude=["10.1.0.8/29"])
    assert made.allocatable(IPAddress(address)) is allocatable


def candidates(pool: RangeSet, after: str | None, band: int = 0) -> list[str]:
    return addresses(pool, pool.spans_after(after and IPAddress(after), band))


def addresses(pool: RangeSet, spans: Iterable[RangeSpan]) -> list[str]:
    values = [value for _, first, last in spans for value in range(first, last + 1)]
    return [render_address(IPAddress(value, pool.version)) for value in values]


@pytest.mark.parametrize(
    ("after", "order"),
    [
        (None, "10.1.0.2 10.1.0.5 10.1.0.6 10.2.0.2 10.2.0.3"),
        ("10.1.0.2", "10.1.0.5 10.1.0.6 10.2.0.2 10.2.0.3 10.1.0.2"),
        ("10.1.0.4", "10.1.0.5 10.1.0.6 10.2.0.2 10.2.0.3 10.1.0.2"),
        ("10.1.0.5", "10.1.0.6 10.2.0.2 10.2.0.3 10.1.0.2 10.1.0.5"),
        ("10.1.0.6", "10.2.0.2 10.2.0.3 10.1.0.2 10.1.0.5 10.1.0.6"),
        ("10.2.0.1", "10.2.0.2 10.2.0.3 10.1.0.2 10.1.0.5 10.1.0.6"),
        ("10.2.0.3", "10.1.0.2 10.1.0.5 10.1.0.6 10.2.0.2 10.2.0.3"),
        ("10.9.0.1", "10.1.0.2 10.1.0.5 10.1.0.6 10.2.0.2 10.2.0.3"),
        ("fd00::1", "10.1.0.2 10.1.0.5 10.1.0.6 10.2.0.2 10.2.0.3"),
    ],
)
def test_the_walk_is_round_robin_and_ends_where_it_began(after: str | None, order: str) -> None:
    first = make_range(subnet="10.1.0.0/29", exclude=["10.1.0.3/32", "10.1.0.4/32"])
    second = make_range(subnet="10.2.0.0/29", range_end="10.2.0.3")
    (pool,) = make_range_sets([[first, second]])
    assert candidates(pool, after) == order.split()


def test_an_excluded_block_of_two_to_the_63_is_one_step() -> None:
    (pool,) = make_range_sets([[make_range(subnet="fd00::/64", exclude=["fd00::/65"])]])
    (_, first, _) = next(pool.spans_after(None))
    assert IPAddress(first, 6) == IPAddress("fd00::8000:0:0:0")


@pytest.mark.parametrize(
    ("subnet", "band"),
    [("10.1.0.0/28", 0), ("10.1.0.0/27", 16), ("10.1.0.0/24", 16), ("10.1.0.0/23", 31),
     ("10.1.0.0/20", 255), ("10.1.0.0/16", 256), ("fd00::/64", 256)],
)  # fmt: skip
def test_the_band_for_requests_is_as_large_as_that_of_service_addresses(subnet: str, band: int) -> None:
    (pool,) = make_range_sets([[make_range(subnet=subnet)]])
    assert pool.band() == band


@pytest.mark.parametrize(("after", "first"), [(None, 4), ("10.1.0.4", 4), ("10.2.0.8", 9), ("10.2.0.14", 4)])
def test_a_band_is_counted_over_the_ranges_of_the_set_and_left_out(after: str | None, first: int) -> None:
    ranges = [make_range(subnet="10.1.0.0/28"), make_range(subnet="10.2.0.0/28", gateway="none")]
    (pool,) = make_range_sets([ranges])
    band = [*(f"10.1.0.{number}" for number in range(2, 15)), "10.2.0.1", "10.2.0.2", "10.2.0.3"]
    others = [f"10.2.0.{number}" for number in range(4, 15)]
    assert addresses(pool, pool.band_spans()) == band
    found = candidates(pool, after, pool.band())
    assert sorted(found) == sorted(others)
    assert found[0] == f"10.2.0.{first}"


def known(text: str) -> IPAddress:
    address = parse_address(text)
    assert address is not None
    return address


@pytest.mark.parametrize(
    "text",
    ["10.1.0.1", "::", "::1", "::ffff", "::1:0", "::102:304", "fd00::2", "fd00:0:0:1::", "1:0:0:2::3",
     "fd00::1:0:0:1", "64:ff9b::102:304", "1:2:3:4:5:6:7:8", "1:0:3:4:5:6:7:8"],
)  # fmt: skip
def test_an_address_is_printed_as_go_prints_it(text: str) -> None:
    assert render_address(known(text)) == text


@pytest.mark.parametrize(
    ("text", "canonical"),
    [("::ffff:10.1.0.1", "10.1.0.1"), ("FD00::A", "fd00::a"), ("::1.2.3.4", "::102:304")],
)
def test_other_spellings_are_read_as_go_reads_them(text: str, canonical: str) -> None:
    assert render_address(known(text)) == canonical


@pytest.mark.parametrize(
    "text", ["", "10.1", "1", "010.1.0.1", "10.1.0.1 ", "10.1.0.1\n", "fe80::1%lo", "10.1.0.1/24",
             "0x0a010001", "10.1.0.256", "a\0b", "\udcff", "lock", "::ffff:10.1"],
)  # fmt: skip
def test_anything_else_is_no_address(text: str) -> None:
    assert parse_address(text) is None
