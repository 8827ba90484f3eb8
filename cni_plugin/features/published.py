"""The mark of packets to published ports, which rules of the bridge family let pass.

With br_netfilter the node translates a pod's packet to its port while the packet is in the bridge, and
hands it to the other pod's port there. The bridge family knows no connections, so that a mark, set behind
the translation, is what tells it. No pod can set one on the node.
By hand: `nft list table inet podwire`.
"""

from __future__ import annotations

from cni_plugin.kernel.nft import Ruleset, hooked, scope_of
from cni_plugin.kernel.nft_layout import PUBLISHED, PUBLISHED_MARK

IS_PUBLISHED = f"meta mark & {PUBLISHED_MARK:#x} == {PUBLISHED_MARK:#x}"


def plan_marks(bridge: str) -> Ruleset:
    """Return what marks packets of connections to published ports that come from the pods of a bridge."""
    rule = f'iifname "{bridge}" ct status dnat meta mark set meta mark or {PUBLISHED_MARK:#x}'
    chain = hooked(PUBLISHED, (rule,), scope_of(bridge))
    return Ruleset(family="inet", title=f"published ports, {bridge}", chains=(chain,))
