"""All default paths on a node; no other module holds one."""

from __future__ import annotations

from typing import Final

CONF_DIR: Final = "/etc/cni/net.d"
BIN_DIR: Final = "/opt/cni/bin"
DATA_DIR: Final = "/var/lib/cni/networks"
RESULTS_DIR: Final = "/var/lib/cni/results"
SOCKET: Final = "/run/podwire/podwire.sock"
POLICY_SOCKET: Final = "/run/podwire/policy.sock"
STATE_FILE: Final = "/run/podwire/cluster.json"
CLUSTER_SETTINGS: Final = "/etc/podwire/cluster.json"
SERVICE_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
CONTAINERD_CONFIG: Final = "/etc/containerd/config.toml"
SOCKET_UNIT: Final = "/etc/systemd/system/podwire.socket"
TUNING_DIR: Final = "/run/cni/tuning"
TUNING_ALLOWLIST: Final = "/etc/cni/tuning/allowlist.conf"
INSTALLED: Final = "/var/lib/podwire/installed"  # scripts/install writes it
SHIM_IN_IMAGE: Final = "/usr/lib/podwire/podwire-shim"
