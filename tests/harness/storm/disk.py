"""A disk after a power cut: what a program did to files, recorded with strace and done again up to any point.

What had not been synced by then is lost in the ways in which file systems lose it: the name is there and the
file empty (ext4, xfs), full of zeros, or cut; an extended attribute is lost; a single change of a
directory is lost while later ones are not (no journal at all).
"""

# Plain os calls on names that are no paths of this machine.

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    Loss = Callable[[bytes], bytes]

CALLS = (
    "open,openat,creat,close,mkdir,mkdirat,link,linkat,unlink,unlinkat,rmdir,rename,renameat,renameat2,symlink,"
    "symlinkat,write,pwrite64,writev,pwritev,ftruncate,truncate,fallocate,setxattr,fsetxattr,fsync,fdatasync,"
    "sync,syncfs,mknod,mknodat,sendfile,copy_file_range,splice"
)
_LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += (\d+)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_FD = re.compile(r"(\d+)<((?:\\x[0-9a-f]{2})*)>")

_BY_PATH = frozenset({"open", "link", "unlink", "rename", "mkdir"})
_KINDS = {
    **dict.fromkeys(("openat", "creat"), "open"),
    **{f"{kind}at": kind for kind in ("link", "unlink", "rename", "mkdir")},
    "renameat2": "rename",
    "fdatasync": "fsync",
}

LOSSES: dict[str, Loss] = {
    "nothing": lambda content: content,
    "the data": lambda _: b"",
    "the data, zeros instead": lambda content: bytes(len(content)),
    "half of the data": lambda content: content[: len(content) // 2],
}


@dataclass(frozen=True)
class Operation:
    """One system call that changed a file or a directory below the store."""

    call: str
    handle: tuple[str, str]
    """The process and the descriptor that the call used or returned."""
    paths: tuple[str, ...] = ()
    content: bytes = b""
    flags: str = ""
    number: int = 0

    @property
    def changes_directory(self) -> bool:
        """Say whether names come or go by it."""
        return self.call in {"mkdir", "link", "unlink", "rename"} or "O_CREAT" in self.flags


@dataclass
class File:
    """An inode: what is in it, and what of that is certainly on the disk."""

    content: bytes = b""
    synced: bytes = b""
    mark: bytes = b""


@dataclass
class Disk:
    """Names below the store, as paths relative to it; a directory is None."""

    names: dict[str, File | None] = field(default_factory=lambda: {"": None})
    opened: dict[tuple[str, str], tuple[File, int]] = field(default_factory=dict)

    def do(self, operation: Operation) -> None:
        """Do it again; what an operation that was lost would have made is not there to be found."""
        getattr(self, f"_{operation.call}")(operation)

    def _open(self, operation: Operation) -> None:
        (path,) = operation.paths
        if path not in self.names and os.path.dirname(path) in self.names:
            self.names[path] = File()
        file = self.names.get(path)
        if file is not None:
            if "O_TRUNC" in operation.flags:
                file.content = b""
            self.opened[operation.handle] = (file, -1 if "O_APPEND" in operation.flags else 0)

    def _close(self, operation: Operation) -> None:
        self.opened.pop(operation.handle, None)

    def _write(self, operation: Operation) -> None:
        if operation.handle in self.opened:
            file, offset = self.opened[operation.handle]
            at = len(file.content) if offset < 0 else offset
            file.content = file.content[:at] + operation.content + file.content[at + len(operation.content) :]
            self.opened[operation.handle] = (file, offset if offset < 0 else at + len(operation.content))

    def _ftruncate(self, operation: Operation) -> None:
        if operation.handle in self.opened:
            file, _ = self.opened[operation.handle]
            file.content = file.content[: operation.number].ljust(operation.number, b"\0")

    def _fsetxattr(self, operation: Operation) -> None:
        if operation.handle in self.opened:
            self.opened[operation.handle][0].mark = operation.content

    def _fsync(self, operation: Operation) -> None:
        if operation.handle in self.opened:
            file, _ = self.opened[operation.handle]
            file.synced = file.content

    def _mkdir(self, operation: Operation) -> None:
        if os.path.dirname(operation.paths[0]) in self.names:
            self.names.setdefault(operation.paths[0], None)

    def _link(self, operation: Operation) -> None:
        existing, path = operation.paths
        if existing in self.names and path not in self.names and os.path.dirname(path) in self.names:
            self.names[path] = self.names[existing]

    def _unlink(self, operation: Operation) -> None:
        self.names.pop(operation.paths[0], None)

    def _rename(self, operation: Operation) -> None:
        existing, path = operation.paths
        if existing in self.names and os.path.dirname(path) in self.names:
            self.names[path] = self.names.pop(existing)

    def lay_out(self, place: Path, loss: Loss, mark: Callable[[str, bytes], None]) -> None:
        """Make the files at `place`, less what is lost; `mark` sets the attribute of a path."""
        first: dict[int, Path] = {}
        for name, file in self.names.items():
            path = place / name
            if file is None:
                path.mkdir(parents=True, exist_ok=True)
            elif id(file) in first:
                path.hardlink_to(first[id(file)])
            else:
                first[id(file)] = path
                path.write_bytes(file.synced if file.synced == file.content else loss(file.content))
                if file.mark:
                    mark(str(path), file.mark)


def record(argv: Sequence[str], store: Path, log: Path, **options: object) -> list[Operation]:
    """Run a program and return what it did below `store`, in order; it must succeed."""
    command = ["strace", "-f", "-y", "-xx", "-s", "1000000", "-e", f"trace={CALLS}", "-o", str(log), *argv]
    done = subprocess.run(command, capture_output=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return list(_parse(_whole(log.read_text().splitlines()), str(store)))


def _whole(lines: Iterable[str]) -> Iterable[str]:
    """Join the calls of which strace tells in two lines, since another thread came between."""
    begun: dict[str, str] = {}
    for line in lines:
        pid = line.partition(" ")[0]
        if line.endswith(" <unfinished ...>"):
            begun[pid] = line.removesuffix(" <unfinished ...>")
        elif " resumed>" in line:
            yield begun.pop(pid) + line.partition(" resumed>")[2]
        else:
            yield line


def _parse(lines: Iterable[str], store: str) -> Iterable[Operation]:
    for line in lines:
        match = _LINE.match(line)
        if match:
            pid, call, arguments, result = match.groups()
            made = _operation(call, pid, arguments, result, store)
            if made is not None:
                yield made


def _operation(call: str, pid: str, arguments: str, result: str, store: str) -> Operation | None:
    texts = [_decode(text) for text in _TEXT.findall(arguments)]
    kind = _KINDS.get(call, call)
    if kind in _BY_PATH:
        paths = [os.fsdecode(text) for text in texts]
        below = tuple(path[len(store) + 1 :] for path in paths if f"{path}/".startswith(f"{store}/"))
        reads = kind == "open" and "O_RDONLY" in arguments and "O_CREAT" not in arguments
        return Operation(kind, (pid, result), below, flags=arguments) if below and not reads else None
    fd, path = _FD.findall(arguments)[0] if _FD.search(arguments) else ("", "")
    touched = [os.fsdecode(_decode(path)), *map(os.fsdecode, texts)]
    if not any(each.startswith(f"{store}/") for each in touched):
        return None
    assert kind in {"close", "write", "ftruncate", "fsetxattr", "fsync"}, f"unknown here: {call}({arguments})"
    number = int(arguments.rsplit(" ", 1)[-1]) if kind == "ftruncate" else 0
    return Operation(kind, (pid, fd), content=texts[-1] if texts else b"", number=number)


def _decode(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def after(operations: Sequence[Operation], *, without: int = -1) -> Disk:
    """Return the disk after these operations, without the one of that number."""
    disk = Disk()
    for number, operation in enumerate(operations):
        if number != without:
            disk.do(operation)
    return disk
