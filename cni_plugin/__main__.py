"""The entry point: a CNI call when CNI_COMMAND is set, else the operator's command line.

The plugin type is the name that the executable is called with, so that one file serves
`podwire`, `podwire-ipam` and the reference's names.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from cni_plugin import __version__
from cni_plugin.contract.dispatch import about, serve
from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.plugins import PLUGINS, type_of


def main() -> int:
    """Serve one call and return the exit status."""
    plugin_type = type_of(sys.argv[0])
    if os.environ.get("CNI_COMMAND"):
        # A runtime that loses patience gets its undo, too.
        signal.signal(signal.SIGTERM, _terminated)
        return serve(PLUGINS[plugin_type])
    if sys.argv[1:2] == ["probe"]:
        from cni_plugin.cli import probe

        return probe.main(sys.argv[2:])
    if len(sys.argv) > 1:
        from cni_plugin.cli import main as cli

        return cli.main(sys.argv[1:])
    return about(plugin_type, __version__)


def _terminated(*_: object) -> NoReturn:
    raise CNIError(Code.TRY_AGAIN_LATER, "terminated by SIGTERM; what had been made was undone")


if __name__ == "__main__":
    sys.exit(main())
