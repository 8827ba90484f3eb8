"""Where the doctor looks: the directories, the socket and the files of one node, read once."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.config.paths import BIN_DIR, CONF_DIR, RESULTS_DIR
from cni_plugin.node.configured import read_configured

if TYPE_CHECKING:
    from cni_plugin.node.configured import Configured


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
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
    def configured(self) -> Configured:
        """Return what the runtime's files say now."""
        return read_configured(self.conf_dir, self.bin_dir)

    @property
    def options(self) -> str:
        """Return what a command of ours must be told to look where we did."""
        said = (
            ("--conf-dir", self.conf_dir, CONF_DIR),
            ("--bin-dir", self.bin_dir, BIN_DIR),
            ("--cache-dir", self.cache_dir, RESULTS_DIR),
        )
        return "".join(f" {name} {shlex.quote(value)}" for name, value, default in said if value != default)
