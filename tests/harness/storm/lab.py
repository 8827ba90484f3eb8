"""A node, its pods, and calls that are processes of their own: cheap enough for thousands of them.

The process that makes a lab moves into a fresh network namespace, which is the node; a call is a fork
of it, so that what the modules cost is paid once. Both end with it.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import pkgutil
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

import cni_plugin
import ipam
from cni_plugin.contract.dispatch import answer
from cni_plugin.kernel import netns
from cni_plugin.kernel.netns import current_namespace, inside
from cni_plugin.kernel.pyroute import pack_device
from cni_plugin.plugins import PLUGINS, type_of
from ipam import seam
from tests.harness.storm.configurations import MARKER, Network, place, stdin_of
from tests.harness.storm.faulting import Fault, Steps

if TYPE_CHECKING:
    from collections.abc import Callable

_libc = netns._libc
_NEWNET = 0x40000000
PATIENCE = 60  # seconds that a call may take
UNDERLAY = """
link add u0 type veth peer name u0-far
link set u0 up
link set u0-far up
addr add 192.0.2.1/24 dev u0
addr add 2001:db8::1/64 dev u0 nodad
route add default via 192.0.2.254
route add default via 2001:db8::fe
"""


def load_everything() -> None:
    """Import what any call may import, so that no fork does."""
    if "ipam.watch" in sys.modules:
        return
    for package in (cni_plugin, ipam):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    pack_device("bridge", ())
    FileLock("nowhere")
    gc.freeze()


def enter_new_namespace() -> None:
    if _libc.unshare(_NEWNET) != 0:
        raise OSError("unshare")
    run("ip", "link", "set", "lo", "up")


def run(*argv: str, stdin: str = "") -> str:
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


@dataclass
class Pod:
    """A pod: a namespace and the names that the runtime gives it."""

    fd: int
    name: str

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.fd}"


@dataclass
class Outcome:
    """How a call ended: exit status (None if it was killed), the answer, the steps made and struck."""

    status: int | None
    reply: dict[str, Any]
    steps: list[str] = field(default_factory=list)
    struck: list[str] = field(default_factory=list)
    unexpected: str = ""

    @property
    def said(self) -> str:
        return f"{self.reply.get('code')}: {self.reply.get('msg')}"


@dataclass
class Lab:
    """A node with one network on it; `directory` is where everything on disk is."""

    directory: Path
    network: Network

    def __post_init__(self) -> None:
        """Move this process into the node."""
        load_everything()
        enter_new_namespace()
        run("ip", "-batch", "-", stdin=UNDERLAY)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.network = place(self.network, self.directory)
        self.path = self._install()
        self.version = "1.0.0" if self.is_foreign else "1.1.0"
        self.results: dict[str, dict[str, Any]] = {}

    @property
    def is_foreign(self) -> bool:
        """Tell whether the addresses are those of a plugin that is not ours."""
        return any(plugin.get("go") for plugin in self.network)

    def _install(self) -> list[str]:
        """Make what CNI_PATH leads to: our executable under all names, or Debian's plugins."""
        if self.is_foreign:
            return ["/usr/lib/cni"]
        named = self.directory / "bin"
        named.mkdir()
        for name in PLUGINS:
            (named / name).write_text(f"#!/bin/false\n# {MARKER}\n")
        return [str(named)]

    def pod(self, name: str) -> Pod:
        """Make a pod: a namespace that lives as long as this process."""
        outside = current_namespace()
        enter_new_namespace()
        made = Pod(fd=current_namespace(), name=name)
        _libc.setns(outside, _NEWNET)
        os.close(outside)
        return made

    # What a runtime does with the plugins of a list.

    def add(self, pod: Pod, upto: int | None = None) -> Outcome:
        """ADD of the plugins in order, all or those before `upto`; the outcome of the last called."""
        self.results.pop(pod.name, None)
        outcome = Outcome(0, {})
        for number in range(len(self.network))[:upto]:
            outcome = self.call("ADD", number, pod)
            if outcome.status != 0:
                break
            self.results[pod.name] = outcome.reply
        return outcome

    def delete(self, pod: Pod, downto: int = 0) -> list[Outcome]:
        """DEL of the plugins in reverse order, down to the one of this number."""
        return [self.call("DEL", number, pod) for number in reversed(range(downto, len(self.network)))]

    def check(self, pod: Pod) -> list[Outcome]:
        """CHECK of all plugins."""
        return [self.call("CHECK", number, pod) for number in range(len(self.network))]

    def collect(self, *keep: Pod) -> list[Outcome]:
        """GC of all plugins."""
        return [self.call("GC", number, None, keep=keep) for number in range(len(self.network))]

    def call(
        self, verb: str, number: int, pod: Pod | None, fault: Fault | None = None, keep: tuple[Pod, ...] = ()
    ) -> Outcome:
        """Make one call in a process of its own."""
        plugin = self.network[number]
        more: dict[str, Any] = {}
        if verb == "GC":
            listed = [{"containerID": each.name, "ifname": "eth0"} for each in keep]
            more["cni.dev/valid-attachments"] = listed
        elif pod is not None and pod.name in self.results and not (verb == "ADD" and number == 0):
            more["prevResult"] = self.results[pod.name]
        stdin = json.dumps(stdin_of(plugin, version=self.version, **more)).encode()
        environ = self.environ(verb, pod)
        load = PLUGINS[type_of(plugin["type"])]
        return forked(lambda: _answer(environ, stdin, load, fault))

    def environ(self, verb: str, pod: Pod | None) -> dict[str, str]:
        """Return what a runtime sets."""
        variables = {"CNI_COMMAND": verb, "CNI_PATH": ":".join(self.path), "PATH": os.environ["PATH"]}
        if pod is not None:
            variables |= {"CNI_CONTAINERID": pod.name, "CNI_NETNS": pod.path, "CNI_IFNAME": "eth0"}
            variables["CNI_ARGS"] = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0"
        return variables

    # What there is.

    def transcript(self) -> str:
        """Return the node's state as text."""
        return f"{describe_space()}\n{describe_files(self.directory)}"

    def transcript_of(self, pod: Pod) -> str:
        """Return a pod's state as text."""
        with inside(pod.fd):
            return describe_space()


def _answer(environ: dict[str, str], stdin: bytes, load: Callable[[], Any], fault: Fault | None) -> Outcome:
    seam.hook = steps = Steps(fault)
    complaints: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: complaints.append(logging.Formatter().format(record))
    logging.basicConfig(handlers=[handler], force=True)
    reply = answer(environ, stdin, load)
    said = json.loads(reply.stdout) if reply.stdout else {}
    return Outcome(reply.status, said, steps.made, steps.struck, "\n".join(complaints))


def forked(work: Callable[[], Outcome], patience: int = PATIENCE) -> Outcome:
    """Do the work in a child and return its outcome; one that was killed has no status."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        status = 1
        try:
            signal.alarm(patience)
            with os.fdopen(writer, "w") as pipe:
                json.dump(vars(work()), pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in {0, -signal.SIGKILL}, f"a call ended with {code}"
    return Outcome(**json.loads(text)) if code == 0 else Outcome(None, {})


SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/core/somaxconn",
)
OF_LINK = (
    "net/ipv4/conf/{}/route_localnet",
    "net/ipv4/conf/{}/arp_notify",
    "net/ipv6/conf/{}/accept_ra",
    "net/ipv6/conf/{}/accept_dad",
    "net/ipv6/conf/{}/disable_ipv6",
)
# What only counts, ages, or is done by the kernel itself a moment later.
NOISE = re.compile(
    r"^\d+: |<[^>]*>|\b(state|qlen|num[tr]xqueues|gso_\w+|gro_\w+|tso_\w+|\w+_lft|if_index|\w+_timer|expires"
    r"|allmulti|minmtu|maxmtu|link-netns|link-netnsid|portid|handle|refcnt|fdb_n_learned|root_port"
    r"|root_path_cost) +\S+"
    r"|\b(tentative|linkdown|dead|dadfailed|dynamic|forever|noprefixroute|proto kernel_ll)\b|@if\d+"
)


def describe_space() -> str:
    """Return the state of the namespace that this process is in, sorted where order says nothing."""
    lines: list[str] = []
    objects = ("link show", "addr show", "neigh show nud permanent", "route show table all", "")
    text = run("ip", "-o", "-d", "-batch", "-", stdin="\n".join(objects))
    flags = re.compile(r"<([^>]*)>")
    for line in text.splitlines():
        # An address of the kernel's own making comes late, and a multicast route with it.
        if "fe80::" in line or "ff00::" in line:
            continue
        up = " UP" if (found := flags.search(line)) and "UP" in found[1].split(",") else ""
        lines.append(re.sub(r"\s+", " ", NOISE.sub("", line)).strip() + up)
    lines += [e for e in run("bridge", "fdb", "show").splitlines() if " dst " in e]
    links = sorted(os.listdir("/proc/sys/net/ipv4/conf"))
    lines += describe_queues()
    for key in (*SYSCTLS, *(pattern.format(link) for link in links for pattern in OF_LINK)):
        lines.append(f"{key} = {read(key)}")
    return "\n".join((*sorted(lines), run("nft", "-s", "list", "ruleset")))


def describe_queues() -> list[str]:
    """Return the queueing disciplines that somebody set, and the filters of those links."""
    queues = [
        re.sub(r" (refcnt|handle) \S+", "", line)
        for line in run("tc", "qdisc", "show").splitlines()
        if " tbf " in line or " ingress " in line
    ]
    devices = {line.split(" dev ")[1].split()[0] for line in queues if "ingress" in line}
    filters = [
        line for name in devices for line in run("tc", "filter", "show", "dev", name, "ingress").splitlines()
    ]
    return queues + filters


def read(key: str) -> str:
    try:
        return Path("/proc/sys", key).read_text().strip()
    except OSError:
        return "none"


# What moves on with every ADD, and what is only a hint: that it is there is all that counts.
HINTS = re.compile(
    r"last_reserved_ip\.\d+$|/lock$|\.lock$|\.(sticky|released)(\.old)?$|\.podwire/\w+\.peers$"
)


def describe_files(directory: Path) -> str:
    """Return every file below the directory with its content."""
    found = []
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_dir() or name.startswith("bin/"):
            continue
        found.append(name if HINTS.search(name) else f"{name} {path.read_bytes()!r}")
    return "\n".join(found)
