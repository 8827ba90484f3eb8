"""A call from environment and stdin; the real executable is asked the same in tests/protocol."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from cni_plugin.contract.errors import CNIError
from cni_plugin.contract.fields import Fields
from cni_plugin.contract.request import (
    MAX_STDIN,
    ValidAttachment,
    environ_of,
    make_request,
    parse_args,
    parse_document,
    parse_request,
    parse_valid_attachments,
)

if TYPE_CHECKING:
    from cni_plugin.contract.request import Request

ENVIRON = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/c1", "CNI_IFNAME": "eth0"}
CONFIG = {"cniVersion": "1.1.0", "name": "test", "type": "podwire"}


def request(environ: Any = (), config: Any = ()) -> Request:
    return parse_request(ENVIRON | dict(environ), json.dumps(CONFIG | dict(config)).encode())


def refused(code: int, *words: str) -> pytest.RaisesExc[CNIError]:
    return pytest.raises(CNIError, match=".*".join(words), check=lambda error: error.code == code)


def test_a_request_is_parsed_once_and_keeps_what_a_delegate_must_be_given() -> None:
    environ = ENVIRON | {"CNI_PATH": "/a::/b", "CNI_ARGS": "A=b", "OTHER": "x"}
    stdin = b' {"cniVersion": "0.4.0", "name": "n.1_x-y", "Type": "podwire"}\n'
    made = parse_request(environ, stdin)
    assert (made.command, made.container_id, made.ifname, made.netns) == (
        "ADD",
        "c1",
        "eth0",
        "/run/netns/c1",
    )
    assert (made.path, made.args, made.cni_version, made.network) == (("/a", "/b"), "A=b", "0.4.0", "n.1_x-y")
    assert made.environ is environ
    assert made.stdin is stdin
    assert made.config.string("type") == "podwire"


def test_a_configuration_without_a_version_speaks_the_first_one() -> None:
    for stated in (None, ""):
        assert request(config={"cniVersion": stated}).cni_version == "0.1.0"


@pytest.mark.parametrize("name", ["", None, "../x", "x\n", ".x", "-x", "a/b", "a b", "é"])
def test_network_names_that_could_leave_a_directory_are_refused(name: str) -> None:
    with refused(7, "network name"):
        request(config={"name": name})


@pytest.mark.parametrize(
    "ifname", ["", ".", "..", "a/b", "a:b", "a b", "eth0\n", "x" * 16, "é" * 8, "a%d", "\udcff"]
)
def test_names_that_no_interface_can_have_are_refused(ifname: str) -> None:
    with refused(4, "CNI_IFNAME"):
        request({"CNI_IFNAME": ifname})


def test_a_document_may_be_as_long_as_the_limit_and_no_longer() -> None:
    document = b'{"a": "' + b"x" * (MAX_STDIN - 9) + b'"}'
    assert len(parse_document(document)["a"]) == MAX_STDIN - 9
    with refused(6, f"at most {MAX_STDIN} bytes"):
        parse_document(document + b" ")


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        ("", {}),
        ("A=1", {"A": "1"}),
        ("A=1;B=", {"A": "1", "B": ""}),
        ("A=1;A=2", {"A": "2"}),
        ("IgnoreUnknown=0;A=1", {"A": "1"}),
        ("X=1;IgnoreUnknown=TRUE;A=1", {"X": "1", "A": "1"}),
    ],
)
def test_cni_args_are_pairs(args: str, wanted: Any) -> None:
    assert parse_args(request({"CNI_ARGS": args}), frozenset("AB")) == wanted


@pytest.mark.parametrize(
    "args", ["A", "A=1;", ";A=1", "A=1=2", "a=1", "X=1", "IgnoreUnknown=2", "ignoreunknown=1;X=1"]
)
def test_cni_args_that_cannot_be_read_are_code_4(args: str) -> None:
    with refused(4, "CNI_ARGS"):
        parse_args(request({"CNI_ARGS": args}), frozenset("AB"))


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, None),
        ({"cni.dev/valid-attachments": None}, None),
        ({"cni.dev/valid-attachments": []}, frozenset()),
        ({"cni.dev/attachments": []}, frozenset()),
        (
            {"cni.dev/attachments": [{"containerID": "c", "ifname": "e"}], "cni.dev/valid-attachments": []},
            frozenset(),
        ),
        (
            {"cni.dev/attachments": [{"ContainerId": "c", "IfName": "e"}]},
            frozenset({ValidAttachment(container_id="c", ifname="e")}),
        ),
    ],
)
def test_no_list_of_valid_attachments_is_not_an_empty_one(config: Any, wanted: Any) -> None:
    assert parse_valid_attachments(Fields(config)) == wanted


def test_a_call_that_we_make_ourselves_is_a_runtimes() -> None:
    document = {"name": "test", "type": "podwire", "cniVersion": "1.1.0"}
    made = make_request("CHECK", document, path="/a:/b", CONTAINERID="box", IFNAME="eth0", NETNS="/ns")
    environ = {"CNI_COMMAND": "CHECK", "CNI_CONTAINERID": "box", "CNI_IFNAME": "eth0", "CNI_NETNS": "/ns"}
    asked = parse_request(environ | {"CNI_PATH": "/a:/b"}, json.dumps(document).encode())
    assert (made.environ, made.stdin, made.path) == (asked.environ, asked.stdin, ("/a", "/b"))
    assert (made.network, made.container_id, made.ifname, made.netns) == ("test", "box", "eth0", "/ns")
    assert environ_of(made.environ, "DEL") == {**asked.environ, "CNI_COMMAND": "DEL"}
