"""Changes of a JSON document that leave it one: bytes alone seldom get past the decoder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

VALUES = (
    *(None, True, False, 0, 1, -1, 15, 4094, 65535, 65536, 2**32, 2**63, 2**64, 1.5, 1e300),
    *("", " ", "none", "eth0", "a/b", "..", "\0", "\ud800", "é", "%", "x" * 300, "0", "-1"),
    *(
        "10.1.0.0/24",
        "10.1.0.7",
        "10.1.0.7/24",
        "fd00::/64",
        "fd00::7",
        "::ffff:10.1.0.1",
        "0.0.0.0/0",
        "::/0",
    ),
    *("255.255.255.255", "224.0.0.1", "fe80::1", "10.1.0.0/33", "010.1.0.1", "10.1.0.0/24/24", "fd00::/129"),
    *("02:00:00:00:00:01", "01:00:5e:00:00:01", "tcp", "TCP", "vxlan", "routed", "bridge", "ip", "/nowhere"),
    *([], {}, [[]], [{}], [None], {"": None}, ["10.1.0.7"], [[{"subnet": "10.1.0.0/30"}]]),
)


def mutate(document: object, words: Sequence[str], rng: random.Random) -> object:
    """Return the document with one to three changes."""
    for _ in range(rng.randint(1, 3)):
        places = list(_places(document))
        if not places:
            return rng.choice(VALUES)
        _change(*rng.choice(places), words, rng, places)
        document = json.loads(json.dumps(document))
    return document


def _places(value: object) -> Iterator[tuple[dict[str, object] | list[object], str | int]]:
    """Yield every container with every key or index of it."""
    members = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, member in members:
        yield value, key  # type: ignore[misc]
        yield from _places(member)


def _change(holder, key, words, rng, places) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    what = rng.randrange(6)
    other_holder, other_key = rng.choice(places)
    if what == 0:
        del holder[key]
    elif what == 1:
        holder[key] = rng.choice(VALUES)
    elif what == 2:
        holder[key] = other_holder[other_key]
    elif isinstance(holder, list):
        holder.insert(key, other_holder[other_key] if what == 3 else rng.choice(VALUES))
    elif what == 3:
        holder[rng.choice(words)] = holder.pop(key)
    elif what == 4:
        holder[rng.choice(words)] = rng.choice(VALUES)
    else:
        holder[key.swapcase()] = other_holder[other_key]


def mutate_bytes(data: bytes, words: Sequence[str], rng: random.Random) -> bytes | None:
    """Change the document in `data`, which stands behind an empty line if there is one; None without it."""
    head, empty, body = data.rpartition(b"\n\n")
    try:
        return head + empty + json.dumps(mutate(json.loads(body), words, rng)).encode()
    except (ValueError, RecursionError):
        return None
