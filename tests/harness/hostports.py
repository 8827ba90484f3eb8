"""What the tests of host ports start from: configurations, the plugin `portmap` of a chain, elements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.harness.networks import dual_stack

if TYPE_CHECKING:
    from tests.harness.node import Completed, Node, Pod

WEB = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
# As containerd sends it: its structs have no JSON tags.
DNS = {"HostPort": 5353, "ContainerPort": 53, "Protocol": "udp", "HostIP": ""}


def mapped(node: Node, *entries: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """Return a dual-stack network of type podwire that leads these host ports to the pod."""
    return dual_stack(node, **keys) | {"runtimeConfig": {"portMappings": list(entries)}}


def chain(*entries: dict[str, Any], version: str = "1.0.0", **keys: Any) -> dict[str, Any]:
    """Return a configuration of type portmap."""
    base = {"cniVersion": version, "name": "test", "type": "portmap", "capabilities": {"portMappings": True}}
    return base | {"runtimeConfig": {"portMappings": list(entries)}} | keys


def call_portmap(
    node: Node, command: str, config: dict[str, Any], pod: Pod | None = None, **options: Any
) -> Completed:
    """Run our executable under the name of the reference plugin."""
    program = node.tmp / "portmap"
    if not program.is_symlink():
        program.symlink_to(node.bin_dir / "podwire")
    return node.call(command, config, pod, program=str(program), **options)


def map_ports(node: Node, config: dict[str, Any], result: dict[str, Any], pod: Pod) -> dict[str, Any]:
    """ADD of type portmap behind another plugin, which must succeed; return the configuration to undo it."""
    asked = {**config, "prevResult": result | {"cniVersion": config["cniVersion"]}}
    answer = call_portmap(node, "ADD", asked, pod)
    assert answer.status == 0, answer.stdout + answer.stderr
    return asked


def elements(node: Node, word: str = " test ") -> list[str]:
    """Return the lines of our sets whose comment has a word, by default of any attachment."""
    listing = node.run("nft", "list", "ruleset").stdout
    lines = (line.strip().removeprefix("elements = { ").rstrip(", }") for line in listing.splitlines())
    return [line for line in lines if "comment" in line and word in line]
