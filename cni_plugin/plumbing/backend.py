"""The keys that choose between iptables and nftables in the reference: here it is always nftables."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from cni_plugin.contract.errors import invalid_config

if TYPE_CHECKING:
    from cni_plugin.contract.fields import Fields

log = logging.getLogger("podwire")


def require_nftables(fields: Fields, key: str) -> None:
    """Refuse another backend under our own name, CNIError 7; warn of it under a reference plugin's.

    There it was written for another program, which chose iptables by default.
    """
    asked = fields.string(key)
    if asked in {"", "nftables"}:
        return
    if asked == "iptables" and fields.string("type") != "podwire":
        log.warning('"%s": wanted iptables, which podwire serves with nftables', fields.name(key))
        return
    raise invalid_config(
        f'"{fields.name(key)}" must be nftables, the only backend of podwire, found "{asked}"'
    )
