"""What the kernel refused: raised here, once, with the kernel's own words."""

from __future__ import annotations

import errno
import os

from cni_plugin.contract.errors import CNIError, Code

# What passes by itself: a retry may succeed with nothing changed.
_TRANSIENT = frozenset({errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOBUFS, errno.ENOMEM})


class KernelError(CNIError):
    """A refused change: the command that does the same by hand, the errno, the kernel's reason."""

    def __init__(self, command: str, number: int, reason: str = "") -> None:
        """Keep errno, so that a caller can tell absence and existence from failure."""
        words = f"{os.strerror(number)} ({reason})" if reason else os.strerror(number)
        code = Code.TRY_AGAIN_LATER if number in _TRANSIENT else Code.INTERNAL
        super().__init__(code, f"{command}: {words}")
        self.errno = number
