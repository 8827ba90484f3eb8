"""Parses the keys of the reference that choose iptables or nftables; here it is always nftables."""

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
    if asked == "iptables" and not is_own(fields):
        warn_of_iptables(fields, key, asked)
        return
    raise invalid_config(
        f'"{fields.name(key)}" must be nftables, the only backend of podwire, found "{asked}"'
    )


def is_own(fields: Fields) -> bool:
    """Tell whether the configuration was written for podwire, which has no iptables."""
    return fields.string("type") == "podwire"


def warn_of_iptables(fields: Fields, key: str, asked: str) -> None:
    """Say in one line that what was asked of iptables is done by nftables."""
    log.warning('"%s": wanted %s, which podwire serves with nftables', fields.name(key), asked)
