"""The protocols of a service manager: sockets by LISTEN_FDS, readiness by NOTIFY_SOCKET.

sd_listen_fds(3), sd_notify(3). Both variables are taken out of the environment, because the
delegates that we start must not speak for us.
"""

from __future__ import annotations

import os
import socket

_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START


def take_listener() -> socket.socket | None:
    """Return the listening socket that the service manager opened for us, None when it opened none."""
    addressed = os.environ.pop("LISTEN_PID", "") == str(os.getpid())
    count = os.environ.pop("LISTEN_FDS", "0")
    os.environ.pop("LISTEN_FDNAMES", None)
    if not addressed or count == "0":
        return None
    os.set_inheritable(_FIRST_DESCRIPTOR, False)
    return socket.socket(fileno=_FIRST_DESCRIPTOR)


class Notifier:
    """Tells the service manager how far we are; without one it tells nobody."""

    def __init__(self) -> None:
        """Take the address out of the environment."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        # "@" stands for the NUL of the abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def tell(self, state: str) -> None:
        """Send one state, such as "READY=1"."""
        if self._address:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
                notify.sendto(state.encode(), self._address)
