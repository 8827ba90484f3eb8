"""From a node with only containerd to a pod, with the README's commands as they are typed."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.harness.networks import wait_for
from tests.harness.pages import ROOT, find_commands
from tests.harness.runtime import image, tools
from tests.harness.runtime.machine import Machine, remove_cgroups

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Node

IMAGE = "docker.io/library/busybox:latest"
COMMANDS = find_commands("README.md", "ctr run")

# A node of a fresh distribution: what a person installs stays in the overlays, and no plugin is there.
# An overlay cannot hold the directories of another, which containerd makes.
_FRESH = """
scratch=$1
shift
mount -t tmpfs -o mode=0755 podwire "$scratch"
for place in etc opt usr var; do
    mkdir -p "$scratch/$place/upper" "$scratch/$place/work"
    mount -t overlay -o "lowerdir=/$place,upperdir=$scratch/$place/upper,workdir=$scratch/$place/work" \\
        podwire "/$place"
done
mkdir -p /var/lib/containerd
mount -t tmpfs podwire /var/lib/containerd
mount -t tmpfs -o mode=0755 podwire /run
rm -rf /etc/cni /opt/cni /usr/lib/cni /var/lib/cni
echo entered
exec >&2
"$@"
exit $?
"""


@pytest.fixture
def machine(plain_node: Node, tmp_path: Path) -> Iterator[Machine]:
    """Start the distribution's containerd, with the configuration that it is shipped with."""
    tools.installed("containerd", package="containerd")
    try:
        with Machine(netns=plain_node.name, directory=tmp_path, argv=("containerd",), enter=_FRESH) as made:
            wait_for(made.root / "run/containerd/containerd.sock")
            yield made
    finally:
        remove_cgroups("default")


def test_the_commands_of_the_readme_end_with_a_pod(machine: Machine, tmp_path: Path) -> None:
    assert COMMANDS[0] == "sudo scripts/install"
    install(machine)
    assert COMMANDS[2] == "sudo podwire status"
    type_in(machine, COMMANDS[1])
    assert "nothing is wrong" in type_in(machine, COMMANDS[2])
    # In place of the registry.
    assert COMMANDS[3] == f"sudo ctr image pull {IMAGE}"
    image.write_image(tmp_path / "image.tar", pause=tools.cached("pause"), busybox=busybox(), name=IMAGE)
    type_in(machine, f"ctr image import {tmp_path / 'image.tar'}")
    shown = type_in(machine, COMMANDS[4])
    assert "inet 10.62.0.2/16" in shown
    assert "inet6 fd00:62::2/64" in shown
    assert " 0 used" in type_in(machine, "podwire status")


def busybox() -> Path:
    return tools.installed("busybox", package="busybox-static")


def install(machine: Machine) -> None:
    """Type it where the wheels are to be had: in the machine's namespaces, all but that of its network."""
    words = [word for word in machine.inside if word != "--net"]
    done = subprocess.run(
        [*words, str(ROOT / "scripts/install")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "podwire installed in /usr/lib/cni: podwire podwire-ipam loopback\n"


def type_in(machine: Machine, command: str) -> str:
    """Type a command in a checkout as root, who needs no sudo."""
    line = f'cd {ROOT} && sudo() {{ "$@"; }} && {command}'
    return machine.run("sh", "-ec", line).stdout
