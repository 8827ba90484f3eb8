"""Services, their slices, pods and policies as the API shows them."""

from __future__ import annotations

from typing import Any


def render_service(
    name: str, addresses: list[str], ports: list[dict[str, Any]], *, namespace: str = "shop", **spec: Any
) -> dict[str, Any]:
    """Return a Service; `spec` are more keys of its spec, `status` and `labels` aside."""
    status, labels = spec.pop("status", {}), spec.pop("labels", {})
    created = spec.pop("created", 0)
    return {
        "metadata": {
            "namespace": namespace,
            "name": name,
            "labels": labels,
            "creationTimestamp": f"2026-01-01T00:00:{created:02}Z",
            "managedFields": [{"manager": "somebody"}],
        },
        "spec": {
            "clusterIP": addresses[0] if addresses else "None",
            "clusterIPs": addresses or ["None"],
            "ports": ports,
            "type": "ClusterIP",
            **spec,
        },
        "status": status,
    }


def render_slice(
    name: str,
    service: str,
    endpoints: list[dict[str, Any]],
    ports: list[dict[str, Any]],
    namespace: str = "shop",
) -> dict[str, Any]:
    """Return a slice of a Service, of the family of its first endpoint."""
    first = next((address for each in endpoints for address in each["addresses"]), "192.0.2.1")
    return {
        "metadata": {
            "namespace": namespace,
            "name": name,
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv6" if ":" in first else "IPv4",
        "ports": ports,
        "endpoints": endpoints,
    }


def render_endpoint(address: str, node: str, **conditions: bool) -> dict[str, Any]:
    """Return an endpoint, ready unless the conditions say otherwise."""
    found = {"ready": True, "serving": True, "terminating": False, **conditions}
    return {"addresses": [address], "nodeName": node, "conditions": found}
