"""From a call to its answer: the verb table, and the only code that prints and exits.

`answer` is what the executable and the agent share: environment and stdin in, exit status
and stdout out. stdout carries one JSON object or nothing; all that a person should read goes
to stderr. https://www.cni.dev/docs/spec/#section-2-execution-protocol
"""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.contract import versions
from cni_plugin.contract.errors import CNIError, Code, unexpected
from cni_plugin.contract.request import MAX_STDIN, Request, parse_command, parse_document, parse_request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cni_plugin.contract.result import Result


log = logging.getLogger("podwire")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """The verbs of one plugin type."""

    add: Callable[[Request], Result]
    delete: Callable[[Request], None]
    check: Callable[[Request], None]
    gc: Callable[[Request], None]
    status: Callable[[Request], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the runtime gets: an exit status and the bytes on stdout; `error` is what these say, if any."""

    status: int
    stdout: bytes
    error: CNIError | None = None


def serve(load: Callable[[], Plugin]) -> int:
    """Answer the call in this process's environment and stdin; return the exit status."""
    _start_logging(os.environ)
    try:
        reply = answer(os.environ, _read_stdin(), load)
    except CNIError as error:
        reply = failure(error)
    sys.stdout.buffer.write(reply.stdout)
    sys.stdout.flush()
    return reply.status


def about(plugin_type: str, plugin_version: str) -> int:
    """Say who we are to a person who ran the plugin by hand; return the exit status."""
    sys.stderr.write(render_about(plugin_type, plugin_version))
    return 0


def render_about(plugin_type: str, plugin_version: str) -> str:
    """Return who we are, in the reference's words."""
    supported = ", ".join(versions.SUPPORTED)
    return f"CNI {plugin_type} plugin v{plugin_version}\nCNI protocol versions supported: {supported}\n"


def answer(
    environ: Mapping[str, str], stdin: bytes, load: Callable[[], Plugin], netns_fd: int | None = None
) -> Answer:
    """Return the answer to one call; never raises. `load` imports the plugin when it is needed.

    `netns_fd` is what the agent has of CNI_NETNS, see `Request`.
    """
    try:
        rendered = _run(environ, stdin, load, netns_fd)
    except CNIError as error:
        return failure(error, stdin)
    except Exception as error:
        # The runtime must get an answer whatever happened.
        log.exception("unexpected")
        return failure(unexpected(error), stdin)
    return Answer(status=0, stdout=_encode(rendered) if rendered else b"")


def _run(
    environ: Mapping[str, str], stdin: bytes, load: Callable[[], Plugin], netns_fd: int | None
) -> dict[str, object] | None:
    if parse_command(environ) == "VERSION":
        return _version(stdin)
    request = parse_request(environ, stdin, netns_fd)
    _logger(request).debug("%s", request.command)
    plugin = load()
    if request.command == "ADD":
        return plugin.add(request).render(request.cni_version)
    verb = {"DEL": plugin.delete, "CHECK": plugin.check, "GC": plugin.gc, "STATUS": plugin.status}
    verb[request.command](request)
    return None


def _version(stdin: bytes) -> dict[str, object]:
    """Echo the version asked for when we speak it, as the specification says, else our newest."""
    asked = _stated_version(stdin)
    spoken = asked if asked in versions.SUPPORTED else versions.NEWEST
    return {"cniVersion": spoken, "supportedVersions": list(versions.SUPPORTED)}


def _stated_version(stdin: bytes) -> str:
    try:
        return str(parse_document(stdin).get("cniVersion", ""))
    except CNIError:
        return ""


def failure(error: CNIError, stdin: bytes = b"") -> Answer:
    """Return the answer that carries `error`, in the version that stdin states."""
    stated = _stated_version(stdin)
    rendered = error.render(stated if stated in versions.SUPPORTED else versions.NEWEST)
    return Answer(status=1, stdout=_encode(rendered), error=error)


def _encode(rendered: dict[str, object]) -> bytes:
    # One line: an indent would keep the json module's C encoder out.
    return json.dumps(rendered).encode() + b"\n"


def _read_stdin() -> bytes:
    """Return stdin, one byte past the limit at most; nothing from a terminal, which would never end."""
    if sys.stdin is None or sys.stdin.isatty():
        return b""
    try:
        return sys.stdin.buffer.read(MAX_STDIN + 1)
    except OSError as error:
        raise CNIError(Code.IO_FAILURE, f"stdin: {error.strerror}") from error


class CallFormatter(logging.Formatter):
    """Begins every line with whom the call is about."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Read container id and ifname from the call's environment."""
        super().__init__()
        self._head = f"podwire {environ.get('CNI_CONTAINERID', '-')} {environ.get('CNI_IFNAME', '-')}: "

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, with a traceback below it when the record carries one.

        A `verbatim` record is what another program said on its stderr, which would have been ours.
        """
        head = "" if getattr(record, "verbatim", False) else self._head
        return head + super().format(record)


def log_level(environ: Mapping[str, str]) -> int:
    """Return the level from which on the call's caller wants to see lines."""
    return logging.DEBUG if environ.get("PODWIRE_LOG") == "debug" else logging.WARNING


def _start_logging(environ: Mapping[str, str]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(CallFormatter(environ))
    logging.basicConfig(level=log_level(environ), handlers=[handler])


def _logger(request: Request) -> logging.Logger:
    return logging.getLogger(f"podwire.{request.command.lower()}")
