"""The plugin type `podwire`, which also answers as `bridge`: joins a pod to a network.

ADD is all or nothing: what is the pod's is undone in reverse order, what attachments share is
ensured and stays. DEL and GC keep going and report at the end; absence is success.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.addresses.delegate import find_delegate
from cni_plugin.attach.veth import delete_veth
from cni_plugin.config.network import (
    Attachment,
    Network,
    is_stale_alias,
    owner_of_unnamed,
    parse_network,
)
from cni_plugin.contract import versions
from cni_plugin.contract.dispatch import Plugin
from cni_plugin.contract.errors import CNIError, Code, invalid_config, run_all
from cni_plugin.features.attachment import (
    collect_features,
    delete_features,
    delete_input,
    list_pod_links,
    open_pod_of,
    parse_kept,
    plan_features,
    site_of,
)
from cni_plugin.features.elements import release_addresses
from cni_plugin.kernel.link import delete_link, delete_listed, get_link, list_links
from cni_plugin.kernel.netns import open_host
from cni_plugin.plugins.delete_target import open_site
from ipam.seam.undo import Undo

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator

    from cni_plugin.addresses.delegate import Delegate
    from cni_plugin.attach.wiring import Wiring
    from cni_plugin.backend.route_conflicts import Clash
    from cni_plugin.backend.shared_facts import Survey
    from cni_plugin.config.network import Addressing, LiveAttachment
    from cni_plugin.contract.request import Request
    from cni_plugin.contract.result import Result
    from cni_plugin.features.damage import Damage
    from cni_plugin.features.feature import Feature, Settings, Site
    from cni_plugin.kernel.foreign_chains import Obstacle
    from cni_plugin.kernel.link import Link
    from cni_plugin.kernel.netns import Namespace


def add(request: Request) -> Result:
    """Join the pod to the network and return what was made."""
    from cni_plugin.features.forward_warning import warn_of_drops

    network = _parse(request)
    attachment = network.attachment
    delegate = find_delegate(request)
    wiring, features = _plan(request, network, delegate)
    with open_host() as host, open_pod_of(attachment) as pod, Undo() as undo:
        site = site_of(network, host, pod)
        for feature, settings in features:
            feature.ensure(settings, host)
        connection = wiring.connect(site, undo)
        for feature, settings in features:
            feature.prepare(settings, site, undo)
        delegate.rebuild(lambda: _list_living(request.network, host), host.mark())
        addresses = delegate.allocate(undo, host.mark())
        for feature, settings in features:
            feature.admit(settings, site, addresses, undo)
        result = wiring.configure(connection, site, addresses)
        for feature, settings in features:
            result = feature.add(settings, site, result, undo)
        _require_present(host, pod, attachment)
        warn_of_drops(host, wiring.forwarded_by(), result)
        undo.pop_all()
    return result.after(network.prev_result)


def _list_living(network: str, host: Namespace) -> Iterator[LiveAttachment]:
    from cni_plugin.plugins.attached_veths import list_living  # for the few calls that find no store

    return list_living(network, host)


def _parse(request: Request) -> Network:
    network = parse_network(request)
    if not network.ipam_type and request.cni_version in versions.family("0.2.0"):
        raise invalid_config(
            f'"ipam": a result of version {request.cni_version} must have an address; '
            'name an IPAM plugin or set "cniVersion" to 0.3.0 or newer'
        )
    return network


def _plan(
    request: Request, network: Network, delegate: Delegate
) -> tuple[Wiring, list[tuple[Feature, Settings]]]:
    """Return how the pod is wired and the features asked for; every error of configuration is here."""
    from cni_plugin.attach.wiring import plan_wiring  # no DEL needs it

    fields, addressing = request.config, delegate.addressing()
    wiring = plan_wiring(fields, network, addressing)
    return wiring, plan_features(fields, network, replace(addressing, elsewhere=wiring.elsewhere()))


def _wire(request: Request) -> tuple[Wiring, Addressing]:
    """Return how a network's pods are wired, and what is known of their addresses."""
    from cni_plugin.attach.wiring import plan_wiring  # no DEL needs it

    addressing = find_delegate(request).addressing()
    return plan_wiring(request.config, _parse(request), addressing), addressing


def _require_present(host: Namespace, pod: Namespace, attachment: Attachment) -> None:
    """Raise CNIError when the pod's namespace is gone, or a DEL that did not wait has taken the link."""
    if pod.has_vanished():
        raise CNIError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_NETNS {attachment.netns}: it vanished while the pod was being attached",
        )
    if get_link(host.netlink, attachment.host_ifname) is None:
        raise CNIError(
            Code.TRY_AGAIN_LATER,
            f"link {attachment.host_ifname}: wanted it, found it removed while the pod was attached",
        )


def delete(request: Request) -> None:
    """Remove whatever an ADD of this attachment made, ours or the Go reference's.

    The veth goes before its elements: until then nothing is open to the pod that was closed, and who mends
    what a living pod lacks (features/elements.py) finds it gone, or is before us.
    """
    with open_site(request) as site:
        run_all(
            *delete_features(request, site, precedes_link=True),
            lambda: _disconnect(request, site),
            *delete_features(request, site, precedes_link=False),
            # A plugin of the chain has removed them already, unless somebody mended them meanwhile.
            lambda: release_addresses(site, "firewall", delete_input(request).addresses),
            lambda: find_delegate(request).release(),
        )


def _disconnect(request: Request, site: Site) -> None:
    attachment = site.attachment
    if delete_veth(attachment, site.host, list_pod_links(attachment)):
        return
    # Not ours, or gone already: the Go plugins made it before the switch to podwire.
    pod = site.pod
    link = get_link(pod.netlink, attachment.ifname) if pod else None
    if pod and link and link.kind == "veth":
        delete_link(pod.netlink, link.name)
    from cni_plugin.features.go_cleanup import delete_go_objects

    delete_go_objects(delete_input(request), site)


def check(request: Request) -> None:
    """Raise CNIError 100 for the first thing that is not as ADD left it."""
    from cni_plugin.features.damage import refuse

    network = _parse(request)
    previous = network.prev_result
    if previous is None:
        raise invalid_config('"prevResult": wanted the result of the ADD, found none')
    delegate = find_delegate(request)
    wiring, features = _plan(request, network, delegate)
    with open_host() as host, open_pod_of(network.attachment) as pod:
        delegate.check(previous)
        site = site_of(network, host, pod)
        wiring.check(site, previous)
        for feature, settings in features:
            refuse(feature.compare_shared(settings, host))
            refuse(feature.compare(settings, site, previous))


def compare(request: Request, host: Namespace) -> Iterator[Damage]:
    """Yield what the node does not hold of an attachment as an ADD with this result left it."""
    network = _parse(request)
    if network.prev_result is None:
        raise invalid_config('"prevResult": wanted the result of the ADD, found none')
    wiring, features = _plan(request, network, find_delegate(request))
    site = site_of(network, host, None)
    yield from wiring.compare(site, network.prev_result)
    for feature, settings in features:
        yield from feature.compare(settings, site, network.prev_result)


def compare_shared(request: Request, host: Namespace) -> Iterator[Damage]:
    """Yield what is not as wanted of that which the pods of a network share."""
    wiring, features = _plan(request, _parse(request), find_delegate(request))
    yield from wiring.compare_shared(host, request.network)
    for feature, settings in features:
        yield from feature.compare_shared(settings, host)


def gc(request: Request) -> None:
    """Remove what belongs to attachments that the runtime no longer lists; without a list nothing."""
    keep = parse_kept(request)
    if keep is None:
        return
    with open_host() as host:
        run_all(*collect(request, host, keep), lambda: find_delegate(request).gc())


def collect(request: Request, host: Namespace, keep: Container[str]) -> Iterator[Callable[[], object]]:
    """Yield the removal of what the node has of attachments whose identity is not to be kept."""
    yield from collect_features(request, host, keep)
    yield lambda: _collect_links(request.network, host, keep)


def _collect_links(network: str, host: Namespace, keep: Container[str]) -> None:
    veths = list_links(host.netlink, kind="veth")
    stale = [link for link in veths if _is_stale(link, network, keep)]
    run_all(*(partial(delete_listed, host.netlink, link) for link in stale))


def _is_stale(link: Link, network: str, keep: Container[str]) -> bool:
    if unnamed := owner_of_unnamed(link.name, link.alias, link.group, network):
        return unnamed not in keep
    return is_stale_alias(link.alias, network, keep)


def status(request: Request) -> None:
    """Raise CNIError 50 when a pod could not be added now; with `strictStatus` 51 for foreign firewalls."""
    network = _parse(request)
    _require_cluster(network)
    delegate = find_delegate(request)
    wiring, features = _plan(request, network, delegate)
    with open_host() as host:
        wiring.ready(host)
        for feature, settings in features:
            feature.ready(settings, host)
        delegate.status()
        if network.strict_status:
            from cni_plugin.features.forward_warning import list_obstacles, require_open

            require_open(list_obstacles(host, wiring.forwarded_by(), delegate.addressing()))


def _require_cluster(network: Network) -> None:
    """Raise CNIError 50 while who follows the cluster for this node says that it is not ready."""
    if network.state_file:
        from cni_plugin.config.state_file import require_ready

        require_ready(network.state_file)


def synchronize(request: Request) -> int:
    """Make what the pods of a network share equal to its configuration; return the number of changes."""
    wiring, features = _plan(request, _parse(request), find_delegate(request))
    with open_host() as host:
        changes = wiring.synchronize(host)
        return changes + sum(feature.ensure(settings, host) for feature, settings in features)


def survey(request: Request) -> tuple[Survey, list[Obstacle]]:
    """Return what this node has of a network, and which chains of others drop what it forwards."""
    from cni_plugin.features.forward_warning import list_obstacles

    wiring, addressing = _wire(request)
    with open_host() as host:
        return wiring.survey(host), list_obstacles(host, wiring.forwarded_by(), addressing)


def obstacles(request: Request) -> list[Obstacle]:
    """Return which chains of others drop what the node forwards for a network's pods."""
    from cni_plugin.features.forward_warning import list_obstacles

    wiring, addressing = _wire(request)
    with open_host() as host:
        return list_obstacles(host, wiring.forwarded_by(), addressing)


def clashes(request: Request) -> list[Clash]:
    """Return which routes of other links take the packets for a network's pods."""
    from cni_plugin.backend.route_conflicts import find_clashes

    wiring, addressing = _wire(request)
    with open_host() as host:
        subnets = {each.subnet for each in addressing.ranges} if wiring.forwarded_by() else set()
        return find_clashes(host.netlink, wiring.links, sorted(subnets))


def explain_mtu(request: Request) -> list[str]:
    """Return how the MTU of a network's pods comes about, a step a line."""
    with open_host() as host:
        return _wire(request)[0].explain_mtu(host)


PLUGIN = Plugin(add=add, delete=delete, check=check, gc=gc, status=status)
