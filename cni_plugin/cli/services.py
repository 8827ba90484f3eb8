"""`podwire services`: what leads where, whether the kernel holds it, and what a client would meet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_plugin.cli.cluster import add_flags, find_name, require_client
from cni_plugin.cli.console import table, write
from cni_plugin.contract.errors import CNIError, Code, invalid_config

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from cni_plugin.dataplane.services.look import ServicesSeen
    from cni_plugin.dataplane.services.plan import Frontend, FrontendPlan

_EXPLAIN = "explain"


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "services",
        help="Services of this node, where podwire serves them",
        description="All Services; one of them; or what a client meets: "
        "podwire services explain FROM ADDRESS:PORT[/PROTOCOL], "
        "FROM being an address or one of pod, node, elsewhere, outside.",
    )
    parser.add_argument("words", nargs="*", metavar="NAMESPACE/NAME | explain FROM ADDRESS:PORT")
    add_flags(parser)
    parser.set_defaults(run=_run, needs_root=True)


def _run(arguments: argparse.Namespace) -> int:
    words = arguments.words
    if words[:1] == [_EXPLAIN]:
        if len(words) != 3:
            raise invalid_config(f"wanted explain FROM ADDRESS:PORT[/PROTOCOL], found {' '.join(words)}")
        write(*_explain(_look(arguments), words[1], words[2]))
        return 0
    if len(words) > 1:
        raise invalid_config(f"wanted one Service, found {' '.join(words)}")
    seen = _look(arguments)
    if words:
        write(*_describe(seen, words[0]))
        return 0
    rows = [_row(seen, frontend, plan) for frontend, plan in _sorted(seen.model.plans())]
    write(*table(("SERVICE", "FRONTEND", "ENDPOINTS", "WITHOUT", "KEPT", "IN THE KERNEL"), rows))
    write(*(f"wrong: {problem}" for problem in seen.model.problems()))
    return 0 if all(row[-1] == "yes" for row in rows) else 1


def _look(arguments: argparse.Namespace) -> ServicesSeen:
    require_client()
    from cni_plugin.cluster.api import API, Access, APIError
    from cni_plugin.cluster.settings import read_settings
    from cni_plugin.dataplane.services.look import look

    access = Access(
        kubeconfig=arguments.kubeconfig, server=arguments.api_server, account=arguments.service_account
    )
    try:
        return look(API(access), find_name(arguments.node_name), read_settings(arguments.settings))
    except APIError as error:
        raise CNIError(Code.NOT_AVAILABLE, str(error)) from error


def _sorted(plans: dict[Frontend, FrontendPlan]) -> list[tuple[Frontend, FrontendPlan]]:
    return sorted(plans.items(), key=lambda item: (item[1].name, item[0].version, item[0]))


def _row(seen: ServicesSeen, frontend: Frontend, plan: FrontendPlan) -> tuple[str, ...]:
    from cni_plugin.dataplane.services.desired import describe

    count = f"{len(plan.endpoints)}"
    if plan.inside is not None:
        count += f" ({len(plan.inside)} from inside)"
    kept = f"{plan.keep} s" if plan.keep else "-"
    without = "-" if plan.endpoints else plan.refusal.value
    return plan.name, describe(frontend), count, without, kept, seen.judge(frontend, plan)


def _describe(seen: ServicesSeen, key: str) -> Iterable[str]:
    from cni_plugin.dataplane.services.explain import explain_endpoints, show_endpoint

    if key not in seen.model.services:
        raise invalid_config(f"wanted a Service that podwire serves, found none of the name {key}")
    plans = _sorted(seen.model.plans_of(key))
    if not plans:
        yield f"{key} has no address that a node serves"
        return
    for frontend, plan in plans:
        owner = seen.model.owner(frontend)
        name, shown, count, without, kept, held = _row(seen, frontend, plan)
        yield f"{shown} of {name}: {count} endpoints, kept {kept}, in the kernel: {held}"
        if owner != key:
            yield f"  it is service {owner}'s, which is older"
        if plan.endpoints:
            yield f"  {' '.join(map(show_endpoint, plan.endpoints))}"
        else:
            yield f"  none is usable: {without}"
    yield from _explain_lacks(seen, key)
    yield "endpoints:"
    yield from (f"  {line}" for line in explain_endpoints(seen.model.slices_of(key)))


def _explain_lacks(seen: ServicesSeen, key: str) -> Iterable[str]:
    """Yield why ports of a Service have no endpoint that this node may use."""
    from cni_plugin.dataplane.services.explain import explain_lack

    service, slices = seen.model.services[key], seen.model.slices_of(key)
    for port in service.ports:
        for version in sorted({4 if len(each) == 4 else 6 for each in service.cluster_addresses}):
            for why in explain_lack(service, port, version, slices, seen.model.place.here):
                yield f"port {port.name or port.port}, IPv{version}: {why}"


def _explain(seen: ServicesSeen, who: str, where: str) -> Iterable[str]:
    from cni_plugin.dataplane.services.explain import explain, parse_client, parse_frontend

    frontend = parse_frontend(where)
    client = parse_client(who, frontend, seen.around)
    return explain(seen.model.plans(), seen.around, client, frontend).render()
