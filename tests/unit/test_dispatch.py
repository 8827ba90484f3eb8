"""From a call to its answer, with a plugin of the test's own behind the verb table."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from cni_plugin.contract.dispatch import Plugin, answer
from cni_plugin.contract.errors import CNIError, Code, combine
from cni_plugin.contract.result import Result

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_plugin.contract.dispatch import Answer
    from cni_plugin.contract.request import Request

ENVIRON = {
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/c1",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
}
CONFIG = json.dumps({"cniVersion": "1.1.0", "name": "test", "type": "podwire"}).encode()


def plugin(*, add: Callable[[Request], Result] | None = None, seen: list[str] | None = None) -> Plugin:
    """Return a plugin that notes the verbs that it is asked for."""
    note = (lambda request: seen.append(request.command)) if seen is not None else (lambda _: None)
    return Plugin(add=add or (lambda _: Result()), delete=note, check=note, gc=note, status=note)


def ask(command: str, stdin: bytes = CONFIG, **options: Any) -> Answer:
    return answer(ENVIRON | {"CNI_COMMAND": command}, stdin, lambda: plugin(**options))


def test_each_verb_reaches_its_function_and_only_add_and_version_speak() -> None:
    seen = []
    for verb in ("DEL", "CHECK", "GC", "STATUS"):
        assert (ask(verb, seen=seen).status, ask(verb).stdout) == (0, b"")
    assert seen == ["DEL", "CHECK", "GC", "STATUS"]
    assert ask("ADD").stdout == b'{"cniVersion": "1.1.0"}\n'
    assert json.loads(ask("VERSION").stdout)["cniVersion"] == "1.1.0"


def test_version_and_what_is_refused_early_load_no_plugin() -> None:
    def load() -> Plugin:
        raise AssertionError

    for command, stdin in (("VERSION", b""), ("ADD", b"{}"), ("nonsense", CONFIG), ("GC", b"x")):
        assert answer(ENVIRON | {"CNI_COMMAND": command}, stdin, load).stdout


def test_what_nobody_expected_is_999_with_the_traceback_on_stderr(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reply = ask("ADD", add=lambda _: 1 / 0)
    assert reply.status == 1
    said = {"cniVersion": "1.1.0", "code": 999, "msg": "ZeroDivisionError: division by zero"}
    assert json.loads(reply.stdout) == said
    assert "Traceback" in caplog.text


def test_an_error_has_its_details_only_when_there_are_any() -> None:
    def fail(_: object) -> Result:
        raise CNIError(11, "later", "busy")

    assert json.loads(ask("ADD", add=fail).stdout) == {
        "cniVersion": "1.1.0",
        "code": 11,
        "msg": "later",
        "details": "busy",
    }
    assert "details" not in CNIError(11, "later").render("1.1.0")


@pytest.mark.parametrize(("codes", "wanted"), [([11, 11], 11), ([11, 7], 7), ([5, 7], 5), ([7, 11, 5], 7)])
def test_of_several_errors_a_permanent_one_outranks_try_again_later(codes: list[int], wanted: Any) -> None:
    combined = combine([CNIError(code, f"m{code}", "d" * (code == 5)) for code in codes])
    assert (combined.code, combined.msg) == (wanted, "; ".join(f"m{code}" for code in codes))
    assert combined.details == "d" * (5 in codes)
    assert Code(combined.code)
