"""From a call to its answer: the verb table, the only printer, the only exiter.

`answer` is what the executable and the agent share: environment and stdin in, exit status
and stdout out. stdout carries one JSON object or nothing; all that a person should read goes
to stderr. https://www.cni.dev/docs/spec/#section-2-execution-protocol
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.contract import versions
from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.contract.request import MAX_STDIN, Request, parse_command, parse_document, parse_request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cni_plugin.contract.result import Result


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
    """What the runtime gets: an exit status and the bytes on stdout."""

    status: int
    stdout: bytes


def serve(load: Callable[[], Plugin]) -> int:
    """Answer the call in this process's environment and stdin; return the exit status."""
    _start_logging(os.environ)
    try:
        reply = answer(os.environ, _read_stdin(), load)
    except CNIError as error:
        reply = _failure(error, b"")
    sys.stdout.buffer.write(reply.stdout)
    sys.stdout.flush()
    return reply.status


def about(plugin_type: str, plugin_version: str) -> int:
    """Say who we are to a person who ran the plugin by hand; return the exit status."""
    sys.stderr.write(f"CNI {plugin_type} plugin v{plugin_version}\n")
    sys.stderr.write(f"CNI protocol versions supported: {', '.join(versions.SUPPORTED)}\n")
    return 0


def answer(environ: Mapping[str, str], stdin: bytes, load: Callable[[], Plugin]) -> Answer:
    """Return the answer to one call; never raises. `load` imports the plugin when it is needed."""
    try:
        rendered = _run(environ, stdin, load)
    except CNIError as error:
        return _failure(error, stdin)
    except Exception as error:  # noqa: BLE001 - the runtime must get an answer whatever happened
        traceback.print_exc(file=sys.stderr)
        return _failure(CNIError(Code.INTERNAL, f"{type(error).__name__}: {error}"), stdin)
    return Answer(status=0, stdout=_encode(rendered) if rendered else b"")


def _run(environ: Mapping[str, str], stdin: bytes, load: Callable[[], Plugin]) -> dict[str, object] | None:
    if parse_command(environ) == "VERSION":
        return _version(stdin)
    request = parse_request(environ, stdin)
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


def _failure(error: CNIError, stdin: bytes) -> Answer:
    stated = _stated_version(stdin)
    return Answer(
        status=1, stdout=_encode(error.render(stated if stated in versions.SUPPORTED else versions.NEWEST))
    )


def _encode(rendered: dict[str, object]) -> bytes:
    return json.dumps(rendered, indent=4).encode() + b"\n"


def _read_stdin() -> bytes:
    """Return stdin, one byte past the limit at most; nothing from a terminal, which would never end."""
    if sys.stdin is None or sys.stdin.isatty():
        return b""
    try:
        return sys.stdin.buffer.read(MAX_STDIN + 1)
    except OSError as error:
        raise CNIError(Code.IO_FAILURE, f"stdin: {error.strerror}") from error


def _start_logging(environ: Mapping[str, str]) -> None:
    level = logging.DEBUG if environ.get("PODWIRE_LOG") == "debug" else logging.WARNING
    who = f"{environ.get('CNI_CONTAINERID', '-')} {environ.get('CNI_IFNAME', '-')}"
    logging.basicConfig(level=level, stream=sys.stderr, format=f"podwire {who}: %(message)s")


def _logger(request: Request) -> logging.Logger:
    return logging.getLogger(f"podwire.{request.command.lower()}")
