"""Kernel parameters below /proc/sys/net, of the network namespace that the thread is in.

Keys are paths with slashes ("net/ipv6/conf/eth0/accept_dad"), so that an interface name with
a dot needs no quoting. `sysctl -w KEY=VALUE` does the same. In a container /proc/sys cannot be written to:
PODWIRE_PROC_SYS says where the host's is mounted, whose net/ is that of whoever looks.
"""

from __future__ import annotations

import logging
import os

from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.kernel.errors import REFUSED, KernelError
from ipam.seam import step

log = logging.getLogger("podwire")

_ROOT = os.environ.get("PODWIRE_PROC_SYS", "/proc/sys")
_LONGEST = 4096  # bytes; a page is what the kernel has for a value
FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


def get_sysctl(key: str) -> str:
    """Return the value without surrounding white space; KernelError when there is no such key."""
    try:
        # Unbuffered, here and below: text costs a file of /proc twice the system calls.
        with open(f"{_ROOT}/{key}", "rb", buffering=0) as file:
            return (file.read(_LONGEST) or b"").decode().strip()
    except OSError as error:
        raise KernelError(f"sysctl {key}", error.errno or 0) from error


def has_sysctl(key: str) -> bool:
    """Tell whether there is such a key; those of an interface go with it."""
    return os.path.exists(f"{_ROOT}/{key}")


def ensure_sysctl(key: str, value: int) -> None:
    """Set the value when it differs."""
    if get_sysctl(key) != str(value):
        set_sysctl(key, str(value))


def prefer_sysctl(key: str, value: int, otherwise: str) -> None:
    """Set the value when it differs; where that is refused warn with what follows from it, and go on."""
    found = get_sysctl(key)
    if found == str(value):
        return
    try:
        set_sysctl(key, str(value))
    except KernelError as error:
        if error.errno not in REFUSED:
            raise
        log.warning("%s; it stays %s: %s", error, found, otherwise)


def require_sysctl(key: str, value: int) -> None:
    """Raise CNIError 50 when a value is another and cannot be set, for what an ADD cannot do without."""
    found = get_sysctl(key)
    if found != str(value) and not os.access(f"{_ROOT}/{key}", os.W_OK):
        raise CNIError(
            Code.NOT_AVAILABLE,
            f"sysctl {key}: wanted {value}, found {found} and {_ROOT} not to be written to",
        )


def require_family(version: int) -> None:
    """Raise CNIError 50 when this kernel has no IPv4 or no IPv6."""
    if not has_sysctl(FORWARDING[version]):
        raise CNIError(Code.NOT_AVAILABLE, f"IPv{version}: wanted a kernel with it, found none")


def set_sysctl(key: str, value: str) -> None:
    """Set the value; KernelError when there is no such key or the kernel refuses it."""
    log.debug("sysctl -w %s=%s", key, value)
    try:
        step("sysctl", _write, key, value)
    except OSError as error:
        raise KernelError(f"sysctl -w {key}={value}", error.errno or 0) from error


def _write(key: str, value: str) -> None:
    with open(f"{_ROOT}/{key}", "wb", buffering=0) as file:
        file.write(value.encode())
