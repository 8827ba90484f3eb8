"""The reference plugins on a node of the cluster, in podwire's stead: bridge, host-local and portmap."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.harness.kubernetes.host import eventually
from tests.harness.kubernetes.pods import named_namespaces
from tests.harness.runtime import state, tools

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.kubernetes.worker import Worker

NAME, BRIDGE = "reference", "reference0"
_PLUGINS = ("bridge", "host-local", "portmap")
_STORE = "var/lib/cni/networks"
_CONFLIST = {
    "cniVersion": "0.4.0",
    "name": NAME,
    "plugins": [
        {
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.200.0.0/24"}], [{"subnet": "fd00:10:200::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}


@contextmanager
def installed(worker: Worker) -> Iterator[None]:
    """Let the runtime use the reference plugins: their file is the first that it reads."""
    binaries = worker.host.disk / "opt/cni/bin"
    conflist = worker.host.disk / "etc/cni/net.d/05-reference.conflist"
    for name in _PLUGINS:
        shutil.copy(tools.reference_plugins(tools.NEW_PLUGINS) / name, binaries)
    staged = conflist.with_name("reference.new")
    staged.write_text(json.dumps(_CONFLIST))
    staged.rename(conflist)
    try:
        eventually(lambda: NAME in worker.runtime.networks(), "a runtime that takes the reference plugins")
        yield
    finally:
        conflist.unlink()
        for name in _PLUGINS:
            (binaries / name).unlink()
        worker.space.run("ip", "link", "delete", BRIDGE, check=False)
        shutil.rmtree(worker.host.disk / _STORE / NAME, ignore_errors=True)
        eventually(lambda: NAME not in worker.runtime.networks(), "a runtime that takes podwire again")


def assert_nothing_left(worker: Worker) -> None:
    """Assert that no pod has left a veth or an address; the runtime may take a moment."""

    def left() -> list[str]:
        namespaces = [path.name for path in named_namespaces(worker)]
        return state.veths(worker.space) + state.reserved(worker.host.disk / _STORE) + namespaces

    eventually(lambda: left() == [], lambda: f"left behind: {left()}", within=120)
