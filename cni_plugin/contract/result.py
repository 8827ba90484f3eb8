"""The result of an ADD as one type, and its JSON in every version of the specification.

Inside there is one `Result`; `parse_result` and `Result.render` are the edge. Shapes and
conversions: https://www.cni.dev/docs/spec/#add-success of each version. What a version has
no field for is dropped when rendering, except addresses: a result of 0.1.0 or 0.2.0 without
an address cannot be said and is an error.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cni_plugin.contract import versions
from cni_plugin.contract.errors import CNIError, Code, invalid_config
from cni_plugin.contract.inet import parse_cidr, parse_ip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netaddr import IPAddress, IPNetwork

    from cni_plugin.contract.fields import Fields

MAX_MTU = 0xFFFFFFFF
_U32 = 0xFFFFFFFF
_I64 = -(1 << 63), (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """An interface that a plugin made; `sandbox` is empty on the host. `mtu` in bytes."""

    name: str
    mac: str = ""
    sandbox: str = ""
    mtu: int | None = None
    socket_path: str = ""
    pci_id: str = ""

    def render(self, version: str) -> dict[str, object]:
        """Return the object of the specification's `interfaces` list."""
        newer: dict[str, object] = {"mtu": self.mtu, "socketPath": self.socket_path, "pciID": self.pci_id}
        rendered: dict[str, object] = {"name": self.name, "mac": self.mac, "sandbox": self.sandbox}
        return _without_empty(rendered | (newer if versions.at_least(version, "1.1.0") else {}))


@dataclass(frozen=True, slots=True, kw_only=True)
class IPConfig:
    """An address with its prefix length; `interface` is an index into the interfaces."""

    address: IPNetwork
    gateway: IPAddress | None = None
    interface: int | None = None
    network: IPNetwork | None = None
    """What it was given in, where a mode has made it a single address; no result says it."""

    def render(self, version: str) -> dict[str, object]:
        """Return the object of the specification's `ips` list."""
        rendered: dict[str, object] = {}
        if not versions.at_least(version, "1.0.0"):
            rendered["version"] = str(self.address.version)
        if self.interface is not None:
            rendered["interface"] = self.interface
        rendered["address"] = str(self.address)
        if self.gateway is not None:
            rendered["gateway"] = str(self.gateway)
        return rendered


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route of the pod. `mtu` and `advmss` in bytes, `scope` as the kernel numbers it."""

    dst: IPNetwork
    gw: IPAddress | None = None
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None

    def render(self, version: str) -> dict[str, object]:
        """Return the object of the specification's `routes` list."""
        rendered: dict[str, object] = {"dst": str(self.dst)}
        if self.gw is not None:
            rendered["gw"] = str(self.gw)
        if versions.at_least(version, "1.1.0"):
            newer = ("mtu", "advmss", "priority", "table", "scope")
            rendered |= {key: getattr(self, key) for key in newer if getattr(self, key) is not None}
        return rendered


@dataclass(frozen=True, slots=True, kw_only=True)
class DNS:
    """What a pod's resolver should use; empty fields are not said."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Tell whether anything is set."""
        return bool(self.nameservers or self.domain or self.search or self.options)

    def render(self) -> dict[str, object]:
        """Return the specification's `dns` object."""
        rendered: dict[str, object] = {"nameservers": list(self.nameservers), "domain": self.domain}
        return _without_empty(rendered | {"search": list(self.search), "options": list(self.options)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What an ADD made: interfaces, addresses, routes and resolver settings."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IPConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: DNS = field(default_factory=DNS)

    def addresses_on(self, ifname: str) -> list[IPConfig]:
        """Return the addresses on the pod's interface of that name, and those on none in particular."""
        return [ip for ip in self.ips if self._is_on(ip, ifname)]

    def _is_on(self, ip: IPConfig, ifname: str) -> bool:
        if ip.interface is None:
            return True
        owner = self.interfaces[ip.interface]
        return bool(owner.sandbox) and owner.name == ifname

    def render(self, version: str) -> dict[str, object]:
        """Return the result in the shape of `version`."""
        if version in versions.family("0.2.0"):
            return self._render_oldest(version)
        rendered: dict[str, object] = {
            "cniVersion": version,
            "interfaces": [interface.render(version) for interface in self.interfaces],
            "ips": [ip.render(version) for ip in self.ips],
            "routes": [route.render(version) for route in self.routes],
        }
        rendered = {key: value for key, value in rendered.items() if value}
        if self.dns or not versions.at_least(version, "1.0.0"):
            rendered["dns"] = self.dns.render()
        return rendered

    def _render_oldest(self, version: str) -> dict[str, object]:
        if not self.ips:
            raise CNIError(
                Code.INCOMPATIBLE_VERSION,
                f"a result of version {version} must have an address and this attachment has none: "
                'set "cniVersion" to 0.3.0 or newer',
            )
        rendered: dict[str, object] = {"cniVersion": version}
        for key, family in (("ip4", 4), ("ip6", 6)):
            ip = next((ip for ip in self.ips if ip.address.version == family), None)
            if ip:
                routes = [route.render(version) for route in self.routes if route.dst.version == family]
                gateway = {"gateway": str(ip.gateway)} if ip.gateway is not None else {}
                rendered[key] = {"ip": str(ip.address)} | gateway | ({"routes": routes} if routes else {})
        return rendered | {"dns": self.dns.render()}

    def after(self, previous: Result | None) -> Result:
        """Return this result behind what earlier plugins of a chain made, indexes moved along.

        Resolver settings of ours win when there are any: the later plugin was told last.
        """
        if previous is None:
            return self
        offset = len(previous.interfaces)
        moved = tuple(
            ip if ip.interface is None else replace(ip, interface=ip.interface + offset) for ip in self.ips
        )
        return Result(
            interfaces=previous.interfaces + self.interfaces,
            ips=previous.ips + moved,
            routes=previous.routes + self.routes,
            dns=self.dns or previous.dns,
        )


def _without_empty(rendered: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in rendered.items() if value}


def parse_result(fields: Fields, config_version: str) -> Result:
    """Return the result that `fields` hold, or raise CNIError 1 or 7.

    Its own `cniVersion` says how to read it: a plugin may answer in an older or newer one than the
    configuration's, which is that of a result without a version.
    """
    version = fields.string("cniVersion") or config_version
    if version not in versions.SUPPORTED:
        raise CNIError(
            Code.INCOMPATIBLE_VERSION,
            f'"{fields.path}": wanted "cniVersion" of {list(versions.SUPPORTED)}, found "{version}"',
        )
    if version in versions.family("0.2.0"):
        return _parse_oldest(fields)
    # The text of 0.3.0 calls the list "ip"; everybody has always written "ips".
    ips = "ip" if version == "0.3.0" and fields.value("ips") is None else "ips"
    interfaces = tuple(_parse_interface(member) for member in fields.objects("interfaces"))
    return Result(
        interfaces=interfaces,
        ips=tuple(_parse_ip_config(member, "address", len(interfaces)) for member in fields.objects(ips)),
        routes=parse_routes(fields),
        dns=parse_dns(fields),
    )


def parse_prev_result(config: Fields, version: str) -> Result | None:
    """Return the configuration's `prevResult`; None when there is none."""
    previous = config.section("prevResult")
    return None if previous is None else parse_result(previous, version)


def require_prev_result(config: Fields, version: str) -> Result:
    """Return the `prevResult` of a CHECK; CNIError 7 when there is none."""
    previous = parse_prev_result(config, version)
    if previous is None:
        raise invalid_config('"prevResult": wanted the result of the ADD, found none')
    return previous


def _parse_oldest(fields: Fields) -> Result:
    families = [member for member in (fields.section("ip4"), fields.section("ip6")) if member]
    return Result(
        ips=tuple(_parse_ip_config(member, "ip", 0) for member in families),
        routes=tuple(route for member in families for route in parse_routes(member)),
        dns=parse_dns(fields),
    )


def _parse_interface(member: Fields) -> Interface:
    return Interface(
        name=member.string("name"),
        mac=member.string("mac"),
        sandbox=member.string("sandbox"),
        mtu=member.integer("mtu", 0, MAX_MTU),
        socket_path=member.string("socketPath"),
        pci_id=member.string("pciID"),
    )


def _parse_ip_config(member: Fields, key: str, interfaces: int) -> IPConfig:
    """Return an address; an index that leads to none of so many interfaces is as if it were not there.

    The specification knows no such index, and the Go plugins pass over it.
    """
    gateway = member.string("gateway")
    index = member.integer("interface", *_I64)
    return IPConfig(
        address=parse_cidr(member.string(key), f'"{member.name(key)}"'),
        gateway=parse_ip(gateway, f'"{member.name("gateway")}"') if gateway else None,
        interface=index if index in range(interfaces) else None,
    )


def parse_routes(fields: Fields) -> tuple[Route, ...]:
    """Return the list under `routes`."""
    return tuple(_parse_route(member) for member in fields.objects("routes"))


def _parse_route(member: Fields) -> Route:
    gw = member.string("gw")
    dst = parse_cidr(member.string("dst"), f'"{member.name("dst")}"').cidr
    route = Route(
        dst=dst,
        gw=parse_ip(gw, f'"{member.name("gw")}"') if gw else None,
        **dict(_parse_metrics(member)),
    )
    if route.gw is not None and route.gw.version != dst.version:
        raise invalid_config(f'"{member.path}": "dst" {dst} and "gw" {gw} must be of one family')
    return route


def _parse_metrics(member: Fields) -> Iterator[tuple[str, int]]:
    for key, high in (("mtu", _U32), ("advmss", _U32), ("priority", _U32), ("table", _U32), ("scope", 255)):
        value = member.integer(key, 0, high)
        if value is not None:
            yield key, value


def parse_dns(fields: Fields) -> DNS:
    """Return the object under `dns`."""
    dns = fields.section("dns")
    if dns is None:
        return DNS()
    return DNS(
        nameservers=tuple(dns.strings("nameservers")),
        domain=dns.string("domain"),
        search=tuple(dns.strings("search")),
        options=tuple(dns.strings("options")),
    )
