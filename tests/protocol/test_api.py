"""What the follower asks of the Kubernetes API, and what it makes of the answers that a long life brings."""

from __future__ import annotations

import re
import socket
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from cni_plugin.cluster import api as client
from cni_plugin.cluster import watch as watching
from cni_plugin.cluster.api import API, Access, APIError, GoneError
from cni_plugin.cluster.resources import NODES
from cni_plugin.cluster.snapshot import Snapshot
from cni_plugin.cluster.watch import Watch
from tests.harness.api_server import APIServer, render_node, serving_api

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cni_plugin.cluster.objects import Node


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("first\n")
    return tmp_path


@pytest.fixture
def api() -> Iterator[APIServer]:
    with serving_api() as made:
        made.put(*(render(i) for i in range(3)))
        yield made


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "PAUSES", (0.02, 0.1))


def render(i: int, **keys: object) -> dict[str, object]:
    return render_node(f"node{i}", [f"192.0.2.{i + 1}"], [f"10.244.{i}.0/24"], **keys)


class Following:
    """A watch, and how often it woke us."""

    def __init__(self, api: APIServer, account: Path) -> None:
        self.wakings = 0
        self.server = api
        self.nodes: Snapshot[Node] = Snapshot(self._wake)
        Watch(API(Access(server=api.url, account=str(account))), NODES, self.nodes).start()
        self.until(lambda nodes: bool(nodes) and not self.nodes.problem)

    def _wake(self) -> None:
        self.wakings += 1

    def until(self, wanted: Callable[[dict[str, Node]], bool]) -> None:
        deadline = time.monotonic() + 10
        while not wanted(self.nodes.known().objects or {}):
            assert time.monotonic() < deadline, (self.nodes.known(), self.server.requests)
            time.sleep(0.01)

    def sees(self, *numbers: int) -> None:
        self.until(lambda nodes: set(nodes) == {f"node{i}" for i in numbers})


def test_a_long_list_comes_in_pages_of_one_version(api: APIServer, account: Path) -> None:
    api.put(*(render(i) for i in range(250)))
    pages = list(API(Access(server=api.url, account=str(account))).list_pages(NODES))
    assert [len(items) for items, _ in pages] == [100, 100, 50]
    assert {version for _, version in pages} == {str(api.version)}
    assert [request.count("continue=") for request in api.requests] == [0, 1, 1]


def test_a_page_that_is_gone_begins_the_list_again(api: APIServer, account: Path) -> None:
    api.put(*(render(i) for i in range(150)))
    pages = API(Access(server=api.url, account=str(account))).list_pages(NODES)
    next(pages)
    api.compact()
    with pytest.raises(GoneError, match="continue parameter is too old"):
        next(pages)


def test_changes_are_followed_and_heartbeats_wake_nobody(api: APIServer, account: Path) -> None:
    following = Following(api, account)
    before = following.wakings
    api.put(render(0), render(1))
    api.put(render(7))
    following.sees(0, 1, 2, 7)
    assert following.wakings == before + 1
    api.remove("node7")
    following.sees(0, 1, 2)
    watches = [request for request in api.requests if "watch=1" in request]
    assert len(watches) == 1
    assert "allowWatchBookmarks=true" in watches[0]


def test_a_watch_that_breaks_goes_on_where_it_was(api: APIServer, account: Path) -> None:
    following = Following(api, account)
    api.bookmark()
    time.sleep(0.1)
    version = api.version
    api.end_watches()
    api.put(render(8))
    following.sees(0, 1, 2, 8)
    assert f"resourceVersion={version}&" in api.requests[-1]
    assert len([request for request in api.requests if "limit=" in request]) == 1


def test_a_version_that_is_gone_is_listed_anew(api: APIServer, account: Path) -> None:
    following = Following(api, account)
    api.stop()
    following.until(lambda _: "nodes" in following.nodes.problem)
    api.remove("node0")
    api.compact()
    api.start(None, api.address[0])
    following.sees(1, 2)
    assert len([request for request in api.requests if "limit=" in request]) == 2


def test_an_api_that_is_away_takes_nothing_from_what_is_known(api: APIServer, account: Path) -> None:
    following = Following(api, account)
    api.stop()
    following.until(lambda _: bool(following.nodes.problem))
    following.sees(0, 1, 2)
    api.start(None, api.address[0])
    following.until(lambda _: not following.nodes.problem)


def test_a_token_that_was_replaced_is_read_again(api: APIServer, account: Path) -> None:
    following = Following(api, account)
    api.tokens = {"second"}
    api.end_watches()
    following.until(lambda _: "401" in following.nodes.problem)
    (account / "token").write_text("second\n")
    api.put(render(9))
    following.sees(0, 1, 2, 9)
    assert not following.nodes.problem


def test_a_server_that_cannot_be_reached_is_named(account: Path) -> None:
    url = "http://127.0.0.1:9"
    with pytest.raises(APIError, match=f"^GET {re.escape(url)}/api/v1/nodes: .*refused"):
        list(API(Access(server=url, account=str(account))).list_pages(NODES))


def test_a_refusal_is_told_in_the_servers_words(api: APIServer, account: Path) -> None:
    wanted = re.escape(f"PATCH {api.url}/api/v1/nodes/nobody/status: 501 this server knows nothing")
    with pytest.raises(APIError, match=f"^{wanted}"):
        API(Access(server=api.url, account=str(account))).patch_node_status("nobody", {"status": {}})
    assert api.unknown == ["PATCH /api/v1/nodes/nobody/status"]
    api.unknown.clear()


def test_a_kubeconfig_names_server_and_token(api: APIServer, tmp_path: Path) -> None:
    kubeconfig = tmp_path / "config"
    kubeconfig.write_text(f"""
apiVersion: v1
kind: Config
current-context: here
contexts: [{{name: here, context: {{cluster: it, user: me}}}}]
clusters: [{{name: it, cluster: {{server: "{api.url}"}}}}]
users: [{{name: me, user: {{token: first}}}}]
""")
    ((items, _),) = API(Access(kubeconfig=str(kubeconfig))).list_pages(NODES)
    assert len(items) == 3


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [("10.96.0.1", "443", "https://10.96.0.1:443"), ("fd00::1", "6443", "https://[fd00::1]:6443")],
)
def test_a_pod_finds_the_server_by_its_environment(host: str, port: str, url: str) -> None:
    environ = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
    assert client._server_of(environ) == url


def test_a_server_whose_certificate_is_not_to_be_trusted_is_an_error_like_others(
    api: APIServer, account: Path
) -> None:
    (account / "ca.crt").write_text("none")
    server = api.url.replace("http:", "https:")
    with pytest.raises(APIError, match=f"^GET {re.escape(server)}/api/v1/nodes: "):
        list(API(Access(server=server, account=str(account))).list_pages(NODES))


@pytest.mark.parametrize("backlog", [0, 8])
@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("[::1]", socket.AF_INET6)])
def test_a_server_that_says_nothing_is_named(
    host: str, family: socket.AddressFamily, backlog: int, account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_TIMEOUT", (0.3, 0.3))
    with socket.socket(family) as silent, ExitStack() as callers:
        silent.bind((host.strip("[]"), 0))
        silent.listen(backlog)
        for _ in range(3 - backlog):  # until there is no room for one more
            caller = callers.enter_context(socket.socket(family))
            caller.setblocking(False)
            caller.connect_ex(silent.getsockname())
        server = f"http://{host}:{silent.getsockname()[1]}"
        with pytest.raises(APIError, match=f"^GET {re.escape(server)}/api/v1/nodes: .*timed out"):
            list(API(Access(server=server, account=str(account))).list_pages(NODES))


def test_what_nobody_expected_is_said_and_tried_again(
    api: APIServer, account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = Following(api, account)
    with monkeypatch.context() as broken:
        broken.setattr(watching, "key_of", {}.__getitem__)
        api.put(render(4))
        following.until(lambda _: "TypeError" in following.nodes.problem)
    following.sees(0, 1, 2, 4)


def test_without_any_word_of_the_server_the_error_says_what_would_help(
    account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(APIError, match="wanted --api-server, --kubeconfig or KUBERNETES_SERVICE_HOST"):
        list(API(Access(account=str(account))).list_pages(NODES))
