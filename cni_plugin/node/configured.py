"""What is configured on this node: the runtime's files, read once, in its order.

Everything else that is said of net.d is a view of this: which networks are ours, what a runtime would
ask of them, which of them have a store, which file is broken. By hand: `ls /etc/cni/net.d`.
"""

from __future__ import annotations

import glob
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from cni_plugin.addresses.delegate import OWN_NAMES, OWN_TYPE
from cni_plugin.config.network import data_dir, ipam_type
from cni_plugin.config.paths import DATA_DIR
from cni_plugin.contract import versions
from cni_plugin.contract.errors import CNIError, invalid_config
from cni_plugin.contract.fields import Fields
from cni_plugin.contract.request import make_request, parse_document
from cni_plugin.features import CHAINED
from ipam.store import list_networks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cni_plugin.contract.request import Request

# The types whose attachments are ours to look for.
MAIN_TYPES: Final = frozenset({"podwire", "bridge"})
_ENDINGS: Final = ("conflist", "conf", "json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfFile:
    """A file that a runtime reads: its plugins as it would ask each for STATUS, or why it cannot be read."""

    path: str
    name: str = ""
    version: str = ""
    """As it stands there; empty for none."""
    plugins: tuple[Request, ...] = ()
    problem: str = ""

    @property
    def types(self) -> tuple[str, ...]:
        """Return the types of its plugins."""
        return tuple(each.config.string("type") for each in self.plugins)

    @property
    def ipam_types(self) -> tuple[str, ...]:
        """Return the types of its address managers."""
        return tuple(filter(None, (ipam_type(each.config) for each in self.plugins)))

    @property
    def mains(self) -> tuple[Request, ...]:
        """Return those of its plugins that join pods, and are ours."""
        return tuple(each for each in self.plugins if each.config.string("type") in MAIN_TYPES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfiguredNetwork:
    """A network of which something may be ours, by its main plugin, and by those of the chain.

    That is its addresses where they are kept in host-local's format, whoever joins its pods, and what our
    features made.
    """

    main: Request
    chained: tuple[Request, ...]
    has_store: bool
    shared: bool
    """Its addresses are those of other nodes, too."""

    @property
    def name(self) -> str:
        """Return the network's name."""
        return self.main.network


@dataclass(frozen=True, slots=True, kw_only=True)
class Configured:
    """The files of a directory, in the order in which a runtime takes them."""

    directory: str
    files: tuple[ConfFile, ...]

    @property
    def problems(self) -> list[CNIError]:
        """Return what keeps files from being read, which is no reason to leave the others alone."""
        return [invalid_config(f"{file.path}: {file.problem}") for file in self.files if file.problem]

    @property
    def ours(self) -> list[Request]:
        """Return what a runtime would ask of each network whose pods we join."""
        return [request for file in self.files for request in file.mains]

    def list_networks(self, problems: list[CNIError]) -> list[ConfiguredNetwork]:
        """Return the networks that have something of ours, those included that a store alone still knows.

        One that cannot be is a problem.
        """
        found: dict[str, ConfiguredNetwork] = {}
        for file in self.files:
            try:
                network = _network_of(file)
            except CNIError as error:
                problems.append(invalid_config(f"{file.path}: {error}"))
                continue
            if network is not None:
                known = found.get(network.name)
                chained = (*known.chained, *network.chained) if known else network.chained
                found[network.name] = replace(known or network, chained=chained)
        return [*found.values(), *_list_forgotten(found.values())]


def read_configured(conf_dir: str, bin_dir: str = "") -> Configured:
    """Read the files of a directory; plugins are then looked for in `bin_dir`."""
    found = (glob.glob(f"{glob.escape(conf_dir)}/*.{ending}") for ending in _ENDINGS)
    paths = sorted(path for paths in found for path in paths)
    return Configured(directory=conf_dir, files=tuple(_read(path, bin_dir) for path in paths))


def _read(path: str, bin_dir: str) -> ConfFile:
    try:
        with open(path, "rb") as file:
            fields = Fields(parse_document(file.read()))
        name, version = fields.string("name"), fields.string("cniVersion")
        members = list(fields.objects("plugins")) or [fields]
        plugins = tuple(_request(name, version, member, bin_dir) for member in members)
    except CNIError as error:
        return ConfFile(path=path, problem=error.msg)
    except OSError as error:
        return ConfFile(path=path, problem=error.strerror or str(error))
    return ConfFile(path=path, name=name, version=version, plugins=plugins)


def _request(name: str, version: str, member: Fields, bin_dir: str) -> Request:
    """Return the STATUS of a plugin, which is asked in the newest version: only that one has the verb.

    What ADD would do depends on the file's own. Raises CNIError for what no view could read.
    """
    document = {**member.raw, "name": name, "cniVersion": versions.NEWEST}
    asked = make_request("STATUS", document, path=bin_dir)
    asked.config.string("type")
    ipam_type(asked.config)
    stated = version or versions.DEFAULT
    # One that nobody speaks is said elsewhere.
    return replace(asked, cni_version=stated) if stated in versions.SUPPORTED else asked


def _network_of(file: ConfFile) -> ConfiguredNetwork | None:
    """Return the network of a file; None when nothing of it can be ours. CNIError for one that cannot be."""
    if not file.plugins:
        return None
    main, *others = file.plugins
    has_store = ipam_type(main.config) in OWN_NAMES
    if not has_store and not set(file.types) & (MAIN_TYPES | CHAINED.keys()):
        return None
    if has_store:
        data_dir(main.config)  # one that cannot be is this file's problem alone
    return network_of(main, tuple(each for each in others if each.config.string("type") in CHAINED))


def network_of(main: Request, chained: tuple[Request, ...] = ()) -> ConfiguredNetwork:
    """Return a network by what a runtime would ask of its plugins."""
    section = main.config.section("ipam")
    return ConfiguredNetwork(
        main=main,
        chained=chained,
        has_store=ipam_type(main.config) in OWN_NAMES,
        shared=bool(section and section.boolean("shared")),
    )


def _list_forgotten(known: Iterable[ConfiguredNetwork]) -> Iterator[ConfiguredNetwork]:
    """Yield the networks that no file configures any more, as far as a store still knows them."""
    names = {network.name for network in known}
    stores = {data_dir(network.main.config) for network in known if network.has_store}
    for directory in sorted(stores | {DATA_DIR}):
        for name in list_networks(directory):
            if name not in names:
                member = Fields({"type": "podwire", "ipam": {"type": OWN_TYPE, "dataDir": directory}})
                main = _request(name, versions.NEWEST, member, "")
                yield ConfiguredNetwork(main=main, chained=(), has_store=True, shared=False)
