"""What a pod gets beside its link: one module per feature; FEATURES in its `__init__` lists them.

A feature is a module with its own keys, its tests and its line here. Each entry imports its module
when it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_plugin.features.feature import Feature


def _masquerade() -> Feature:
    from cni_plugin.features import masquerade

    return masquerade.FEATURE


def _bandwidth() -> Feature:
    from cni_plugin.features import bandwidth

    return bandwidth.FEATURE


def _tuning() -> Feature:
    from cni_plugin.features import tuning

    return tuning.FEATURE


def _firewall() -> Feature:
    from cni_plugin.features import firewall

    return firewall.FEATURE


def _sysctls() -> Feature:
    from cni_plugin.features import tuning

    return tuning.SYSCTLS


def _spoof() -> Feature:
    from cni_plugin.features import spoof

    return spoof.FEATURE


def _source_validation() -> Feature:
    from cni_plugin.features import source_validation

    return source_validation.FEATURE


def _policy() -> Feature:
    from cni_plugin.features import policy

    return policy.FEATURE


def _isolation() -> Feature:
    from cni_plugin.features import isolation

    return isolation.FEATURE


def _portmap() -> Feature:
    from cni_plugin.features import portmap

    return portmap.FEATURE


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltIn:
    """A feature that the main plugin has built in, and what asks for it."""

    load: Callable[[], Feature]
    keys: tuple[str, ...] = ()
    """Of the plugin's configuration."""
    capabilities: tuple[str, ...] = ()
    """Of its `runtimeConfig`."""
    shared_only: bool = False
    """It makes nothing that is one pod's: no DEL or GC has to load it."""


# In the order of an ADD.
FEATURES = {
    "masquerade": BuiltIn(load=_masquerade, keys=("ipMasq", "ipMasqBackend", "nonMasqueradeCIDRs")),
    "bandwidth": BuiltIn(
        load=_bandwidth,
        keys=("ingressRate", "ingressBurst", "egressRate", "egressBurst"),
        capabilities=("bandwidth",),
    ),
    "sysctl": BuiltIn(load=_sysctls, keys=("sysctl",)),
    "spoof": BuiltIn(load=_spoof, keys=("macspoofchk", "spoofCheck")),
    "sourceValidation": BuiltIn(load=_source_validation, keys=("sourceValidation",), shared_only=True),
    "isolation": BuiltIn(load=_isolation, keys=("portIsolation",)),
    "portmap": BuiltIn(load=_portmap, capabilities=("portMappings",)),
    # Last: it waits for a word, and until then nothing passes.
    "policy": BuiltIn(load=_policy, keys=("networkPolicy",)),
}

# Those that are a plugin of a chain, by its type.
CHAINED = {"bandwidth": _bandwidth, "tuning": _tuning, "firewall": _firewall, "portmap": _portmap}
