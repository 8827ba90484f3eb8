"""The files of an image, in memory: by path, each a file's content and mode or a link's target."""

from __future__ import annotations

import io
import posixpath
import struct
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

# Debian merges these into /usr; its packages still name both.
_MERGED = ("bin", "sbin", "lib", "lib64")


@dataclass(frozen=True, slots=True)
class File:
    """A regular file, or a symbolic link when it has a target."""

    content: bytes = b""
    mode: int = 0o644
    target: str = ""


class Tree(dict[str, File]):
    """Paths without the leading slash; directories are where files are."""

    def add_tar(self, content: bytes) -> None:
        """Unpack a tar."""
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in archive:
                path = _merge(member.name)
                if member.issym():
                    self[path] = File(target=member.linkname)
                elif member.islnk():
                    self[path] = self[_merge(member.linkname)]
                elif member.isreg() and (file := archive.extractfile(member)):
                    self[path] = File(file.read(), member.mode & 0o777)

    def add_directory(self, source: Path, below: str) -> None:
        """Copy a directory."""
        for path in sorted(source.rglob("*")):
            if path.is_file():
                mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
                self[f"{below}/{path.relative_to(source)}"] = File(path.read_bytes(), mode)

    def resolve(self, path: str) -> str:
        """Follow links; return the path of the file."""
        while self[path].target:
            target = self[path].target
            joined = posixpath.normpath(posixpath.join("/" + posixpath.dirname(path), target))
            path = _merge(joined.lstrip("/"))
        return path

    def write(self, directory: Path) -> None:
        """Write the files below an empty directory."""
        for path, file in self.items():
            place = directory / path
            place.parent.mkdir(parents=True, exist_ok=True)
            if file.target:
                place.symlink_to(file.target)
            else:
                place.write_bytes(file.content)
                place.chmod(file.mode)

    def directories(self) -> set[str]:
        """Return every directory that a file is in."""
        found = {posixpath.dirname(path) for path in self}
        for path in tuple(found):
            while path := posixpath.dirname(path):
                found.add(path)
        return found - {""}


def _merge(path: str) -> str:
    path = path.removeprefix("./")
    return f"usr/{path}" if path.partition("/")[0] in _MERGED else path


def libraries(tree: Tree, packages: Tree) -> Tree:
    """Return the libraries of `packages` that what is in `tree` needs, and what these need."""
    by_name = {posixpath.basename(path): path for path in sorted(packages) if ".so" in path}
    # A wheel brings some of its own, found beside it.
    brought = {posixpath.basename(path) for path in tree}
    found = Tree()
    pending = [file.content for file in tree.values()]
    while pending:
        for name in set(_needed(pending.pop())) - brought:
            if name not in by_name:
                raise LookupError(f"wanted the library {name} among the packages, found none")
            if by_name[name] not in found:
                found |= {path: packages[path] for path in _chain(packages, by_name[name])}
                pending.append(packages[packages.resolve(by_name[name])].content)
    return found


def _chain(tree: Tree, path: str) -> Iterator[str]:
    """Yield the path and, if it is a link, the file that it leads to."""
    yield path
    if tree[path].target:
        yield tree.resolve(path)


def _needed(content: bytes) -> Iterable[str]:
    """Yield the DT_NEEDED names of a 64-bit little-endian ELF file; none of anything else."""
    if content[:6] != b"\x7fELF\x02\x01":
        return
    (offset,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    headers = [struct.unpack_from("<IIQQQQQQ", content, offset + i * size) for i in range(count)]
    dynamic = next(((h[2], h[5]) for h in headers if h[0] == 2), None)
    if not dynamic:
        return
    entries = list(struct.iter_unpack("<QQ", content[dynamic[0] : dynamic[0] + dynamic[1]]))
    strings = next(value for tag, value in entries if tag == 5)
    # An address in memory; the segment that holds it tells where in the file that is.
    start = next(strings - h[3] + h[2] for h in headers if h[0] == 1 and h[3] <= strings < h[3] + h[5])
    for tag, value in entries:
        if tag == 1:
            yield content[start + value : content.index(b"\0", start + value)].decode()
