"""Checks the runtime's configuration files: is there one, which is used, can it be read."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from cni_plugin.config.state_file import read_state
from cni_plugin.contract import versions
from cni_plugin.doctor.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.doctor.site import Examined
    from cni_plugin.node.configured import ConfFile

_NOT_INITIALIZED = (
    'the runtime has no pod network: kubelet says "cni plugin not initialized" and the node is NotReady'
)


def check(site: Examined) -> Iterator[Finding]:
    """Yield what is wrong with the files."""
    files = site.configured.files
    if not files:
        yield _nothing(site)
        return
    for file in files:
        yield from _read(file)
    yield from _order(site, files)


def _nothing(site: Examined) -> Finding:
    directory = shlex.quote(site.conf_dir)
    state = read_state(site.state_file)
    if state is not None and not state.ready:
        return Finding(
            severity="error",
            object=site.conf_dir,
            found=f"no network configuration; the agent has not written it: {'; '.join(state.reasons)}",
            meaning=_NOT_INITIALIZED,
            remedy="mend what the agent waits for; it writes the file by itself then",
        )
    return Finding(
        severity="error",
        object=site.conf_dir,
        found="no network configuration (*.conflist, *.conf, *.json); in a cluster the agent writes it",
        meaning=_NOT_INITIALIZED,
        remedy=f"mkdir -p {directory} && cp conf/10-podwire.conflist {directory}/",
    )


def _read(file: ConfFile) -> Iterator[Finding]:
    path = shlex.quote(file.path)
    if file.problem:
        yield Finding(
            severity="error",
            object=file.path,
            found=file.problem,
            meaning="containerd takes no configuration from the directory while a file in it is broken",
            remedy=f"correct it (python3 -m json.tool {path} says where), or: mv {path} {path}.disabled",
        )
    elif file.mains and file.version not in versions.SUPPORTED:
        yield Finding(
            severity="error",
            object=file.path,
            found=f'"cniVersion" is "{file.version}"',
            meaning=f"podwire speaks {', '.join(versions.SUPPORTED)}, so every call is refused",
            remedy=f'sed -i \'s/"cniVersion": *"[^"]*"/"cniVersion": "{versions.NEWEST}"/\' {path}',
        )


def _order(site: Examined, files: tuple[ConfFile, ...]) -> Iterator[Finding]:
    readable = [file for file in files if not file.problem]
    ours = next((file for file in readable if file.mains), None)
    if ours is None:
        if readable:
            yield Finding(
                severity="error",
                object=site.conf_dir,
                found=f"no network of podwire's; pods get that of {readable[0].path}",
                meaning="podwire is not asked for any pod",
                remedy=f"cp conf/10-podwire.conflist {shlex.quote(site.conf_dir)}/",
            )
        return
    for file in readable[: readable.index(ours)]:
        path = shlex.quote(file.path)
        yield Finding(
            severity="error",
            object=file.path,
            found=f"it sorts before {ours.path}",
            meaning=f"the runtime takes the first file: pods get the network of {', '.join(file.types)}",
            remedy=f"mv {path} {path}.disabled",
        )
