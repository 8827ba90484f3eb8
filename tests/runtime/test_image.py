"""scripts/image for both architectures: every program in it is for its own, and runs there."""

from __future__ import annotations

import io
import json
import platform
import re
import struct
import subprocess
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ROOT
from tests.harness.runtime import tools
from tests.harness.sharing import made_once

if TYPE_CHECKING:
    from pathlib import Path

# e_machine of elf.h.
MACHINES = {"amd64": 62, "arm64": 183}
EMULATORS = {"amd64": "qemu-x86_64-static", "arm64": "qemu-aarch64-static"}
NATIVE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
# What the agent in a cluster imports, and what of that is compiled.
IMPORTS = "import cni_plugin.cluster.api, cni_plugin.kernel.pyroute, grpc, prometheus_client, yaml, filelock"


@dataclass(frozen=True)
class Variant:
    """The image for one architecture, unpacked."""

    architecture: str
    root: Path

    def run(self, program: str, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the image with its own loader and libraries, emulated if need be."""
        inside = [program, *words]
        if self.architecture != NATIVE:
            inside = ["/emulator", *inside]
        return subprocess.run(
            ["chroot", self.root, *inside],
            env={"LANG": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin", **environ},
            input="{}",
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the image for both architectures."""
    return made_once(tmp_path_factory, "podwire.tar", write_image)


def write_image(target: Path) -> None:
    words = (ROOT / "scripts/image", "--output", target, "--platform", "linux/amd64,linux/arm64")
    subprocess.run(words, check=True, capture_output=True)


@pytest.fixture(params=sorted(MACHINES))
def variant(request: pytest.FixtureRequest, archive: Path, tmp_path: Path) -> Variant:
    """Unpack the image for one architecture."""
    with tarfile.open(archive) as opened:
        [named] = read(opened, "index.json")["manifests"]
        entries = read(opened, place(named))["manifests"]
        [entry] = [each for each in entries if each["platform"]["architecture"] == request.param]
        [layer] = read(opened, place(entry))["layers"]
        file = opened.extractfile(place(layer))
        assert file
        with tarfile.open(fileobj=io.BytesIO(file.read())) as files:
            files.extractall(tmp_path / "root", filter="fully_trusted")
    root = tmp_path / "root"
    if request.param != NATIVE:
        emulator = tools.installed(EMULATORS[request.param], package="qemu-user-static")
        (root / "emulator").write_bytes(emulator.read_bytes())
        (root / "emulator").chmod(0o755)
    return Variant(request.param, root)


def read(archive: tarfile.TarFile, name: str) -> dict[str, Any]:
    """Return a document of the archive."""
    file = archive.extractfile(name)
    assert file
    found: dict[str, Any] = json.load(file)
    return found


def place(descriptor: dict[str, Any]) -> str:
    """Return where a blob is."""
    return f"blobs/{descriptor['digest'].replace(':', '/')}"


def test_every_program_and_library_is_for_the_architecture(variant: Variant) -> None:
    found = {
        str(path.relative_to(variant.root)): struct.unpack_from("<H", head, 18)[0]
        for path in variant.root.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and path.name != "emulator"
        and (head := path.read_bytes()[:20])[:4] == b"\x7fELF"
    }
    assert len(found) > 50
    assert {path for path, machine in found.items() if machine != MACHINES[variant.architecture]} == set()


def test_the_programs_run(variant: Variant) -> None:
    said = variant.run("/usr/bin/python3", "-I", "/usr/bin/podwire", "--version")
    assert said.returncode == 0, said.stderr
    imported = variant.run("/usr/bin/python3", "-I", "-c", IMPORTS)
    assert (imported.returncode, imported.stderr) == (0, "")
    answer = variant.run("/usr/lib/podwire/podwire-shim", CNI_COMMAND="VERSION")
    assert json.loads(answer.stdout)["msg"].startswith("podwire agent at /run/podwire/podwire.sock: "), answer


def test_nft_reads_what_newer_ones_write(variant: Variant) -> None:
    """Below 1.1.2 it ends with a segmentation fault at the set of a newer one (nftables, be737a1986bf)."""
    packages = (variant.root / "usr/share/doc/podwire/packages").read_text()
    found = re.search(r"^nftables_(\d+)\.(\d+)\.(\d+)", packages, re.MULTILINE)
    assert found, packages
    assert tuple(map(int, found.groups())) >= (1, 1, 2)
    # qemu has no netlink socket of this kind, without which nft tells not even its version.
    if variant.architecture == NATIVE:
        said = variant.run("/usr/sbin/nft", "--version").stdout
        assert said.startswith(f"nftables v{'.'.join(found.groups())} "), said
