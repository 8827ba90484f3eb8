"""Kernel parameters below /proc/sys/net, of the network namespace that the thread is in.

Keys are paths with slashes ("net/ipv6/conf/eth0/accept_dad"), so that an interface name with
a dot needs no quoting. `sysctl -w KEY=VALUE` does the same.
"""

from __future__ import annotations

import logging

from cni_plugin.kernel.errors import KernelError

log = logging.getLogger("podwire")

FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


def get_sysctl(key: str) -> str:
    """Return the value without surrounding white space; KernelError when there is no such key."""
    try:
        with open(f"/proc/sys/{key}", encoding="ascii") as file:
            return file.read().strip()
    except OSError as error:
        raise KernelError(f"sysctl {key}", error.errno or 0) from error


def ensure_sysctl(key: str, value: int) -> None:
    """Set the value when it differs."""
    if get_sysctl(key) == str(value):
        return
    log.debug("sysctl -w %s=%d", key, value)
    try:
        with open(f"/proc/sys/{key}", "w", encoding="ascii") as file:
            file.write(str(value))
    except OSError as error:
        raise KernelError(f"sysctl -w {key}={value}", error.errno or 0) from error
