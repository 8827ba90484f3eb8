"""`KernelError`: what the kernel refused, raised here, once, with the kernel's own words."""

from __future__ import annotations

import errno
import os

from cni_plugin.contract.errors import CNIError, Code

# What passes by itself: a retry may succeed with nothing changed.
_TRANSIENT = frozenset({errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOBUFS, errno.ENOMEM})
# What this kernel was built without.
_UNKNOWN = frozenset({errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT})
# What the place that we run in forbids: /proc/sys is read-only, a capability is missing, IPv6 is off.
REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class KernelError(CNIError):
    """A refused change: the command that does the same by hand, the errno, the kernel's reason."""

    def __init__(self, command: str, number: int, reason: str = "") -> None:
        """Keep errno, so that a caller can tell absence and existence from failure."""
        words = f"{os.strerror(number)} ({reason})" if reason else os.strerror(number)
        super().__init__(_find_code(number), f"{command}: {words}")
        self.errno = number


def _find_code(number: int) -> Code:
    if number in REFUSED | _UNKNOWN:
        return Code.NOT_AVAILABLE
    return Code.TRY_AGAIN_LATER if number in _TRANSIENT else Code.INTERNAL
