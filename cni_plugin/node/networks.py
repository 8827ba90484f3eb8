"""Which networks have something of ours: those that the runtime's files configure, and the store's others.

A network is ours to look at when any plugin of its chain may be ours: its addresses where they are kept
in host-local's format, whoever joins its pods, and what our features made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cni_plugin.addresses.delegate import OWN_NAMES, OWN_TYPE
from cni_plugin.config.network import data_dir, ipam_type
from cni_plugin.config.paths import DATA_DIR
from cni_plugin.contract import versions
from cni_plugin.contract.errors import CNIError, invalid_config
from cni_plugin.contract.fields import Fields
from cni_plugin.contract.request import make_request, parse_document
from cni_plugin.features import CHAINED
from cni_plugin.node.report import MAIN_TYPES, list_files
from ipam.store import list_networks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cni_plugin.contract.request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network as the verb GC would be told of it: by its main plugin, and by those of the chain."""

    main: Request
    chained: tuple[Request, ...]
    has_store: bool
    shared: bool
    """Its addresses are those of other nodes, too."""

    @property
    def name(self) -> str:
        """Return the network's name."""
        return self.main.network


def read_networks(conf_dir: str, problems: list[CNIError]) -> list[Network]:
    """Return the networks; a file that cannot be read is a problem and no reason to leave others alone."""
    found: dict[str, Network] = {}
    for path in list_files(conf_dir):
        try:
            network = _read_file(path)
        except (CNIError, OSError) as error:
            problems.append(invalid_config(f"{path}: {error}"))
            continue
        if network is not None:
            known = found.setdefault(network.name, network)
            found[network.name] = replace(known, chained=(*known.chained, *network.chained))
    return [*found.values(), *_list_forgotten(found.values())]


def _read_file(path: str) -> Network | None:
    """Return the network of a file; None when nothing of it can be ours."""
    with open(path, "rb") as file:
        document = parse_document(file.read())
    fields = Fields(document)
    members = [dict(member.raw) for member in fields.objects("plugins")] or [document]
    requests = [_request(fields.string("name"), member) for member in members]
    main, kinds = requests[0], {request.config.string("type") for request in requests}
    has_store = ipam_type(main.config) in OWN_NAMES
    if not has_store and not kinds & (MAIN_TYPES | CHAINED.keys()):
        return None
    if has_store:
        data_dir(main.config)  # one that cannot be is this file's problem alone
    section = main.config.section("ipam")
    return Network(
        main=main,
        chained=tuple(each for each in requests[1:] if each.config.string("type") in CHAINED),
        has_store=has_store,
        shared=bool(section and section.boolean("shared")),
    )


def _request(name: str, plugin: dict[str, object]) -> Request:
    return make_request("GC", plugin | {"name": name, "cniVersion": versions.NEWEST})


def _list_forgotten(known: Iterable[Network]) -> Iterator[Network]:
    """Yield the networks that no file configures any more, as far as a store still knows them."""
    names = {network.name for network in known}
    stores = {data_dir(network.main.config) for network in known if network.has_store}
    for directory in sorted(stores | {DATA_DIR}):
        for name in list_networks(directory):
            if name not in names:
                section = {"type": OWN_TYPE, "dataDir": directory}
                main = _request(name, {"type": "podwire", "ipam": section})
                yield Network(main=main, chained=(), has_store=True, shared=False)
