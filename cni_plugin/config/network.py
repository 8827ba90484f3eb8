"""A network configuration and an attachment, as frozen dataclasses.

`parse_network` reads what every attach mode shares and refuses what cannot work; a mode and a feature
parse their own keys beside it. `parse_attachment` needs nothing but names, so that a
configuration that an ADD would refuse still lets go of what it once made.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cni_plugin.config.paths import DATA_DIR
from cni_plugin.contract.errors import invalid_config
from cni_plugin.contract.request import KERNELS_OWN, parse_args, read_args
from cni_plugin.contract.result import DNS, Result, parse_dns, parse_prev_result

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from netaddr import IPAddress, IPNetwork

    from cni_plugin.contract.fields import Fields
    from cni_plugin.contract.request import Request

# What runtimes put into CNI_ARGS: ours, our IPAM's, static's, and Kubernetes'.
KNOWN_ARGS = frozenset(
    {
        "MAC",
        "IP",
        "GATEWAY",
        "K8S_POD_NAMESPACE",
        "K8S_POD_NAME",
        "K8S_POD_INFRA_CONTAINER_ID",
        "K8S_POD_UID",
    }
)
MARK = "podwire:"
_IDENTITY_DIGITS = 16
LINK_DIGITS = (11, 12)  # of these in the names `veth...` and `bwp...`
_MAX_COMMENT = 127  # bytes, NFTNL_UDATA_COMMENT_MAXLEN less the terminating zero
_MAX_ALIAS = 254  # bytes; IFALIASZ less the terminating zero, which we send and the kernel counts
_MAX_IFNAME = 15  # bytes, IFNAMSIZ less the terminating zero
DEFAULT_DELEGATE_TIMEOUT = 60  # seconds; a DHCP lease may take half of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """Who is attached: the key of everything that an ADD makes."""

    network: str
    container_id: str
    ifname: str
    netns: str
    netns_fd: int | None = None
    """As in `Request`."""
    allow_host_netns: bool = False

    @property
    def identity(self) -> str:
        """Return the fixed-size name of (container id, ifname) in every kernel object."""
        return hashlib.sha256(f"{self.container_id}\0{self.ifname}".encode()).hexdigest()[:_IDENTITY_DIGITS]

    @property
    def host_ifname(self) -> str:
        """Return the name of the host's end of the veth pair."""
        return host_ifname(self.identity)

    def go_name(self, prefix: str, length: int) -> str:
        """Return how the Go plugins call what they make for the container on the network."""
        digest = hashlib.sha512(f"{self.network}{self.container_id}".encode()).hexdigest()
        return f"{prefix}{digest}"[:length]

    def __str__(self) -> str:
        """Return the attachment as errors name it."""
        return f"{self.container_id} {self.ifname} on network {self.network}"


def host_ifname(identity: str) -> str:
    """Return the name of the host's end of an attachment's veth."""
    return f"veth{identity[: LINK_DIGITS[0]]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveAttachment:
    """An attachment whose interface is there, and the addresses on it."""

    attachment: Attachment
    addresses: tuple[IPAddress, ...]


def parse_attachment(request: Request) -> Attachment:
    """Return who the call is about."""
    return Attachment(
        network=request.network,
        container_id=request.container_id,
        ifname=request.ifname,
        netns=request.netns,
        netns_fd=request.netns_fd,
        allow_host_netns=request.environ.get("CNI_NETNS_OVERRIDE", "").lower() in {"1", "true"},
    )


def render_alias(attachment: Attachment, pod: str) -> str:
    """Return the alias of the host's end: identity first, the readable rest cut at what fits."""
    return _cut(MARK + _render_label(attachment, pod), _MAX_ALIAS)


def render_comment(attachment: Attachment, pod: str) -> str:
    """Return the comment of the attachment's elements in nftables, which is as the alias but shorter."""
    return _cut(_render_label(attachment, pod), _MAX_COMMENT)


def comment_of_alias(alias: str) -> str:
    """Return the comment of the elements of the attachment whose link has this alias."""
    return _cut(alias.removeprefix(MARK), _MAX_COMMENT)


def _render_label(attachment: Attachment, pod: str) -> str:
    label = f"{attachment.identity} {attachment.network} {attachment.container_id} {attachment.ifname}"
    # A quote would end the comment for whoever reads `nft list` back.
    return f"{label} {pod}".rstrip().replace('"', "'")


def _cut(text: str, length: int) -> str:
    return text.encode(errors="replace")[:length].decode(errors="ignore")


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What an alias or a comment says; one that was cut has lost its end, first the pod."""

    identity: str
    network: str = ""
    container_id: str = ""
    ifname: str = ""
    pod: str = ""

    @property
    def is_whole(self) -> bool:
        """Tell whether the names are those that the identity was made of."""
        named = Attachment(network=self.network, container_id=self.container_id, ifname=self.ifname, netns="")
        return self.identity == named.identity


def parse_label(text: str) -> Label:
    """Return whose an object is, from `render_comment` or the label of a link."""
    identity, network, container_id, ifname, pod = [*text.split(" "), "", "", "", ""][:5]
    return Label(identity=identity, network=network, container_id=container_id, ifname=ifname, pod=pod)


def parse_alias(alias: str) -> Label | None:
    """Return whose a link is, from `render_alias`; None for one that is no attachment's of ours."""
    if not alias.startswith(MARK) or alias.startswith(f"{MARK} "):
        return None  # what pods share has a space there
    return parse_label(alias.removeprefix(MARK))


def alias_prefix(identity: str, network: str) -> str:
    """Return how the alias of an attachment to `network` begins."""
    return f"{MARK}{identity} {network} "


def identity_of_alias(alias: str) -> str:
    """Return the identity of the attachment that an alias names; empty for one that is not ours."""
    return alias.removeprefix(MARK).partition(" ")[0] if alias.startswith(MARK) else ""


def unnamed_group(network: str) -> int:
    """Return the link group of what was made for a network or a pod of it and has no alias yet.

    The kernel takes no alias with the request that makes a link, and a process may die between the two.
    """
    return int.from_bytes(hashlib.sha256(network.encode()).digest()[:4], "big") >> 4 | 1 << 29


def owner_of_unnamed(name: str, alias: str, group: int, network: str) -> str:
    """Return the beginning of the identity that a link without an alias was made for; empty for any other."""
    unnamed = not alias and group == unnamed_group(network)
    return name.removeprefix("veth").removeprefix("bwp") if unnamed else ""


def is_stale_alias(alias: str, network: str, keep: Container[str]) -> bool:
    """Tell whether an alias names an attachment of this network whose identity is not to be kept."""
    whose = parse_alias(alias)
    return whose is not None and whose.network == network and whose.identity not in keep


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What all modes share. `mtu` in bytes, 0 for automatic, which leaves room for `mtu_overhead`.

    `mac` is empty for a random one. `state_dir` holds what neither kernel nor store can.
    """

    attachment: Attachment
    mode: str
    mtu: int
    mtu_overhead: int
    mac: str
    pod: str
    pod_uid: str
    state_dir: str
    ipam_type: str
    dns: DNS
    prev_result: Result | None
    state_file: str
    """What the follower of the cluster writes for this node; empty where nobody does."""
    strict_status: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeFacts:
    """One range that addresses come from."""

    subnet: IPNetwork
    gateway: IPAddress | None
    whole: bool
    """It covers all that its subnet has."""


def _no_networks() -> tuple[IPNetwork, ...]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteNetworks:
    """What is reached untranslated on other nodes, read in full only when `digest` is another than before."""

    digest: str = ""
    read: Callable[[], tuple[IPNetwork, ...]] = _no_networks
    device: str = ""
    """The link that leads to nobody else; empty where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addressing:
    """What is known of a pod's addresses before any is taken."""

    stated_families: frozenset[int] = frozenset()
    """The families that the configuration names; empty when only a foreign delegate knows."""
    without_gateway: str = ""
    """A range that has no gateway of its family."""
    layer2: bool = False
    """No addresses at all."""
    ranges: tuple[RangeFacts, ...] = ()
    elsewhere: RemoteNetworks = RemoteNetworks()

    @property
    def families(self) -> frozenset[int]:
        """Return the families (4, 6) that the pod may have."""
        return self.stated_families or frozenset(() if self.layer2 else (4, 6))


def parse_network(request: Request, *, takes_args: bool = True) -> Network:
    """Return the configuration of an ADD, CHECK or STATUS, or raise CNIError 4 or 7.

    To a plugin that does not take them CNI_ARGS are no reason to fail, and no MAC.
    """
    fields = request.config
    _refuse_long_name(request.network)
    args = parse_args(request, KNOWN_ARGS) if takes_args else read_args(request)
    return Network(
        attachment=parse_attachment(request),
        mode=fields.string("mode") or "bridge",
        mtu=_parse_mtu(fields),
        mtu_overhead=fields.integer("mtuOverhead", 0, 1000) or 0,
        mac=_parse_mac(fields, args) if takes_args else "",
        pod="/".join(filter(None, (args.get("K8S_POD_NAMESPACE"), args.get("K8S_POD_NAME")))),
        pod_uid=args.get("K8S_POD_UID") or "",
        state_dir=f"{data_dir(fields)}/.podwire",
        ipam_type=ipam_type(fields),
        dns=_parse_dns(fields),
        prev_result=parse_prev_result(fields, request.cni_version),
        state_file=fields.string("stateFile"),
        strict_status=fields.boolean("strictStatus"),
    )


def data_dir(fields: Fields) -> str:
    """Return the directory that holds one directory of addresses per network."""
    section = fields.section("ipam")
    path = (section.string("dataDir") if section else "") or DATA_DIR
    if not path.startswith("/"):
        raise invalid_config(f'"ipam.dataDir" must be an absolute path, found "{path}"')
    return path


def ipam_type(fields: Fields) -> str:
    """Return the delegate's type; empty for an attachment without addresses."""
    ipam = fields.section("ipam")
    return ipam.string("type") if ipam else ""


def wants_gateway(fields: Fields) -> bool:
    """Tell whether the node is to be the pods' gateway on their bridge."""
    return fields.boolean("isGateway") or fields.boolean("isDefaultGateway")


def _refuse_long_name(network: str) -> None:
    """Refuse a name that a comment cannot hold whole: GC tells networks apart by it."""
    longest = _MAX_COMMENT - _IDENTITY_DIGITS - len("  ")
    if len(network) > longest:
        raise invalid_config(f'"name" must be at most {longest} bytes long, found {len(network)}')


def _parse_mtu(fields: Fields) -> int:
    mtu = fields.integer("mtu", 0, 65535) or 0
    if 0 < mtu < 68:
        raise invalid_config(f'"mtu" must be 0 (automatic) or in 68..65535, found {mtu}')
    return mtu


def _parse_mac(fields: Fields, args: dict[str, str]) -> str:
    """Return the MAC asked for, in the reference's precedence: runtimeConfig, args.cni, CNI_ARGS."""
    runtime = fields.section("runtimeConfig")
    extra = fields.section("args")
    cni = extra.section("cni") if extra else None
    sources = (
        ("runtimeConfig.mac", runtime.string("mac") if runtime else ""),
        ("args.cni.mac", cni.string("mac") if cni else ""),
        ("CNI_ARGS MAC", args.get("MAC", "")),
    )
    return next((parse_mac(mac, f'"{key}"') for key, mac in sources if mac), "")


def parse_mac(text: str, what: str) -> str:
    """Return a unicast MAC as the kernel writes it; CNIError 7 for anything else."""
    octets = _split_mac(text)
    if len(octets) != 6 or not all(_is_octet(octet) for octet in octets):
        raise invalid_config(f'{what} must be a MAC like 02:00:5e:10:00:01, found "{text}"')
    values = [int(octet, 16) for octet in octets]
    if values[0] & 1 or not any(values):
        raise invalid_config(f'{what} must be the MAC of one interface, found "{text}"')
    return ":".join(f"{value:02x}" for value in values)


def _split_mac(text: str) -> list[str]:
    """Return the octets of 02:00:5e:10:00:01, 02-00-5e-10-00-01 or 0200.5e10.0001."""
    groups = text.split(".")
    if [len(group) for group in groups] == [4, 4, 4]:
        return [group[i : i + 2] for group in groups for i in (0, 2)]
    return text.replace("-", ":").split(":")


def _is_octet(text: str) -> bool:
    return len(text) == 2 and all(c in "0123456789abcdefABCDEF" for c in text)


def parse_ifname(text: str, what: str) -> str:
    """Return a name that an interface can have; CNIError 7 for anything else."""
    fits = 0 < len(text.encode()) <= _MAX_IFNAME and text not in {".", ".."}
    if not fits or any(c in "/:%" or c.isspace() or not c.isprintable() for c in text):
        raise invalid_config(f'{what} must be an interface name of 1 to {_MAX_IFNAME} bytes, found "{text}"')
    if text in KERNELS_OWN:
        raise invalid_config(
            f'{what} must be none of {sorted(KERNELS_OWN)}, which the kernel keeps, found "{text}"'
        )
    return text


def _parse_dns(fields: Fields) -> DNS:
    """Return the configured resolver settings; what the runtime says of this pod comes first."""
    configured = parse_dns(fields)
    runtime = fields.section("runtimeConfig")
    asked = runtime.section("dns") if runtime else None
    if asked is None:
        return configured
    # The capability calls the same things by other names than the result.
    return replace(
        configured,
        nameservers=tuple(asked.strings("servers")) or configured.nameservers,
        search=tuple(asked.strings("searches")) or configured.search,
        options=tuple(asked.strings("options")) or configured.options,
    )


def parse_delegate_timeout(fields: Fields) -> int:
    """Return how many seconds a foreign IPAM plugin may take."""
    return fields.integer("delegateTimeout", 1, 3600) or DEFAULT_DELEGATE_TIMEOUT
