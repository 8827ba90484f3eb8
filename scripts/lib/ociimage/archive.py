"""The archive: an OCI layout of one layer that is also what `docker load` reads.

Nothing in it depends on when or where it was made: entries are sorted, owned by root and as old as
the sources say (SOURCE_DATE_EPOCH, else the last commit).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from ociimage.tree import File, Tree

_OCI = "application/vnd.oci.image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What the image is called and says of itself; `epoch` in seconds."""

    tag: str
    architecture: str
    epoch: int
    created: str
    config: dict[str, Any]


def write(target: Path, tree: Tree, image: Image) -> str:
    """Write the archive and return the digest of its manifest."""
    layer = _layer(tree, image.epoch)
    packed = gzip.compress(layer, compresslevel=6, mtime=0)
    config = _render(_config(image, layer))
    manifest = _render(_manifest(config, packed))
    files = {_place(blob): blob for blob in (packed, config, manifest)}
    index = {"schemaVersion": 2, "manifests": [_entry(image, manifest)]}
    docker = [{"Config": _place(config), "RepoTags": [image.tag], "Layers": [_place(packed)]}]
    files |= {"index.json": _render(index), "manifest.json": _render(docker)}
    files["oci-layout"] = _render({"imageLayoutVersion": "1.0.0"})
    with tarfile.open(target, "w") as archive:
        for name, content in sorted(files.items()):
            _add(archive, name, content, 0o644, image.epoch)
    return _digest(manifest)


def _layer(tree: Tree, epoch: int) -> bytes:
    file = io.BytesIO()
    everything: dict[str, File | None] = {**dict.fromkeys(tree.directories()), **tree}
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as layer:
        for path, entry in sorted(everything.items()):
            if entry is None:
                _add_special(layer, path, tarfile.DIRTYPE, epoch)
            elif entry.target:
                _add_special(layer, path, tarfile.SYMTYPE, epoch, entry.target)
            else:
                _add(layer, path, entry.content, entry.mode, epoch)
    return file.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int, epoch: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(content), mode, epoch
    archive.addfile(entry, io.BytesIO(content))


def _add_special(archive: tarfile.TarFile, name: str, kind: bytes, epoch: int, target: str = "") -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.mtime, entry.linkname = kind, 0o755, epoch, target
    archive.addfile(entry)


def _config(image: Image, layer: bytes) -> dict[str, Any]:
    return {
        "created": image.created,
        "architecture": image.architecture,
        "os": "linux",
        "config": image.config,
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
    }


def _manifest(config: bytes, packed: bytes) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.manifest.v1+json",
        "config": _descriptor(f"{_OCI}.config.v1+json", config),
        "layers": [_descriptor(f"{_OCI}.layer.v1.tar+gzip", packed)],
    }


def _entry(image: Image, manifest: bytes) -> dict[str, Any]:
    names = {
        "io.containerd.image.name": image.tag,
        "org.opencontainers.image.ref.name": image.tag.rpartition(":")[2],
    }
    platform = {"architecture": image.architecture, "os": "linux"}
    return {**_descriptor(f"{_OCI}.manifest.v1+json", manifest), "annotations": names, "platform": platform}


def _descriptor(kind: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": _digest(content), "size": len(content)}


def _place(content: bytes) -> str:
    return f"blobs/{_digest(content).replace(':', '/')}"


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _render(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
