"""Who reaches whom: every pod every other, each seen with its own address."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from tests.harness.kubernetes import pods
from tests.harness.kubernetes.kubernetes import FAMILIES
from tests.harness.services import ask_all

if TYPE_CHECKING:
    from tests.harness.kubernetes.kubernetes import Kubernetes
    from tests.harness.kubernetes.pods import RunningPod
    from tests.harness.node import Space


def address_of(pod: RunningPod, version: int) -> str:
    """Return the pod's address of one family."""
    return next(each for each in pod.addresses if (":" in each) == (version == 6))


def node_address(cluster: Kubernetes, name: str, version: int) -> str:
    """Return the node's address of one family."""
    return cluster.underlay.address(int(name.removeprefix("node-")), version)


def spaces(cluster: Kubernetes, found: list[RunningPod]) -> dict[str, Any]:
    """Return the pods' network namespaces by the pods' names."""
    known = {
        address: space
        for node in {pod.node for pod in found}
        for address, space in pods.spaces_of(cluster.worker(node)).items()
    }
    return {pod.name: known[pod.addresses[0]] for pod in found}


def reach_all(
    found: list[RunningPod], places: dict[str, Space], families: tuple[int, ...] = FAMILIES
) -> None:
    """Ask every pod from every other, over each family; each must see the other's own address."""
    wanted = wanted_by_all(found, families)
    wrong = {way: seen for way, seen in seen_by_all(found, places, families).items() if seen != wanted[way]}
    assert not wrong, wrong


def seen_by_all(
    found: list[RunningPod], places: dict[str, Space], families: tuple[int, ...] = FAMILIES
) -> dict[tuple[str, str, int], set[str]]:
    """Ask every pod from every other; return the answers by who asked whom over which family."""
    return {
        (source.name, target.name, version): ask_all(
            places[source.name], address_of(target, version), pods.PORT
        )
        for source, target in itertools.permutations(found, 2)
        for version in families
    }


def wanted_by_all(
    found: list[RunningPod], families: tuple[int, ...] = FAMILIES
) -> dict[tuple[str, str, int], set[str]]:
    """Return what the answers are when nothing is lost and nothing is translated."""
    return {
        (source.name, target.name, version): {f"{target.name} {address_of(source, version)}"}
        for source, target in itertools.permutations(found, 2)
        for version in families
    }
