"""Agents that tests start, and what they say to them on the wire."""

from __future__ import annotations

import select
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.node import Space

HEAD = struct.Struct("!4sIIII")


@dataclass
class Agent:
    """A running agent; its log goes to a file beside its socket."""

    process: subprocess.Popen[bytes]
    socket: Path
    log: Path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to end and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def wait_ready(self) -> None:
        """Return when everything is loaded; the socket is there before."""
        deadline = time.monotonic() + 20
        while not self.count("ready"):
            assert time.monotonic() < deadline, self.lines()
            time.sleep(0.02)

    def count(self, state: str) -> int:
        """Return how often it has said that it is in this state, or others that have its socket."""
        return sum(f'state="{state}"' in line or f"state={state}" in line for line in self.lines())

    def lines(self) -> list[str]:
        """Return what it has logged."""
        return self.log.read_text().splitlines()

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(20)
        try:
            connection.connect(str(self.socket))
        except OSError:
            connection.close()
            raise
        return connection

    def send(self, sent: bytes, *, finish: bool = False) -> tuple[int, bytes, bytes]:
        """Send raw bytes and return the reply: status, stdout, stderr."""
        with self.connect() as connection:
            with suppress(BrokenPipeError):
                connection.sendall(sent)
                if finish:
                    connection.shutdown(socket.SHUT_WR)
            return read_reply(connection)


def read_reply(connection: socket.socket) -> tuple[int, bytes, bytes]:
    reply = b""
    # An agent that refuses closes with our request unread, which ends in a reset behind the reply.
    with suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            reply += piece
    magic, version, status, out, err = HEAD.unpack(reply[: HEAD.size])
    assert (magic, version, len(reply)) == (b"podw", 1, HEAD.size + out + err)
    return status, reply[HEAD.size : HEAD.size + out], reply[HEAD.size + out :]


def render_request(program: str, environ: dict[str, str], stdin: bytes = b"", version: int = 1) -> bytes:
    strings = "\0".join([program, *(f"{key}={value}" for key, value in environ.items())]).encode()
    return HEAD.pack(b"podw", version, 0, len(strings), len(stdin)) + strings + stdin


def start_agent(
    path: Path, *options: object, inside: Space | None = None, before: tuple[str, ...] = (), **popen: Any
) -> Agent:
    """Start an agent and wait until it is ready; `before` are words that come before its own."""
    log = path.with_suffix(".log")
    space = ("nsenter", f"--net={inside.path}") if inside else ()
    command = [*space, *before, sys.executable, "-m", "cni_plugin", "agent", "--socket", path, *options]
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, **popen
        )
    assert process.stdout is not None
    process.stdout.close()
    with ExitStack() as unless_ready:
        agent = unless_ready.enter_context(Agent(process, path, log))
        wait_until_ready(agent)
        unless_ready.pop_all()
    return agent


def wait_until_ready(agent: Agent) -> None:
    for _ in range(1000):
        try:
            agent.connect().close()
        except OSError:
            assert agent.process.poll() is None, agent.log.read_text()
            select.select([], [], [], 0.01)
        else:
            return
    raise AssertionError(agent.log.read_text())
