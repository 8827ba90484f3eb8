"""The nftables chains of the spoof check: what a checked port may send.

They accept what is known to be good and drop the rest, so that no tag, no other ethertype and no
extension header is a way around them. Discovery must be without extension headers and with no option but the
sender's own link-layer address: an option behind another could not be compared. `@th` is an offset
in bits into ICMPv6 (RFC 4861 section 4), for which older `nft` programs have no word.
"""

from __future__ import annotations

from functools import cache

from cni_plugin.kernel.nft import Chain, Ruleset, hooked
from cni_plugin.kernel.nft_layout import BRIDGE_SPOOF, SPOOF

_DROP = "drop"
# RFC 5227 section 1.1: a probe has no sender address.
_ARP = (
    "arp htype 1 arp ptype ip arp hlen 6 arp plen 4 iifname . arp saddr ether @spoof_mac goto spoof_sender",
    _DROP,
)
_SENDER = ("iifname . arp saddr ip @spoof_ip4 accept", "arp saddr ip 0.0.0.0 accept", _DROP)
_IP4 = (
    "udp sport 67 udp dport 68 drop",
    "iifname . ip saddr @spoof_ip4 accept",
    "ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept",
    "ip saddr 0.0.0.0 meta l4proto igmp accept",
    _DROP,
)
_IP6 = (
    # No map of verdicts: of an unnamed one, too, an older nft dies (see Ruleset).
    "icmpv6 type { nd-router-advert, nd-redirect } drop",
    "icmpv6 type nd-router-solicit goto spoof_rs",
    "icmpv6 type nd-neighbor-solicit goto spoof_ns",
    "icmpv6 type nd-neighbor-advert goto spoof_na",
    "udp sport 547 udp dport 546 drop",
    "iifname . ip6 saddr @spoof_ip6 accept",
    # RFC 3590: reports may come before there is an address.
    "ip6 saddr :: icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report } accept",
    _DROP,
)
_PLAIN = "ip6 nexthdr != icmpv6 drop"
_SOURCE = "iifname . ip6 saddr != @spoof_ip6 drop"
_TARGET = "iifname . @th,64,128 @spoof_target"
_RS = (
    _PLAIN,
    "ip6 saddr :: ip6 length 8 accept",
    _SOURCE,
    "ip6 length 8 accept",
    "ip6 length 16 @th,64,16 0x0101 iifname . @th,80,48 @spoof_option accept",
    _DROP,
)
_NS = (
    _PLAIN,
    # Duplicate address detection; receivers refuse one with a link-layer address (RFC 4861 section 7.1.1).
    f"ip6 saddr :: {_TARGET} accept",
    _SOURCE,
    "ip6 length 24 accept",
    "ip6 length 32 @th,192,16 0x0101 iifname . @th,208,48 @spoof_option accept",
    _DROP,
)
_NA = (
    _PLAIN,
    _SOURCE,
    f"{_TARGET.replace('@spoof', '!= @spoof')} drop",
    "ip6 length 24 accept",
    "ip6 length 32 @th,192,16 0x0201 iifname . @th,208,48 @spoof_option accept",
    _DROP,
)
_SETS = (
    ("set spoof_ports", "typeof iifname;"),
    ("set spoof_mac", "typeof iifname . ether saddr;"),
    ("set spoof_addressed", "typeof iifname;"),
    ("set spoof_ip4", "typeof iifname . ip saddr;"),
    ("set spoof_ip6", "typeof iifname . ip6 saddr;"),
    # The same keys, as the type that parts of ICMPv6 have.
    ("set spoof_target", "typeof iifname . @th,64,128;"),
    ("set spoof_option", "typeof iifname . @th,208,48;"),
)


@cache
def plan_ruleset(family: str) -> Ruleset:
    """Return the chains of the bridge family, or of inet for pods that are routed."""
    protocols = {"ip": "spoof_ip", "ip6": "spoof_ip6"}
    chains = {"spoof_ip": _IP4, "spoof_ip6": _IP6, "spoof_rs": _RS, "spoof_ns": _NS, "spoof_na": _NA}
    # A frame with a VLAN tag has the tag's ethertype, whatever is inside.
    ethertype = "meta protocol"
    if family == "bridge":
        ethertype = "ether type"
        protocols["arp"] = "spoof_arp"
        chains |= {"spoof_arp": _ARP, "spoof_sender": _SENDER}
    first = (
        "iifname != @spoof_ports accept",
        "iifname . ether saddr != @spoof_mac drop",
        "iifname != @spoof_addressed accept",
        *(f"{ethertype} {protocol} goto {chain}" for protocol, chain in protocols.items()),
        _DROP,
    )
    base = hooked(BRIDGE_SPOOF if family == "bridge" else SPOOF, first)
    others = (Chain(name=name, rules=rules) for name, rules in chains.items())
    return Ruleset(family=family, title="spoof check", chains=(base, *others), sets=_SETS)
