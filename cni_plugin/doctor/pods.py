"""Checks one pod: is it attached here, is its attachment as ADD left it, does it answer.

CHECK is asked as the runtime would ask it, with the result of ADD that libcni keeps below /var/lib/cni.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from cni_plugin.contract.errors import CNIError
from cni_plugin.contract.inet import parse_ip
from cni_plugin.doctor.finding import Finding
from cni_plugin.features import CHAINED
from cni_plugin.kernel.probe import Echo, ask_twice, smallest
from cni_plugin.node import report
from cni_plugin.node.configured import MAIN_TYPES
from cni_plugin.node.records import read_requests
from cni_plugin.plugins import PLUGINS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.doctor.site import Examined
    from cni_plugin.node.report import AttachmentReport

_PATIENCE: Final = 1.0  # seconds


def check(site: Examined) -> Iterator[Finding]:
    """Yield why the pod that was named has no network; nothing when none was."""
    if not site.pod and not site.container:
        return
    found = [
        each
        for each in report.look(site.conf_dir, site.bin_dir, site.cache_dir).attachments
        if _is_meant(site, each)
    ]
    if not found:
        yield _absent(site)
    for attachment in found:
        yield from _check_attachment(site, attachment)


def _is_meant(site: Examined, attachment: AttachmentReport) -> bool:
    if site.container:
        return attachment.container_id.startswith(site.container)
    return attachment.pod == site.pod


def _absent(site: Examined) -> Finding:
    namespace, _, name = site.pod.partition("/")
    look = f"kubectl -n {namespace} describe pod {name}" if name else f"crictl inspectp {site.container}"
    return Finding(
        severity="error",
        object=f"pod {site.pod}" if site.pod else f"container {site.container}",
        found="no interface of podwire's on this node",
        meaning="its ADD failed or was not called: it runs on another node, or has hostNetwork",
        remedy=f"{look}; the agent's log has a line for each of its calls",
    )


def _check_attachment(site: Examined, attachment: AttachmentReport) -> Iterator[Finding]:
    who = f"pod {attachment.pod or attachment.container_id} {attachment.ifname}"
    wrong = _ask_check(site, attachment)
    if wrong:
        yield Finding(
            severity="error",
            object=who,
            found=wrong,
            meaning="something took away or changed what ADD had made",
            remedy=_anew(attachment),
        )
        return
    addresses = [parse_ip(text, "address") for text in attachment.addresses]
    asked = {Echo(address, smallest(address.version)) for address in addresses}
    silent = sorted(str(echo.address) for echo in asked - ask_twice(asked, _PATIENCE))
    if silent or not addresses:
        yield Finding(
            severity="error",
            object=who,
            found=f"{', '.join(silent)}: no answer to an echo from this node"
            if silent
            else "it holds no address",
            meaning=f"its link {attachment.host_ifname} or its settings are not as ADD left them, or it "
            "filters ICMP",
            remedy=_anew(attachment),
        )


def _anew(attachment: AttachmentReport) -> str:
    namespace, _, name = attachment.pod.partition("/")
    return f"kubectl -n {namespace} delete pod {name}" if name else f"crictl stopp {attachment.container_id}"


def _ask_check(site: Examined, attachment: AttachmentReport) -> str:
    """Return what CHECK finds wrong; nothing where it cannot look.

    libcni may keep no result to compare with, and the path of the pod's namespace may lead nowhere from here,
    as in the agent's container: the namespace is alive all the same, for it has the veth's other end.
    """
    for request in read_requests(site.cache_dir, attachment, site.bin_dir):
        kind = request.config.string("type")
        if kind not in MAIN_TYPES | CHAINED.keys() or not os.path.exists(request.netns):
            continue
        try:
            PLUGINS[kind]().check(request)
        except CNIError as error:
            return error.msg
    return ""
