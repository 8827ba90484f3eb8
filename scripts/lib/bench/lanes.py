"""A lane: one contender on a node of its own, with pods of its own, for one work.

It does what a runtime does with a network configuration list: hands prevResult from one plugin to the next on
ADD, and goes backwards on DEL.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any

from bench import spaces
from bench.calls import PluginError, Step, Steps, measure_crowd, measure_one
from bench.contenders import Agent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from bench.contenders import Contender

Network = list[dict[str, Any]]
_WIDTH = 16
_SETTLE = 0.5  # seconds; the kernel takes namespaces apart in the background


class Lane:
    """The place where one contender does one work."""

    def __init__(
        self, contender: Contender, name: str, work: Path, network: Callable[[Contender, Path, int], Network]
    ) -> None:
        """Make the node."""
        self.contender = contender
        self.name = name
        self.store = work / name
        self.node_name = f"{work.name}-{name}"
        self._network = network
        self._rendered: dict[int, list[tuple[str, str]]] = {}
        self._results: dict[int, bytes] = {}
        self._pods = 0
        spaces.make_spaces([self.node_name])
        self.node = spaces.open_space(self.node_name)
        subprocess.run(["ip", "-n", self.node_name, "link", "set", "lo", "up"], check=True)
        self._work = work
        self.agent = self._start_agent() if contender.has_agent else None
        self.log = os.open(work / "stderr.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        """Remove the node and the pods, with what is in them."""
        if self.agent:
            self.agent.stop()
        os.close(self.log)
        os.close(self.node)
        spaces.remove_spaces([self.node_name, *map(self.pod_name, range(self._pods))])
        shutil.rmtree(self.store, ignore_errors=True)
        time.sleep(_SETTLE)

    def _start_agent(self) -> Agent:
        return Agent(self._work, self.name, spaces.path_of(self.node_name))

    def enter(self) -> None:
        """Start plugins on this node from now on, and have its agent answer them."""
        spaces.enter(self.node)
        if self.agent:
            self.agent.answer()

    def agent_cpu(self) -> float:
        """Return the processor seconds of the process behind the plugins."""
        return self.agent.cpu() if self.agent else 0.0

    def agent_resident(self) -> int:
        """Return its resident memory in KiB."""
        return self.agent.resident() if self.agent else 0

    def make_pods(self, count: int) -> None:
        """Have at least so many pods."""
        spaces.make_spaces(map(self.pod_name, range(self._pods, count)))
        self._pods = max(self._pods, count)

    def pod_name(self, pod: int) -> str:
        """Return a pod's container id, which is also the name of its namespace."""
        return f"{self.name}-{pod}"

    def pod_path(self, pod: int) -> str:
        """Return the path of a pod's namespace."""
        return spaces.path_of(self.pod_name(pod))

    def add(self, pod: int) -> Steps:
        """Attach a pod, and keep its result."""
        result = b""
        for program, text in self._render(pod):
            result = yield Step(verb="ADD", program=program, pod=pod, stdin=_stdin(text, result))
        self._results[pod] = result

    def check(self, pod: int) -> Steps:
        """Check a pod that is attached."""
        for program, text in self._render(pod):
            stdin = _stdin(text, self._results[pod])
            yield Step(verb="CHECK", program=program, pod=pod, stdin=stdin)

    def delete(self, pod: int) -> Steps:
        """Detach a pod."""
        result = self._results.pop(pod, b"")
        for program, text in reversed(self._render(pod)):
            yield Step(verb="DEL", program=program, pod=pod, stdin=_stdin(text, result))

    def ask(self, verb: str) -> Steps:
        """Run a verb that is about no pod."""
        program, text = self._render(0)[0]
        yield Step(verb=verb, program=program, pod=0, stdin=text.encode())

    def fill(self, pods: range, contender: Contender) -> None:
        """Attach pods that stay; `contender` does it, where several would make the same."""
        self.make_pods(pods.stop)
        own, agent, self.contender = self.contender, self.agent, contender
        if contender.has_agent and not agent:
            self.agent = self._start_agent()
        measure_crowd(self, map(self.add, pods), _WIDTH)
        if self.agent and not agent:
            self.agent.stop()
        self.contender, self.agent = own, agent

    def probe(self, evidence: Mapping[str, Sequence[str]]) -> str:
        """Attach and detach a pod; return why that cannot be, "" when all is well.

        `evidence` are words that commands run on the node must show while the pod is there: who ignores what
        it was asked for is quick, and does not do the work.
        """
        self.make_pods(1)
        try:
            measure_one(self, self.add(0))
            lacking = [word for word, command in evidence.items() if word not in self._show(command)]
            measure_one(self, self.delete(0))
        except PluginError as error:
            return " ".join(str(error).split())
        return f"no {', '.join(lacking)} on the node after ADD" if lacking else ""

    def _show(self, command: Sequence[str]) -> str:
        enter = ["nsenter", f"--net={spaces.path_of(self.node_name)}"]
        return subprocess.run([*enter, *command], capture_output=True, text=True, check=True).stdout

    def configuration(self, pod: int) -> Network:
        """Return the configurations of the network's plugins."""
        return self._network(self.contender, self.store, pod)

    def _render(self, pod: int) -> list[tuple[str, str]]:
        """Return each plugin's name and its configuration, which is rendered once."""
        if pod not in self._rendered:
            plugins = self.configuration(pod)
            self._rendered[pod] = [(plugin["type"], json.dumps(plugin)) for plugin in plugins]
        return self._rendered[pod]


def _stdin(text: str, result: bytes) -> bytes:
    return text.encode() if not result else b'%s, "prevResult": %s}' % (text.encode()[:-1], result)
