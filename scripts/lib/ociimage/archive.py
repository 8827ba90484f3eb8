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
    epoch: int
    created: str
    config: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Variant:
    """The image for one architecture: its blobs, and the descriptor of its manifest."""

    packed: bytes
    config: bytes
    manifest: bytes
    descriptor: dict[str, Any]


def write(target: Path, trees: dict[str, Tree], image: Image) -> str:
    """Write the archive and return the digest of what its name stands for.

    That is a manifest, or with several architectures an index of them. `docker load` takes the first.
    """
    variants = [_variant(architecture, tree, image) for architecture, tree in trees.items()]
    blobs = [blob for each in variants for blob in (each.packed, each.config, each.manifest)]
    first = variants[0]
    named = first.descriptor
    if len(variants) > 1:
        inner = _render(_index([each.descriptor for each in variants]))
        blobs.append(inner)
        named = _descriptor(f"{_OCI}.index.v1+json", inner)
    index = _index([{**named, "annotations": _names(image)}])
    docker = [{"Config": _place(first.config), "RepoTags": [image.tag], "Layers": [_place(first.packed)]}]
    files = {_place(blob): blob for blob in blobs}
    files |= {"index.json": _render(index), "manifest.json": _render(docker)}
    files["oci-layout"] = _render({"imageLayoutVersion": "1.0.0"})
    with tarfile.open(target, "w") as archive:
        for name, content in sorted(files.items()):
            _add(archive, name, content, 0o644, image.epoch)
    return str(named["digest"])


def _variant(architecture: str, tree: Tree, image: Image) -> _Variant:
    layer = _layer(tree, image.epoch)
    packed = gzip.compress(layer, compresslevel=6, mtime=0)
    config = _render(_config(image, architecture, layer))
    manifest = _render(_manifest(config, packed))
    platform = {"architecture": architecture, "os": "linux"}
    descriptor = {**_descriptor(f"{_OCI}.manifest.v1+json", manifest), "platform": platform}
    return _Variant(packed=packed, config=config, manifest=manifest, descriptor=descriptor)


def _index(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": f"{_OCI}.index.v1+json", "manifests": manifests}


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


def _config(image: Image, architecture: str, layer: bytes) -> dict[str, Any]:
    return {
        "created": image.created,
        "architecture": architecture,
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


def _names(image: Image) -> dict[str, str]:
    return {
        "io.containerd.image.name": image.tag,
        "org.opencontainers.image.ref.name": image.tag.rpartition(":")[2],
    }


def _descriptor(kind: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": _digest(content), "size": len(content)}


def _place(content: bytes) -> str:
    return f"blobs/{_digest(content).replace(':', '/')}"


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _render(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
