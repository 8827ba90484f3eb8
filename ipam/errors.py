"""The errors of the address manager; `cni_plugin` translates them to codes of the specification.

Every message is a sentence fragment that names the object, what was wanted and what was found.
Where the reference `host-local` has a text for the same failure, the text is kept. A `LockTimeout`,
an `AddressTaken` and a `PoolExhausted` may pass with time, the others need an operator.
"""
# ruff: noqa: N818 - the names are said the way callers read them: `except PoolExhausted`

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class IPAMError(Exception):
    """Base of everything that the address manager raises on purpose."""


class InvalidRange(IPAMError):
    """A range or a set of ranges that cannot be allocated from; found before anything is made."""

    def __init__(self, *, subject: str, wanted: str, found: str) -> None:
        """Say which range, what it should be and what it is."""
        super().__init__(f"{subject}: wanted {wanted}, found {found}")


class InvalidNetwork(IPAMError):
    """A network name that cannot be the name of a directory in the store."""

    def __init__(self, network: str) -> None:
        """Name the network as it was given."""
        wanted = "a name without '/' that does not begin with '.'"
        super().__init__(f"network name: wanted {wanted}, found {network!r}")


class PoolExhausted(IPAMError):
    """No address of a range set is free."""

    def __init__(self, range_set: object) -> None:
        """Name the set by the bounds of its ranges."""
        super().__init__(f"no IP addresses available in range set: {range_set}")


class PoolCooling(PoolExhausted):
    """The only free addresses of a range set were released a short time ago."""

    def __init__(self, range_set: object, address: str, seconds: float) -> None:
        """Name the address that can be given first, and in how many seconds."""
        IPAMError.__init__(
            self,
            f"no IP addresses available in range set: {range_set}: "
            f"{address} was released, wanted {seconds:.1f} s more before another pod gets it",
        )


class AddressUnavailable(IPAMError):
    """A requested address cannot be had; see the two subclasses for the reason."""


class NotInRange(AddressUnavailable):
    """A requested address that the configuration never hands out: waiting does not help."""

    @classmethod
    def unused(cls, addresses: Iterable[str]) -> NotInRange:
        """Name the requested addresses that no range set took."""
        return cls(f"failed to allocate all requested IPs: {', '.join(addresses)}")

    @classmethod
    def gateway(cls, address: str) -> NotInRange:
        """Name a requested address that is its range's gateway."""
        return cls(f"requested ip {address} is subnet's gateway")

    @classmethod
    def excluded(cls, address: str, range_set: object) -> NotInRange:
        """Name a requested address that lies in an excluded block."""
        return cls(f"requested IP address {address} is excluded from range set {range_set}")


class AddressTaken(AddressUnavailable):
    """A requested address is held by another attachment, or by this one already."""

    def __init__(self, address: str, range_set: object, holder: str) -> None:
        """Name the address, its set and who holds it."""
        text = f"requested IP address {address} is not available in range set {range_set}"
        super().__init__(f"{text}: it is held by {holder}")


class DuplicateAllocation(IPAMError):
    """The attachment already holds an address of this range set."""

    def __init__(self, address: str, container_id: str) -> None:
        """Name the address that is held and its holder."""
        reason = "duplicate allocation is not allowed"
        super().__init__(f"{address} has been allocated to {container_id}, {reason}")


class Conflicts(IPAMError):
    """Addresses that are to be reserved are held by others."""

    def __init__(self, conflicts: Iterable[str]) -> None:
        """Name each of them, its owner to be and its holder."""
        super().__init__("; ".join(conflicts))


class LockTimeout(IPAMError):
    """Another call held the store's lock for longer than the caller would wait."""

    def __init__(self, path: str, seconds: float) -> None:
        """Name the lock file and the time that was waited."""
        super().__init__(f"lock {path}: wanted within {seconds:g} s, found held by another call")


class StoreUnavailable(IPAMError):
    """The file system refused: read-only, full, not a directory, too many open files."""

    def __init__(self, operation: str, path: str, error: OSError) -> None:
        """Name the operation, its path and the reason in the system's words."""
        self.operation = operation
        self.path = path
        self.errno = error.errno
        reason = os.strerror(error.errno) if error.errno else str(error)
        super().__init__(f"cannot {operation} {path}: {reason}")
