"""The cluster's name server: CoreDNS with the rights, the Corefile and the Service that kubeadm gives it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.harness.kubernetes import images

if TYPE_CHECKING:
    from collections.abc import Iterator

ADDRESS, DOMAIN = "10.96.0.10", "cluster.local"
NAMESPACE = "kube-system"
_NAME = "coredns"
_LABELS = {"k8s-app": "kube-dns"}
_COREFILE = f"""
.:53 {{
    errors
    health
    ready
    kubernetes {DOMAIN} in-addr.arpa ip6.arpa {{
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
    }}
    prometheus :9153
    forward . /etc/resolv.conf
    cache 30
    loop
    reload
    loadbalance
}}
"""


def objects() -> Iterator[dict[str, Any]]:
    """Return everything of the name server."""
    meta = {"name": _NAME, "namespace": NAMESPACE}
    yield {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}
    yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"Corefile": _COREFILE}}
    yield from _rights()
    yield {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": _deployment()}
    ports = [{"name": f"dns-{each.lower()}", "protocol": each, "port": 53} for each in ("UDP", "TCP")]
    spec = {"selector": _LABELS, "clusterIP": ADDRESS, "ipFamilyPolicy": "PreferDualStack", "ports": ports}
    service = {"name": "kube-dns", "namespace": NAMESPACE, "labels": _LABELS}
    yield {"apiVersion": "v1", "kind": "Service", "metadata": service, "spec": spec}


def _rights() -> Iterator[dict[str, Any]]:
    group, name = "rbac.authorization.k8s.io", "system:coredns"
    seen = {"": ["endpoints", "services", "pods", "namespaces"], "discovery.k8s.io": ["endpointslices"]}
    rules = [
        {"apiGroups": [each], "resources": kinds, "verbs": ["list", "watch"]} for each, kinds in seen.items()
    ]
    version = f"{group}/v1"
    yield {"apiVersion": version, "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules}
    yield {
        "apiVersion": version,
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": _NAME, "namespace": NAMESPACE}],
    }


def _deployment() -> dict[str, Any]:
    container = {
        "name": _NAME,
        "image": images.COREDNS,
        "imagePullPolicy": "Never",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }
    spec = {
        "serviceAccountName": _NAME,
        "priorityClassName": "system-cluster-critical",
        "dnsPolicy": "Default",
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": _NAME}}],
    }
    return {
        "selector": {"matchLabels": _LABELS},
        "template": {"metadata": {"labels": _LABELS}, "spec": spec},
    }
