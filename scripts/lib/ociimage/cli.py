"""The command line of scripts/image."""

from __future__ import annotations

import argparse
import os
import runpy
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ociimage import archive, contents, debian

if TYPE_CHECKING:
    from ociimage.tree import Tree


def main(root: Path) -> None:
    """Write the image and say what was written."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    version = runpy.run_path(str(root / "cni_plugin/__init__.py"))["__version__"]
    arguments = _parser(version).parse_args()
    target = Path(arguments.output)
    if not os.access(target.parent, os.W_OK):
        sys.exit(f"scripts/image: {target.parent.resolve()}: wanted a directory to write {target.name} to")
    cache = Path(os.environ.get("PODWIRE_CACHE") or _default_cache()) / "image"
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or _last_commit(root))
    try:
        trees = {each: _gather(root, cache, each) for each in arguments.platform}
    except subprocess.CalledProcessError as error:
        sys.stderr.write((error.stderr or b"").decode() if isinstance(error.stderr, bytes) else "")
        sys.exit(f"scripts/image: {error}")
    except OSError as error:
        sys.exit(f"scripts/image: {error.filename}: {error.strerror}")
    except LookupError as error:
        sys.exit(f"scripts/image: {error}")
    created = datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    labels = {
        "org.opencontainers.image.title": project["name"],
        "org.opencontainers.image.description": project["description"],
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.licenses": project["license"],
        "org.opencontainers.image.created": created,
    }
    config = {
        "Entrypoint": ["/usr/bin/podwire"],
        "Cmd": ["agent"],
        "Env": ["PATH=/usr/sbin:/usr/bin", "LANG=C.UTF-8", *contents.ENVIRONMENT],
        "Labels": labels,
        "WorkingDir": "/",
    }
    staged = target.with_name(f".{target.name}.new")
    image = archive.Image(tag=arguments.tag, epoch=epoch, created=created, config=config)
    digest = archive.write(staged, trees, image)
    staged.replace(target)
    sys.stdout.write(f"{target}: {arguments.tag}, {digest}\n{target.stat().st_size / 1e6:.1f} MB\n")
    for architecture, tree in trees.items():
        unpacked = sum(len(file.content) for file in tree.values())
        sys.stdout.write(f"{architecture}: unpacked {unpacked / 1e6:.1f} MB in {len(tree)} files\n")


def _gather(root: Path, cache: Path, architecture: str) -> Tree:
    with TemporaryDirectory() as work:
        return contents.gather(root, cache, Path(work), architecture)


def _parser(version: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/image", description="Write podwire's OCI image.")
    parser.add_argument("--output", default=f"podwire-{version}.tar", help="the archive (%(default)s)")
    parser.add_argument(
        "--tag", default=f"localhost/podwire:{version}", help="the image's name (%(default)s)"
    )
    parser.add_argument(
        "--platform",
        type=_architectures,
        default=debian.native(),
        metavar="linux/ARCHITECTURE[,...]",
        help=f"of {', '.join(contents.ARCHITECTURES)} (default: this machine's)",
    )
    return parser


def _architectures(text: str) -> list[str]:
    """Return the architectures, this machine's first: `docker load` takes that one."""
    found = {each.removeprefix("linux/") for each in text.split(",")}
    if not found <= set(contents.ARCHITECTURES):
        raise argparse.ArgumentTypeError(f"wanted linux/amd64 and linux/arm64, found {text!r}")
    return sorted(found, key=lambda each: (each != debian.native(), each))


def _default_cache() -> Path:
    """Return the tests' cache for root, and a user's own for anybody else."""
    if os.geteuid() == 0:
        return Path("/var/cache/podwire")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "podwire"


def _last_commit(root: Path) -> str:
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=root, capture_output=True, check=False)
    return done.stdout.decode().strip() or "0"
