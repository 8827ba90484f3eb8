"""What is measured: one entry per work, each with the network, the sizes and the parts that are timed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench import sandboxes
from bench.calls import measure_crowd, measure_one
from bench.networks import DUAL, V4, V6, Bridge, Chain, Manager, OnePlugin

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import ExitStack

    from bench.figures import Call
    from bench.lanes import Lane

    Act = Callable[[Lane, int], dict[str, Call]]

_IN_TURN = 10  # pods that single calls take in turn
# What must be on the node while a pod is there; a Go plugin that writes iptables need not be asked.
_MASQUERADE = {"masquerade": ("nft", "-n", "list", "ruleset")}
_CHAINED = _MASQUERADE | {"20000": ("nft", "-n", "list", "ruleset"), "tbf": ("tc", "qdisc", "show")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured: calls of each verb, turns of a crowd without and with others there.

    `slow` turns of a crowd and `slow_calls` of a chain are for those who start a Python for every call.
    """

    rounds: int = 100
    crowds: int = 3
    busy: int = 2
    slow: int = 1
    slow_calls: int = 20
    pods: int = 100
    widths: tuple[int, ...] = (1, 16, 100)
    busy_widths: tuple[int, ...] = (1, 16, 100)
    present: int = 1000
    taken: int = 60_000
    sandboxes: int = 100
    cycles: tuple[int, ...] = (1_000, 5_000, 10_000)


QUICK = Sizes(
    rounds=20,
    crowds=1,
    busy=1,
    widths=(16, 100),
    busy_widths=(),
    slow_calls=5,
    sandboxes=5,
    cycles=(1_000,),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Something that is timed, turn by turn: `act` returns what each verb took.

    `slow_rounds` are those of the slow, if fewer. `beside_empty` does it a second time in every turn, on a
    node without the pods that the work's own has.
    """

    key: str
    label: str
    rounds: int
    act: Act
    slow_rounds: int | None = None
    pods: int = 1
    beside_empty: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Parts that share their nodes, on which `present` pods are before."""

    key: str
    network: Bridge
    parts: tuple[Part, ...]
    evidence: Mapping[str, Sequence[str]] = field(default_factory=dict)
    present: int = 0
    ours_alone: bool = False
    prepare: Callable[[Lane, ExitStack], None] | None = None


def all_works(sizes: Sizes) -> list[Work]:
    """Return everything that is measured, in the order in which it is shown."""
    v4, masquerade = Bridge(V4), Bridge(DUAL, ipMasq=True)
    calls = [
        _calls("v4", "v4", v4, sizes.rounds),
        _calls("v6", "v6", Bridge(V6), sizes.rounds),
        _calls("dual", "dual-stack", Bridge(DUAL), sizes.rounds),
        _calls("masq", "dual-stack, ipMasq", masquerade, sizes.rounds, _MASQUERADE),
        _asks("version", "VERSION", v4, sizes.rounds),
        _asks("status", "STATUS", Bridge(V4, version="1.1.0"), sizes.rounds),
    ]
    there = f"{sizes.present:,} pods there"
    return [
        *calls,
        Work(
            key="pods", network=v4, parts=tuple(_crowd("pods", sizes, sizes.crowds, w) for w in sizes.widths)
        ),
        Work(
            key="present",
            network=v4,
            parts=(
                Part(
                    key="present",
                    label=f"v4, {there}",
                    rounds=sizes.rounds,
                    act=_add_and_delete,
                    beside_empty=True,
                ),
                *(_crowd("present", sizes, sizes.busy, width, f", {there}") for width in sizes.busy_widths),
            ),
            present=sizes.present,
        ),
        _taken(sizes),
        *_chains(sizes),
        Work(
            key="containerd",
            network=Bridge(DUAL),
            parts=(
                Part(
                    key="containerd", label="containerd", rounds=sizes.sandboxes, act=sandboxes.run_and_stop
                ),
            ),
            prepare=sandboxes.start,
        ),
    ]


def _calls(
    key: str, label: str, network: Bridge, rounds: int, evidence: Mapping[str, Sequence[str]] | None = None
) -> Work:
    part = Part(key=key, label=label, rounds=rounds, act=_add_check_and_delete)
    return Work(key=key, network=network, parts=(part,), evidence=evidence or {})


def _asks(key: str, verb: str, network: Bridge, rounds: int) -> Work:
    def act(lane: Lane, _turn: int) -> dict[str, Call]:
        return {verb: measure_one(lane, lane.ask(verb))}

    return Work(key=key, network=network, parts=(Part(key=key, label="", rounds=rounds, act=act),))


def _chains(sizes: Sizes) -> list[Work]:
    """Return the work that takes the reference five plugins: ours with the same five, and with one."""
    kinds = (("chain", "chain of five plugins", Chain()), ("one", "the chain as one podwire", OnePlugin()))
    return [work for kind in kinds for work in _chain(*kind, sizes)]


def _chain(key: str, label: str, network: Bridge, sizes: Sizes) -> list[Work]:
    rounds, slow, there = sizes.rounds, sizes.slow_calls, f"{label}, {sizes.present:,} pods there"
    alone = Part(key=key, label=label, rounds=rounds, slow_rounds=slow, act=_add_and_delete)
    crowd = _crowd(key, sizes, 1, 16, f", {label}")
    key = f"{key}-present"
    beside = Part(
        key=key, label=there, rounds=rounds, slow_rounds=slow, act=_add_and_delete, beside_empty=True
    )
    return [
        Work(key=alone.key, network=network, parts=(alone, crowd), evidence=_CHAINED),
        # The reference's chain goes through the rules of all pods for each: it would take very long.
        Work(
            key=key,
            network=network,
            parts=(beside,),
            evidence=_CHAINED,
            present=sizes.present,
            ours_alone=True,
        ),
    ]


def _taken(sizes: Sizes) -> Work:
    part = Part(
        key="ipam",
        label=f"addresses alone, {sizes.taken:,} taken",
        rounds=sizes.rounds,
        act=_add_and_delete,
    )

    def take(lane: Lane, _stack: ExitStack) -> None:
        directory = lane.store / "bench0"
        directory.mkdir(parents=True)
        for number in range(2, sizes.taken + 2):
            address = f"10.90.{number >> 8}.{number & 255}"
            (directory / address).write_text(f"taken{number}\r\neth0")
        (directory / "last_reserved_ip.0").write_text(address)

    return Work(key="ipam", network=Manager(V4), parts=(part,), prepare=take)


def _crowd(key: str, sizes: Sizes, rounds: int, width: int, more: str = "") -> Part:
    def act(lane: Lane, _turn: int) -> dict[str, Call]:
        pods = range(sizes.pods)
        lane.make_pods(sizes.pods)
        return {
            "ADD": measure_crowd(lane, map(lane.add, pods), width),
            "DEL": measure_crowd(lane, map(lane.delete, pods), width),
        }

    label = f"{sizes.pods} pods, {width} at a time{more}"
    slow = min(rounds, sizes.slow)
    return Part(key=f"{key}-{width}", label=label, rounds=rounds, slow_rounds=slow, act=act, pods=sizes.pods)


def _add_check_and_delete(lane: Lane, turn: int) -> dict[str, Call]:
    pod = turn % _IN_TURN
    lane.make_pods(_IN_TURN)
    return {
        "ADD": measure_one(lane, lane.add(pod)),
        "CHECK": measure_one(lane, lane.check(pod)),
        "DEL": measure_one(lane, lane.delete(pod)),
    }


def _add_and_delete(lane: Lane, turn: int) -> dict[str, Call]:
    pod = turn % _IN_TURN
    lane.make_pods(_IN_TURN)
    return {"ADD": measure_one(lane, lane.add(pod)), "DEL": measure_one(lane, lane.delete(pod))}
