"""The IPAM type `static`: addresses that the configuration names.

Nothing is reserved anywhere, so there is nothing to release. Sources in the reference's order:
`ipam.addresses`, behind them `IP` of CNI_ARGS; `args.cni.ips` replaces all of these, and
`runtimeConfig.ips` whatever was there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_plugin.config.network import KNOWN_ARGS, Addressing
from cni_plugin.contract import versions
from cni_plugin.contract.errors import broken, invalid_config
from cni_plugin.contract.fields import Fields
from cni_plugin.contract.inet import parse_cidr, parse_ip
from cni_plugin.contract.request import parse_args
from cni_plugin.contract.result import IPConfig, Result, parse_dns, parse_routes

if TYPE_CHECKING:
    from cni_plugin.contract.request import Request


def plan(request: Request) -> Result:
    """Return the addresses, routes and resolver settings as configured; CNIError 4 or 7."""
    section = _section(request)
    return Result(ips=parse_addresses(request), routes=parse_routes(section), dns=parse_dns(section))


def allocate(plan: Result, netns_mark: str = "") -> Result:  # noqa: ARG001 - nothing is reserved
    """Return what is configured."""
    return plan


def _section(request: Request) -> Fields:
    return request.config.section("ipam") or Fields({}, "ipam")


def parse_addresses(request: Request) -> tuple[IPConfig, ...]:
    """Return the addresses of the source that counts."""
    cni = (request.config.section("args") or Fields({})).section("cni")
    runtime = request.config.section("runtimeConfig")
    sources = (
        (*_parse_configured(_section(request)), *_parse_asked(request)),
        _parse_listed(cni),
        _parse_listed(runtime),
    )
    ips = next((source for source in reversed(sources) if source), ())
    _refuse_many_per_family(ips, request.cni_version)
    return ips


def _parse_configured(section: Fields) -> tuple[IPConfig, ...]:
    return tuple(_parse_address(member) for member in section.objects("addresses"))


def _parse_address(member: Fields) -> IPConfig:
    gateway = member.string("gateway")
    return IPConfig(
        address=parse_cidr(member.string("address"), f'"{member.name("address")}"'),
        gateway=parse_ip(gateway, f'"{member.name("gateway")}"') if gateway else None,
    )


def _parse_asked(request: Request) -> tuple[IPConfig, ...]:
    """Return the addresses of CNI_ARGS, each with the first gateway that is in its network."""
    args = parse_args(request, KNOWN_ARGS)
    texts = {key: [text for text in args.get(key, "").split(",") if text] for key in ("IP", "GATEWAY")}
    addresses = [parse_cidr(text, "CNI_ARGS IP") for text in texts["IP"]]
    gateways = [parse_ip(text, "CNI_ARGS GATEWAY") for text in texts["GATEWAY"]]
    return tuple(
        IPConfig(address=address, gateway=next((g for g in gateways if g in address), None))
        for address in addresses
    )


def _parse_listed(fields: Fields | None) -> tuple[IPConfig, ...]:
    if fields is None:
        return ()
    what = f'"{fields.name("ips")}"'
    return tuple(IPConfig(address=parse_cidr(text, what)) for text in fields.strings("ips"))


def _refuse_many_per_family(ips: tuple[IPConfig, ...], version: str) -> None:
    families = [ip.address.version for ip in ips]
    if len(set(families)) < len(families) and not versions.at_least(version, "0.3.0"):
        raise invalid_config(
            f'"ipam.addresses": a result of version {version} has one address per family, found {families}'
        )


def check(plan: Result, previous: Result) -> None:
    """Raise CNIError 100 for the first address that prevResult does not have.

    Where the plugin that was given it narrowed the prefix, the next hop is that plugin's own too.
    """
    for wanted in plan.ips:
        found = next((ip for ip in previous.ips if ip.address.ip == wanted.address.ip), None)
        if found is None:
            present = [str(ip.address) for ip in previous.ips]
            raise broken(f'"prevResult.ips": wanted {wanted.address}, found {present}')
        if wanted.gateway and found.address == wanted.address and found.gateway != wanted.gateway:
            raise broken(
                f'"prevResult.ips" {wanted.address}: wanted gateway {wanted.gateway}, found {found.gateway}'
            )


def release(request: object) -> None:
    """Do nothing: nobody holds an address."""
    del request


def rebuild(plan: Result, living: object, netns_mark: str) -> None:
    """Do nothing: there is no record that could be gone."""
    del plan, living, netns_mark


collect = status = release


def addressing(plan: Result) -> Addressing:
    """Return the families of the addresses; CNIError 7 when there are none."""
    if not plan.ips:
        raise invalid_config('"ipam.addresses": wanted at least one address, found none')
    return Addressing(stated_families=frozenset(ip.address.version for ip in plan.ips))
