"""A sandbox image made from nothing: a static pause program and busybox, as no registry is at hand.

The tar has the docker-archive form, that is manifest.json, which names one config and one layer, each file
of the latter two named by its own digest. `ctr images import FILE` takes it.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

NAME = "localhost/podwire/sandbox:test"
_PATH = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_APPLETS = ("cat", "ip", "ping", "sh", "sleep", "true")


def write_image(target: Path, *, pause: Path, busybox: Path, name: str = NAME) -> None:
    """Write the image as a docker-archive to `target`."""
    _write(target, name, _layer(pause.read_bytes(), busybox.read_bytes()), "/pause")


def write_program(target: Path, name: str, program: Path, *, beside: Path | None = None) -> None:
    """Write an image of a directory's files and a static program, which is what a container of it runs."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as layer:
        if beside:
            layer.add(beside, ".")
        _add(layer, f"usr/local/bin/{program.name}", program.read_bytes(), mode=0o755)
    _write(target, name, file.getvalue(), f"/usr/local/bin/{program.name}")


def _write(target: Path, name: str, layer: bytes, entrypoint: str) -> None:
    config = json.dumps(_config(layer, entrypoint)).encode()
    config_name, layer_name = f"{_digest(config)}.json", f"{_digest(layer)}.tar"
    manifest = [{"Config": config_name, "Layers": [layer_name], "RepoTags": [name]}]
    with tarfile.open(target, "w") as archive:
        _add(archive, config_name, config)
        _add(archive, layer_name, layer)
        _add(archive, "manifest.json", json.dumps(manifest).encode())


def _layer(pause: bytes, busybox: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as layer:
        _add(layer, "pause", pause, mode=0o755)
        _add(layer, "bin/busybox", busybox, mode=0o755)
        for applet in _APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            layer.addfile(link)
    return file.getvalue()


def _config(layer: bytes, entrypoint: str) -> dict[str, object]:
    return {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": [entrypoint], "Env": [f"PATH={_PATH}"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_digest(layer)}"]},
    }


def _add(archive: tarfile.TarFile, name: str, content: bytes, *, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
