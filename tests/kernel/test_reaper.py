"""Deletions that are pending together: one request for all, and never a link that is not ours."""

from __future__ import annotations

import _thread
import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.link import Link, get_link, get_link_by_index, link_body
from cni_plugin.kernel.link_removal import remove_links
from cni_plugin.kernel.netlink import RTM_DELLINK, Change
from cni_plugin.kernel.netns import Namespace, inside, open_pod
from cni_plugin.kernel.reaper import delete_links, delete_together, new_group
from ipam import seam
from tests.harness.networks import dual_stack
from tests.harness.storm.faulting import Fault, Steps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.node import Node, Pod


@pytest.fixture
def host(plain_node: Node) -> Iterator[Namespace]:
    with open_pod(plain_node.path) as opened:
        yield opened


def veths(node: Node, host: Namespace, count: int) -> dict[int, Link]:
    for n in range(count):
        node.run("ip", "link", "add", f"veth{n}", "type", "veth", "peer", "name", f"p{n}")
        node.run("ip", "link", "set", f"veth{n}", "alias", f"podwire:{n:016x} test c{n} eth0")
    found = [get_link(host.netlink, f"veth{n}") for n in range(count)]
    return {link.index: link for link in found if link is not None}


def names(node: Node) -> list[str]:
    return sorted(name for name in node.links() if name != "lo")


def test_a_link_that_cannot_be_moved_to_the_group_is_not_taken_for_deleted(
    plain_node: Node, host: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = veths(plain_node, host, 3)
    # The first step asks whether the group has members.
    monkeypatch.setattr(seam, "hook", Steps(Fault(frozenset({2}), "EBUSY")))
    gone = delete_together(host, links, new_group())
    assert gone == {index for index, link in links.items() if link.name != "veth1"}
    assert [name for name in names(plain_node) if name.startswith("veth")] == ["veth1"]


def test_links_of_one_batch_are_gone_together(plain_node: Node, host: Namespace) -> None:
    links = veths(plain_node, host, 5)
    assert delete_together(host, links, new_group()) == set(links)
    assert names(plain_node) == []


def test_a_stranger_in_the_group_saves_everybody(plain_node: Node, host: Namespace) -> None:
    links, group = veths(plain_node, host, 2), new_group()
    plain_node.run("ip", "link", "add", "stranger", "group", str(group), "type", "bridge")
    before = names(plain_node)
    assert delete_together(host, links, group) == set()
    assert names(plain_node) == before


def test_a_link_that_another_owner_renamed_is_left_alone(plain_node: Node, host: Namespace) -> None:
    links = veths(plain_node, host, 2)
    plain_node.run("ip", "link", "set", "veth1", "alias", "somebody's")
    before = names(plain_node)
    assert delete_together(host, links, new_group()) == set()
    assert names(plain_node) == before


def test_one_that_is_gone_already_does_not_keep_the_others(plain_node: Node, host: Namespace) -> None:
    links = veths(plain_node, host, 3)
    plain_node.run("ip", "link", "del", "veth1")
    gone = delete_together(host, links, new_group())
    assert [links[index].name for index in sorted(gone)] == ["veth0", "veth2"]
    assert names(plain_node) == []


def test_each_caller_learns_of_its_own_link(plain_node: Node, host: Namespace) -> None:
    """Twice as many deletions as links, and each link was there for one of its two callers."""
    links = veths(plain_node, host, 20)

    def delete(link: Link) -> bool:
        with (
            Path(plain_node.path).open() as space,
            inside(space.fileno()),
            open_pod(plain_node.path, allow_host=True) as own,
        ):
            return delete_links(own, link)

    with ThreadPoolExecutor(40) as pool:
        existed = list(pool.map(delete, [*links.values()] * 2))
    assert all(map(any, zip(existed[:20], existed[20:], strict=True)))
    assert names(plain_node) == []


def test_whoever_deleted_a_link_finds_it_gone_and_its_name_free(plain_node: Node, host: Namespace) -> None:
    for _ in range(20):
        (link,) = veths(plain_node, host, 1).values()
        assert delete_links(host, link)
        assert get_link(host.netlink, link.name) is None
        assert get_link_by_index(host.netlink, link.peer) is None
        assert not has_counters(plain_node, link.name)


def has_counters(node: Node, ifname: str) -> bool:
    with Path(node.path).open() as space, inside(space.fileno()):
        return Path(f"/proc/thread-self/net/dev_snmp6/{ifname}").exists()


def test_a_link_that_is_gone_already_is_no_error_and_a_refusal_is_one(
    plain_node: Node, host: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, kept = veths(plain_node, host, 2).values()
    plain_node.run("ip", "link", "del", gone.name)
    assert not delete_links(host, gone)
    monkeypatch.setattr(seam, "hook", Steps(Fault(frozenset({0}), "EPERM")))
    with pytest.raises(KernelError, match=f"ip link del {kept.name}"):
        delete_links(host, kept)
    assert get_link(host.netlink, kept.name) is not None


def test_a_refusal_of_the_kernels_comes_through(plain_node: Node, host: Namespace) -> None:
    plain_node.run("ip", "link", "set", "lo", "up")
    change = Change("ip link del lo", RTM_DELLINK, link_body(index=1))
    with pytest.raises(KernelError) as caught:
        remove_links(host, change, (1,))
    assert caught.value.errno == errno.EOPNOTSUPP


def test_without_a_thread_the_caller_waits_itself(plain_node: Node, host: Namespace) -> None:
    (link,) = veths(plain_node, host, 1).values()
    threading.stack_size(1 << 47)  # more than a process can have, so that the kernel refuses
    try:
        with pytest.raises(RuntimeError):
            _thread.start_new_thread(print, ())
        assert delete_links(host, link)
    finally:
        threading.stack_size(0)
    assert names(plain_node) == []


def test_dels_at_once_release_every_address_and_link(node: Node) -> None:
    config = dual_stack(node)
    pods = [node.pod() for _ in range(24)]
    with ThreadPoolExecutor(24) as pool:
        list(pool.map(lambda pod: node.add(config, pod), pods))
        survivor: Pod = pods.pop()
        list(pool.map(lambda pod: node.delete(config, pod), [*pods, *pods]))
    assert len(node.held()) == 2
    assert len([name for name in node.links() if name.startswith("veth")]) == 1
    assert survivor.ping("10.22.0.1")
    assert node.links()["cni0"]["operstate"] == "UP"
