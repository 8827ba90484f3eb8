"""The verbs of a plugin that is one feature in a chain: bandwidth, tuning, firewall, portmap.

Every ADD and CHECK has their result, which goes on to the next with this feature's part in it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.config.network import Addressing, parse_network
from cni_plugin.contract.dispatch import Plugin
from cni_plugin.contract.errors import invalid_config, run_all
from cni_plugin.features.attachment import (
    collect_elements,
    collect_feature,
    delete_feature,
    delete_input,
    open_pod_of,
    parse_kept,
    site_of,
)
from cni_plugin.kernel.netns import open_host
from cni_plugin.plugins.delete_target import open_site
from ipam.seam.undo import Undo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.config.network import Network
    from cni_plugin.contract.request import Request
    from cni_plugin.contract.result import Result
    from cni_plugin.features.damage import Damage
    from cni_plugin.features.feature import Feature
    from cni_plugin.kernel.netns import Namespace


def chained(feature: Feature) -> Plugin:
    """Return the plugin that is this feature alone."""
    return Plugin(
        add=partial(_add, feature),
        delete=partial(_delete, feature),
        check=partial(_check, feature),
        gc=partial(_gc, feature),
        status=partial(_status, feature),
    )


def _add(feature: Feature, request: Request) -> Result:
    network, previous = _parse(feature, request)
    settings = feature.parse(request.config, network, Addressing())
    with open_host() as host, open_pod_of(network.attachment) as pod, Undo() as undo:
        if settings is not None:
            feature.ensure(settings, host)
            previous = feature.add(settings, site_of(network, host, pod), previous, undo)
        undo.pop_all()
    return previous


def _parse(feature: Feature, request: Request) -> tuple[Network, Result]:
    network = parse_network(request, takes_args=feature.takes_args)
    if network.prev_result is None:
        raise invalid_config('"prevResult": wanted the result of the plugins before this one, found none')
    return network, network.prev_result


def _delete(feature: Feature, request: Request) -> None:
    with open_site(request) as site:
        delete_feature(feature, request, delete_input(request), site)


def _check(feature: Feature, request: Request) -> None:
    from cni_plugin.features.damage import refuse

    network, previous = _parse(feature, request)
    settings = feature.parse(request.config, network, Addressing())
    with open_host() as host, open_pod_of(network.attachment) as pod:
        if settings is not None:
            refuse(feature.compare(settings, site_of(network, host, pod), previous))


def compare(feature: Feature, request: Request, host: Namespace) -> Iterator[Damage]:
    """Yield what the node does not hold of it for an attachment whose ADD and result `request` is."""
    network, previous = _parse(feature, request)
    settings = feature.parse(request.config, network, Addressing())
    if settings is not None:
        yield from feature.compare(settings, site_of(network, host, None), previous)


def _gc(feature: Feature, request: Request) -> None:
    keep = parse_kept(request)
    if keep is None:
        return
    with open_host() as host:
        run_all(
            partial(collect_feature, feature, request, host, keep),
            partial(collect_elements, [feature], request, host, keep),
        )


def _status(feature: Feature, request: Request) -> None:
    network = parse_network(request, takes_args=feature.takes_args)
    settings = feature.parse(request.config, network, Addressing())
    if settings is not None:
        with open_host() as host:
            feature.ready(settings, host)
