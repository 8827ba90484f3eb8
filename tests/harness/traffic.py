"""Traffic of real size between pods: `serve` answers with what it saw, `send` asks.

Run by path inside a namespace; imports nothing of ours.
"""

from __future__ import annotations

import hashlib
import json
import selectors
import socket
import sys

PORT = 7777
TCP_BYTES, UDP_BYTES = 1_000_000, 8_000
TIMEOUT = 5.0  # seconds


def serve() -> None:
    """Answer on both families until killed."""
    listener = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
    datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    datagrams.bind(("::", PORT))
    ready = selectors.DefaultSelector()
    ready.register(listener, selectors.EVENT_READ, _answer_stream)
    ready.register(datagrams, selectors.EVENT_READ, _answer_datagram)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        for key, _ in ready.select():
            key.data(key.fileobj)


def _answer_stream(listener: socket.socket) -> None:
    connection, client = listener.accept()
    connection.settimeout(TIMEOUT)
    with connection, connection.makefile("rb") as stream:
        connection.sendall(_seen(client, stream.read()))


def _answer_datagram(datagrams: socket.socket) -> None:
    content, client = datagrams.recvfrom(65535)
    datagrams.sendto(_seen(client, content), client)


def _seen(client: tuple[str, int], content: bytes) -> bytes:
    source = client[0].removeprefix("::ffff:")
    return json.dumps({"source": source, "digest": hashlib.sha256(content).hexdigest()}).encode()


def send(addresses: list[str]) -> None:
    """Print what each server saw of us; `intact` says that all bytes arrived as they were sent."""
    found = {a: {"tcp": _ask_stream(a), "udp": _ask_datagram(a)} for a in addresses}
    sys.stdout.write(json.dumps(found))


def _ask_stream(address: str) -> dict[str, object]:
    content = bytes(range(250)) * (TCP_BYTES // 250)
    with socket.create_connection((address, PORT), timeout=TIMEOUT) as connection:
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as stream:
            return _judge(json.loads(stream.read()), content)


def _ask_datagram(address: str) -> dict[str, object]:
    content = bytes(range(250)) * (UDP_BYTES // 250)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(TIMEOUT)
        datagrams.connect((address, PORT))
        datagrams.send(content)
        return _judge(json.loads(datagrams.recv(65535)), content)


def _judge(seen: dict[str, object], content: bytes) -> dict[str, object]:
    return {"source": seen["source"], "intact": seen["digest"] == hashlib.sha256(content).hexdigest()}


if __name__ == "__main__":
    serve() if sys.argv[1] == "serve" else send(sys.argv[2:])
