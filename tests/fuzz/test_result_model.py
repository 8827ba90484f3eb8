"""Results in all versions: what a version has room for comes back, and only what it has not is dropped."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from cni_plugin.contract import versions
from cni_plugin.contract.errors import CNIError
from cni_plugin.contract.fields import Fields
from cni_plugin.contract.result import DNS, Interface, IPConfig, Result, Route, parse_result

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
INDEXES = st.none() | st.integers(0, 3) | st.integers(-(2**63), 2**63 - 1)
U32 = st.none() | st.integers(0, 2**32 - 1)


def addresses(version: int) -> st.SearchStrategy[IPAddress]:
    return st.integers(0, 2 ** (32 if version == 4 else 128) - 1).map(lambda n: IPAddress(n, version))


def networks(version: int) -> st.SearchStrategy[IPNetwork]:
    prefixes = st.integers(0, 32 if version == 4 else 128)
    return st.tuples(addresses(version), prefixes).map(lambda pair: IPNetwork(f"{pair[0]}/{pair[1]}"))


def of_a_family(version: int) -> tuple[st.SearchStrategy[IPConfig], st.SearchStrategy[Route]]:
    gateways = st.none() | addresses(version)
    ips = st.builds(IPConfig, address=networks(version), gateway=gateways, interface=INDEXES)
    metrics = dict.fromkeys(("mtu", "advmss", "priority", "table"), U32)
    scopes = st.none() | st.integers(0, 255)
    dsts = networks(version).map(lambda network: network.cidr)
    return ips, st.builds(Route, dst=dsts, gw=gateways, scope=scopes, **metrics)


V4, V6 = of_a_family(4), of_a_family(6)
RESULTS = st.builds(
    Result,
    interfaces=st.lists(
        st.builds(Interface, name=TEXT, mac=TEXT, sandbox=TEXT, mtu=U32, socket_path=TEXT, pci_id=TEXT),
        max_size=3,
    ).map(tuple),
    ips=st.lists(V4[0] | V6[0], max_size=4).map(tuple),
    routes=st.lists(V4[1] | V6[1], max_size=4).map(tuple),
    dns=st.builds(
        DNS,
        domain=TEXT,
        **{key: st.lists(TEXT, max_size=2).map(tuple) for key in ("nameservers", "search", "options")},
    ),
)


def wanted(result: Result, version: str) -> Result:
    """Return what is left of a result in a version, by the specification's tables."""
    if version in {"0.1.0", "0.2.0"}:
        firsts = [next((ip for ip in result.ips if ip.address.version == v), None) for v in (4, 6)]
        families = [ip.address.version for ip in firsts if ip]
        routes = [r for v in families for r in result.routes if r.dst.version == v]
        return Result(
            ips=tuple(replace(ip, interface=None) for ip in firsts if ip),
            routes=tuple(Route(dst=route.dst, gw=route.gw) for route in routes),
            dns=result.dns,
        )
    count = len(result.interfaces)
    result = replace(result, ips=tuple(_with_index(ip, count) for ip in result.ips))
    if version == "1.1.0":
        # An MTU of 0 is none.
        return replace(
            result, interfaces=tuple(replace(each, mtu=each.mtu or None) for each in result.interfaces)
        )
    return replace(
        result,
        interfaces=tuple(replace(each, mtu=None, socket_path="", pci_id="") for each in result.interfaces),
        routes=tuple(Route(dst=route.dst, gw=route.gw) for route in result.routes),
    )


def _with_index(ip: IPConfig, count: int) -> IPConfig:
    """Return an address without an index that leads to none of so many interfaces."""
    return ip if ip.interface in range(count) else replace(ip, interface=None)


@given(RESULTS, st.sampled_from(versions.SUPPORTED))
def test_a_result_comes_back_from_every_version(result: Result, version: str) -> None:
    if version in {"0.1.0", "0.2.0"} and not result.ips:
        with pytest.raises(CNIError, match="must have an address"):
            result.render(version)
        return
    text = json.dumps(result.render(version))
    assert parse_result(Fields(json.loads(text)), version) == wanted(result, version)


@given(RESULTS, RESULTS)
def test_behind_an_earlier_result_every_index_names_the_same_interface(first: Result, second: Result) -> None:
    both = second.after(first)
    assert (both.interfaces, both.routes) == (
        first.interfaces + second.interfaces,
        first.routes + second.routes,
    )
    for before, after in zip(second.ips, both.ips[len(first.ips) :], strict=True):
        if before.interface in range(len(second.interfaces)):
            assert both.interfaces[after.interface] == second.interfaces[before.interface]
    assert second.after(None) == second
