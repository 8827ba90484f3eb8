"""Results: their shape in every version, conversions, and chaining."""

from __future__ import annotations

from typing import Any

import pytest
from netaddr import IPAddress, IPNetwork

from cni_plugin.contract.errors import CNIError
from cni_plugin.contract.fields import Fields
from cni_plugin.contract.result import DNS, Interface, IPConfig, Result, Route, parse_result
from cni_plugin.contract.versions import SUPPORTED

WHOLE = Result(
    interfaces=(
        Interface(name="cni0", mac="02:00:00:00:00:01", mtu=1500),
        Interface(name="eth0", sandbox="/run/netns/x", mtu=1400, socket_path="/run/s", pci_id="0000:00:1f.6"),
    ),
    ips=(
        IPConfig(address=IPNetwork("10.1.0.5/16"), gateway=IPAddress("10.1.0.1"), interface=1),
        IPConfig(address=IPNetwork("10.2.0.5/16"), interface=0),
        IPConfig(address=IPNetwork("fd00::5/64"), gateway=IPAddress("fd00::1"), interface=1),
    ),
    routes=(
        Route(dst=IPNetwork("fd01::/48"), table=0, scope=0),
        Route(dst=IPNetwork("0.0.0.0/0"), gw=IPAddress("10.1.0.1"), mtu=1400, advmss=1360, priority=5),
    ),
    dns=DNS(nameservers=("192.0.2.1",), domain="a.test", search=("b.test",), options=("ndots:5",)),
)
SAID_DNS = {"nameservers": ["192.0.2.1"], "domain": "a.test", "search": ["b.test"], "options": ["ndots:5"]}
NEWEST = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "cni0", "mac": "02:00:00:00:00:01", "mtu": 1500},
        {
            "name": "eth0",
            "sandbox": "/run/netns/x",
            "mtu": 1400,
            "socketPath": "/run/s",
            "pciID": "0000:00:1f.6",
        },
    ],
    "ips": [
        {"interface": 1, "address": "10.1.0.5/16", "gateway": "10.1.0.1"},
        {"interface": 0, "address": "10.2.0.5/16"},
        {"interface": 1, "address": "fd00::5/64", "gateway": "fd00::1"},
    ],
    "routes": [
        {"dst": "fd01::/48", "table": 0, "scope": 0},
        {"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400, "advmss": 1360, "priority": 5},
    ],
    "dns": SAID_DNS,
}
SINCE_1_0_0 = {
    "cniVersion": "1.0.0",
    "interfaces": [
        {"name": "cni0", "mac": "02:00:00:00:00:01"},
        {"name": "eth0", "sandbox": "/run/netns/x"},
    ],
    "ips": NEWEST["ips"],
    "routes": [{"dst": "fd01::/48"}, {"dst": "0.0.0.0/0", "gw": "10.1.0.1"}],
    "dns": SAID_DNS,
}
WITH_FAMILIES = SINCE_1_0_0 | {
    "ips": [ip | {"version": version} for ip, version in zip(NEWEST["ips"], "446", strict=True)]
}
OLDEST = {
    "ip4": {
        "ip": "10.1.0.5/16",
        "gateway": "10.1.0.1",
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}],
    },
    "ip6": {"ip": "fd00::5/64", "gateway": "fd00::1", "routes": [{"dst": "fd01::/48"}]},
    "dns": SAID_DNS,
}
SHAPES = {"0.1.0": OLDEST, "0.2.0": OLDEST, "1.0.0": SINCE_1_0_0, "1.1.0": NEWEST}


def parsed(raw: dict[str, Any], version: str = "1.1.0") -> Result:
    return parse_result(Fields(raw, "prevResult"), version)


@pytest.mark.parametrize("version", SUPPORTED)
def test_a_result_is_said_in_the_shape_of_the_version(version: str) -> None:
    shape = SHAPES.get(version, WITH_FAMILIES)
    assert WHOLE.render(version) == shape | {"cniVersion": version}


@pytest.mark.parametrize("version", SUPPORTED)
def test_what_a_version_can_say_survives_parsing_and_rendering(version: str) -> None:
    said = WHOLE.render(version)
    assert parsed(said, version).render(version) == said


def test_the_newest_version_says_everything() -> None:
    assert parsed(NEWEST) == WHOLE


@pytest.mark.parametrize("version", SUPPORTED)
def test_an_empty_result_says_nothing_but_its_version(version: str) -> None:
    if version in {"0.1.0", "0.2.0"}:
        with pytest.raises(CNIError, match="must have an address"):
            Result().render(version)
    elif version in {"1.0.0", "1.1.0"}:
        assert Result().render(version) == {"cniVersion": version}
    else:
        assert Result().render(version) == {"cniVersion": version, "dns": {}}


def test_an_oldest_result_becomes_addresses_without_index_and_routes_v4_first() -> None:
    result = parsed({"ip6": OLDEST["ip6"], "ip4": OLDEST["ip4"]}, "0.2.0")
    assert [(str(ip.address), ip.interface) for ip in result.ips] == [
        ("10.1.0.5/16", None),
        ("fd00::5/64", None),
    ]
    assert [str(route.dst) for route in result.routes] == ["0.0.0.0/0", "fd01::/48"]


def test_the_text_of_0_3_0_calls_the_list_ip_and_everybody_ips() -> None:
    ip = [{"version": "4", "address": "10.1.0.5/16"}]
    for key in ("ip", "ips"):
        assert [str(each.address) for each in parsed({key: ip}, "0.3.0").ips] == ["10.1.0.5/16"]
    assert parsed({"ip": ip}, "0.3.1").ips == ()


@pytest.mark.parametrize("config", SUPPORTED)
@pytest.mark.parametrize("version", SUPPORTED)
def test_a_result_is_read_in_its_own_version_and_said_in_the_configurations(
    config: str, version: str
) -> None:
    addresses = [ip.address for ip in parsed(WHOLE.render(version), config).ips]
    assert addresses == [ip.address for ip in parsed(WHOLE.render(version), version).ips]
    assert parsed(WHOLE.render(version), config).render(config)["cniVersion"] == config


def test_a_result_of_an_unknown_version_is_refused() -> None:
    with pytest.raises(CNIError) as caught:
        parsed({"cniVersion": "0.9.0"})
    assert caught.value.code == 1


WRONG = [
    ({"ips": [{"address": "10.1.0.5"}]}, "prevResult.ips[0].address"),
    ({"ips": [{"address": "10.1.0.5/33"}]}, "prevResult.ips[0].address"),
    ({"ips": [{"address": "10.01.0.5/8"}]}, "prevResult.ips[0].address"),
    ({"ips": [{"address": "10.1/16"}]}, "prevResult.ips[0].address"),
    ({"ips": [{"address": "10.1.0.5/٣"}]}, "prevResult.ips[0].address"),
    ({"ips": [{}]}, "prevResult.ips[0].address"),
    ({"ips": [{"address": "10.1.0.5/16", "gateway": "x"}]}, "prevResult.ips[0].gateway"),
    ({"ips": [{"address": "10.1.0.5/16", "interface": "0"}]}, "prevResult.ips[0].interface"),
    ({"interfaces": ["eth0"]}, "prevResult.interfaces[0]"),
    ({"routes": [{"dst": "10.0.0.0/8", "gw": "fd00::1"}]}, "prevResult.routes[0]"),
    ({"routes": [{"dst": "10.0.0.0/8", "scope": 256}]}, "prevResult.routes[0].scope"),
    ({"dns": {"search": "a.test"}}, "prevResult.dns.search"),
]


@pytest.mark.parametrize(("raw", "key"), WRONG)
def test_a_result_that_cannot_be_read_is_code_7_that_names_the_place(raw: dict[str, Any], key: str) -> None:
    with pytest.raises(CNIError) as caught:
        parsed(raw)
    assert (caught.value.code, f'"{key}"' in caught.value.msg) == (7, True), caught.value.msg


@pytest.mark.parametrize("index", [-1, 2, 2**32, -(2**63)])
def test_an_index_that_leads_to_no_interface_is_as_if_it_were_not_there(index: int) -> None:
    raw = NEWEST | {"ips": [{"address": "10.1.0.5/16", "interface": index}]}
    assert parsed(raw).ips == (IPConfig(address=IPNetwork("10.1.0.5/16")),)


def test_an_ipv4_mapped_address_is_ipv4() -> None:
    assert str(parsed({"ips": [{"address": "::ffff:10.1.0.5/24"}]}).ips[0].address) == "10.1.0.5/24"


def test_a_later_plugins_result_stands_behind_the_earlier_one_with_its_indexes_moved() -> None:
    earlier = Result(
        interfaces=(Interface(name="tap0"),),
        ips=(IPConfig(address=IPNetwork("192.0.2.5/24"), interface=0),),
        routes=(Route(dst=IPNetwork("198.51.100.0/24")),),
        dns=DNS(domain="earlier.test"),
    )
    chained = WHOLE.after(earlier)
    assert [each.name for each in chained.interfaces] == ["tap0", "cni0", "eth0"]
    assert [ip.interface for ip in chained.ips] == [0, 2, 1, 2]
    assert chained.routes == earlier.routes + WHOLE.routes
    assert chained.dns == WHOLE.dns
    assert Result().after(earlier) == earlier
    assert WHOLE.after(None) is WHOLE
    assert Result(ips=(IPConfig(address=IPNetwork("10.1.0.5/16")),)).after(earlier).ips[1].interface is None
