"""Runs the features of one attachment: which are asked for, and what each verb gives them.

Shared by the main plugin, which has features built in, and by those that are a feature alone.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.config.network import LINK_DIGITS, Attachment, data_dir, parse_attachment, render_comment
from cni_plugin.contract.errors import CNIError, run_all
from cni_plugin.contract.request import parse_valid_attachments
from cni_plugin.contract.result import parse_prev_result
from cni_plugin.features import FEATURES
from cni_plugin.features.elements import collect
from cni_plugin.features.feature import DeleteInput, Site
from cni_plugin.kernel.netns import open_pod

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator

    from cni_plugin.config.network import Addressing, Network
    from cni_plugin.contract.fields import Fields
    from cni_plugin.contract.request import Request
    from cni_plugin.features import BuiltIn
    from cni_plugin.features.feature import Feature, OwnedObject, Recalled, Settings
    from cni_plugin.kernel.netns import Namespace


def plan_features(fields: Fields, network: Network, addressing: Addressing) -> list[tuple[Feature, Settings]]:
    """Return the built-in features that the configuration asks for, with their settings."""
    asked = [each.load() for each in FEATURES.values() if _is_asked_for(each, fields)]
    parsed = [(feature, feature.parse(fields, network, addressing)) for feature in asked]
    return [(feature, settings) for feature, settings in parsed if settings is not None]


def _is_asked_for(built_in: BuiltIn, fields: Fields) -> bool:
    """Tell whether a key of the feature is there at all: without one its module is not even imported."""
    runtime = fields.section("runtimeConfig")
    if any(fields.value(key) is not None for key in built_in.keys):
        return True
    return runtime is not None and any(runtime.value(key) is not None for key in built_in.capabilities)


def open_pod_of(attachment: Attachment) -> Namespace:
    """Return the attachment's namespace; CNIError 4 when it is none, 8 when it is the host's own."""
    return open_pod(attachment.netns, opened=attachment.netns_fd, allow_host=attachment.allow_host_netns)


def site_of(network: Network, host: Namespace, pod: Namespace | None) -> Site:
    """Return where the features of an ADD or CHECK work; a comparison needs no pod."""
    return Site(
        attachment=network.attachment,
        host=host,
        netns=pod,
        is_own=_certain,
        label=render_comment(network.attachment, network.pod),
        state_dir=network.state_dir,
    )


def _certain() -> bool:
    return True


def _unproven() -> bool:
    return False


def delete_features(request: Request, site: Site, *, precedes_link: bool) -> Iterator[Callable[[], object]]:
    """Yield the deletion of the built-in features before the pod's link goes, or of those after it.

    Of all of them, whatever the configuration says by now, but for those that made nothing but links: see
    `list_pod_links`.
    """
    given = delete_input(request)
    for feature in load_makers():
        if feature.precedes_link is precedes_link and not feature.links(site.attachment):
            yield partial(delete_feature, feature, request, given, site)


def load_makers() -> Iterator[Feature]:
    """Yield the features that make something for a pod."""
    return (each.load() for each in FEATURES.values() if not each.shared_only)


def delete_feature(feature: Feature, request: Request, given: DeleteInput, site: Site) -> None:
    """Remove what the feature made for the attachment."""
    feature.delete(replace(given, recalled=_recall(feature, request)), site)


def _recall(feature: Feature, request: Request) -> Recalled:
    with suppress(CNIError):
        return feature.recall(request.config) if feature.recall else None
    return None


def list_pod_links(attachment: Attachment) -> list[str]:
    """Return the names of the links that the built-in features may have made beside the pod's veth."""
    return [name for feature in load_makers() for name in feature.links(attachment)]


def delete_input(request: Request) -> DeleteInput:
    """Return what the configuration and the ADD's result tell, where they can be read."""
    previous = None
    with suppress(CNIError):
        previous = parse_prev_result(request.config, request.cni_version)
    addresses = tuple(ip.address.ip for ip in previous.ips) if previous and previous.ips else None
    interfaces = previous.interfaces if previous else ()
    return DeleteInput(addresses=addresses, interfaces=interfaces)


def bare_site(
    request: Request,
    host: Namespace,
    netns: Namespace | None = None,
    is_own: Callable[[], bool] = _unproven,
) -> Site:
    """Return the site of a verb that makes nothing."""
    state_dir = ""
    with suppress(CNIError):
        state_dir = f"{data_dir(request.config)}/.podwire"
    return Site(
        attachment=parse_attachment(request),
        host=host,
        netns=netns,
        is_own=is_own,
        label="",
        state_dir=state_dir,
    )


def parse_kept(request: Request) -> frozenset[str] | None:
    """Return the identities that a GC must keep; None when the runtime named no list.

    Their beginnings too, which are all that the name of a link has room for.
    """
    valid = parse_valid_attachments(request.config)
    if valid is None:
        return None
    named = [(v.container_id, v.ifname) for v in valid]
    attachments = [Attachment(network=request.network, container_id=c, ifname=i, netns="") for c, i in named]
    return frozenset(each.identity[:length] for each in attachments for length in (None, *LINK_DIGITS))


def collect_features(
    request: Request, host: Namespace, keep: Container[str]
) -> Iterator[Callable[[], object]]:
    """Yield the collection of every built-in feature."""
    features = list(load_makers())
    for feature in features:
        yield partial(collect_feature, feature, request, host, keep)
    yield partial(collect_elements, features, request, host, keep)


def collect_feature(feature: Feature, request: Request, host: Namespace, keep: Container[str]) -> None:
    """Remove what the feature made for attachments that are not to be kept, but for elements."""
    found = list_owned(feature, request, host)
    run_all(*(each.remove for each in found if each.identity not in keep))


def list_owned(feature: Feature, request: Request, host: Namespace) -> Iterable[OwnedObject]:
    """Return what the feature has made for attachments of the network, but for elements."""
    return feature.list_owned(request.network, _recall(feature, request), bare_site(request, host))


def collect_elements(
    features: Iterable[Feature], request: Request, host: Namespace, keep: Container[str]
) -> None:
    """Remove the elements of attachments that are not to be kept, whatever feature made them."""
    removed = collect(host.nftables, request.network, keep)
    run_all(*(partial(feature.collected, removed, bare_site(request, host)) for feature in features))
