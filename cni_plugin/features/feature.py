"""The interface of a feature: the same functions, built in or as a plugin of a chain.

A feature is what a pod gets beside its link: translation of addresses, host ports, limits, filters.
`parse` finds every configuration error before anything is made, `ensure` makes what the pods of a
network share, `add` what is this pod's. DEL knows only names, and what `DeleteInput` says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import ExitStack

    from netaddr import IPAddress

    from cni_plugin.config.network import Addressing, Attachment, Network
    from cni_plugin.contract.fields import Fields
    from cni_plugin.contract.result import Interface, Result
    from cni_plugin.features.damage import Damage
    from cni_plugin.kernel.netns import Namespace
    from cni_plugin.kernel.nft_message import Element

Settings = Any  # a feature's own frozen dataclass; nothing outside the feature looks inside
Recalled = Any  # what its `recall` returns, likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a feature works: an attachment, the node, and the pod unless its namespace is gone.

    A namespace that a DEL is told of may be another pod's by now. It is the pod only once that is proven.
    """

    attachment: Attachment
    host: Namespace
    netns: Namespace | None
    """Where CNI_NETNS leads; it is read and changed as `pod`."""
    is_own: Callable[[], bool]
    """Tell whether that is proven to be the attachment's; asked by who would change something in it."""
    label: str
    """Whose a kernel object is: the identity first, see `render_comment`."""
    state_dir: str
    """Where values are kept that neither kernel nor store can hold."""
    _sets: dict[str, list[str]] = field(default_factory=dict, init=False, compare=False)

    @property
    def pod(self) -> Namespace | None:
        """The pod's namespace; None when it is gone, or not proven to be the pod's."""
        return self.netns if self.netns is not None and self.is_own() else None

    @property
    def present_pod(self) -> Namespace:
        """Return the pod's namespace, for ADD and CHECK, which do not run without one."""
        if self.pod is None:
            raise AssertionError(f"{self.attachment}: the pod's namespace is not open")
        return self.pod

    def sets(self, family: str, prefix: str = "") -> list[str]:
        """Return the names of our sets that begin with `prefix`, as they were when first asked for."""
        if family not in self._sets:
            self._sets[family] = self.host.nftables.list_sets(family)
        return [name for name in self._sets[family] if name.startswith(prefix)]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteInput:
    """What a DEL may know of what an ADD made; a configuration that ADD would refuse is no reason to stay."""

    recalled: Recalled = None
    """What the feature's own `recall` read; None when it cannot be read."""
    addresses: tuple[IPAddress, ...] | None
    """The pod's addresses; None when nothing tells them."""
    interfaces: tuple[Interface, ...] = ()
    """What prevResult says of links."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedObject:
    """Something on the node that is one attachment's, beside its veth and its elements."""

    label: str
    """The identity first, see `render_comment`."""
    what: str
    """This one and no later one in its place."""
    remove: Callable[[], object]

    @property
    def identity(self) -> str:
        """Return the identity of the attachment."""
        return self.label.partition(" ")[0]


def _nothing(*_: object) -> int:
    return 0


def _unchanged(settings: Settings, site: Site, result: Result, undo: ExitStack) -> Result:
    del settings, site, undo
    return result


def _undamaged(*_: object) -> tuple[Damage, ...]:
    return ()


def _none(*_: object) -> tuple[OwnedObject, ...]:
    return ()


def _no_links(_: Attachment) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One thing that a pod gets beside its link."""

    parse: Callable[[Fields, Network, Addressing], Settings | None]
    """Settings from the configuration, None when it asks for nothing; CNIError 2, 7 or 50."""
    add: Callable[[Settings, Site, Result, ExitStack], Result] = _unchanged
    """After `ensure`: make what is the pod's and push its undoing; the result as it is now."""
    delete: Callable[[DeleteInput, Site], object] = _nothing
    """Remove what an ADD made, and nothing of anybody else's; absence is fine."""
    recall: Callable[[Fields], Recalled] | None = None
    """What `delete` and `list_owned` use of a configuration that `parse` may refuse; CNIError."""
    precedes_link: bool = False
    """What `delete` sets back is in the pod, which its interface proves to be the pod; built in only."""
    takes_args: bool = False
    """As a plugin of its own it takes what is in CNI_ARGS; the others do not fail for what is there."""
    links: Callable[[Attachment], tuple[str, ...]] = _no_links
    """Names of links on the node that are all `delete` removes: built in, they go with the veth."""
    compare: Callable[[Settings, Site, Result], Iterable[Damage]] = _undamaged
    """Yield what is not as ADD left it. Without the pod's namespace only what is on the node is compared."""
    compare_shared: Callable[[Settings, Namespace], Iterable[Damage]] = _undamaged
    """Yield what `ensure` would change that is the network's, with whatever settings a pod was added."""
    ready: Callable[[Settings, Namespace], object] = _nothing
    """Raise CNIError 50 or 51 when a pod could not get this now."""
    ensure: Callable[[Settings, Namespace], int] = _nothing
    """Make what the network's pods share equal to what is wanted; return the number of changes."""
    prepare: Callable[[Settings, Site, ExitStack], object] = _nothing
    """Built in only: what must be there before the pod's link comes up; its undoing is pushed."""
    admit: Callable[[Settings, Site, Result, ExitStack], object] = _nothing
    """Built in only: likewise, of what depends on the addresses that the pod will have."""
    list_owned: Callable[[str, Recalled, Site], Iterable[OwnedObject]] = _none
    """Find what a network's attachments have of it on the node, for GC.

    Elements of our nftables need no word here: `elements.list_of` finds them all.
    """
    collected: Callable[[Sequence[Element], Site], object] = _nothing
    """After GC took these elements away: take what else the kernel keeps because of them."""
