"""What the protocol tests say of an answer and of the node around it."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.harness.networks import dual_stack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.node import Completed, Node

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
WITHOUT_CHECK = VERSIONS[:4]
WITHOUT_GC = VERSIONS[:6]
_SETTLE = 3.0  # seconds; a bridge loses its carrier by asynchronous work


def refusal(answer: Completed) -> tuple[int, str]:
    """Return code and words of an error, which is one object on stdout and nothing but its fields."""
    assert answer.status == 1, answer.stdout + answer.stderr
    document = answer.json
    assert {"cniVersion", "code", "msg"} <= document.keys() <= {"cniVersion", "code", "msg", "details"}
    assert document["cniVersion"] in VERSIONS
    assert isinstance(document["code"], int)
    assert "Traceback" not in answer.stderr, answer.stderr
    return document["code"], f"{document['msg']} {document.get('details', '')}".strip()


def assert_refused(answer: Completed, code: int, *words: str) -> None:
    """Assert an error with this code whose text has all these words."""
    found, text = refusal(answer)
    assert (found, [word for word in words if word not in text]) == (code, []), text


def assert_ok(answer: Completed) -> None:
    """Assert success without a word on stdout, as every verb but ADD and VERSION has it."""
    assert (answer.status, answer.stdout) == (0, ""), answer.stdout + answer.stderr


@contextmanager
def unchanged(node: Node) -> Iterator[None]:
    """Assert that the body leaves the node as it was."""
    before = _settled(node)
    yield
    deadline = time.monotonic() + _SETTLE
    while (after := node.transcript()) != before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert after == before


def _settled(node: Node) -> str:
    """Return the transcript once nothing in it moves any more."""
    deadline = time.monotonic() + _SETTLE
    before = ""
    while (after := node.transcript()) != before or " tentative " in after:
        assert time.monotonic() < deadline, after
        before = after
    return after


def warm(node: Node, **keys: Any) -> None:
    """Let one pod come and go, so that everything that attachments share is there."""
    config, pod = dual_stack(node, **keys), node.pod()
    node.add(config, pod)
    node.delete(config, pod)
    deadline = time.monotonic() + _SETTLE
    while "NO-CARRIER" not in node.links()[config["bridge"]]["flags"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
