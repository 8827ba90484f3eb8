"""Policies as they are computed: beside a naive evaluator, whatever changes in whatever order."""

from __future__ import annotations

import ipaddress
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_plugin.cluster.policy_objects import parse_namespace, parse_pod, parse_policy
from cni_plugin.cluster.resources import key_of
from cni_plugin.cluster.service_objects import PROTOCOLS
from cni_plugin.dataplane.policy import compile as compiling
from cni_plugin.dataplane.policy.desired import LocalPod, PolicyModel
from cni_plugin.dataplane.policy.evaluate import Attempt, judge
from cni_plugin.dataplane.policy.ruleset import ACCEPT, CLOSED
from tests.harness.policy_oracle import World

NODE = "node1"
HERE = [f"10.244.1.{i}" for i in range(2, 6)]
THERE = [f"10.244.2.{i}" for i in range(2, 6)]
SIX = {ip: f"fd00::{ip.split('.')[2]}:{ip.split('.')[3]}" for ip in (*HERE, *THERE)}
OUTSIDE = ["198.51.100.7", "10.244.9.9", "2001:db8::7"]


def pod(name: str, address: str, namespace: str = "a", **keys: Any) -> dict[str, Any]:
    """Return a pod; its node follows from its address."""
    ports = keys.pop("ports", [{"name": "web", "containerPort": 80}])
    meta = {
        "namespace": namespace,
        "name": name,
        "uid": keys.pop("uid", f"uid-{name}"),
        "creationTimestamp": f"2026-01-01T00:00:{keys.pop('created', 0):02}Z",
        "labels": keys.pop("labels", {}),
    }
    status = {"phase": keys.pop("phase", "Running"), "podIPs": [{"ip": address}, {"ip": SIX[address]}]}
    spec = {"nodeName": NODE if address in HERE else "node2", "containers": [{"ports": ports}], **keys}
    return {"metadata": meta, "spec": spec, "status": status}


def namespace(name: str, **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": labels}}


def policy(name: str, spec: dict[str, Any], space: str = "a") -> dict[str, Any]:
    return {"metadata": {"namespace": space, "name": name}, "spec": spec}


class Lab:
    """A model, and the world that it should mirror."""

    def __init__(self) -> None:
        self.model, self.world = PolicyModel(NODE), World()

    def put(self, kind: str, found: dict[str, Any]) -> None:
        key = key_of(found)
        if kind == "pod":
            self.world.pods[key] = found
            self.model.put_pods({key: parse_pod(found)})
            self._make_local(found)
        elif kind == "namespace":
            self.world.namespaces[key] = found
            self.model.put_namespaces({key: parse_namespace(found)})
        else:
            self.world.policies[key] = found
            self.model.put_policies({key: parse_policy(found)})

    def drop(self, kind: str, key: str) -> None:
        known = {"pod": self.world.pods, "namespace": self.world.namespaces, "policy": self.world.policies}
        known[kind].pop(key, None)
        put: Any = {
            "pod": self.model.put_pods,
            "namespace": self.model.put_namespaces,
            "policy": self.model.put_policies,
        }
        put[kind]({key: None})

    def _make_local(self, found: dict[str, Any]) -> None:
        """Let this node have made the pod, as its ADD said before the API."""
        meta = found["metadata"]
        addresses = tuple(packed(each["ip"]) for each in found["status"]["podIPs"])
        if found["spec"]["nodeName"] == NODE:
            local = LocalPod(
                identity=f"id-{key_of(found)}",
                namespace=meta["namespace"],
                name=meta["name"],
                uid=meta["uid"],
                addresses=addresses,
            )
            self.model.put_local([local])

    def compare(self, protocols: tuple[str, ...] = ("TCP", "UDP"), ports: tuple[int, ...] = (80, 81)) -> None:
        """Assert that the model says of every pair and port what the evaluator says."""
        self.model.compute()
        places = (*HERE, *THERE, *OUTSIDE)
        for source, destination, protocol, port in itertools.product(places, places, protocols, ports):
            ends = {"Egress": packed(source), "Ingress": packed(destination)}
            attempt = Attempt(
                source=ends["Egress"], destination=ends["Ingress"], protocol=PROTOCOLS[protocol], port=port
            )
            said = {
                each.direction.value.capitalize(): each.allowed
                for each in judge(self.model, attempt)
                if self._is_living(ends[each.direction.value.capitalize()])
            }
            wanted = self.world.allows(source, destination, protocol, port)
            assert said == {way: wanted[way] for way in said}, (source, destination, protocol, port)

    def _is_living(self, address: bytes) -> bool:
        """Tell whether an address is bound to the pod that has it: what a late one left is not looked at."""
        binding = self.model.rules.bindings.get(address)
        owner = self.world.owner(str(ipaddress.ip_address(address)))
        return binding is not None and owner is not None and key_of(owner) == binding.pod


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


labels = st.dictionaries(st.sampled_from(["app", "tier"]), st.sampled_from(["x", "y"]), max_size=2)
terms = st.one_of(
    st.fixed_dictionaries(
        {
            "key": st.sampled_from(["app", "tier"]),
            "operator": st.sampled_from(["In", "NotIn"]),
            "values": st.lists(st.sampled_from(["x", "y"]), min_size=1, max_size=2),
        }
    ),
    st.fixed_dictionaries(
        {
            "key": st.sampled_from(["app", "tier"]),
            "operator": st.sampled_from(["Exists", "DoesNotExist"]),
        }
    ),
)
selectors = st.one_of(
    st.just({}),
    st.builds(lambda found: {"matchLabels": found}, labels),
    st.builds(lambda found: {"matchExpressions": found}, st.lists(terms, max_size=2)),
)
blocks = st.sampled_from(
    [
        {"cidr": "10.244.0.0/16", "except": ["10.244.2.0/30"]},
        {"cidr": "10.244.1.3/24"},
        {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]},
        {"cidr": "::/0", "except": ["fd00::1:0/112"]},
        {"cidr": "198.51.100.7/32"},
    ]
)
peers = st.one_of(
    st.builds(lambda found: {"podSelector": found}, selectors),
    st.builds(lambda found: {"namespaceSelector": found}, selectors),
    st.builds(lambda one, two: {"namespaceSelector": one, "podSelector": two}, selectors, selectors),
    st.builds(lambda found: {"ipBlock": found}, blocks),
)
port_choices = st.sampled_from(
    [
        {},
        {"port": 80},
        {"port": 79, "endPort": 90},
        {"port": 81, "protocol": "UDP"},
        {"port": "web"},
        {"port": "other"},
        {"protocol": "UDP"},
    ]
)


def rules_of(side: str) -> Any:
    return st.lists(
        st.fixed_dictionaries(
            {}, optional={side: st.lists(peers, max_size=2), "ports": st.lists(port_choices, max_size=2)}
        ),
        max_size=2,
    )


specs = st.fixed_dictionaries(
    {"podSelector": selectors},
    optional={
        "ingress": rules_of("from"),
        "egress": rules_of("to"),
        "policyTypes": st.sampled_from([["Ingress"], ["Egress"], ["Ingress", "Egress"], []]),
    },
)
NAMES = ("one", "two", "three", "four")
named_ports = st.sampled_from(
    [[], [{"name": "web", "containerPort": 80}], [{"name": "web", "containerPort": 81}]]
)
pods = st.builds(
    lambda name, address, space, found, created, phase, host, ports: pod(
        name, address, space, labels=found, created=created, phase=phase, hostNetwork=host, ports=ports
    ),
    st.sampled_from(NAMES),
    st.sampled_from([*HERE[:3], *THERE[:2]]),
    st.sampled_from(["a", "b"]),
    labels,
    st.integers(0, 3),
    st.sampled_from(["Running", "Running", "Running", "Succeeded"]),
    st.sampled_from([False, False, False, True]),
    named_ports,
)
events = st.one_of(
    st.tuples(st.just("pod"), pods),
    st.tuples(st.just("pod"), pods),
    st.tuples(
        st.just("namespace"),
        st.builds(lambda n, found: namespace(n, **found), st.sampled_from(["a", "b"]), labels),
    ),
    st.tuples(
        st.just("policy"),
        st.builds(policy, st.sampled_from(["p", "q"]), specs, st.sampled_from(["a", "b"])),
    ),
    st.tuples(
        st.sampled_from(["drop pod", "drop policy"]),
        st.builds(lambda s, n: f"{s}/{n}", st.sampled_from(["a", "b"]), st.sampled_from([*NAMES, "p", "q"])),
    ),
)


@settings(max_examples=120, deadline=None)
@given(st.lists(events, max_size=14))
def test_any_sequence_leads_to_what_a_naive_evaluator_says(happened: list[tuple[str, Any]]) -> None:
    lab = Lab()
    for kind, what in happened:
        if kind.startswith("drop "):
            lab.drop(kind.removeprefix("drop "), what)
        else:
            lab.put(kind, what)
        lab.model.compute()
    lab.compare()
    fresh = Lab()
    for found in lab.world.namespaces.values():
        fresh.put("namespace", found)
    for found in lab.world.policies.values():
        fresh.put("policy", found)
    for found in lab.world.pods.values():
        fresh.put("pod", found)
    fresh.compare()
    same = {name: set(found) for name, found in fresh.model.rules.members.items()}
    assert {name: set(found) for name, found in lab.model.rules.members.items() if name in same} == same


def small(spec: dict[str, Any]) -> Lab:
    """Return a namespace with a web pod here, a client here and one on another node, and one policy."""
    lab = Lab()
    lab.put("namespace", namespace("a", team="red"))
    lab.put("namespace", namespace("b", team="blue"))
    lab.put("pod", pod("web", HERE[0], labels={"app": "web"}))
    lab.put("pod", pod("near", HERE[1], labels={"app": "client"}))
    lab.put("pod", pod("far", THERE[0], "b", labels={"app": "client"}))
    lab.put("policy", policy("p", {"podSelector": {"matchLabels": {"app": "web"}}, **spec}))
    return lab


SPECS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "nothing by null": {"ingress": None},
    "everything": {"ingress": [{}]},
    "no peers": {"ingress": [{"from": [], "ports": [{"port": 80}]}]},
    "own namespace": {"ingress": [{"from": [{"podSelector": {}}]}]},
    "both in one": {
        "ingress": [{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "x"}}}]}]
    },
    "either of two": {"ingress": [{"from": [{"namespaceSelector": {}}, {"podSelector": {}}]}]},
    "range": {"ingress": [{"ports": [{"port": 70, "endPort": 80}]}]},
    "named": {"ingress": [{"ports": [{"port": "web"}]}]},
    "named nowhere": {"ingress": [{"ports": [{"port": "none"}]}]},
    "named of the peer": {"egress": [{"to": [{"namespaceSelector": {}}], "ports": [{"port": "web"}]}]},
    "egress alone": {"egress": [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}], "policyTypes": ["Egress"]},
    "egress of none": {"egress": []},
    "except": {"ingress": [{"from": [{"ipBlock": {"cidr": "10.244.0.0/16", "except": ["10.244.1.0/24"]}}]}]},
    "name of a block": {"egress": [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"port": "web"}]}]},
}


@pytest.mark.parametrize("name", SPECS)
def test_a_policy_means_what_the_specification_says(name: str) -> None:
    small(SPECS[name]).compare()


def test_pods_that_the_same_policies_select_share_a_group_and_peers_share_a_set() -> None:
    lab = small({"ingress": [{"from": [{"podSelector": {}}]}]})
    lab.put("pod", pod("web2", HERE[2], labels={"app": "web"}))
    lab.put("policy", policy("q", {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}))
    rules = lab.model.compute()
    bound = {binding.pod: binding.ingress for binding in rules.bindings.values()}
    assert bound["a/web"] == bound["a/web2"] != bound["a/near"]
    assert len(rules.members) == 1


def test_a_pod_that_has_ended_is_nobody_at_once() -> None:
    lab = small({"ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}]})
    [members] = lab.model.compute().members.values()
    assert packed(HERE[1]) in members
    lab.put("pod", pod("near", HERE[1], labels={"app": "client"}, phase="Succeeded"))
    [members] = lab.model.compute().members.values()
    assert members == {}


def test_an_address_that_is_given_to_another_pod_is_that_one_s() -> None:
    lab = small({"ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}]})
    lab.put("pod", pod("other", HERE[1], labels={"app": "other"}, created=9))
    [members] = lab.model.compute().members.values()
    assert packed(HERE[1]) not in members
    lab.drop("pod", "a/near")
    assert packed(HERE[1]) not in next(iter(lab.model.compute().members.values()))
    lab.compare()


def test_a_pod_of_another_uid_is_another_pod() -> None:
    lab = Lab()
    lab.put("namespace", namespace("a"))
    found = pod("web", HERE[0], uid="new")
    lab.model.put_pods({"a/web": parse_pod(found)})
    local = LocalPod(identity="i", namespace="a", name="web", uid="old", addresses=(packed(HERE[0]),))
    lab.model.put_local([local])
    assert lab.model.compute().bindings == {}
    mirror = {**found, "metadata": {**found["metadata"], "annotations": {"kubernetes.io/config.hash": "old"}}}
    lab.model.put_pods({"a/web": parse_pod(mirror)})
    assert [binding.ingress for binding in lab.model.compute().bindings.values()] == [ACCEPT]


def test_a_policy_that_is_too_large_closes_its_pods_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "MOST_ALLOWANCES", 3)
    blocks_of_many = [{"ipBlock": {"cidr": f"10.{i}.0.0/16"}} for i in range(4)]
    lab = small({"ingress": [{"from": blocks_of_many}]})
    bindings = {each.pod: (each.ingress, each.egress) for each in lab.model.compute().bindings.values()}
    assert bindings == {"a/web": (CLOSED, ACCEPT), "a/near": (ACCEPT, ACCEPT)}
    [problem] = lab.model.problems()
    assert problem.startswith("policy a/p: wanted 3 peers and ports of ingress at most, found 4; the pods")


def test_a_group_is_there_before_its_pod_is_made() -> None:
    lab = small({"ingress": []})
    early = PolicyModel(NODE)
    early.put_namespaces({"a": parse_namespace(namespace("a"))})
    early.put_policies({"a/p": parse_policy(lab.world.policies["a/p"])})
    bound = pod("web", HERE[0], labels={"app": "web"})
    bound["status"] = {"phase": "Pending"}
    early.put_pods({"a/web": parse_pod(bound)})
    rules = early.compute()
    assert (len(rules.groups), rules.bindings) == (1, {})


def test_a_pod_whose_network_is_gone_is_bound_no_more() -> None:
    lab = small({})
    assert packed(HERE[0]) in lab.model.compute().bindings
    lab.model.keep_local({"id-a/near"})
    assert {each.pod for each in lab.model.compute().bindings.values()} == {"a/near"}


@pytest.mark.parametrize(
    "peer",
    [{"ipBlock": {"cidr": "nonsense"}}, {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["x"]}}, {}, {"new": {}}],
)
def test_a_peer_that_cannot_be_read_allows_nobody(peer: dict[str, Any]) -> None:
    lab = small({"ingress": [{"from": [peer]}]})
    attempt = Attempt(source=packed(HERE[1]), destination=packed(HERE[0]), protocol=6, port=80)
    lab.model.compute()
    assert [each.allowed for each in judge(lab.model, attempt)] == [True, False]


def test_a_pod_of_this_node_is_a_peer_before_the_api_knows_its_address() -> None:
    lab = small({"ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": "web"}]}]})
    young = pod("young", HERE[2], labels={"app": "web"})
    bare = {**young, "status": {"phase": "Pending"}}
    lab.model.put_pods({"a/young": parse_pod(bare)})
    addresses = tuple(packed(each) for each in (HERE[2], SIX[HERE[2]]))
    local = LocalPod(identity="i", namespace="a", name="young", uid="uid-young", addresses=addresses)
    lab.model.put_local([local])
    lab.world.pods["a/young"] = young
    lab.compare()
    lab.model.put_pods({"a/young": parse_pod(young)})
    lab.compare()


def test_an_address_that_a_new_pod_was_given_is_not_bound_to_the_old_one_again() -> None:
    lab = small({"ingress": []})
    [*_] = lab.model.compute().bindings
    fresh = LocalPod(identity="new", namespace="a", name="new", uid="u", addresses=(packed(HERE[0]),))
    lab.model.put_local([fresh])
    assert packed(HERE[0]) not in lab.model.compute().bindings
    going = lab.world.pods["a/web"]
    labels_of_it = {"app": "web", "going": "yes"}
    lab.model.put_pods(
        {"a/web": parse_pod({**going, "metadata": {**going["metadata"], "labels": labels_of_it}})}
    )
    assert packed(HERE[0]) not in lab.model.compute().bindings


@pytest.mark.parametrize("operator", ["NotIn", "DoesNotExist"])
def test_a_pod_whose_namespace_is_not_known_yet_is_none_of_those_that_lack_a_label(operator: str) -> None:
    term = {"key": "team", "operator": operator, **({"values": ["red"]} if operator == "NotIn" else {})}
    lab = small({"ingress": [{"from": [{"namespaceSelector": {"matchExpressions": [term]}}]}]})
    lab.put("pod", pod("early", THERE[1], "c"))
    [members] = lab.model.compute().members.values()
    assert packed(THERE[1]) not in members
    lab.put("namespace", namespace("c", team="green" if operator == "NotIn" else ""))
    if operator == "DoesNotExist":
        lab.put("namespace", namespace("c"))
    [members] = lab.model.compute().members.values()
    assert packed(THERE[1]) in members
    lab.compare()


def test_a_named_port_of_an_ingress_rule_is_kept_of_this_node_s_pods_alone() -> None:
    lab = small({"ingress": [{"ports": [{"port": "web"}]}]})
    [members] = lab.model.compute().members.values()
    assert set(members.values()) == {"a/web", "a/near"}
