"""The question of a new pod: what holds for it? Whoever follows the cluster's policies answers.

It listens on a Unix socket of root's. A question is one line of JSON, the answer is one line, "ready" once
the kernel has the pod's policies, and comes no later than the time that the question gives.
"""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass

from ipam.seam import waits

READY = "ready"
_MARGIN = 0.5  # seconds beyond the time that the question gives
_LONGEST = 65536  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyQuestion:
    """A pod that was just made; `timeout` in seconds."""

    identity: str
    namespace: str
    name: str
    uid: str
    addresses: tuple[str, ...]
    timeout: float

    def render(self) -> bytes:
        """Return the question as it travels."""
        return json.dumps(asdict(self)).encode() + b"\n"


def parse_question(line: bytes) -> PolicyQuestion:
    """Return a question; ValueError, KeyError or TypeError for what is none."""
    found = json.loads(line)
    return PolicyQuestion(**{**found, "addresses": tuple(found["addresses"])})


def ask(path: str, question: PolicyQuestion) -> str:
    """Return the answer; an empty one where nobody answers, or not in time. Other calls go on meanwhile."""
    with waits.waiting(), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(question.timeout + _MARGIN)
        try:
            connection.connect(path)
            connection.sendall(question.render())
            with connection.makefile("rb") as answers:
                return answers.readline(_LONGEST).decode(errors="replace").strip()
        except OSError:
            return ""
