"""Where the doctor looks: the directories, the socket and the files of one node, read once."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.config.paths import BIN_DIR, CONF_DIR
from cni_plugin.contract.errors import CNIError
from cni_plugin.contract.fields import Fields
from cni_plugin.contract.request import parse_document
from cni_plugin.node import report

if TYPE_CHECKING:
    from cni_plugin.contract.request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One node. `pod` is NAMESPACE/NAME, `container` an id or its beginning, both empty for no one's."""

    conf_dir: str
    bin_dir: str
    socket: str
    containerd_config: str
    state_file: str
    cache_dir: str
    pod: str = ""
    container: str = ""
    runtime_endpoint: str = ""

    @property
    def options(self) -> str:
        """Return what a command of ours must be told to look where we did."""
        said = (("--conf-dir", self.conf_dir, CONF_DIR), ("--bin-dir", self.bin_dir, BIN_DIR))
        return "".join(f" {name} {shlex.quote(value)}" for name, value, default in said if value != default)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfFile:
    """A file that a runtime reads: `types` of the plugins it names, or why it cannot be read."""

    path: str
    name: str = ""
    version: str = ""
    types: tuple[str, ...] = ()
    ipam_types: tuple[str, ...] = ()
    ours: bool = False
    problem: str = ""


def read_files(site: Site) -> list[ConfFile]:
    """Return the files in the order in which a runtime takes them."""
    return [_read_file(path) for path in report.list_files(site.conf_dir)]


def _read_file(path: str) -> ConfFile:
    try:
        with open(path, "rb") as file:
            document = parse_document(file.read())
        fields = Fields(document)
        members = list(fields.objects("plugins")) or [fields]
        types = [member.string("type") for member in members]
        sections = [member.section("ipam") for member in members]
        ipam_types = [section.string("type") for section in sections if section is not None]
        name, version = fields.string("name"), fields.string("cniVersion")
    except CNIError as error:
        return ConfFile(path=path, problem=error.msg)
    except OSError as error:
        return ConfFile(path=path, problem=error.strerror or str(error))
    return ConfFile(
        path=path,
        name=name,
        version=version,
        types=tuple(types),
        ipam_types=tuple(ipam_types),
        ours=any(kind in report.MAIN_TYPES for kind in types),
    )


def read_requests(site: Site) -> list[Request]:
    """Return what a runtime would ask of each of our networks; what cannot be read is said elsewhere."""
    return report.list_requests(site.conf_dir, site.bin_dir, [])


def read_json(path: str) -> dict[str, object]:
    """Return the JSON object in a file, an empty one when there is none."""
    try:
        with open(path, "rb") as file:
            found = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
