"""The keys `conditionsV4` and `conditionsV6` of portmap: iptables matches, translated to nftables.

They are words of `nft`, which stand in a rule as they are. Under a reference plugin's name they may be
those of iptables: `["!", "-s", "10.0.0.0/8"]` is served as `ip saddr != 10.0.0.0/8`.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING

from cni_plugin.contract.errors import CNIError, Code, invalid_config
from cni_plugin.contract.inet import parse_cidr, parse_ip
from cni_plugin.kernel.nft import FAMILY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cni_plugin.contract.fields import Fields

# What ends a rule, or the part of it that nft reads.
_ENDS = re.compile(r"[;#\\\x00-\x1f\x7f]")


def parse_conditions(fields: Fields, version: int, *, own: bool) -> str:
    """Return the words for a rule of one family; CNIError 2 or 7 for what cannot stand there.

    `own` is whether the configuration was written for podwire, which has no iptables.
    """
    key = f"conditionsV{version}"
    words = fields.strings(key)
    for word in words:
        if _ENDS.search(word):
            raise invalid_config(f'"{fields.name(key)}" must be words of one rule, found {word!r}')
    if not words or words[0][:1] not in {"-", "!"}:
        return " ".join(words)
    if own:
        raise invalid_config(f'"{fields.name(key)}" must be words of nft, found those of iptables: {words}')
    return " ".join(_translate(words, version, fields.name(key)))


def _translate(words: list[str], version: int, key: str) -> Iterator[str]:
    left = deque(words)
    while left:
        negated = left[0] == "!"
        if negated:
            left.popleft()
        option = left.popleft() if left else ""
        # Older spellings have the "!" behind the option.
        if left and left[0] == "!":
            negated = bool(left.popleft())
        render = _OPTIONS.get(option)
        if render is None or not left:
            raise CNIError(
                Code.UNSUPPORTED_FIELD,
                f'"{key}": wanted iptables options of {sorted(_OPTIONS)} with a value, found "{option}"',
            )
        left_side, value = render(left.popleft(), version, f'"{key}" {option}')
        yield f"{left_side} {'!= ' if negated else ''}{value}"


def _address(selector: str) -> Callable[[str, int, str], tuple[str, str]]:
    def render(text: str, version: int, what: str) -> tuple[str, str]:
        found = [parse_cidr(t, what) if "/" in t else parse_ip(t, what) for t in text.split(",")]
        wrong = [each for each in found if each.version != version]
        if wrong:
            raise invalid_config(f"{what} must be of IPv{version}, found {wrong[0]}")
        # nft wants no host bits in a prefix.
        blocks = [str(getattr(each, "cidr", each)) for each in found]
        return f"{FAMILY[version]} {selector}", blocks[0] if len(
            blocks
        ) == 1 else f"{{ {', '.join(blocks)} }}"

    return render


def _interface(text: str, _: int, what: str) -> tuple[str, str]:
    if not re.fullmatch(r"[\w.@-]{1,15}\+?", text):
        raise invalid_config(f'{what} must be the name of an interface, found "{text}"')
    return "iifname", f'"{text[:-1]}*"' if text.endswith("+") else f'"{text}"'


def _protocol(text: str, _: int, what: str) -> tuple[str, str]:
    if not re.fullmatch(r"[a-z0-9]{1,16}", text):
        raise invalid_config(f'{what} must be a protocol, found "{text}"')
    return "meta l4proto", text


def _port(text: str, _: int, what: str) -> tuple[str, str]:
    if not re.fullmatch(r"\d{1,5}(:\d{1,5})?", text):
        raise invalid_config(f'{what} must be a port or a range like 80:90, found "{text}"')
    return "th dport", text.replace(":", "-")


_OPTIONS: dict[str, Callable[[str, int, str], tuple[str, str]]] = {
    "-s": _address("saddr"),
    "-d": _address("daddr"),
    "-i": _interface,
    "-p": _protocol,
    "--dport": _port,
}
