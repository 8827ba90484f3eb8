"""A call of the contract: environment and stdin, parsed and checked once.

Rules: https://www.cni.dev/docs/spec/#parameters and, for names, the reference library's
patterns. Values that a verb does not need are not looked at. `stdin` and `environ` are kept
verbatim, because a delegate must be given exactly what we were given.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from cni_plugin.contract import versions
from cni_plugin.contract.errors import CNIError, Code, invalid_config
from cni_plugin.contract.fields import Fields, kind_of_json

if TYPE_CHECKING:
    from collections.abc import Mapping

VERBS = ("ADD", "DEL", "CHECK", "VERSION", "GC", "STATUS")

# CNI_PATH is needed where the specification says so, not wherever the reference asks for it.
_REQUIRED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "GC": ("CNI_PATH",),
    "STATUS": (),
    "VERSION": (),
}
# A configuration with a prevResult is a few kilobytes; a GC with 10,000 attachments one megabyte.
MAX_STDIN = 4 * 1024 * 1024

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_MAX_IFNAME = 15  # IFNAMSIZ less the terminating zero
KERNELS_OWN = frozenset({"all", "default"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A call: who is to be attached to what, and the plugin's configuration."""

    command: str
    container_id: str
    ifname: str
    netns: str
    args: str
    path: tuple[str, ...]
    cni_version: str
    network: str
    config: Fields
    environ: Mapping[str, str]
    stdin: bytes
    netns_fd: int | None = None
    """CNI_NETNS as the agent's caller opened it: a descriptor, or minus the errno it got instead.

    None in a process of the call's own, which opens the path itself.
    """


def parse_request(environ: Mapping[str, str], stdin: bytes, netns_fd: int | None = None) -> Request:
    """Return the call that `environ` and `stdin` describe, or raise CNIError 1, 4, 6 or 7."""
    command = parse_command(environ)
    _check_environment(command, environ)
    document = parse_document(stdin)
    config = Fields(document)
    version = parse_version(config)
    _check_verb_version(command, version)
    return Request(
        command=command,
        container_id=_find_stated("CNI_CONTAINERID", command, environ),
        ifname=_find_stated("CNI_IFNAME", command, environ),
        netns=environ.get("CNI_NETNS", ""),
        args=environ.get("CNI_ARGS", ""),
        path=tuple(entry for entry in environ.get("CNI_PATH", "").split(":") if entry),
        cni_version=version,
        network=_parse_name(config),
        config=config,
        environ=environ,
        stdin=stdin,
        netns_fd=netns_fd,
    )


def make_request(command: str, document: Mapping[str, object], *, path: str = "/", **names: str) -> Request:
    """Return the call that a runtime would make, for a command of ours that asks a plugin in this process.

    `path` is where plugins are looked for, `names` are CONTAINERID, IFNAME, NETNS and ARGS where the verb
    has them. Raises CNIError as `parse_request` does.
    """
    environ = {"CNI_COMMAND": command, "CNI_PATH": path}
    environ |= {f"CNI_{name}": value for name, value in names.items()}
    return parse_request(environ, json.dumps(document).encode())


def environ_of(environ: Mapping[str, str], command: str) -> dict[str, str]:
    """Return the environment of the same call with another verb."""
    return {**environ, "CNI_COMMAND": command}


def parse_command(environ: Mapping[str, str]) -> str:
    """Return the verb; its spelling is exact."""
    command = environ.get("CNI_COMMAND", "")
    if command not in VERBS:
        raise CNIError(Code.INVALID_ENVIRONMENT, f"unknown CNI_COMMAND: {command}")
    return command


def _check_environment(command: str, environ: Mapping[str, str]) -> None:
    required = _REQUIRED[command]
    missing = [name for name in required if not environ.get(name)]
    if missing:
        raise CNIError(Code.INVALID_ENVIRONMENT, f"required env variables [{','.join(missing)}] missing")
    if "CNI_CONTAINERID" in required and not _NAME.fullmatch(environ["CNI_CONTAINERID"]):
        _refuse("CNI_CONTAINERID", environ, "must match [a-zA-Z0-9][a-zA-Z0-9_.-]*")
    if "CNI_IFNAME" in required:
        _check_ifname(environ)


def _find_stated(name: str, command: str, environ: Mapping[str, str]) -> str:
    """Return what the runtime says of the attachment; a verb that is about none has not checked it."""
    return environ[name] if name in _REQUIRED[command] else ""


def _check_ifname(environ: Mapping[str, str]) -> None:
    ifname = environ["CNI_IFNAME"]
    if len(ifname.encode(errors="surrogateescape")) > _MAX_IFNAME:
        _refuse("CNI_IFNAME", environ, f"must be at most {_MAX_IFNAME} bytes long")
    # Below /proc/sys/net the kernel has something else under these names, so it refuses them to links.
    if ifname in KERNELS_OWN:
        _refuse("CNI_IFNAME", environ, f"must be none of {sorted(KERNELS_OWN)}, which the kernel keeps")
    # The kernel numbers names with a '%', and would make another than the wanted one.
    if ifname in {".", ".."} or any(c in "/:%" or c.isspace() or not c.isprintable() for c in ifname):
        _refuse(
            "CNI_IFNAME", environ, "must be an interface name: UTF-8 without '/', ':', '%' or white space"
        )


def _refuse(name: str, environ: Mapping[str, str], wanted: str) -> NoReturn:
    raise CNIError(Code.INVALID_ENVIRONMENT, f"{name} {wanted}, found {environ[name]!r}")


def parse_document(stdin: bytes) -> dict[str, object]:
    """Return the JSON object on stdin, or raise CNIError 6."""
    if len(stdin) > MAX_STDIN:
        raise _undecodable(f"at most {MAX_STDIN} bytes", f"{len(stdin)} bytes or more")
    try:
        document = json.loads(stdin.decode(), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise _undecodable("a JSON object", "one that nests too deep") from error
    except ValueError as error:
        raise _undecodable("a JSON object", str(error) if stdin.strip() else "nothing") from error
    if not isinstance(document, dict):
        raise _undecodable("a JSON object", kind_of_json(document))
    return document


def _undecodable(wanted: str, found: str) -> CNIError:
    return CNIError(Code.DECODING_FAILURE, f"network configuration on stdin: wanted {wanted}, found {found}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is not JSON")


def parse_version(config: Fields) -> str:
    """Return the configuration's version, or raise CNIError 1 when we do not speak it."""
    version = config.string("cniVersion") or versions.DEFAULT
    if version not in versions.SUPPORTED:
        raise CNIError(
            Code.INCOMPATIBLE_VERSION,
            "incompatible CNI versions",
            f'config is "{version}", plugin supports {list(versions.SUPPORTED)}',
        )
    return version


def _check_verb_version(command: str, version: str) -> None:
    first = versions.FIRST_WITH.get(command)
    if first and not versions.at_least(version, first):
        raise CNIError(
            Code.INCOMPATIBLE_VERSION,
            f'config version "{version}" does not allow {command}, which came with {first}',
        )


def _parse_name(config: Fields) -> str:
    name = config.string("name")
    if not _NAME.fullmatch(name):
        raise invalid_config(
            f'network name "name" must match [a-zA-Z0-9][a-zA-Z0-9_.-]*, found {name!r}'
            if name
            else 'missing network name "name"'
        )
    return name


def parse_args(request: Request, known: frozenset[str]) -> dict[str, str]:
    """Return CNI_ARGS as pairs.

    Keys outside `known` are an error (code 4) unless IgnoreUnknown says otherwise; where it
    stands in the list does not matter.
    """
    pairs = dict(_split_pair(pair) for pair in request.args.split(";") if request.args)
    ignore = pairs.pop("IgnoreUnknown", "false").lower()
    if ignore not in {"1", "true", "0", "false"}:
        raise CNIError(
            Code.INVALID_ENVIRONMENT, f'CNI_ARGS: IgnoreUnknown must be a boolean, found "{ignore}"'
        )
    unknown = sorted(pairs.keys() - known)
    if unknown and ignore in {"0", "false"}:
        raise CNIError(Code.INVALID_ENVIRONMENT, f"CNI_ARGS: unknown args {unknown}")
    return pairs


def read_args(request: Request) -> dict[str, str]:
    """Return what can be read of CNI_ARGS, for a plugin that takes nothing from there but names."""
    pairs = (pair.partition("=") for pair in request.args.split(";"))
    return {key: value for key, sign, value in pairs if sign}


def _split_pair(pair: str) -> tuple[str, str]:
    if pair.count("=") != 1:
        raise CNIError(
            Code.INVALID_ENVIRONMENT, f'CNI_ARGS: wanted KEY=VALUE pairs joined by ";", found "{pair}"'
        )
    key, _, value = pair.partition("=")
    return key, value


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidAttachment:
    """An attachment that a GC must leave alone."""

    container_id: str
    ifname: str


def parse_valid_attachments(config: Fields) -> frozenset[ValidAttachment] | None:
    """Return what a GC must keep; None when the runtime named no list at all.

    Libraries up to 1.2.2 send the first key only, later ones both. No list means that the
    caller said nothing, which is never leave to release everything.
    """
    for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        if config.value(key) is not None:
            return frozenset(_parse_attachment(member) for member in config.objects(key))
    return None


def _parse_attachment(member: Fields) -> ValidAttachment:
    attachment = ValidAttachment(container_id=member.string("containerID"), ifname=member.string("ifname"))
    if not (attachment.container_id and attachment.ifname):
        raise invalid_config(
            f'"{member.path}" must have "containerID" and "ifname", found {dict(member.raw)}'
        )
    return attachment
