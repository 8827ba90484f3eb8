"""The table `bridge podwire`: what may not cross a tunnel.

A flat VXLAN network has its gateway on every node, with one address and one MAC. What asks for it
and what it says itself must stay on the node, so each tunnel device has a chain that drops both on
their way out. `nft list table bridge podwire`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
from typing import TYPE_CHECKING

from cni_plugin.contract.errors import CNIError, Code

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netaddr import IPAddress

log = logging.getLogger("podwire")


def ensure_tunnel_gateway(device: str, mac: str, addresses: Iterable[IPAddress]) -> bool:
    """Keep the gateway at `mac` and the search for its addresses off `device`; tell whether that was new.

    Raises CNIError 50 when there is no nft, 11 with nft's own words when it refuses.
    """
    addresses = tuple(addresses)
    if keeps_tunnel_gateway(device, mac, addresses):
        return False
    rules, digest = _plan_rules(device, mac, addresses)
    chain = f"bridge podwire tunnel_{device}"
    script = [
        "add table bridge podwire",
        f"add chain {chain} {{ type filter hook postrouting priority 0; }}",
        f"flush chain {chain}",
        *(f'add rule {chain} {rule} comment "{digest}"' for rule in rules),
    ]
    _run("-f", "-", script=script)
    return True


def keeps_tunnel_gateway(device: str, mac: str, addresses: Iterable[IPAddress]) -> bool:
    """Tell whether the chain is as `ensure_tunnel_gateway` makes it."""
    rules, digest = _plan_rules(device, mac, addresses)
    return _list_comments(device) == [digest] * len(rules)


def _plan_rules(device: str, mac: str, addresses: Iterable[IPAddress]) -> tuple[list[str], str]:
    """Return the rules and the comment by which they are known again."""
    out = f'oifname "{device}"'
    rules = [f"{out} ether saddr {mac} drop"]
    rules += [f"{out} {_render_search(address)} drop" for address in sorted(addresses)]
    return rules, hashlib.sha256("\n".join(rules).encode()).hexdigest()[:16]


def _render_search(address: IPAddress) -> str:
    """Return the match for what asks where the address is."""
    if address.version == 4:
        return f"arp daddr ip {address}"
    # The target of a solicitation is at byte 8 of ICMPv6 (RFC 4861 section 4.3).
    return f"icmpv6 type nd-neighbor-solicit @th,64,128 {int(address):#x}"


def _list_comments(device: str) -> list[str]:
    """Return the comment of each rule of the device's chain; none when there is no chain."""
    listing = _run("-j", "list", "chain", "bridge", "podwire", f"tunnel_{device}", may_fail=True)
    members = json.loads(listing)["nftables"] if listing else []
    return [member["rule"].get("comment", "") for member in members if "rule" in member]


def _run(*arguments: str, script: Iterable[str] = (), may_fail: bool = False) -> str:
    program = shutil.which("nft")
    if program is None:
        raise CNIError(Code.NOT_AVAILABLE, "nft: wanted the program of nftables, found none in PATH")
    lines = list(script)
    for line in lines:
        log.debug("nft %s", line)
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run([program, *arguments], input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0 and not may_fail:
        raise CNIError(Code.TRY_AGAIN_LATER, f"nft {' '.join(arguments)}: {done.stderr.strip()}", text)
    return done.stdout
