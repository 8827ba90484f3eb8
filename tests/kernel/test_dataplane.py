"""docs/dataplane.md shows what the kernel says; PODWIRE_WRITE_DOCS=1 writes it anew."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness.cluster import Cluster, make_cluster
from tests.harness.networks import dual_stack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.node import Space

PAGE = Path(__file__).parent.parent.parent / "docs/dataplane.md"
BLOCK = re.compile(r"(<!-- transcript: (\w+) -->\n```console\n)(.*?)(```\n)", re.DOTALL)
MAC = r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}"
# What differs from run to run and means nothing.
WORDS = (
    (r"veth[0-9a-f]{11}", "VETH"),
    (r" linkdown", ""),
    (r"\b192\.0\.2\.1\.\d+ >", "192.0.2.1.PORT >"),
    (r"id \d+, seq", "id ID, seq"),
    (r"(?m) uid 0 *$", ""),
    (r"[ \t]+(?=\n|$)", ""),
)


@pytest.fixture
def cluster(tmp_path: Path, bin_dir: Path) -> Iterator[Cluster]:
    made = make_cluster(tmp_path, bin_dir, 2)
    yield made
    made.remove()


def start(cluster: Cluster, form: str) -> dict[str, Space]:
    spaces: dict[str, Space] = {}
    for i, node in cluster.nodes.items():
        config = dual_stack(node) if form == "bridge" else cluster.config(form, i)
        spaces[f"node{i}"], pod = node, node.pod()
        spaces[f"pod{i}"] = pod
        node.add(config, pod, environ={"CNI_ARGS": f"MAC=02:00:00:00:00:0{i}"})
    return spaces


def transcript(cluster: Cluster, spaces: dict[str, Space], block: str) -> str:
    """Return the block with every command's output made anew."""
    lines = []
    for line in block.splitlines():
        where, prompt, command = line.partition("$ ")
        if not prompt or where not in {*spaces, "underlay"}:
            continue
        text = walk(cluster, spaces, command) if where == "underlay" else show(spaces[where], command)
        lines += [line, *text.splitlines()]
    return "\n".join(lines) + "\n"


def show(space: Space, command: str) -> str:
    return normal(space, space.run("sh", "-c", command).stdout)


def walk(cluster: Cluster, spaces: dict[str, Space], command: str) -> str:
    """Return the request of one ping from pod1, as it crosses the underlay."""
    target = command.split()[1]
    assert spaces["pod1"].ping(target)
    with cluster.captured(cluster.nodes[1].tmp) as seen:
        assert spaces["pod1"].ping(target)
    frames = "\n".join(seen.frames("src host 192.0.2.1 or src host 10.244.1.2"))
    packets = re.findall(r"192\.0\.2\.1\.\d+ > .*: VXLAN.*|10\.244\S+ > \S+: ICMP echo request.*", frames)
    # A tunnel packet without a ping in it is discovery that happened to cross meanwhile.
    contents = [*packets[1:], "VXLAN"]
    packets = [
        p for p, inner in zip(packets, contents, strict=True) if "VXLAN" not in p or "VXLAN" not in inner
    ]
    # The same again on its way out of the underlay's bridge is left out.
    return normal(spaces["node1"], "\n".join(dict.fromkeys(packets)) + "\n")


def normal(space: Space, text: str) -> str:
    random = {link["address"] for name, link in space.links().items() if name == "cni0" or name[:4] == "veth"}
    for mac in random:
        text = text.replace(mac, "RANDOM-MAC")
    if "eth0" in space.links():
        text = re.sub(rf"(169\.254\.1\.1|fe80::1) lladdr {MAC}", r"\1 lladdr HOST-END-MAC", text)
    for pattern, word in WORDS:
        text = re.sub(pattern, word, text)
    return text


@pytest.mark.parametrize("form", ["tunnel", "bridge", "flat", "routed", "hostgw"])
def test_the_page_shows_what_the_kernel_says(cluster: Cluster, form: str) -> None:
    page = PAGE.read_text()
    found = next(block for block in BLOCK.finditer(page) if block[2] == form)
    made = transcript(cluster, start(cluster, form), found[3])
    if os.environ.get("PODWIRE_WRITE_DOCS"):
        PAGE.write_text(page.replace(found[0], f"{found[1]}{made}{found[4]}"))
    assert "$ " in made
    assert PAGE.read_text().count(made) == 1, made
