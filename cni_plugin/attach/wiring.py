"""How one network is wired: a mode joins a pod to its node, a backend joins the nodes.

Both are chosen here, from the configuration: `"mode"`, and beside it the section of a backend or none.
`"mode": "vxlan"` is a name for mode `bridge` with the section `vxlan`. The backend's part comes first,
because the pods' MTU follows from it and a bridge may take its device as a port.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.attach import MODES, interface
from cni_plugin.backend import BACKENDS
from cni_plugin.backend.backend import NONE
from cni_plugin.contract.errors import CNIError, Code, invalid_config

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import ExitStack

    from cni_plugin.attach.mode import Connection, Mode, Plan
    from cni_plugin.backend.backend import Backend, Reach
    from cni_plugin.backend.shared_facts import Survey
    from cni_plugin.config.network import Addressing, Network, RemoteNetworks
    from cni_plugin.contract.fields import Fields
    from cni_plugin.contract.result import Result
    from cni_plugin.features.damage import Damage
    from cni_plugin.features.feature import Site
    from cni_plugin.kernel.netns import Namespace

log = logging.getLogger("podwire")

# A name for a mode with a backend.
COMBINED = {"vxlan": ("bridge", "vxlan")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """A mode with its plan for one attachment, a backend with its reach to the other nodes."""

    mode: Mode
    plan: Plan
    backend: Backend
    reach: Reach

    def connect(self, site: Site, undo: ExitStack) -> Connection:
        """Bring what is shared in sync, then make what is the pod's."""
        interface.refuse_existing(site.present_pod, site.attachment)
        if problem := self.backend.problem(self.reach):
            log.warning("%s; the peers of the last sync stay in force", problem)
        mtu = self._ensure_backend(site.host, doubt=False)[0]
        return self.mode.connect(self.plan, mtu, site, undo)

    def _ensure_backend(self, host: Namespace, *, doubt: bool) -> tuple[int, int]:
        """Return the MTU (bytes, 0 where the mode decides it), and the number of changes."""
        mtu = self.backend.mtu(self.reach, host.netlink)
        if mtu:
            interface.refuse_small_mtu(mtu, self.mode.stated_families(self.plan))
        return mtu, self.backend.ensure(self.reach, host, self.links, doubt=doubt)

    @property
    def links(self) -> Iterable[str]:
        """Return the links by which the pods' packets come in."""
        return self.mode.links(self.plan)

    def configure(self, connection: Connection, site: Site, addresses: Result) -> Result:
        """Give the pod its addresses; return the attachment's result."""
        return self.mode.configure(self.plan, connection, site, addresses)

    def check(self, site: Site, result: Result) -> None:
        """Raise CNIError 100 for the first thing that is not as ADD left it, the peers included."""
        from cni_plugin.features.damage import refuse

        self.mode.check(self.plan, site, result)
        refuse(self._compare_backend(site.host, site.attachment.network))

    def compare(self, site: Site, result: Result) -> Iterator[Damage]:
        """Yield what the node does not hold of an attachment as ADD left it, without a look into the pod."""
        mtu = self.backend.mtu(self.reach, site.host.netlink)
        yield from self.mode.compare(self.plan, mtu, site, result)

    def compare_shared(self, host: Namespace, network: str) -> Iterator[Damage]:
        """Yield what is not as wanted of that which the pods share, as far as it has been made."""
        from cni_plugin.backend.peers import network_priority
        from cni_plugin.backend.route_conflicts import find_detours

        yield from self._compare_backend(host, network)
        yield from find_detours(host.netlink, network_priority(network))
        yield from self._compare_devices(host, network)
        mtu = self.backend.mtu(self.reach, host.netlink)
        yield from self.mode.compare_shared(self.plan, mtu, host)

    def _compare_backend(self, host: Namespace, network: str) -> Iterator[Damage]:
        """Yield how the way to other nodes differs; all of it is mended at once."""
        from cni_plugin.features.damage import Damage, kind_of

        mend = partial(self._ensure_backend, host, doubt=True)
        for command in self.backend.list_undone(self.reach, host, self.links):
            said = f"peers of network {network}: wanted them in sync, found undone: {command}"
            yield Damage(kind=kind_of(command), said=said, mend=mend)

    def _compare_devices(self, host: Namespace, network: str) -> Iterator[Damage]:
        """Yield the tunnels that the network had with another number, or before it had another backend."""
        from cni_plugin.features.damage import Damage
        from cni_plugin.kernel.vxlan import list_devices

        own = self.backend.device(self.reach)
        for name in list_devices(host.netlink, network):
            if name != own:
                wanted = f"no tunnel of network {network}{own and f' but {own}'}"
                said = f"link {name}: wanted {wanted}, found it"
                yield Damage(kind="link", said=said, mend=None, remedy=f"ip link del {name}")

    def ready(self, host: Namespace) -> None:
        """Raise CNIError 50 when a pod could not be attached here now."""
        try:
            self.mode.ready(self.plan, host)
            self.backend.ready(self.reach, host)
        except CNIError as error:
            raise CNIError(Code.NOT_AVAILABLE, error.msg, error.details) from error

    def elsewhere(self) -> RemoteNetworks:
        """Return the networks of the pods on other nodes, as far as they are named."""
        return self.backend.elsewhere(self.reach)

    def forwarded_by(self) -> str:
        """Return the interface that the node forwards the pods' packets from and to; empty for none."""
        return self.mode.forwarded_by(self.plan)

    def synchronize(self, host: Namespace) -> int:
        """Compare everything that pods share and mend what differs; return the number of changes."""
        mtu, changes = self._ensure_backend(host, doubt=True)
        changes += self.mode.synchronize(self.plan, mtu, host)
        changes += self.mode.drop_others(self.plan, tuple(self.backend.subnets(self.reach)), host)
        if problem := self.backend.problem(self.reach):
            raise invalid_config(f"{problem}; the peers of the last sync stay in force")
        return changes

    def explain_mtu(self, host: Namespace) -> list[str]:
        """Return the computation of the pods' MTU, a step a line."""
        return self.backend.explain_mtu(self.reach, host.netlink) or self.mode.explain_mtu(self.plan, host)

    def survey(self, host: Namespace) -> Survey:
        """Compare what the pods share with what is wanted; CNIError for what cannot be."""
        found = self.mode.survey(self.plan, self.backend.mtu(self.reach, host.netlink), host)
        undone = self.backend.list_undone(self.reach, host, self.links)
        ways = self.backend.ways(self.reach, host.netlink)
        return replace(found, undone=(*undone, *found.undone), ways=ways)


def plan_wiring(fields: Fields, network: Network, addressing: Addressing) -> Wiring:
    """Return how the network is wired, every error of its configuration found; CNIError 7."""
    name, backend = _choose(fields, network.mode)
    mode = MODES[name]()
    reach = backend.plan(fields, network, addressing, segmented=mode.join_segment is not None)
    plan = mode.plan(fields, network, addressing)
    wired = Wiring(mode=mode, plan=plan, backend=backend, reach=reach)
    segment = backend.segment(reach)
    if segment is not None and mode.join_segment is not None:
        return replace(wired, plan=mode.join_segment(plan, segment))
    if reach is not None and not wired.forwarded_by():
        raise invalid_config('subnets behind the peers need "isGateway", found it off')
    return wired


def _choose(fields: Fields, asked: str) -> tuple[str, Backend]:
    """Return the name of the mode, and the backend."""
    name, implied = COMBINED.get(asked, (asked, ""))
    if name not in MODES:
        raise invalid_config(f'"mode" must be one of {sorted({*MODES, *COMBINED})}, found "{asked}"')
    present = [key for key in BACKENDS if key == implied or fields.section(key) is not None]
    if len(present) > 1:
        raise invalid_config(" and ".join(f'"{key}"' for key in present) + " exclude each other, found both")
    return name, BACKENDS[present[0]]() if present else NONE
