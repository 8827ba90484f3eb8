"""A storm: many pods, each with a random life of its own, told by a seed.

What each worker does to which of its pods in which order follows from the seed alone; what happens
at the same time elsewhere does not. A pod's own calls come one after another, as the specification has
it, and are otherwise without sense: ADD twice, DEL of nothing, a call that is killed in the middle,
a namespace that vanishes, a container that is forgotten. Each call is the executable, or the C
shim of an agent that is itself killed and started again.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import random
import re
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.harness.agents import Agent, start_agent
from tests.harness.garbage import GC, configure
from tests.harness.networks import inside, network
from tests.harness.node import Space
from tests.harness.storm.invariants import find_violations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness.node import Node

REFERENCE = "/usr/lib/cni"
_SIOCGIFADDR = 0x8915
# What a call may answer without anything being wrong: a full pool, an agent that is gone, a busy lock.
_AGAIN = 11


def networks(node: Node) -> dict[str, dict[str, Any]]:
    """Return the networks by name: a bridge, routed pods, and one with fewer addresses than pods."""
    ranges = {
        "test": ([{"subnet": "10.22.0.0/20"}], [{"subnet": "fd00:22::/64"}]),
        "routed": ([{"subnet": "10.23.0.0/20"}], [{"subnet": "fd00:23::/64"}]),
        "small": ([{"subnet": "10.24.0.0/28"}],),
    }
    keys: dict[str, dict[str, Any]] = {
        "test": {"bridge": "cni0", "isGateway": True, "ipMasq": True, "macspoofchk": True},
        "routed": {"mode": "routed", "ipMasq": True, "sysctl": {"net.ipv4.conf.IFNAME.arp_ignore": "1"}},
        "small": {"bridge": "cni1"},
    }
    return {name: network(node, *ranges[name], name=name, **keys[name]) for name in ranges}


class StormError(AssertionError):
    """Something that must not be, and how to see it again."""


@dataclass
class Slot:
    """One pod and what it should be: `result` where an ADD has succeeded and no DEL since."""

    number: int
    network: str
    generation: int = 0
    space: Space | None = None
    result: dict[str, Any] | None = None
    unsure: bool = False
    """A call failed or was killed: only a DEL makes it known again what there is."""
    history: list[str] = field(default_factory=list)

    @property
    def container_id(self) -> str:
        return self.id_of(self.generation)

    def id_of(self, generation: int) -> str:
        return f"{self.network}-{self.number}-{generation}".ljust(64, "0")

    @property
    def addresses(self) -> list[str]:
        return [ip["address"].split("/")[0] for ip in (self.result or {}).get("ips", ())]

    def note(self, word: str) -> None:
        self.history = [*self.history[-20:], word]


class Gate:
    """Workers pass one operation at a time; whoever closes it has the place for himself."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0
        self._closed = False

    @contextmanager
    def passing(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: not self._closed)
            self._inside += 1
        try:
            yield
        finally:
            with self._condition:
                self._inside -= 1
                self._condition.notify_all()

    @contextmanager
    def closed(self) -> Iterator[None]:
        with self._condition:
            self._closed = True
            self._condition.wait_for(lambda: not self._inside)
        try:
            yield
        finally:
            with self._condition:
                self._closed = False
                self._condition.notify_all()


class Storm:
    """The place, the pods, and what has been done so far."""

    def __init__(self, node: Node, seed: int, *, bin_dirs: dict[str, Path], pods: int, workers: int) -> None:
        self.node, self.seed, self.bin_dirs = node, seed, bin_dirs
        self.networks = networks(node)
        for config in self.networks.values():
            configure(node, config, name=config["name"])
        names = ["test"] * 6 + ["routed"] * 3 + ["small"]
        self.slots = [Slot(number, names[number % len(names)]) for number in range(pods)]
        self.go = [Slot(number, "go") for number in range(pods // 10)]
        self.workers = workers
        self.gate = Gate()
        self.done: Counter[str] = Counter()
        self.errors: list[str] = []
        self._guard = threading.Lock()
        self._agent: Agent | None = None
        self._deadline = 0.0

    # The stage.

    def run(self, seconds: float, *, between_looks: float) -> None:
        """Let it rage for so long, with a look at the invariants every now and then and at the end."""
        self._deadline = time.monotonic() + seconds
        chance = random.Random(f"{self.seed} looks")
        threads = [
            *(threading.Thread(target=self._worker, args=(number,)) for number in range(self.workers)),
            threading.Thread(target=self._in_node, args=(self._go_worker,)),
            threading.Thread(target=self._in_node, args=(self._sweeper,)),
        ]
        with inside(self.node):
            self._start_agent()
            try:
                for thread in threads:
                    thread.start()
                while self._raging():
                    pause = between_looks * chance.uniform(0.5, 1.5)
                    time.sleep(min(pause, max(0.0, self._deadline - time.monotonic())))
                    with self.gate.closed():
                        self._look()
            finally:
                self._deadline = 0.0
                for thread in threads:
                    thread.join()
                self._agent_of().kill()
        if self.errors:
            raise StormError(self._say("\n".join(self.errors[:20])))

    def _raging(self) -> bool:
        return time.monotonic() < self._deadline and not self.errors

    def _say(self, text: str) -> str:
        return f"seed {self.seed}, after {sum(self.done.values())} operations: {text}"

    def _fail(self, slot: Slot | None, text: str) -> None:
        history = f"\n  {slot.container_id}: {' '.join(slot.history)}" if slot else ""
        with self._guard:
            self.errors.append(text + history)

    def _count(self, word: str) -> None:
        with self._guard:
            self.done[word] += 1

    def _start_agent(self) -> None:
        self._agent = start_agent(self.bin_dirs["agent"].parent / "a.sock")

    def _agent_of(self) -> Agent:
        assert self._agent is not None
        return self._agent

    def _in_node(self, work: Callable[[], None]) -> None:
        """Run the work in this thread, which is in the node's namespace like the one that started it."""
        try:
            work()
        except Exception as error:
            self._fail(None, f"{threading.current_thread().name}: {error!r}")
            raise

    # What happens to pods.

    def _worker(self, number: int) -> None:
        chance = random.Random(f"{self.seed} {number}")
        own = self.slots[number :: self.workers]

        def work() -> None:
            while self._raging():
                slot = chance.choice(own)
                operation = chance.choices(list(OPERATIONS), [w for w, _ in OPERATIONS.values()])[0]
                # All that is random is drawn here, whatever comes of it.
                actor = chance.choices(["agent", "process"], [6, 1])[0]
                roll = chance.random()
                with self.gate.passing():
                    slot.note(f"{operation}/{actor}")
                    OPERATIONS[operation][1](self, slot, actor, roll)
                self._count(operation)

        self._in_node(work)

    def _config(self, slot: Slot) -> dict[str, Any]:
        config = dict(self.networks[slot.network])
        if slot.number % 4 == 1 and slot.network != "small":
            mappings = [
                {"hostPort": 10000 + slot.number, "containerPort": 80, "protocol": protocol}
                for protocol in ("tcp", "udp")
            ]
            config["runtimeConfig"] = {"portMappings": mappings}
        if slot.number % 8 == 2:
            config |= {"egressRate": 8_000_000, "egressBurst": 800_000}
        return config

    def _call(
        self, verb: str, slot: Slot, actor: str, *, result: Any = None, kill_after: float = 0
    ) -> tuple[int, dict[str, Any]]:
        """Call the executable; return the exit status, or -9, and what it said."""
        config = self._config(slot) | ({"prevResult": result} if result else {})
        return self._execute(verb, slot, f"{self.bin_dirs[actor]}/podwire", config, kill_after)

    def _execute(
        self, verb: str, slot: Slot, program: str, config: dict[str, Any], kill_after: float = 0
    ) -> tuple[int, dict[str, Any]]:
        env = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": slot.container_id,
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": slot.space.path if slot.space else "/run/netns/none",
            "CNI_PATH": str(Path(program).parent),
        }
        pipe = subprocess.PIPE
        with subprocess.Popen([program], env=env, stdin=pipe, stdout=pipe, stderr=pipe) as process:
            if kill_after:
                killer = threading.Timer(kill_after, process.kill)
                killer.start()
            stdout, stderr = process.communicate(json.dumps(config).encode())
            if kill_after:
                killer.cancel()
        try:
            said = json.loads(stdout or b"{}")
        except ValueError:
            said = {}
        if process.returncode > 0 and not said:
            said = {"msg": stderr.decode(errors="replace")}
        return process.returncode, said

    def _ensure_space(self, slot: Slot) -> None:
        if slot.space is None:
            slot.space = Space(f"storm-{self.node.name[5:]}-{slot.network}-{slot.number}-{slot.generation}")
            subprocess.run(["ip", "netns", "add", slot.space.name], check=True)

    def add(self, slot: Slot, actor: str, _: float) -> None:
        """ADD: of a pod that is attached it must fail and change nothing."""
        if slot.unsure:
            self.delete(slot, actor, 0)
        if slot.unsure or (slot.result and slot.space is None):
            return
        self._ensure_space(slot)
        status, said = self._call("ADD", slot, actor)
        if slot.result:
            if status == 0 or said.get("code") not in {4, _AGAIN}:
                self._fail(slot, f"ADD of what is attached: {status} {said}")
        elif status == 0:
            slot.result = said
        else:
            slot.unsure = True
            if status > 0 and said.get("code") != _AGAIN:
                self._fail(slot, f"ADD: {said}")

    def add_killed(self, slot: Slot, actor: str, roll: float) -> None:
        """ADD of which the process, or the client of the agent, is killed in the middle."""
        if slot.unsure or slot.result:
            return
        self._ensure_space(slot)
        limit = 0.03 if actor == "agent" else 0.3
        status, said = self._call("ADD", slot, actor, kill_after=0.001 + roll * limit)
        if status == 0:
            slot.result = said
        else:
            slot.unsure = True

    def delete(self, slot: Slot, actor: str, roll: float) -> None:
        """DEL: succeeds, whatever there is."""
        status, said = self._call("DEL", slot, actor, result=slot.result if roll < 0.5 else None)
        if status == 0:
            slot.result, slot.unsure = None, False
        else:
            slot.unsure = True
            if said.get("code") != _AGAIN:
                self._fail(slot, f"DEL: {status} {said}")

    def delete_killed(self, slot: Slot, actor: str, roll: float) -> None:
        """DEL that is killed in the middle."""
        limit = 0.03 if actor == "agent" else 0.3
        status, _ = self._call("DEL", slot, actor, kill_after=0.001 + roll * limit)
        slot.unsure = status != 0
        if status == 0:
            slot.result = None

    def check(self, slot: Slot, actor: str, _: float) -> None:
        """CHECK of what is attached passes, of what is not fails."""
        if slot.unsure or (slot.result and slot.space is None):
            return
        made_up = {"cniVersion": "1.1.0", "ips": [{"address": "10.22.0.9/20"}]}
        status, said = self._call("CHECK", slot, actor, result=slot.result or made_up)
        again = said.get("code") == _AGAIN
        if not again and (status == 0) != bool(slot.result):
            self._fail(slot, f"CHECK of {'an' if slot.result else 'no'} attachment: {status} {said}")

    def vanish(self, slot: Slot, _: str, __: float) -> None:
        """The pod's namespace ends, and with it its interface."""
        if slot.space is not None:
            slot.space.remove()
            slot.space = None
            slot.unsure |= slot.result is not None

    def forget(self, slot: Slot, actor: str, roll: float) -> None:
        """The container is gone and nobody says DEL; the next one has another id."""
        self.vanish(slot, actor, roll)
        slot.result, slot.unsure = None, False
        slot.generation += 1

    def renew(self, slot: Slot, actor: str, _: float) -> None:
        """DEL, and a container with another id, as every restart of a pod in Kubernetes."""
        self.delete(slot, actor, 0)
        if not slot.unsure:
            self.vanish(slot, actor, 0)
            slot.generation += 1

    # What happens beside them.

    def _go_worker(self) -> None:
        """Take and release addresses with the Go host-local, in the same directory."""
        chance = random.Random(f"{self.seed} go")
        config = self.networks["test"]
        document = {"cniVersion": "1.0.0", "name": "test", "ipam": config["ipam"] | {"type": "host-local"}}
        while self._raging():
            slot, roll = chance.choice(self.go), chance.random()
            verb = "DEL" if slot.result or roll < 0.1 else "ADD"
            with self.gate.passing():
                status, said = self._execute(verb, slot, f"{REFERENCE}/host-local", document)
                if status != 0:
                    self._fail(slot, f"host-local {verb}: {said}")
                slot.result = said if verb == "ADD" and status == 0 else None
            self._count(f"go {verb}")
            time.sleep(0.02)

    def _sweeper(self) -> None:
        """Collect garbage in both ways, and end agents in both ways."""
        chance = random.Random(f"{self.seed} sweeper")
        works = {"gc": (5, self._gc), "verb GC": (2, self._verb_gc), "restart": (1, self._restart)}
        while self._raging():
            name = chance.choices(list(works), [weight for weight, _ in works.values()])[0]
            roll = chance.random()
            with self.gate.passing():
                works[name][1](roll)
            self._count(name)
            time.sleep(chance.random())

    def _gc(self, roll: float) -> dict[str, Any]:
        grace = "0" if roll < 0.7 else "0.5"
        command = [*GC, "--json", "--grace", grace, "--conf-dir", str(self.node.tmp / "net.d")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            self._fail(None, f"podwire gc: {done.returncode} {done.stdout} {done.stderr}")
            return {}
        return dict(json.loads(done.stdout))

    def _verb_gc(self, roll: float) -> None:
        """GC with everybody's name, those to come included: a runtime would not lose one in between."""
        actor = "agent" if roll < 0.5 else "process"
        for name, config in self.networks.items():
            slots = [each for each in (*self.slots, *self.go) if each.network in {name, "go"}]
            ids = [each.id_of(each.generation + ahead) for each in slots for ahead in range(20)]
            valid = {"cni.dev/valid-attachments": [{"containerID": i, "ifname": "eth0"} for i in ids]}
            status, said = self._execute("GC", slots[0], f"{self.bin_dirs[actor]}/podwire", config | valid)
            if status != 0 and said.get("code") != _AGAIN:
                self._fail(None, f"GC: {said}")

    def _restart(self, roll: float) -> None:
        agent = self._agent_of()
        if roll < 0.5:
            agent.kill()
        elif agent.stop() != 0:
            self._fail(None, f"the agent ended with {agent.process.returncode}")
        self._start_agent()

    # What must hold.

    def _look(self) -> None:
        """With no call under way: settle what is unsure, collect, and compare everything."""
        if self.errors:
            return
        for slot in self.slots:
            if slot.unsure:
                self.delete(slot, "agent", 0)
        wrong = ["nobody looked"]
        deadline = time.monotonic() + 15
        # The kernel takes the veths of vanished namespaces away in its own time.
        while wrong and time.monotonic() < deadline and not self.errors:
            self._gc(0)
            wrong = [*self._find_wrong()]
        for text in wrong:
            self._fail(None, text)
        self._count("look")

    def _find_wrong(self) -> Iterator[str]:
        attached = [slot for slot in self.slots if slot.result]
        yield from self._compare_store(attached)
        for slot in attached:
            found = pod_addresses(slot.space) if slot.space else []
            if sorted(found) != sorted(slot.addresses):
                yield f"{slot.container_id}: told {slot.addresses}, has {found}; {' '.join(slot.history)}"
        yield from self._compare_kernel(attached)

    def _compare_store(self, attached: list[Slot]) -> Iterator[str]:
        for name in self.networks:
            owners = [slot for slot in attached if slot.network == name]
            if name == "test":
                owners += [slot for slot in self.go if slot.result]
            told = {(slot.container_id, "eth0"): slot.addresses for slot in owners}
            yield from find_violations(self.node.data_dir, name, told)
        private = self.node.data_dir / ".podwire"
        kept = sorted(path.name for path in (private / "tuning").glob("*"))
        wanted = sorted(f"{slot.container_id}_eth0.json" for slot in attached if slot.network == "routed")
        if kept != wanted:
            yield f"tuning: wanted {wanted}, found {kept}"

    def _compare_kernel(self, attached: list[Slot]) -> Iterator[str]:
        ids = {slot.container_id for slot in attached}
        ends = {"veth": ids, "bwp": {slot.container_id for slot in attached if slot.number % 8 == 2}}
        links = [link for link in self.node.ip("link", "show") if link["ifname"].startswith(("veth", "bwp"))]
        for kind, wanted in ends.items():
            of_kind = [link for link in links if link["ifname"].startswith(kind)]
            found = {(link.get("ifalias", "").split(" ") + [""] * 3)[2] for link in of_kind}
            if found != wanted or len(of_kind) != len(wanted):
                yield f"{kind}: {sorted(found ^ wanted)}, {len(of_kind)} links"
        text = self.node.run("nft", "list", "ruleset").stdout
        named = set(re.findall(r'comment "[0-9a-f]{16} \S+ ([^ "]+) eth0', text))
        masqueraded = {slot.container_id for slot in attached if slot.network != "small"}
        if named != masqueraded:
            yield f"nft: {sorted(named ^ masqueraded)}"


# How often each comes, and what it is.
OPERATIONS: dict[str, tuple[int, Callable[[Storm, Slot, str, float], None]]] = {
    "ADD": (30, Storm.add),
    "ADD killed": (4, Storm.add_killed),
    "DEL": (12, Storm.delete),
    "DEL killed": (3, Storm.delete_killed),
    "CHECK": (12, Storm.check),
    "vanish": (4, Storm.vanish),
    "forget": (4, Storm.forget),
    "renew": (6, Storm.renew),
}


def pod_addresses(space: Space) -> list[str]:
    """Return the addresses of the pod's eth0 as the kernel has them, link-local left out."""
    with inside(space):
        lines = [line.split() for line in Path("/proc/thread-self/net/if_inet6").read_text().splitlines()]
        own = [words[0] for words in lines if words[5] == "eth0" and words[3] != "20"]
        found = [str(ipaddress.ip_address(bytes.fromhex(each))) for each in own]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            try:
                raw = fcntl.ioctl(asked, _SIOCGIFADDR, struct.pack("256s", b"eth0"))
            except OSError:
                return found
        return [socket.inet_ntoa(raw[20:24]), *found]
