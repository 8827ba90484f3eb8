"""What is done on a node beside the verbs: by an operator's commands, and by the agent in a cluster.

Each job is tried on one network; a new one is a class here, and test_faults.py tries every step of it.
"""

from __future__ import annotations

import io
import json
import os
import socket
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from netaddr import IPAddress, IPNetwork

from cni_plugin.cli import main
from cni_plugin.cluster.objects import Node
from cni_plugin.cluster.settings import ClusterSettings
from cni_plugin.cluster.snapshot import Snapshot
from cni_plugin.dataplane.follow import Follower, Order
from ipam import seam
from tests.harness.storm.configurations import BRIDGE, IPAM, MARKER, MODE_KEYS, all_features
from tests.harness.storm.faulting import Fault, Steps
from tests.harness.storm.lab import Outcome, Pod, forked

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cni_plugin.cluster.api import API
    from tests.harness.storm.configurations import Network
    from tests.harness.storm.lab import Lab

PEERS: dict[str, list[Any]] = {
    "flat": ["192.0.2.3", "192.0.2.4"],
    "routed": [
        {"vtep": "192.0.2.3", "subnets": ["10.244.2.0/24", "fd00:10:244:2::/64"]},
        {"vtep": "192.0.2.4", "subnets": ["10.244.4.0/24", "fd00:10:244:4::/64"]},
    ],
    "gateway": [
        {"addresses": ["192.0.2.3", "2001:db8::3"], "subnets": ["10.244.2.0/24", "fd00:10:244:2::/64"]},
        {"addresses": ["192.0.2.4", "2001:db8::4"], "subnets": ["10.244.4.0/24", "fd00:10:244:4::/64"]},
    ],
}
SECTIONS = {"flat": "vxlan", "routed": "vxlan", "gateway": "hostGateway"}


@dataclass
class Job:
    """Something to do on a node; `atomic` says that one that was refused has changed nothing."""

    lab: Lab
    living: tuple[Pod, ...] = ()
    network: ClassVar[Network] = [{**BRIDGE, "ipam": IPAM}]
    atomic: ClassVar[bool] = False

    @property
    def conf(self) -> Path:
        return self.lab.directory / "net.d"

    @property
    def store(self) -> Path:
        return self.lab.directory / "networks"

    def write_conflist(self, plugins: Network) -> None:
        self.conf.mkdir(exist_ok=True)
        document = {"cniVersion": "1.1.0", "name": "test", "plugins": plugins}
        (self.conf / "10-test.conflist").write_text(json.dumps(document))

    def prepare(self) -> None:
        """Make what stays as it is all the time."""

    def arrange(self) -> None:
        """Make the state that the job begins with, whatever an earlier one left."""
        raise NotImplementedError

    def do(self) -> int:
        """Do it in this process, which ends then; return the exit status."""
        raise NotImplementedError

    def aside(self, work: Callable[[], int]) -> None:
        """Do something in a process of its own; it must succeed."""
        outcome = perform(work)
        assert outcome.status == 0, outcome


class Sync(Job):
    """The peers have become others."""

    form: ClassVar[str]

    def arrange(self) -> None:
        self.write_conflist(self.lab.network)
        self.aside(self.do)
        other = json.loads(json.dumps(self.lab.network))
        other[0][SECTIONS[self.form]]["peers"] = PEERS[self.form]
        self.write_conflist(other)

    def do(self) -> int:
        return main.main(["sync", "--conf-dir", str(self.conf), "--bin-dir", self.lab.path[0]])


class SyncFlat(Sync):
    """On the segment that all nodes share."""

    form = "flat"
    network: ClassVar[Network] = [{"type": "podwire", **MODE_KEYS["vxlan"]["flat"], "ipam": IPAM}]


class SyncRouted(Sync):
    """Through the tunnel with a subnet for each node."""

    form = "routed"
    network: ClassVar[Network] = [{"type": "podwire", **MODE_KEYS["vxlan"]["routed"], "ipam": IPAM}]


class SyncGateway(Sync):
    """Without a tunnel."""

    form = "gateway"
    network: ClassVar[Network] = [{"type": "podwire", **MODE_KEYS["routed"]["gateway"], "ipam": IPAM}]


class Follow(Job):
    """A node has come into the cluster and another has got an address and a subnet that it had not."""

    def arrange(self) -> None:
        for path in (self.conflist, f"{self.lab.directory}/store/.podwire/podwire.nodes"):
            if os.path.lexists(path):
                os.unlink(path)
        self.aside(lambda: self.follow(2))

    def do(self) -> int:
        return self.follow(3, 4)

    @property
    def conflist(self) -> str:
        return str(self.conf / "10-podwire.conflist")

    def follow(self, *numbers: int) -> int:
        """Take one step as the agent of a cluster does; the state file has the time in it."""
        self.conf.mkdir(exist_ok=True)
        order = Order(
            node="node-1",
            settings=ClusterSettings(data_dir=str(self.lab.directory / "store")),
            conflist=self.conflist,
            state_file=f"{self.lab.directory}.state",
            results_dir=str(self.lab.directory / "results"),
            resync=60,
        )
        nodes: Snapshot[Node] = Snapshot(lambda: None)
        nodes.replace({node.name: node for node in map(self.node, (1, *numbers))})
        nodes.say("")
        return 0 if Follower(order, nodes, cast("API", None)).step() else 1

    @staticmethod
    def node(number: int) -> Node:
        subnet = 2 if number == 4 else number  # the fourth has the second's
        return Node(
            name=f"node-{number}",
            addresses=(IPAddress(f"192.0.2.{number}"), IPAddress(f"2001:db8::{number}")),
            pod_cidrs=(IPNetwork(f"10.244.{subnet}.0/24"), IPNetwork(f"fd00:10:244:{subnet}::/64")),
        )


class Vanished(Job):
    """A pod has gone without a DEL, and another has not."""

    network: ClassVar[Network] = [{**BRIDGE, **all_features(), "ipam": IPAM}]

    def prepare(self) -> None:
        """Start the pod that lives, without ports of the host: they are the other's."""
        (plugin,) = self.lab.network
        capabilities = plugin.pop("capabilities")
        self.living = (self.lab.pod("pod-live"),)
        added = self.lab.add(*self.living)
        assert added.status == 0, added.said
        plugin["capabilities"] = capabilities
        self.write_conflist(self.lab.network)

    def arrange(self) -> None:
        pod = self.lab.pod("pod-dead")
        self.lab.delete(pod)
        for hint in self.store.glob("test/last_reserved_ip.*"):
            hint.unlink()  # so that it is the same address each time
        pairs = count_pairs()
        added = self.lab.add(pod)
        assert added.status == 0, added.said
        self.address = added.reply["ips"][0]["address"].partition("/")[0]
        os.close(pod.fd)
        deadline = time.monotonic() + 10
        while count_pairs() > pairs:
            assert time.monotonic() < deadline
            time.sleep(0.005)


class Collect(Vanished):
    """`podwire gc`."""

    def do(self) -> int:
        return main.main(["gc", "--grace", "0", "--conf-dir", str(self.conf)])


class Release(Vanished):
    """`podwire ipam release`."""

    network: ClassVar[Network] = [{**BRIDGE, "capabilities": {"portMappings": True}, "ipam": IPAM}]

    def do(self) -> int:
        if not (self.store / "test" / self.address).exists():
            return 0  # to release it again would be an error
        return main.main(["ipam", "release", "--data-dir", str(self.store), "test", self.address])


class Import(Job):
    """`podwire ipam import`."""

    atomic = True

    def arrange(self) -> None:
        self.living = tuple(Pod(fd=-1, name=f"moved-{i}") for i in range(3))
        rows = [
            {"network": "test", "address": address, "container_id": f"moved-{i}", "ifname": "eth0"}
            for i in range(3)
            for address in (f"10.244.1.{i + 20}", f"fd00:10:244:1::{i + 20}")
        ]
        self.export.write_text(json.dumps(rows))
        self.lab.collect()

    @property
    def export(self) -> Path:
        return self.lab.directory / "export.json"

    def do(self) -> int:
        return main.main(["ipam", "import", "--data-dir", str(self.store), str(self.export)])


class InstallShim(Job):
    """`podwire install-shim` over an older one."""

    def arrange(self) -> None:
        self.opt.mkdir(exist_ok=True)
        for name in ("podwire", "podwire-ipam"):
            (self.opt / name).write_text(f"old {MARKER}")
        (self.opt / "loopback").unlink(missing_ok=True)
        (self.lab.directory / "shim").write_text(f"new {MARKER}")

    @property
    def opt(self) -> Path:
        return self.lab.directory / "opt"

    def do(self) -> int:
        source = str(self.lab.directory / "shim")
        return main.main(["install-shim", "--source", source, "--bin-dir", str(self.opt)])


class Uninstall(InstallShim):
    """`podwire uninstall` after the last pod."""

    network: ClassVar[Network] = [
        {"type": "podwire", **MODE_KEYS["vxlan"]["routed"], **all_features(), "ipam": IPAM}
    ]

    def arrange(self) -> None:
        super().arrange()
        self.write_conflist(self.lab.network)
        pod = self.lab.pod("pod-last")
        added = self.lab.add(pod)
        assert added.status == 0, added.said
        assert all(outcome.status == 0 for outcome in self.lab.delete(pod))
        os.close(pod.fd)

    def do(self) -> int:
        socket = f"{self.lab.directory}.sock"
        places = ["--conf-dir", str(self.conf), "--bin-dir", str(self.opt), "--socket", socket]
        places += ["--record", f"{self.lab.directory}.installed"]
        return main.main(["uninstall", *places, "--conflist", "10-test.conflist"])


def count_pairs() -> int:
    return sum(name.startswith("veth") for _, name in socket.if_nameindex())


def perform(work: Callable[[], int], fault: Fault | None = None) -> Outcome:
    """Do it in a process of its own."""

    def watched() -> Outcome:
        seam.hook = steps = Steps(fault)
        said, status, unexpected = io.StringIO(), 1, ""
        with redirect_stderr(said), redirect_stdout(io.StringIO()):
            try:
                status = work()
            except Exception:  # noqa: BLE001 - it is a finding
                unexpected = traceback.format_exc()
        reply = {"code": status, "msg": said.getvalue().strip()}
        return Outcome(status, reply, steps.made, steps.struck, unexpected)

    return forked(watched)


JOBS: dict[str, type[Job]] = {
    "sync, flat": SyncFlat,
    "sync, routed": SyncRouted,
    "sync, gateway": SyncGateway,
    "follow": Follow,
    "gc": Collect,
    "ipam release": Release,
    "ipam import": Import,
    "install-shim": InstallShim,
    "uninstall": Uninstall,
}
