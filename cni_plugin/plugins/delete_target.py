"""What a DEL works on: the node, and the namespace that CNI_NETNS leads to as long as there is one."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING

from cni_plugin.config.network import parse_attachment
from cni_plugin.features.attachment import bare_site
from cni_plugin.kernel.netns import find_pod, open_host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.contract.request import Request
    from cni_plugin.features.feature import Site


@contextmanager
def open_site(request: Request) -> Iterator[Site]:
    """Open what a DEL works on; whose the namespace is, is found out when it is asked for, and once.

    A namespace that is the host's own stops the DEL before anything is touched: CNIError 8.
    """
    attachment = parse_attachment(request)
    with open_host() as host:
        found = find_pod(attachment.netns, opened=attachment.netns_fd, allow_host=attachment.allow_host_netns)
        with found or nullcontext() as netns:

            @cache
            def is_own() -> bool:
                from cni_plugin.plugins.namespace_owner import has_interface  # few DELs need it

                return netns is not None and has_interface(request, host, netns)

            yield bare_site(request, host, netns, is_own)
