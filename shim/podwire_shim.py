#!/usr/bin/python3 -IS
# MARKER: one executable, the plugin chosen by the name it is called with
"""The shim in Python: hands a call of the runtime to the agent, or runs it here when there is none.

scripts/install makes the executable of this file and fills in the interpreter, MARKER, SOCKET and
LIBRARIES. Until it knows that there is no agent it imports builtins only: every other module
would cost more than the whole way to the agent and back. docs/wire.md is what it speaks.
"""

import posix
import sys

SOCKET = ""
LIBRARIES: list[str] = []

_MAX_STDIN = 4 * 1024 * 1024 + 1  # one byte past what a configuration may have
_LOST = """{
    "cniVersion": "1.1.0",
    "code": 11,
    "msg": "podwire agent at %s: wanted an answer, found the connection closed; it may have been killed"
}
"""


def main() -> None:
    """Exit with the agent's answer; return when the call is to be run here."""
    import _socket

    try:
        posix.fstat(0)
    except OSError:
        return  # without stdin the agent's socket would become it
    agent = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        agent.connect(SOCKET)
    except OSError:
        agent.close()
        return
    errno, rights = _open_netns()
    strings = sys.argv[0].encode(errors="surrogateescape")
    strings += b"".join(b"\0%b=%b" % pair for pair in posix.environ.items())
    try:
        stdin = _read_stdin()
    except OSError:
        return  # whoever reads it next gets the same error, and has the words for it
    head = b"podw" + b"".join(n.to_bytes(4, "big") for n in (1, errno, len(strings), len(stdin)))
    begun = True
    try:
        agent.sendmsg([head], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if rights else [])
        agent.sendall(strings + stdin)
    except OSError:
        begun = False  # an agent that refuses answers before it has read everything
    reply = b""
    try:
        while piece := agent.recv(1 << 20):
            reply += piece
    except OSError:
        begun = begun and bool(reply)  # it ended with some of the request unread
    _finish(reply)
    if begun and posix.environ.get(b"CNI_COMMAND") == b"ADD":
        # An ADD is made once: the runtime's DEL comes first. Every other verb may be repeated.
        _write(1, (_LOST % SOCKET).encode())
        posix._exit(1)  # noqa: SLF001 - see _finish
    _give_back(stdin)


def _open_netns() -> tuple[int, bytes]:
    """Return 0 and CNI_NETNS as a descriptor to pass, or the errno of opening it."""
    flags = posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK
    try:
        return 0, posix.open(posix.environ.get(b"CNI_NETNS", b""), flags).to_bytes(4, sys.byteorder)
    except OSError as error:
        return error.errno or 0, b""


def _read_stdin() -> bytes:
    stdin = b""
    while len(stdin) < _MAX_STDIN and not posix.isatty(0):
        piece = posix.read(0, min(_MAX_STDIN - len(stdin), 1 << 20))
        if not piece:
            break
        stdin += piece
    return stdin


def _finish(reply: bytes) -> None:
    """Do what the reply says; return when it is not whole."""
    status, out, err = (int.from_bytes(reply[at : at + 4], "big") for at in (8, 12, 16))
    stdout, stderr = reply[20 : 20 + out], reply[20 + out :]
    if reply[:4] != b"podw" or len(stdout) != out or len(stderr) != err:
        return
    _write(1, stdout)
    _write(2, stderr)
    # Nothing is open that finalising the interpreter would have to flush.
    posix._exit(status)  # noqa: SLF001 - os, which has it as a public name, costs a millisecond


def _give_back(stdin: bytes) -> None:
    """Let whoever works here read again what has been read."""
    file = posix.memfd_create("stdin", posix.MFD_CLOEXEC)
    _write(file, stdin)
    posix.lseek(file, 0, 0)
    posix.dup2(file, 0)


def _write(stream: int, text: bytes) -> None:
    while text:
        text = text[posix.write(stream, text) :]


if __name__ == "__main__":
    if posix.environ.get(b"CNI_COMMAND"):
        main()
    sys.path[:0] = LIBRARIES
    from cni_plugin.__main__ import main as in_process

    sys.exit(in_process())
