"""What a call changes, counted twice: by the seam, and by strace from outside of the process.

A script with two parts. `network NAME` makes a node and runs each verb under strace; `call FILE PLUGIN` is
what runs there: the program's own main, with a hook that writes each step to the file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[3]))

from filelock import FileLock

from cni_plugin.kernel.nft_message import PackedChange
from ipam import seam
from tests.harness.storm.configurations import everything, stdin_of
from tests.harness.storm.lab import Lab, Pod

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cni_plugin.kernel.nft_message import ElementChange

SYSTEM_CALLS = (
    "socket,close,sendto,sendmsg,sendmmsg,write,writev,pwrite64,pwritev,pwritev2,sendfile,copy_file_range,open,openat,openat2,"
    "creat,link,linkat,symlink,symlinkat,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,mknod,"
    "mknodat,truncate,ftruncate,fallocate,chmod,fchmod,fchmodat,chown,fchown,fchownat,lchown,utimensat,setxattr,"
    "fsetxattr,execve,execveat,mount,umount2,bind,ioctl,clone,clone3"
)
CLONE = ("clone", "clone3")
NETLINK_ROUTE, NETLINK_NETFILTER = "NETLINK_ROUTE", "NETLINK_NETFILTER"
NF_TABLES, CTNETLINK = 10, 1
# linux/netfilter/nf_tables.h: those that change nothing; and what begins and ends a batch.
NF_TABLES_GETS = {1, 4, 7, 10, 13, 16, 19, 21, 23}
ADDRESSES = re.compile(r"\b(\d+\.\d+\.\d+\.\d+|[0-9a-f]*:[0-9a-f:]+)\b")


def record(file: int) -> Callable[..., Any]:
    """Return a hook that writes every step to the file, a line each, and makes it."""

    def hook(kind: str, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        for line in describe(kind, call, arguments):
            os.write(file, f"{line}\n".encode())
        return call(*arguments)

    return hook


def describe(kind: str, call: Any, arguments: tuple[Any, ...]) -> Iterator[str]:
    """Yield the steps in the words in which `parse` yields what strace saw."""
    if kind == "netlink":
        yield from (f"netlink {change.kind}" for change in arguments)
    elif kind == "nftables":
        yield from (f"nftables {_message_of(change)}" for change in arguments)
    elif kind == "conntrack":
        yield "conntrack 2"
    elif kind == "lock":
        lock = call.__self__
        assert isinstance(lock, FileLock)
        yield from (f"mkdir {Path(lock.lock_file).parent}", f"create {lock.lock_file}")
    elif kind == "sysctl":
        yield f"write /proc/sys/{arguments[0]}"
    elif kind == "program":
        yield f"program {arguments[0][0]}"
    elif kind in {"write", "truncate"}:
        yield f"{kind} {Path(f'/proc/self/fd/{arguments[0]}').readlink()}"
    elif kind == "mark":
        yield f"mark {Path(f'/proc/self/fd/{arguments[0]}').readlink()} {arguments[1]}"
    elif kind in {"link", "rename"}:
        yield f"{kind} {arguments[0]} {arguments[1]}"
    else:
        yield f"{kind} {arguments[0]}"


def _message_of(change: ElementChange | PackedChange) -> int:
    """Return NFT_MSG_NEWSETELEM or _DELSETELEM, or what somebody has packed."""
    if isinstance(change, PackedChange):
        return change.kind
    return 12 if change.present else 14


LINE = re.compile(r"^(\d+) +(\w+)\((.*)\) += (\S+(?: ERESTART)?)")
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
FD = re.compile(r"^(\d+)(?:<([^>]*)>)?")


def parse(trace: str) -> Iterator[str]:
    """Yield what the traced process and its threads changed, and the programs that it started."""
    protocols: dict[int, str] = {}
    started: set[str] = set()
    calls = [found.groups() for line in join_unfinished(trace.splitlines()) if (found := LINE.match(line))]
    clones = [
        (process, result)
        for process, call, words, result in calls
        if call in CLONE and "CLONE_THREAD" in words
    ]
    own = threads_of(trace.split(maxsplit=1)[0], clones)
    for process, call, words, result in calls:
        # It begins anew: a sysctl's write, while another namespace holds the kernel's lock. With no result
        # it was made while the process ended: a link's deletion.
        if result == "? ERESTART" or call in CLONE:
            continue
        if process not in own:
            if call == "execve" and process not in started:
                started.add(process)
                yield f"program {STRING.findall(words)[0]}"
            continue
        if call == "socket" and "AF_NETLINK" in words:
            protocols[int(FD.match(result)[1])] = words.split(", ")[2]  # type: ignore[index]
        elif call != "execve":
            yield from parse_call(call, words, protocols)


def threads_of(process: str, clones: list[tuple[str, str]]) -> set[str]:
    """Return the process and its threads, and theirs; a program that it starts has threads of its own."""
    own = {process}
    while more := {made for maker, made in clones if maker in own} - own:
        own |= more
    return own


def join_unfinished(lines: list[str]) -> Iterator[str]:
    """Yield whole lines: where another process came in between, strace writes a call in two parts."""
    begun: dict[str, str] = {}
    for line in lines:
        process, _, rest = line.partition(" ")
        if line.endswith("<unfinished ...>"):
            begun[process] = line.removesuffix("<unfinished ...>")
        elif (resumed := re.match(r" *<\.\.\. \w+ resumed>(.*)", rest)) and process in begun:
            yield begun.pop(process) + resumed[1]
        else:
            yield line


def parse_call(call: str, words: str, protocols: dict[int, str]) -> Iterator[str]:
    strings = STRING.findall(words)
    fd = FD.match(words)
    path = (fd[2] if fd else None) or ""
    if call in {"sendto", "sendmsg", "sendmmsg"}:
        protocol = protocols.get(int(fd[1]) if fd else -1, "")
        kinds = re.findall(r"\{nlmsg_len=\d+, nlmsg_type=([^,/ ]+)", words)
        yield from (each for kind in kinds if (each := judge(protocol, number_of(kind))))
    elif call in {"write", "writev", "pwrite64"}:
        if is_file(path):
            yield f"write {path}"
    elif call in {"open", "openat", "openat2", "creat"}:
        if ("O_CREAT" in words or call == "creat") and is_file(strings[0]) and "/proc/" not in strings[0]:
            yield f"create {strings[0]}"
    elif call in {"link", "linkat", "rename", "renameat", "renameat2"}:
        yield f"{call.removesuffix('2').removesuffix('at')} {strings[0]} {strings[1]}"
    elif call in {"unlink", "unlinkat", "mkdir", "mkdirat"}:
        yield f"{call.removesuffix('at')} {strings[0]}"
    elif call in {"ftruncate", "fsetxattr"}:
        yield f"truncate {path}" if call == "ftruncate" else f"mark {path} {strings[0]}"
    elif call in {"socket", "fchmod", "bind", "ioctl", "close"}:
        # filelock sets the mode of the lock that it makes; a socket bound to the kernel is no change.
        return
    else:
        yield f"{call} {words}"


def number_of(kind: str) -> int:
    """Return a message's type: strace writes its name where it can find out the protocol, else its number."""
    if kind.startswith("NFNL_SUBSYS_"):
        subsystem, message = kind.split("<<8|")
        return NAMES[subsystem] * 256 + (NAMES[message] if message in NAMES else int(message, 16))
    if kind.startswith("RTM_"):
        verbs = ("NEW", "DEL", "GET", "SET")
        return ROUTE_OBJECTS[kind[7:]] + verbs.index(kind[4:7])
    return NAMES[kind] if kind in NAMES else int(kind, 16)


# linux/rtnetlink.h: the first message of each object, by the name behind the verb
ROUTE_NAMES = (
    "LINK ADDR ROUTE NEIGH RULE QDISC TCLASS TFILTER ACTION PREFIX MULTICAST ANYCAST NEIGHTBL NDUSEROPT "
    "ADDRLABEL DCB NETCONF MDB NSID STATS CACHEREPORT CHAIN NEXTHOP LINKPROP VLAN"
)
ROUTE_OBJECTS = {name: 16 + 4 * number for number, name in enumerate(ROUTE_NAMES.split())}
# linux/netfilter/nf_tables.h, in its order
NF_TABLES_MESSAGES = (
    "NEWTABLE GETTABLE DELTABLE NEWCHAIN GETCHAIN DELCHAIN NEWRULE GETRULE DELRULE NEWSET GETSET DELSET "
    "NEWSETELEM GETSETELEM DELSETELEM NEWGEN GETGEN TRACE NEWOBJ GETOBJ DELOBJ GETOBJ_RESET NEWFLOWTABLE "
    "GETFLOWTABLE DELFLOWTABLE"
)
NAMES = {f"NFT_MSG_{name}": number for number, name in enumerate(NF_TABLES_MESSAGES.split())}
NAMES |= {f"IPCTNL_MSG_CT_{name}": number for number, name in enumerate(("NEW", "GET", "DELETE"))}
NAMES |= {"NFNL_SUBSYS_NFTABLES": NF_TABLES, "NFNL_SUBSYS_CTNETLINK": CTNETLINK}
NAMES |= {"NFNL_MSG_BATCH_BEGIN": 16, "NFNL_MSG_BATCH_END": 17}


def judge(protocol: str, kind: int) -> str:
    """Return the change that a netlink message is; empty for a question and for the frame of a batch."""
    if protocol == NETLINK_ROUTE:
        return f"netlink {kind}" if kind >= 16 and kind & 3 != 2 else ""
    subsystem, message = divmod(kind, 256)
    if subsystem == NF_TABLES:
        return "" if message in NF_TABLES_GETS else f"nftables {message}"
    if subsystem == CTNETLINK:
        return "conntrack 2" if message == 2 else ""
    return "" if subsystem == 0 else f"unknown {protocol} {kind:#x}"


def is_file(path: str) -> bool:
    """Tell whether a path is a file that is kept: no pipe, no device, no byte code, not our list."""
    return (
        path.startswith("/")
        and not path.startswith(("/dev/", "/memfd"))
        and not path.endswith((".pyc", ".steps"))
    )


class Traced:
    """A lab whose calls run under strace."""

    def __init__(self, directory: Path, network: str) -> None:
        self.lab = Lab(directory / "node", everything()[network])
        self.directory = directory
        self.findings: list[str] = []
        self.counts: dict[str, int] = {}

    def run(self) -> None:
        """ADD twice, for the first makes what is shared; and every other verb."""
        pods = [self.lab.pod("pod-a"), self.lab.pod("pod-b")]
        for name, pod in zip(("first ADD", "ADD"), pods, strict=True):
            for number in range(len(self.lab.network)):
                self.call(name, "ADD", number, pod)
            if name == "first ADD":
                for number in range(len(self.lab.network)):
                    self.call("CHECK", "CHECK", number, pod)
                for number in reversed(range(len(self.lab.network))):
                    self.call("DEL", "DEL", number, pod)
        for verb in ("STATUS", "GC") if not self.lab.is_foreign else ():  # they came with 1.1.0
            for number in range(len(self.lab.network)):
                self.call(verb, verb, number, None)

    def call(self, name: str, verb: str, number: int, pod: Pod | None) -> None:
        """Make one call under strace and compare the two lists."""
        lab, plugin = self.lab, self.lab.network[number]
        steps, trace = self.directory / "call.steps", self.directory / "trace"
        steps.write_bytes(b"")
        more: dict[str, Any] = {"cni.dev/valid-attachments": []} if verb == "GC" else {}
        if pod is not None and pod.name in lab.results:
            more["prevResult"] = lab.results[pod.name]
        command = ["strace", "-f", "-v", "-y", "-s", "65535", "-o", str(trace), "-e", f"trace={SYSTEM_CALLS}"]
        command += [sys.executable, __file__, "call", str(steps), plugin["type"]]
        stdin = json.dumps(stdin_of(plugin, version=lab.version, **more))
        environ = lab.environ(verb, pod) | {"PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, input=stdin, env=environ, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            self.findings.append(f"{name} of plugin {number}: {done.stdout}{done.stderr}")
        elif done.stdout and pod is not None:
            lab.results[pod.name] = json.loads(done.stdout)
        seen, known = Counter(parse(trace.read_text())), Counter(steps.read_text().splitlines())
        self.counts[name] = self.counts.get(name, 0) + known.total()
        for what, count in (seen - known).items():
            self.findings.append(
                f"{name} of plugin {number}: strace saw {what} {count} times more than the seam"
            )
        for what, count in (known - seen).items():
            self.findings.append(
                f"{name} of plugin {number}: the seam has {what} {count} times more than strace"
            )


def run_call(steps: str, plugin: str) -> int:
    """Be the program, with the seam recorded."""
    from cni_plugin.__main__ import main

    seam.hook = record(os.open(steps, os.O_WRONLY | os.O_APPEND))
    sys.argv = [plugin]
    return main()


def run_network(network: str) -> None:
    """Print the comparison as JSON."""
    directory = Path(tempfile.mkdtemp(prefix="podwire-traced-"))
    try:
        traced = Traced(directory, network)
        traced.run()
        print(json.dumps({"counts": traced.counts, "findings": traced.findings}))
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    if sys.argv[1] == "call":
        sys.exit(run_call(*sys.argv[2:]))
    run_network(sys.argv[2])
