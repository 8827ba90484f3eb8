"""The examples in the documentation of each plugin of the reference, and containerd's own, as chains.

Left out is what we refuse: the backend `firewalld`.
"""

from __future__ import annotations

BRIDGE = {
    "type": "bridge",
    "bridge": "cni0",
    "isGateway": True,
    "ipMasq": True,
    "ipam": {"type": "host-local", "subnet": "10.88.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]},
}
CONTAINERD = BRIDGE | {
    "promiscMode": True,
    "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "2001:4860:4860::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    },
}
DEFAULT_GATEWAY = {
    "type": "bridge",
    "bridge": "mynet0",
    "isDefaultGateway": True,
    "forceAddress": False,
    "ipMasq": True,
    "hairpinMode": True,
    "ipam": {"type": "host-local", "subnet": "10.10.0.0/16"},
}
PTP = {
    "type": "ptp",
    "ipMasq": True,
    "ipam": {"type": "host-local", "subnet": "172.16.30.0/24", "routes": [{"dst": "0.0.0.0/0"}]},
}
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
IPTABLES = {
    "backend": "iptables",
    "snat": True,
    "externalSetMarkChain": "CNI-HOSTPORT-SETMARK",
    "conditionsV4": ["!", "-d", "192.0.2.0/24"],
    "conditionsV6": ["!", "-d", "fc00::/7"],
}
NFTABLES = {
    "backend": "nftables",
    "snat": True,
    "conditionsV4": ["ip", "daddr", "!=", "192.0.2.0/24"],
    "conditionsV6": ["ip6", "daddr", "!=", "fc00::/7"],
}
BANDWIDTH = {
    "type": "bandwidth",
    "ingressRate": 123,
    "ingressBurst": 456,
    "egressRate": 123,
    "egressBurst": 456,
}
TUNING = {
    "type": "tuning",
    "sysctl": {"net.core.somaxconn": "500", "net.ipv4.conf.IFNAME.arp_filter": "1"},
    "mac": "c2:b0:57:49:47:f1",
    "mtu": 1454,
    "promisc": True,
    "allmulti": True,
}
CHAINS = {
    "containerd": ("1.0.0", CONTAINERD, PORTMAP),
    "bridge": ("0.3.1", DEFAULT_GATEWAY),
    "portmap": ("0.3.1", PTP, PORTMAP | {"externalSetMarkChain": "KUBE-MARK-MASQ"}),
    "portmap-iptables": ("0.4.0", BRIDGE, PORTMAP | IPTABLES),
    "portmap-nftables": ("0.4.0", BRIDGE, PORTMAP | NFTABLES),
    "bandwidth": ("0.4.0", BRIDGE, PORTMAP, BANDWIDTH),
    "firewall": ("0.3.1", BRIDGE, {"type": "firewall", "backend": "iptables"}),
    "firewall-policy": ("0.4.0", BRIDGE, {"type": "firewall", "ingressPolicy": "same-bridge"}),
    "tuning": ("0.4.0", BRIDGE, TUNING),
}
