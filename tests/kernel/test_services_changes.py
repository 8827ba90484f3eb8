"""A client that connects all the time while its Service's endpoints change ten thousands of times."""

from __future__ import annotations

import random
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from cni_plugin.dataplane.services.plan import PROTOCOLS, Frontend, FrontendPlan
from cni_plugin.kernel.netns import open_pod
from tests.harness.networks import inside
from tests.harness.service_lab import CLUSTER, PORT, ServiceLab, packed, service_lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHANGES = 20_000
# With one endpoint at least; the order, too, is what a slice says and may be any.
CHOICES = (("local",), ("remote",), ("local", "remote"), ("remote", "local"))


@dataclass
class Dialler:
    """What a client met that connects, hears a name, and connects again."""

    answers: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    count: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def dialling(self, lab: ServiceLab) -> Iterator[None]:
        thread = threading.Thread(target=self._dial, args=(lab,))
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _dial(self, lab: ServiceLab) -> None:
        with inside(lab.client):
            while not self._over.is_set():
                self.count += 1
                try:
                    with socket.create_connection((CLUSTER[lab.version], PORT), 3) as connection:
                        self.answers.add(connection.recv(100).decode().split(" ")[0])
                except OSError as error:
                    self.failures.append(repr(error))


@pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
def test_no_connection_is_refused_while_there_is_an_endpoint(
    tmp_path: Path, bin_dir: Path, version: int
) -> None:
    chance = random.Random(version)
    dialler = Dialler()
    with service_lab(tmp_path, bin_dir, version) as lab:
        where = Frontend(packed(CLUSTER[version]), PROTOCOLS["TCP"], PORT)
        plans = [
            FrontendPlan(name="shop/web:http", endpoints=lab.endpoints(*names), is_cluster=True, keep=keep)
            for names in CHOICES
            for keep in (0, 0, 60)
        ]
        with open_pod(lab.node.path) as host, host.entered():
            lab.table.sync(host.nftables, {where: plans[0]}, lab.around)
            with dialler.dialling(lab):
                for _ in range(CHANGES):
                    lab.table.update(host.nftables, {where: chance.choice(plans)}, lab.around)
            assert not lab.table.problems
            assert lab.table.sync(host.nftables, lab.table.held, lab.around).elements == 0
    assert dialler.failures == []
    assert dialler.answers == {"local", "remote"}
    assert dialler.count > 100
