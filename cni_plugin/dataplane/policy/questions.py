"""Answers the ADDs of this node's pods: each waits here until its pod's policies are in force.

A Unix socket of root's, a thread for each question, as many as there are ADDs at once. By hand:
`echo '{"identity": ...}' | socat - UNIX:/run/podwire/policy.sock`.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cni_plugin.agent.journal import own
from cni_plugin.features.policy_question import PolicyQuestion, parse_question
from ipam.seam import files

if TYPE_CHECKING:
    from collections.abc import Callable

_BACKLOG = 256
_MOST = 64  # questions at once
_LARGEST = 65536  # bytes
_PATIENCE = 5.0  # seconds that a client has to ask
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


@dataclass
class QuestionServer:
    """Listens at `path`; `answer` returns READY, or why not, within the time that a question gives."""

    path: str
    answer: Callable[[PolicyQuestion], str]
    _listener: socket.socket | None = None
    _places: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(_MOST))

    def start(self) -> None:
        """Listen from now on, in place of whoever has listened there before."""
        files.make_directories(os.path.dirname(self.path))
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        files.remove_file(self.path)
        mask = os.umask(0o177)
        try:
            listener.bind(self.path)
        finally:
            os.umask(mask)
        listener.listen(_BACKLOG)
        self._listener = listener
        threading.Thread(target=self._run, args=(listener,), name="questions", daemon=True).start()

    def stop(self) -> None:
        """Listen no more."""
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            files.remove_file(self.path)

    def _run(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self._places.acquire()
            threading.Thread(target=self._serve, args=(client,), name="question", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client:
                client.settimeout(_PATIENCE)
                raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                if _CREDENTIALS.unpack(raw)[1] != os.geteuid():
                    return
                with client.makefile("rb") as lines:
                    said = self._reply(lines.readline(_LARGEST))
                client.sendall(said.encode() + b"\n")
        except OSError as error:
            own.debug("question: %s", error)
        finally:
            self._places.release()

    def _reply(self, line: bytes) -> str:
        try:
            return self.answer(parse_question(line))
        except (ValueError, KeyError, TypeError) as error:
            return f"wanted a question, found {error}"
        except Exception as error:  # noqa: BLE001  an ADD is told, and goes on closed
            own.exception("unexpected")
            return f"{type(error).__name__}: {error}"
