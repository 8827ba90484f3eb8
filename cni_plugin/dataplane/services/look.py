"""What an operator asks of Services: the cluster as the API has it now, beside what the kernel holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.cluster.resources import NODES, key_of
from cni_plugin.cluster.service_objects import SERVICES, SLICES
from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.dataplane.services.contents import read_table
from cni_plugin.dataplane.services.desired import ServicesModel
from cni_plugin.dataplane.services.places import find_place, find_surroundings
from cni_plugin.dataplane.services.table import render_frontend
from cni_plugin.kernel.netns import open_host

if TYPE_CHECKING:
    from cni_plugin.cluster.api import API
    from cni_plugin.cluster.resources import ObjectT, Resource
    from cni_plugin.cluster.settings import ClusterSettings
    from cni_plugin.dataplane.services.contents import TableContents
    from cni_plugin.dataplane.services.plan import Frontend, FrontendPlan, Surroundings


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicesSeen:
    """The Services of this node: as they should be, and as they are."""

    model: ServicesModel
    around: Surroundings
    found: TableContents

    def judge(self, frontend: Frontend, plan: FrontendPlan) -> str:
        """Return whether the kernel holds a frontend: yes, no, or otherwise than it should."""
        held = self.found.own.get(frontend)
        if held is None:
            return "no"
        wanted = render_frontend(frontend, plan)
        # The order of endpoints is the kernel's own.
        same = held.keys() == wanted.keys() and sorted(map(str, held.values())) == sorted(
            map(str, wanted.values())
        )
        return "yes" if same else "differs"


def look(api: API, node: str, settings: ClusterSettings) -> ServicesSeen:
    """List the cluster's objects and read the table; CNIError 50 when this node is not among them."""
    nodes = _list(api, NODES)
    me = nodes.get(node)
    if me is None:
        known = " ".join(sorted(nodes))
        raise CNIError(Code.NOT_AVAILABLE, f"node {node}: wanted it among the API's nodes, found {known}")
    with open_host() as host:
        model = ServicesModel(find_place(host, me, settings.services))
        found = read_table(host.nftables)
    services, slices = _list(api, SERVICES), _list(api, SLICES)
    model.put_services(services)
    model.put_slices(slices)
    model.compute()
    return ServicesSeen(model=model, around=find_surroundings(me, nodes, settings), found=found)


def _list(api: API, resource: Resource[ObjectT]) -> dict[str, ObjectT]:
    return {key_of(raw): resource.parse(raw) for items, _ in api.list_pages(resource) for raw in items}
