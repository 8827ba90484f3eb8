"""The plugin type `podwire`, which also answers as `bridge`: joins a pod to a network.

ADD is all or nothing: what is the pod's is undone in reverse order, what attachments share is
ensured and stays. DEL and GC keep going and report at the end; absence is success.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.attach import MODES
from cni_plugin.attach.port import delete_port
from cni_plugin.config import MARK, Attachment, Network, alias_prefix, parse_attachment, parse_network
from cni_plugin.contract.dispatch import Plugin
from cni_plugin.contract.errors import CNIError, Code, combine, invalid_config
from cni_plugin.contract.request import parse_valid_attachments
from cni_plugin.delegate import find_delegate
from cni_plugin.kernel.iptables import delete_reference_chains
from cni_plugin.kernel.link import delete_link, get_link, list_links
from cni_plugin.kernel.netns import find_pod, open_host, open_pod

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_plugin.attach.mode import Mode
    from cni_plugin.contract.request import Request
    from cni_plugin.contract.result import Result
    from cni_plugin.kernel.link import Link
    from cni_plugin.kernel.netns import Namespace


def add(request: Request) -> Result:
    """Join the pod to the network and return what was made."""
    network = parse_network(request)
    attachment = network.attachment
    mode = _mode(network)
    delegate = find_delegate(request)
    plan = mode.plan(network, delegate.addressing())
    with (
        open_host() as host,
        _open_pod(attachment) as pod,
        ExitStack() as undo,
    ):
        wire = mode.connect(plan, host, pod, undo)
        addresses = delegate.allocate(undo)
        result = mode.configure(plan, wire, host, pod, addresses)
        _require_present(pod, attachment)
        undo.pop_all()
    return result.after(network.prev_result)


def _mode(network: Network) -> Mode:
    if network.mode not in MODES:
        raise invalid_config(f'"mode" must be one of {sorted(MODES)}, found "{network.mode}"')
    return MODES[network.mode]


def _open_pod(attachment: Attachment) -> Namespace:
    return open_pod(attachment.netns, opened=attachment.netns_fd, allow_host=attachment.allow_host_netns)


def _require_present(pod: Namespace, attachment: Attachment) -> None:
    if pod.has_vanished():
        raise CNIError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_NETNS {attachment.netns}: it vanished while the pod was being attached",
        )


def delete(request: Request) -> None:
    """Remove whatever an ADD of this attachment made, ours or the Go reference's."""
    attachment = parse_attachment(request)
    with open_host() as host:
        # First of all: a namespace that is the host's own must stop us before anything is touched.
        pod = find_pod(attachment.netns, opened=attachment.netns_fd, allow_host=attachment.allow_host_netns)
        with ExitStack() as opened:
            if pod is not None:
                opened.enter_context(pod)
            _run_all(
                lambda: _disconnect(attachment, host, pod),
                lambda: find_delegate(request).release(),
            )


def _disconnect(attachment: Attachment, host: Namespace, pod: Namespace | None) -> None:
    if delete_port(attachment, host):
        return
    # Not ours, or gone already: the Go plugins made it before the switch to podwire.
    link = get_link(pod.netlink, attachment.ifname) if pod is not None else None
    if pod is not None and link is not None and link.kind == "veth":
        delete_link(pod.netlink, link.name)
    delete_reference_chains(attachment.network, attachment.container_id)


def _run_all(*steps: Callable[[], object]) -> None:
    """Run every step and raise what went wrong at the end, as one error."""
    errors = []
    for step in steps:
        try:
            step()
        except CNIError as error:
            errors.append(error)
    if errors:
        raise combine(errors)


def check(request: Request) -> None:
    """Raise CNIError 100 for the first thing that is not as ADD left it."""
    network = parse_network(request)
    if network.prev_result is None:
        raise invalid_config('"prevResult": wanted the result of the ADD, found none')
    delegate = find_delegate(request)
    plan = _mode(network).plan(network, delegate.addressing())
    attachment = network.attachment
    with open_host() as host, _open_pod(attachment) as pod:
        delegate.check()
        _mode(network).check(plan, host, pod, network.prev_result)


def gc(request: Request) -> None:
    """Remove what belongs to attachments that the runtime no longer lists; without a list nothing."""
    valid = parse_valid_attachments(request.config)
    if valid is None:
        return
    keep = {
        Attachment(network=request.network, container_id=v.container_id, ifname=v.ifname, netns="").identity
        for v in valid
    }
    _run_all(lambda: _collect_links(request.network, keep), lambda: find_delegate(request).gc())


def _collect_links(network: str, keep: set[str]) -> None:
    with open_host() as host:
        stale = [
            link.name for link in list_links(host.netlink, kind="veth") if _is_stale(link, network, keep)
        ]
        _run_all(*(partial(delete_link, host.netlink, name) for name in stale))


def _is_stale(link: Link, network: str, keep: set[str]) -> bool:
    """Tell whether a link is an attachment of this network that the runtime does not list."""
    identity = link.alias.removeprefix(MARK).partition(" ")[0]
    return link.alias.startswith(alias_prefix(identity, network)) and identity not in keep


def status(request: Request) -> None:
    """Raise CNIError 50 with the reason when a pod could not be added now."""
    network = parse_network(request)
    delegate = find_delegate(request)
    plan = _mode(network).plan(network, delegate.addressing())
    with open_host() as host:
        _mode(network).ready(plan, host)
    delegate.status()


def synchronize(request: Request) -> int:
    """Make what the pods of a network share equal to its configuration; return the number of changes."""
    network = parse_network(request)
    plan = _mode(network).plan(network, find_delegate(request).addressing())
    with open_host() as host:
        return _mode(network).synchronize(plan, host)


def explain_mtu(request: Request) -> list[str]:
    """Return how the MTU of a network's pods comes about, a step a line."""
    network = parse_network(request)
    plan = _mode(network).plan(network, find_delegate(request).addressing())
    with open_host() as host:
        return _mode(network).explain_mtu(plan, host)


PLUGIN = Plugin(add=add, delete=delete, check=check, gc=gc, status=status)
