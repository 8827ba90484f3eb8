"""What is in the image: the interpreter and nft from Debian, wheels, podwire, the shim, and nothing else.

Sources of other projects are left out once they are compiled; ours stay, so that a traceback reads well.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ociimage import debian
from ociimage.tree import File, Tree, libraries

# The agent's threads must not each keep an arena of their own.
ENVIRONMENT = ("MALLOC_ARENA_MAX=2",)
_EXTRAS = ("kubernetes", "runtime", "metrics")
_SITE = "usr/lib/python3/dist-packages"
_CODE = ("cni_plugin", "ipam")
_ROOTS = (
    "usr/bin/python3*",
    "usr/sbin/nft",
    "usr/lib/python3*",
    "usr/share/doc/*/copyright",
    "usr/lib/locale/C.utf8/*",
)
_JUNK = (
    *(f"usr/lib/python3.*/{name}/*" for name in (
        "__phello__", "curses", "dbm", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "sqlite3", "test",
        "tkinter", "turtledemo", "venv", "xmlrpc")),
    *(f"usr/lib/python3.*/lib-dynload/{name}.*" for name in (
        "_codecs_*", "_crypt", "_curses*", "_dbm", "_gdbm", "_sqlite3", "_test*", "_tkinter", "_xx*",
        "audioop", "nis", "ossaudiodev", "readline", "xxlimited*")),
    "usr/lib/python3*/debpython/*", "usr/share/python3/*", "usr/bin/python3-*",
)  # fmt: skip
# Of the Kubernetes client we use the connection: not its models, nor its twin for asyncio with what only that
# imports.
_ASYNCIO = (
    "aiohappyeyeballs", "aiohttp", "aiohttp_retry", "aiosignal", "attr", "attrs", "frozenlist", "multidict",
    "propcache", "yarl",
)  # fmt: skip
_WHEEL_JUNK = (
    "*/tests/*", "*/test/*", "*.pyi", "*.pyx", "*.pxd", "*.c", "*.h", "*.proto", "*/RECORD", "*/INSTALLER",
    "*/REQUESTED", "*/direct_url.json", "bin/*", "netaddr/eui/*.txt", "tzdata*",
    "kubernetes/aio/*", "kubernetes/client/api/[!_]*", "kubernetes/client/models/[!_]*",
    *(f"{name}{rest}" for name in _ASYNCIO for rest in ("/*", "-*")),
)  # fmt: skip
_LAUNCHER = """\
#!/usr/bin/python3 -I
from cni_plugin.__main__ import main

raise SystemExit(main())
"""


@dataclass(frozen=True, slots=True)
class Target:
    """An architecture: how C's world calls it, and wheels."""

    triplet: str
    machine: str


_TARGETS = {
    "amd64": Target("x86_64-linux", "x86_64"),
    "arm64": Target("aarch64-linux", "aarch64"),
}
ARCHITECTURES = tuple(_TARGETS)
# The C libraries that a wheel may have been built for: the image's is newer than each.
_MANYLINUX = ("manylinux_2_36", "manylinux_2_34", "manylinux_2_31", "manylinux_2_28", "manylinux2014")


def gather(root: Path, cache: Path, work: Path, architecture: str) -> Tree:
    """Return the files of the image for an architecture; `work` is an empty directory."""
    packages, names = debian.fetch(cache, architecture)
    own = packages if architecture == debian.native() else debian.fetch(cache, debian.native())[0]
    tree = Tree({path: file for path, file in packages.items() if _wanted(path)})
    tree |= _wheels(root, cache, _python_version(tree), architecture)
    for package in _CODE:
        tree.add_directory(root / package, f"{_SITE}/{package}")
    tree |= _extra_files(root, cache, work, names, architecture)
    tree |= libraries(tree, packages)
    compiled = _compile(tree, work / "root", _interpreter(own, work / "python"))
    return Tree({path: file for path, file in compiled.items() if f"{path}c" not in compiled})


def _wanted(path: str) -> bool:
    return any(fnmatch.fnmatch(path, pattern) for pattern in _ROOTS) and not any(
        fnmatch.fnmatch(path, pattern) for pattern in _JUNK
    )


def _wheels(root: Path, cache: Path, version: str, architecture: str) -> Tree:
    """Return what podwire and its extras import, from the wheels of the lock."""
    files = [root / "lock" / f"{name}.txt" for name in ("program", *_EXTRAS)]
    key = hashlib.sha256("".join([*(file.read_text() for file in files), version]).encode()).hexdigest()
    directory = cache / f"wheels-{architecture}-{key[:12]}"
    if not directory.exists():
        _install_wheels(directory, files, version, architecture)
    tree = Tree()
    tree.add_directory(directory, _SITE)
    return Tree({path: file for path, file in tree.items() if not _is_junk(path.removeprefix(f"{_SITE}/"))})


def _install_wheels(directory: Path, files: list[Path], version: str, architecture: str) -> None:
    machine = _TARGETS[architecture].machine
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    fit = [f"--python-version={version}", *(f"--platform={name}_{machine}" for name in _MANYLINUX)]
    locked = [word for file in files for word in ("--requirement", str(file))]
    with TemporaryDirectory(dir=directory.parent) as work:
        target = Path(work) / "wheels"
        _run(*pip, "--require-hashes", "--only-binary=:all:", *fit, "--target", str(target), *locked)
        for library in target.rglob("*.so"):
            _run(f"{_tools(architecture)}strip", "--strip-unneeded", str(library))
        # Two may have begun together: the first is as good as the second.
        with suppress(OSError):
            target.rename(directory)


def _python_version(tree: Tree) -> str:
    return _stdlib(tree).removeprefix("usr/lib/python")


def _tools(architecture: str) -> str:
    """Return how the names of the compiler's programs begin: those for another architecture name it."""
    return "" if architecture == debian.native() else f"{_TARGETS[architecture].triplet}-gnu-"


def _run(*argv: str, environment: dict[str, str] | None = None) -> None:
    subprocess.run(argv, check=True, capture_output=True, env=environment)


def _is_junk(path: str) -> bool:
    return any(fnmatch.fnmatch(path, pattern) for pattern in _WHEEL_JUNK)


def _extra_files(root: Path, cache: Path, work: Path, names: list[str], architecture: str) -> Tree:
    """Return the launcher, the shim and the few files that a C library looks for."""
    return Tree(
        {
            "usr/bin/podwire": File(_LAUNCHER.encode(), 0o755),
            "usr/lib/podwire/podwire-shim": File(_shim(root, cache, work, architecture), 0o755),
            "usr/share/doc/podwire/copyright": File((root / "LICENSE").read_bytes()),
            "usr/share/doc/podwire/packages": File("".join(f"{name}\n" for name in names).encode()),
            "etc/passwd": File(b"root:x:0:0:root:/:/usr/sbin/nologin\n"),
            "etc/group": File(b"root:x:0:\n"),
            "etc/nsswitch.conf": File(b"hosts: files dns\n"),
            **{name: File(target=f"usr/{name}") for name in ("bin", "lib", "lib64", "sbin")},
        }
    )


def _shim(root: Path, cache: Path, work: Path, architecture: str) -> bytes:
    target = work / "shim"
    first = [] if architecture == debian.native() else [_cross_musl(cache, work / "musl", architecture)]
    path = ":".join([*map(str, first), os.environ["PATH"]])
    _run(str(root / "shim/build"), str(target), environment={**os.environ, "PATH": path})
    return target.read_bytes()


def _cross_musl(cache: Path, directory: Path, architecture: str) -> Path:
    """Return the directory of a musl-gcc for another architecture, since Debian's is for its own only."""
    archive = debian.Archive(cache=cache / architecture, architecture=architecture)
    archive.fetch(("musl-dev",))[0].write(directory)
    triplet = _TARGETS[architecture].triplet
    compiler = f"{triplet}-gnu-gcc"
    found = subprocess.run([compiler, "-print-file-name=include"], check=True, capture_output=True, text=True)
    headers = (f"{directory}/usr/include/{triplet}-musl", found.stdout.strip())
    libc = f"{directory}/usr/lib/{triplet}-musl"
    # Outlined atomics would ask the GNU C library what the processor can do.
    plain = "-mno-outline-atomics" if architecture == "arm64" else ""
    words = (
        f"exec {compiler} {plain} -nostdinc {' '.join(f'-isystem {each}' for each in headers)}",
        f'-nostdlib -L{libc} {libc}/crt1.o {libc}/crti.o {libc}/crtn.o "$@" -lc -lgcc',
    )
    wrapper = directory / "bin/musl-gcc"
    wrapper.parent.mkdir()
    wrapper.write_text(f"#!/bin/sh\n{' '.join(words)}\n")
    wrapper.chmod(0o755)
    return wrapper.parent


@dataclass(frozen=True, slots=True)
class _Interpreter:
    """The image's Python, for this machine."""

    argv: list[str]
    home: Path


def _interpreter(packages: Tree, directory: Path) -> _Interpreter:
    """Write the packages' Python below an empty directory; what it compiles is good for any architecture."""
    tree = Tree({path: file for path, file in packages.items() if _wanted(path)})
    tree |= libraries(tree, packages)
    tree.write(directory)
    loader = next(path for path in sorted(tree) if re.search(r"/ld-linux[^/]*\.so\.\d$", path))
    paths = sorted(
        {
            str(directory / path.rpartition("/")[0])
            for path in tree
            if re.search(r"^usr/lib/[^/]*-linux-gnu/", path)
        }
    )
    program = str(directory / tree.resolve("usr/bin/python3"))
    argv = [str(directory / tree.resolve(loader)), "--library-path", ":".join(paths), program]
    return _Interpreter(argv, directory / "usr")


def _compile(tree: Tree, directory: Path, interpreter: _Interpreter) -> Tree:
    """Return the tree with compiled modules.

    Unchecked hashes: the modules are read without a look at their sources, whose times mean nothing here.
    """
    tree.write(directory)
    options = ["-q", "--invalidation-mode", "unchecked-hash", "-s", str(directory), "-p", "/"]
    ours = {f"{_SITE}/{name}" for name in _CODE}
    site = {
        "/".join([_SITE, path.removeprefix(f"{_SITE}/").partition("/")[0]])
        for path in tree
        if path.startswith(_SITE)
    }
    others = [_stdlib(tree), *sorted(site - ours)]
    # One process and no random hashes, so that the same source always makes the same bytes.
    environment = {
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHOME": str(interpreter.home),
        "PATH": "/usr/bin:/bin",
    }
    # -b: beside the source, whose place the compiled module can then take.
    for words in (["-b", *options, *others], [*options, *sorted(ours)]):
        places = [str(directory / word) if word in others or word in ours else word for word in words]
        command = [*interpreter.argv, "-S", "-m", "compileall", *places]
        _run(*command, environment=environment)
    compiled = Tree(tree)
    for path in sorted(directory.glob("usr/lib/python3*/**/*.pyc")):
        compiled[str(path.relative_to(directory))] = File(path.read_bytes())
    return compiled


def _stdlib(tree: Tree) -> str:
    return next(path for path in sorted(tree.directories()) if re.fullmatch(r"usr/lib/python3\.\d+", path))
