"""Ends connections that a policy allows no more, and those of an address's former owner.

Replies pass because a connection is known; so one that is no longer allowed is forgotten. Its next packet is
then a new one: the other end of TCP is reset by the group's first rule, and others are judged anew. What
the node itself has begun is never ended: its packets pass no policy. By hand: `conntrack -D -s ADDRESS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_plugin.dataplane.policy.evaluate import Attempt, judge
from cni_plugin.kernel.conntrack import forget_tracked, list_tracked
from cni_plugin.kernel.nft import FAMILY

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from cni_plugin.dataplane.policy.desired import PolicyModel
    from cni_plugin.kernel.conntrack import Tracked
    from cni_plugin.kernel.nfnetlink import Nftables


def end_denied(
    nftables: Nftables, model: PolicyModel, addresses: Collection[bytes], own: Collection[bytes]
) -> int:
    """Forget the connections of these pods that no policy allows any more; return how many.

    `own` are the node's own addresses.
    """

    def is_denied(tracked: Tracked) -> bool:
        attempt = Attempt(
            source=tracked.source,
            destination=tracked.responder,
            protocol=tracked.protocol,
            port=tracked.port,
        )
        return not all(judgement.allowed for judgement in judge(model, attempt))

    return _end(nftables, addresses, own, is_denied)


def end_all(nftables: Nftables, addresses: Collection[bytes], own: Collection[bytes]) -> int:
    """Forget all connections of addresses that have a new owner; return how many."""
    return _end(nftables, addresses, own, lambda _: True)


def _end(
    nftables: Nftables,
    addresses: Collection[bytes],
    own: Collection[bytes],
    ends: Callable[[Tracked], bool],
) -> int:
    count = 0
    for version in FAMILY if addresses else ():
        for tracked in list_tracked(nftables, version, addresses):
            if tracked.source not in own and ends(tracked):
                forget_tracked(nftables, version, tracked)
                count += 1
    return count
