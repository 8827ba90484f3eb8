"""Many pods at once, through the real executable: nothing is lost, doubled or left behind."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from tests.harness.networks import address_of, dual_stack, eventually, network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.harness.node import Completed, Node, Pod

PODS, AT_ONCE = 60, 12


def at_once(work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Do the work for each item, so many at a time, and return the outcomes in order."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(work, items))


def adder(node: Node, config: dict[str, Any]) -> Callable[[Pod], Completed]:
    return lambda pod: node.call("ADD", config, pod)


def veths(node: Node) -> list[str]:
    return [name for name in node.links() if name.startswith("veth")]


def assert_nothing_left(node: Node, bridges: set[str]) -> None:
    # The kernel removes the links of a namespace that vanished in its own time.
    assert eventually(lambda: veths(node), []) == []
    assert node.held() == {}
    assert set(node.links()) == {"lo"} | bridges


def test_sixty_pods_come_and_go_twelve_at_a_time_on_a_new_bridge(node: Node) -> None:
    config = dual_stack(node)
    pods = [node.pod() for _ in range(PODS)]
    answers = at_once(adder(node, config), pods)
    assert [a.stdout for a in answers if a.status != 0] == []
    results = [answer.json for answer in answers]
    for family in (4, 6):
        assert len({address_of(result, family) for result in results}) == PODS
    assert len(veths(node)) == PODS
    checks = at_once(
        lambda pair: node.check(config, pair[0], pair[1]), list(zip(results, pods, strict=True))[::6]
    )
    assert [c.stdout for c in checks if c.status != 0] == []
    assert all(at_once(lambda pod: pod.ping("10.22.0.1") and pod.ping("fd00:22::1"), pods[::6]))

    def delete(numbered: tuple[int, Pod]) -> str:
        number, pod = numbered
        if number % 5 == 0:
            pod.remove()
        return node.call("DEL", config, pod).stdout

    # The first twelve are deleted twice, and both at the same time.
    numbered = list(enumerate(pods))
    twice = [pair for pair in numbered[:AT_ONCE] for _ in range(2)]
    assert [said for said in at_once(delete, twice + numbered[AT_ONCE:]) if said] == []
    assert_nothing_left(node, {"cni0"})


def test_pods_of_six_new_bridges_at_once_all_come_and_the_bridges_are_each_made_once(node: Node) -> None:
    def config_of(number: int) -> dict[str, Any]:
        ranges = [{"subnet": f"10.{number}.0.0/24"}], [{"subnet": f"fd00:{number}::/64"}]
        keys = {"name": f"net{number}", "bridge": f"br{number}", "isDefaultGateway": True}
        return network(node, *ranges, **keys)

    calls = [(config_of(number % 6 + 1), node.pod()) for number in range(24)]
    answers = at_once(lambda call: node.call("ADD", *call), calls)
    assert [a.stdout for a in answers if a.status != 0] == []
    for number in range(1, 7):
        own = [
            a.json for a, (config, _) in zip(answers, calls, strict=True) if config["bridge"] == f"br{number}"
        ]
        assert len({result["interfaces"][0]["mac"] for result in own}) == 1
        assert node.addresses(f"br{number}") == [f"10.{number}.0.1/24", f"fd00:{number}::1/64"]
    assert [c.stdout for c in at_once(lambda call: node.call("DEL", *call), calls) if c.status != 0] == []
    assert_nothing_left(node, {f"br{number}" for number in range(1, 7)})


def test_two_networks_of_different_mtu_on_one_new_bridge_leave_it_with_the_larger(node: Node) -> None:
    large = dual_stack(node, name="large", mtu=9000)
    small = network(node, name="small", mtu=1400)
    calls = [(small if number % 2 else large, node.pod()) for number in range(24)]
    answers = at_once(lambda call: node.call("ADD", *call), calls)
    assert [a.stdout for a in answers if a.status != 0] == []
    assert node.links()["cni0"]["mtu"] == 9000


def test_adds_to_a_full_pool_fail_beside_adds_that_succeed_and_take_nothing_with_them(node: Node) -> None:
    # The IPv6 range has room, the IPv4 range for five pods beside the gateway.
    config = network(node, [{"subnet": "fd00:22::/64"}], [{"subnet": "10.22.0.0/29"}], isDefaultGateway=True)
    pods = [node.pod() for _ in range(AT_ONCE)]
    answers = at_once(adder(node, config), pods)
    attached = [pod for answer, pod in zip(answers, pods, strict=True) if answer.status == 0]
    refused = [answer.json["code"] for answer in answers if answer.status != 0]
    assert (len(attached), set(refused)) == (5, {11})
    assert len(veths(node)) == 5
    assert len(node.held()) == 10
    assert all(pod.ping("10.22.0.1") and pod.ping("fd00:22::1") for pod in attached)
    at_once(lambda pod: node.delete(config, pod), pods)
    assert_nothing_left(node, {"cni0"})


def test_an_add_that_fails_on_a_new_bridge_does_not_take_it_from_one_that_succeeds(node: Node) -> None:
    good = dual_stack(node)
    bad = network(node, [{"subnet": "10.99.0.0/24"}], name="bad", isDefaultGateway=True)
    pods = [node.pod() for _ in range(AT_ONCE)]
    node.add(good, pods[0])
    node.delete(good, pods[0])
    answers = at_once(
        lambda numbered: node.call("ADD", bad if numbered[0] % 2 else good, numbered[1]), enumerate(pods)
    )
    assert [answer.status for answer in answers] == [0, 1] * (AT_ONCE // 2)
    assert {answer.json["code"] for answer in answers[1::2]} == {7}
    assert len(veths(node)) == AT_ONCE // 2
    assert all(pod.ping("10.22.0.1") for pod in pods[::2])
