"""Chooses the source of addresses: none, our own manager in process, or a foreign plugin by exec.

Delegation as the specification has it (section 4): a foreign plugin is looked up in CNI_PATH
and gets our whole stdin and our environment with only the command replaced. `podwire-ipam`,
and any IPAM type that CNI_PATH resolves to our own executable, is called without a process.
"""

from __future__ import annotations

import json
import logging
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from cni_plugin.addresses import host_local
from cni_plugin.config.network import DEFAULT_DELEGATE_TIMEOUT, Addressing, ipam_type, parse_delegate_timeout
from cni_plugin.contract import versions
from cni_plugin.contract.errors import CNIError, Code, invalid_config
from cni_plugin.contract.fields import Fields
from cni_plugin.contract.request import environ_of
from cni_plugin.contract.result import Result, parse_result
from ipam.seam import step, waits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import ExitStack

    from cni_plugin.config.network import LiveAttachment
    from cni_plugin.contract.request import Request

log = logging.getLogger("podwire")

OWN_TYPE = "podwire-ipam"
# What our address manager answers to when the file of that name is our executable.
OWN_NAMES = frozenset({OWN_TYPE, "host-local"})
# Stands in the head of every executable of ours.
MARKER = b"podwire-cni-executable"
_HEAD = 64 * 1024  # bytes; a whole shim fits


class Delegate(Protocol):
    """Who gives the addresses of one request."""

    def addressing(self) -> Addressing:
        """Return what is known before any address is taken."""

    def rebuild(self, living: Callable[[], Iterable[LiveAttachment]], netns_mark: str) -> None:
        """Reserve the addresses of living pods again if the store's directory is gone."""

    def allocate(self, undo: ExitStack, netns_mark: str) -> Result:
        """Take a pod's addresses and push their release; `netns_mark` names the node's namespace."""

    def release(self) -> None:
        """Give the addresses back; absence is fine."""

    def check(self, previous: Result) -> None:
        """Raise CNIError when the addresses of prevResult are not held."""

    def gc(self) -> None:
        """Release what the runtime's list does not name."""

    def status(self) -> None:
        """Raise CNIError when no address could be given now."""


SourcePlan = Any  # a source's own frozen dataclass; nothing outside the source looks inside


class Source(Protocol):
    """What gives addresses in process: a module with these functions."""

    def plan(self, request: Request) -> SourcePlan:
        """Parse the configuration; CNIError 4 or 7."""

    def addressing(self, plan: SourcePlan) -> Addressing:
        """Return what is known before any address is taken."""

    def rebuild(
        self, plan: SourcePlan, living: Callable[[], Iterable[LiveAttachment]], netns_mark: str
    ) -> None:
        """Reserve the addresses of living pods again if the store's directory is gone."""

    def allocate(self, plan: SourcePlan, netns_mark: str) -> Result:
        """Take a pod's addresses; `netns_mark` names the node's own network namespace."""

    def release(self, request: Request) -> None:
        """Give them back, whatever the configuration says by now."""

    def check(self, plan: SourcePlan, previous: Result) -> None:
        """Compare with prevResult."""

    def collect(self, request: Request) -> None:
        """Release what the runtime's list does not name."""

    def status(self, plan: SourcePlan) -> None:
        """Raise CNIError when no address could be given now."""


def _addresses() -> Source:
    return host_local


def _static() -> Source:
    from cni_plugin.addresses import static

    return static


# Who gives the addresses when the file of that name is our executable.
SOURCES: Mapping[str, Callable[[], Source]] = {**dict.fromkeys(OWN_NAMES, _addresses), "static": _static}


def find_delegate(request: Request) -> Delegate:
    """Return the delegate that the configuration names; CNIError 7 when it cannot be found."""
    kind = ipam_type(request.config)
    if not kind:
        return Nobody()
    if kind == OWN_TYPE:
        return Own(request, host_local)
    path = _look_up(kind, request)
    if not is_ours(path):
        return Foreign(request=request, kind=kind, path=path)
    if kind not in SOURCES:
        raise invalid_config(
            f'"ipam.type" {kind}: wanted an IPAM plugin, found {path}, which is podwire under that name'
        )
    return Own(request, SOURCES[kind]())


def _look_up(kind: str, request: Request) -> str:
    """Return the first regular file of that name in CNI_PATH, as the reference library finds it."""
    if "/" in kind or kind in {".", ".."}:
        raise invalid_config(f'"ipam.type" must be the name of a plugin, found "{kind}"')
    for directory in request.path:
        path = os.path.join(directory, kind)
        if os.path.isfile(path):
            return path
    raise invalid_config(
        f'"ipam.type" {kind}: wanted a plugin in CNI_PATH {":".join(request.path)!r}, found none'
    )


def is_ours(path: str) -> bool:
    """Tell whether an executable is podwire under whatever name; one that cannot be read is not."""
    try:
        with open(path, "rb") as file:
            return MARKER in file.read(_HEAD)
    except OSError:
        return False


class Nobody:
    """A pure layer 2 attachment: no addresses."""

    def addressing(self) -> Addressing:
        """Return that no family is in use."""
        return Addressing(layer2=True)

    def rebuild(self, living: Callable[[], Iterable[LiveAttachment]], netns_mark: str) -> None:
        """Do nothing."""

    def allocate(self, undo: ExitStack, netns_mark: str) -> Result:  # noqa: ARG002 - nothing to undo
        """Return no addresses."""
        return Result()

    def check(self, previous: Result) -> None:
        """Do nothing."""

    def release(self) -> None:
        """Do nothing."""

    gc = status = release


class Own:
    """Addresses of our own, in process."""

    def __init__(self, request: Request, source: Source) -> None:
        """Read nothing yet: a DEL must not fail for what an ADD would refuse."""
        self._request = request
        self._source = source

    @cached_property
    def _plan(self) -> SourcePlan:
        return self._source.plan(self._request)

    def addressing(self) -> Addressing:
        """Return what the configuration says."""
        return self._source.addressing(self._plan)

    def rebuild(self, living: Callable[[], Iterable[LiveAttachment]], netns_mark: str) -> None:
        """Look whether the store is there."""
        self._source.rebuild(self._plan, living, netns_mark)

    def allocate(self, undo: ExitStack, netns_mark: str) -> Result:
        """Take addresses; a failed allocation holds nothing, so it has nothing to release."""
        result = self._source.allocate(self._plan, netns_mark)
        undo.callback(self.release)
        return result

    def release(self) -> None:
        """Release what the attachment holds."""
        self._source.release(self._request)

    def check(self, previous: Result) -> None:
        """Compare with prevResult."""
        self._source.check(self._plan, previous)

    def gc(self) -> None:
        """Release what is not listed."""
        self._source.collect(self._request)

    def status(self) -> None:
        """Look at what addresses come from."""
        self._source.status(self._plan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """A plugin executed from CNI_PATH."""

    request: Request
    kind: str
    path: str

    def addressing(self) -> Addressing:
        """Return that only the plugin knows."""
        parse_delegate_timeout(self.request.config)
        return Addressing()

    def rebuild(self, living: Callable[[], Iterable[LiveAttachment]], netns_mark: str) -> None:
        """Leave it to the plugin, which alone knows what it has given."""

    def allocate(self, undo: ExitStack, netns_mark: str) -> Result:  # noqa: ARG002 - it marks nothing
        """Run its ADD. Its DEL follows a failure too: what it had taken by then only it knows."""
        undo.callback(self.release)
        stdout = self._run("ADD")
        result = parse_result(Fields(self._parse(stdout), f"result of {self.kind}"), self.request.cni_version)
        if not result.ips:
            raise invalid_config(
                f"IPAM plugin {self.kind}: wanted at least one address, found none in its result"
            )
        return result

    def release(self) -> None:
        """Run its DEL."""
        self._run("DEL")

    def check(self, previous: Result) -> None:  # noqa: ARG002 - it is given the same configuration
        """Run its CHECK."""
        self._run("CHECK")

    def gc(self) -> None:
        """Run its GC; one of before 1.1.0 has none."""
        if versions.FIRST_WITH["GC"] in self._list_versions():
            self._run("GC")

    def status(self) -> None:
        """Run its STATUS, where it has one; CNIError 50 when it would refuse the configuration's version."""
        spoken = self._list_versions()
        if spoken and self.request.cni_version not in spoken:
            raise CNIError(
                Code.NOT_AVAILABLE,
                f"IPAM plugin {self.path}: wanted one that speaks version {self.request.cni_version} "
                f"as the configuration does, found {spoken}",
            )
        if versions.FIRST_WITH["STATUS"] in spoken:
            self._run("STATUS")

    def _list_versions(self) -> list[str]:
        """Return the versions that it speaks; none when its answer is no list of them."""
        _, stdout = self._call("VERSION")
        with suppress(CNIError):
            return Fields(self._parse(stdout), self.kind).strings("supportedVersions")
        return []

    def _run(self, command: str) -> bytes:
        """Return what it says; its failure is ours."""
        status, stdout = self._call(command)
        if status != 0:
            raise self._failure(command, status, stdout)
        return stdout

    def _call(self, command: str) -> tuple[int, bytes]:
        """Return its exit status and its stdout; CNIError 5 or 11 when it gives none."""
        import subprocess

        timeout = self._timeout()
        environ = environ_of(self.request.environ, command)
        try:
            with waits.waiting():
                status, stdout, stderr = step(
                    "program", _execute, [self.path], environ, self.request.stdin, timeout
                )
        except subprocess.TimeoutExpired as error:
            raise CNIError(
                Code.TRY_AGAIN_LATER,
                f"IPAM plugin {self.path}: wanted an answer to {command} in {timeout} s, found it running",
            ) from error
        except OSError as error:
            raise CNIError(Code.IO_FAILURE, f"IPAM plugin {self.path}: {error.strerror}") from error
        if stderr:
            log.warning("%s", stderr.decode(errors="replace").removesuffix("\n"), extra={"verbatim": True})
        return status, stdout

    def _timeout(self) -> int:
        """Return the limit in seconds; one that ADD refuses must not keep DEL from releasing."""
        with suppress(CNIError):
            return parse_delegate_timeout(self.request.config)
        return DEFAULT_DELEGATE_TIMEOUT

    def _failure(self, command: str, status: int, stdout: bytes) -> CNIError:
        """Return the plugin's own error under its name, or what it said instead of one."""
        try:
            fields = Fields(self._parse(stdout), self.kind)
            code = fields.integer("code", 1, 2**32) or Code.INTERNAL
            return CNIError(
                code, f"IPAM plugin {self.kind}: {fields.string('msg')}", fields.string("details")
            )
        except CNIError:
            said = stdout[:200].decode(errors="replace")
            return CNIError(
                Code.INTERNAL,
                f"IPAM plugin {self.path}: {command} exited with {status}; "
                f"wanted an error object, found {said!r}",
            )

    def _parse(self, stdout: bytes) -> dict[str, object]:
        try:
            document = json.loads(stdout)
        except (ValueError, RecursionError) as error:
            document = error
        if isinstance(document, dict):
            return document
        said = stdout[:200].decode(errors="replace")
        raise CNIError(
            Code.DECODING_FAILURE, f"IPAM plugin {self.path}: wanted a JSON object, found {said!r}"
        )


def _execute(
    argv: list[str], environ: dict[str, str], stdin: bytes, timeout: float
) -> tuple[int, bytes, bytes]:
    """Run a plugin; when the time (seconds) is up end it with everything it started."""
    import subprocess

    pipe = subprocess.PIPE
    with subprocess.Popen(
        argv, env=environ, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
    ) as process:
        try:
            stdout, stderr = process.communicate(stdin, timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, stdout, stderr
