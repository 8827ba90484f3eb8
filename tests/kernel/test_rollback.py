"""ADD is all or nothing: whatever fails, and wherever, node and pod are as before."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni_plugin.contract.dispatch import answer
from cni_plugin.kernel import netns, sysctl
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.netlink import Netlink
from cni_plugin.plugins import PLUGINS
from ipam import seam
from tests.conftest import in_process
from tests.harness.networks import (
    V4,
    V6,
    calm,
    delegate_calls,
    dual_stack,
    environment,
    eventually,
    inside,
    network,
    print_result,
    reference,
    routed,
    scripted,
    wait_for,
    write_delegate,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness.node import Completed, Node, Pod


def warm(node: Node, config: dict[str, Any], environ: dict[str, str | None] | None = None) -> str:
    """Return the node's state after one ADD and DEL: what attachments share is there."""
    pod = node.pod()
    node.add(config, pod, environ=environ)
    node.delete(config, pod, environ=environ)
    pod.remove()
    return calm(node)


def state_of(pod: Pod) -> str:
    return "\n".join(
        pod.run("ip", "-o", *words).stdout for words in (["link"], ["addr"], ["route"], ["-6", "route"])
    )


def assert_undone(node: Node, pod: Pod, before: tuple[str, str], failed: Completed, *words: str) -> None:
    assert failed.status == 1
    for word in words:
        assert word in failed.json["msg"]
    assert state_of(pod) == before[1]
    assert eventually(lambda: calm(node), before[0]) == before[0]


FAILURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "delegate refuses": (
        'echo \'{"code": 11, "msg": "nothing left"}\'; exit 1',
        ("scripted", "nothing left"),
    ),
    "delegate prints garbage": ("echo garbage", ("scripted", "garbage")),
    "delegate gives no address": ('echo \'{"cniVersion": "1.1.0"}\'', ("scripted", "address")),
    "gateway conflict": (print_result("10.77.0.5/24"), ("10.77.0.1/24", "10.22.0.1/24")),
    "route the kernel refuses": (
        print_result("10.22.0.5/24", routes=[{"dst": "192.0.2.0/24", "gw": "10.22.0.9", "scope": 254}]),
        ("ip route add 192.0.2.0/24", "10.22.0.9", "host scope"),
    ),
    "same address twice": (print_result("10.22.0.5/24", "10.22.0.5/24"), ("ip addr add 10.22.0.5/24",)),
}


@pytest.mark.parametrize("what", FAILURES)
def test_add_that_fails_with_a_foreign_delegate_leaves_nothing(node: Node, what: str) -> None:
    pod = node.pod()
    before = warm(node, dual_stack(node)), state_of(pod)
    add, words = FAILURES[what]
    environ = write_delegate(node, add=add)
    failed = node.call("ADD", scripted(node, isGateway=True), pod, environ=environ)
    assert_undone(node, pod, before, failed, *words)
    assert delegate_calls(node) == ["ADD", "DEL"]


def test_add_that_finds_the_pool_full_leaves_nothing(node: Node) -> None:
    config = network(node, V6, [{"subnet": "10.22.0.0/30"}], isDefaultGateway=True)
    pod = node.pod()
    node.add(config, node.pod())
    before = calm(node), state_of(pod)
    assert_undone(node, pod, before, node.call("ADD", config, pod), "10.22.0.1-10.22.0.2")


def test_add_whose_interface_name_is_taken_leaves_nothing(node: Node) -> None:
    pod = node.pod()
    pod.run("ip", "link", "add", "eth0", "type", "bridge")
    before = warm(node, dual_stack(node)), state_of(pod)
    assert_undone(node, pod, before, node.call("ADD", dual_stack(node), pod), "eth0")


def test_second_add_of_an_attachment_is_refused_and_harms_nothing(node: Node) -> None:
    pod = node.pod()
    result = node.add(dual_stack(node), pod)
    before = calm(node), state_of(pod)
    assert_undone(node, pod, before, node.call("ADD", dual_stack(node), pod), "eth0")
    assert node.check(dual_stack(node), result, pod).status == 0


class Faults:
    """Lets the k-th conversation with the kernel fail, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1
        for name in ("change", "get", "dump"):
            monkeypatch.setattr(Netlink, name, self.failing(getattr(Netlink, name)))

    def failing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keys: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise KernelError("injected", errno.EIO)
            return real(*arguments, **keys)

        return call

    @contextmanager
    def at(self, step: int) -> Iterator[None]:
        self.left = step
        try:
            yield
        finally:
            self.fired, self.left = self.left <= 0, -1


@dataclass
class Comes:
    """A hook of the seam: does something once, before the step to kernel whose number is `left`."""

    do: Callable[[], object]
    left: int

    def __call__(self, kind: str, made: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if kind in {"netlink", "nftables", "sysctl"}:  # none of these is made with the store locked
            self.left -= 1
            if self.left == -1:
                self.do()
        return made(*arguments)


def call(node: Node, command: str, config: dict[str, Any], pod: Pod) -> dict[str, Any] | None:
    """Run the verb in this process, where faults can be injected; return the error or None."""
    with inside(node):
        reply = answer(environment(node, command, pod), json.dumps(config).encode(), PLUGINS["podwire"])
    return json.loads(reply.stdout) if reply.status else None


FEATURES = {
    "ingressRate": 8_000_000,
    "ingressBurst": 800_000,
    "egressRate": 8_000_000,
    "egressBurst": 800_000,
    "sysctl": {"net.core.somaxconn": "555"},
}


@pytest.mark.parametrize("keys", [{}, FEATURES], ids=["plain", "with-features"])
@in_process
def test_add_that_fails_at_any_step_leaves_nothing(
    node: Node, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
) -> None:
    config = routed(node, {"dst": "192.0.2.0/24"}, isDefaultGateway=True, **keys)
    before = warm(node, config)
    faults = Faults(monkeypatch)
    for step in range(1, 100):
        pod = node.pod()
        inside_before = state_of(pod)
        with faults.at(step):
            error = call(node, "ADD", config, pod)
        if not faults.fired:
            break
        assert error is not None, step
        assert error["code"] == 999
        assert "injected" in error["msg"]
        assert state_of(pod) == inside_before, step
        assert eventually(lambda: calm(node), before) == before, step
        pod.remove()
    assert error is None
    assert step > 10


@in_process
@pytest.mark.parametrize("mode", ["bridge", "routed"])
def test_an_add_that_a_delete_comes_into_at_any_step_is_whole_or_leaves_nothing(
    node: Node, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """A runtime that gives an ADD up sends its DEL meanwhile; without an agent nothing keeps them apart."""
    shared = {"isDefaultGateway": True} if mode == "bridge" else {"mode": mode}
    mapping = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
    elements = {"ipMasq": True, "spoofCheck": "ip", "runtimeConfig": {"portMappings": [mapping]}}
    config = network(node, V4, V6, **shared, **FEATURES, **elements)
    # What a process keeps is of the namespace that it began in, and this one was in another.
    monkeypatch.setattr(netns, "_is_own", lambda _: False)
    before, errors = warm(node, config), []
    for step in range(100):
        pod = node.pod()
        comes = Comes(partial(node.delete, config, pod), step)
        monkeypatch.setattr(seam, "hook", comes)
        error = call(node, "ADD", config, pod)
        monkeypatch.setattr(seam, "hook", None)
        assert ("eth0" in pod.links()) == (error is None), step
        if error is None:
            node.delete(config, pod)
        assert eventually(lambda: calm(node), before) == before, step
        pod.remove()
        errors.append(error)
        if comes.left >= 0:
            break
    assert len(errors) > 15
    assert 11 in {error["code"] for error in errors if error}


def test_delete_that_fails_at_any_step_is_completed_by_the_next(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dual_stack(node)
    before = warm(node, config)
    faults = Faults(monkeypatch)
    for step in range(1, 20):
        pod = node.pod()
        assert call(node, "ADD", config, pod) is None
        with faults.at(step):
            call(node, "DEL", config, pod)
        assert node.held() == {}, step
        assert call(node, "DEL", config, pod) is None
        assert eventually(lambda: calm(node), before) == before, step
        if not faults.fired:
            return
    pytest.fail("DEL never ended")


def test_add_that_fails_at_a_sysctl_leaves_nothing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dual_stack(node)
    before = warm(node, config)
    pod = node.pod()

    def refuse(key: str) -> str:
        raise KernelError(f"sysctl {key}", errno.EROFS)

    monkeypatch.setattr(sysctl, "get_sysctl", refuse)
    error = call(node, "ADD", config, pod)
    assert error is not None
    assert "sysctl" in error["msg"]
    assert eventually(lambda: calm(node), before) == before


def start(
    node: Node, config: dict[str, Any], pod: Pod, environ: dict[str, str | None]
) -> subprocess.Popen[bytes]:
    """Start an ADD and return when its delegate is in the middle of it."""
    argv = ["nsenter", f"--net={node.path}", str(node.bin_dir / "podwire")]
    env = environment(node, "ADD", pod) | environ
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    assert process.stdin is not None
    process.stdin.write(json.dumps(config).encode())
    process.stdin.close()
    process.stdin = None
    wait_for(node.tmp / "in-the-middle")
    return process


def slow_delegate(node: Node) -> dict[str, str | None]:
    """Return the environment of a host-local that holds an address and does not come back."""
    real = "/usr/lib/cni/host-local"
    say = f"echo $$ > {node.tmp}/pid; mv {node.tmp}/pid {node.tmp}/in-the-middle"
    return write_delegate(node, add=f"{real} > /dev/null; {say}; exec sleep 60", delete=real)


def slow(node: Node) -> dict[str, Any]:
    config = reference(node, type="podwire")
    config["ipam"]["type"] = "scripted"
    return config


@in_process
def test_sigterm_in_the_middle_rolls_back_and_answers_with_an_error(node: Node) -> None:
    pod = node.pod()
    before = warm(node, dual_stack(node)), state_of(pod)
    with start(node, slow(node), pod, slow_delegate(node)) as process:
        assert node.held()
        process.send_signal(signal.SIGTERM)
        stdout, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    error = json.loads(stdout)
    assert error["code"] == 11
    assert "SIGTERM" in error["msg"]
    assert state_of(pod) == before[1]
    assert eventually(lambda: calm(node), before[0]) == before[0]
    assert delegate_calls(node) == ["ADD", "DEL"]
    assert not Path("/proc", (node.tmp / "in-the-middle").read_text().strip()).exists()


def test_after_kill_9_in_the_middle_one_delete_leaves_nothing(node: Node) -> None:
    pod = node.pod()
    before = warm(node, dual_stack(node)), state_of(pod)
    environ = slow_delegate(node)
    with start(node, slow(node), pod, environ) as process:
        process.kill()
        process.wait(timeout=10)
    assert node.held()
    assert [name for name in node.links() if name.startswith("veth")]
    # An agent has lost its caller only, and rolls back as soon as the delegate ends.
    os.kill(int((node.tmp / "in-the-middle").read_text()), signal.SIGKILL)
    node.delete(slow(node), pod, environ=environ)
    assert state_of(pod) == before[1]
    assert eventually(lambda: calm(node), before[0]) == before[0]


def test_delete_needs_nothing_but_names(node: Node) -> None:
    pod = node.pod()
    config = network(node, V4, isGateway=True)
    before = warm(node, config)
    node.add(config, pod)
    broken = config | {"mtu": "wide", "vlan": -1, "bridge": 7, "ipMasq": True}
    broken["ipam"] = config["ipam"] | {"ranges": "broken"}
    node.delete(broken, pod)
    assert eventually(lambda: calm(node), before) == before
