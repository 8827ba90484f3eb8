"""scripts/install and scripts/quickstart, as a person runs them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cni_plugin.plugins import PLUGINS
from tests.conftest import ROOT
from tests.harness.networks import dual_stack

if TYPE_CHECKING:
    from tests.harness.node import Node

INSTALL = str(ROOT / "scripts/install")
GO_PLUGINS = "/usr/lib/cni"


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the record and the link of every installation below a directory of the test's own."""
    monkeypatch.setenv("TEST_PLACES", str(tmp_path / "places"))
    return tmp_path / "places"


def install(*arguments: object) -> subprocess.CompletedProcess[str]:
    own = Path(os.environ["TEST_PLACES"])
    command = [
        INSTALL,
        "--record",
        str(own / "installed"),
        "--link-dir",
        str(own / "link"),
        *map(str, arguments),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "bin"


def test_install_adds_only_its_own_names(target: Path) -> None:
    done = install("--bin-dir", target, "--python", sys.executable)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in target.iterdir()) == ["loopback", "podwire", "podwire-ipam"]
    assert all(os.access(path, os.X_OK) for path in target.iterdir())


def test_drop_in_adds_every_reference_name_that_is_built(target: Path) -> None:
    assert install("--bin-dir", target, "--drop-in", "--python", sys.executable).returncode == 0
    assert sorted(path.name for path in target.iterdir()) == sorted(PLUGINS)


def test_drop_in_keeps_what_it_replaces_and_uninstall_restores_it(target: Path) -> None:
    target.mkdir()
    (target / "bridge").write_text("the reference's\n")
    (target / "macvlan").write_text("somebody's\n")
    for _ in range(2):  # the second must not keep our own file as the reference's
        assert install("--bin-dir", target, "--drop-in", "--python", sys.executable).returncode == 0
    assert "podwire-cni-executable" in (target / "bridge").read_text()
    assert "podwire-cni-executable" in (target / "host-local").read_text()
    done = install("--uninstall", "--bin-dir", target, "--prefix", target.parent / "none")
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_text() for path in target.iterdir()} == {
        "bridge": "the reference's\n",
        "macvlan": "somebody's\n",
    }


def test_uninstall_leaves_a_reference_plugin_alone(target: Path) -> None:
    target.mkdir()
    (target / "bridge").write_text("the reference's\n")
    assert install("--uninstall", "--bin-dir", target, "--prefix", target.parent / "none").returncode == 0
    assert (target / "bridge").read_text() == "the reference's\n"


def test_an_unknown_argument_changes_nothing(target: Path) -> None:
    done = install("--bin-dir", target, "--everywhere")
    assert done.returncode == 1
    assert "--everywhere" in done.stderr
    assert not target.exists()


def test_replacing_an_executable_under_load_fails_no_call(target: Path) -> None:
    assert install("--bin-dir", target, "--python", sys.executable).returncode == 0
    again = f"{INSTALL} --record {target}.installed --bin-dir {target} --python {sys.executable}"
    calls, loop = 0, f"for i in 1 2 3 4 5; do {again}; done"
    with subprocess.Popen(loop, shell=True, stdout=subprocess.DEVNULL) as upgrade:
        while upgrade.poll() is None or calls < 5:
            done = subprocess.run(
                [target / "podwire", "--version"], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            calls += 1
    assert upgrade.returncode == 0


def test_an_installation_of_its_own_works_without_the_checkout(plain_node: Node) -> None:
    """Install as on a node: with an environment under a prefix."""
    node = plain_node
    target, prefix = node.tmp / "own-bin", node.tmp / "lib"
    done = install("--bin-dir", target, "--prefix", prefix, "--drop-in")
    assert done.returncode == 0, done.stderr
    assert str(ROOT) not in (target / "podwire").read_text()
    pod, config = node.pod(), dual_stack(node)
    node.bin_dir = target
    result = node.add(config, pod)
    assert node.check(config, result, pod).status == 0
    node.delete(config, pod)
    (prefix / "bin").mkdir()
    (prefix / "bin/other-program").write_text("somebody's\n")
    assert install("--uninstall", "--bin-dir", target, "--prefix", prefix).returncode == 0
    assert [str(path.relative_to(prefix)) for path in prefix.rglob("*")] == ["bin", "bin/other-program"]
    (prefix / "bin/other-program").unlink()
    (prefix / "bin").rmdir()
    assert install("--uninstall", "--bin-dir", target, "--prefix", prefix).returncode == 0
    assert not prefix.exists()


def test_under_the_reference_names_a_go_configuration_works_unchanged(plain_node: Node) -> None:
    """The type stays `bridge`, the IPAM type `host-local`: the executable is ours."""
    node = plain_node
    node.bin_dir = node.tmp / "drop-in"
    done = install("--bin-dir", node.bin_dir, "--drop-in", "--python", sys.executable)
    assert done.returncode == 0, done.stderr
    config = dual_stack(node)
    config["type"] = "bridge"
    config["ipam"]["type"] = "host-local"
    pod = node.pod()
    node.add(config, pod, program="bridge")
    assert pod.ping("10.22.0.1")
    node.delete(config, pod, program="bridge")
    assert node.held() == {}


def test_the_quickstart_shows_two_pods_and_what_the_agent_is_good_for_and_leaves_nothing() -> None:
    before = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
    done = subprocess.run([ROOT / "scripts/quickstart"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("2 received, 0% packet loss") == 2
    assert "no veth, no address" in done.stdout
    without, with_agent = (
        int(ms) for ms in re.findall(r"ADD with(?:out)? the agent: ([0-9]+) ms", done.stdout)
    )
    assert with_agent < without
    after = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
    assert after == before
    spaces = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert "podwire-quickstart" not in spaces


def test_the_agent_comes_with_units_that_systemd_accepts(target: Path) -> None:
    units, socket = target.parent / "units", target.parent / "a.sock"
    places = ("--bin-dir", target, "--unit-dir", units)
    done = install(*places, "--agent", "--shim", "--python", sys.executable, "--socket", socket)
    assert done.returncode == 0, done.stderr
    paths = sorted(units.iterdir())
    assert [path.name for path in paths] == ["podwire.service", "podwire.socket"]
    subprocess.run(["systemd-analyze", "verify", *paths], check=True, capture_output=True)
    assert "podwire-cni-executable" in (target / "podwire").read_bytes().decode(errors="replace")
    done = install("--uninstall", *places, "--prefix", target.parent / "none")
    assert done.returncode == 0, done.stderr
    assert list(units.iterdir()) == []
    assert list(target.iterdir()) == []


def test_the_shim_alone_needs_no_python(target: Path) -> None:
    prefix = target.parent / "lib"
    assert install("--bin-dir", target, "--prefix", prefix, "--shim").returncode == 0
    assert not prefix.exists()


def test_a_socket_path_that_needs_quoting_is_refused(target: Path) -> None:
    done = install("--bin-dir", target, "--socket", '/run/"x".sock', "--python", sys.executable)
    assert done.returncode == 1
    assert not target.exists()


def test_without_options_all_is_undone_that_was_installed_anywhere(target: Path, places: Path) -> None:
    """What the first installation replaced is there again, though nobody says where."""
    target.mkdir()
    for name in ("bridge", "loopback"):
        (target / name).write_text(f"the reference's {name}\n")
    units, other = target.parent / "units", target.parent / "other"
    assert install("--bin-dir", target, "--drop-in", "--python", sys.executable).returncode == 0
    done = install("--bin-dir", other, "--python", sys.executable, "--agent", "--unit-dir", units)
    assert done.returncode == 0, done.stderr
    done = undo_all(target.parent)
    assert f"{target}/bridge: put back what was there before" in done.stdout
    assert {path.name: path.read_text() for path in target.iterdir()} == {
        "bridge": "the reference's bridge\n",
        "loopback": "the reference's loopback\n",
    }
    assert [*other.iterdir(), *units.iterdir()] == []
    assert not places.exists()
    assert "nothing of podwire was found" in undo_all(target.parent).stdout


def undo_all(somewhere: Path) -> subprocess.CompletedProcess[str]:
    """Undo what is written down; the directories of the arguments have nothing of ours."""
    empty = somewhere / "nothing"
    done = install("--uninstall", "--bin-dir", empty, "--prefix", empty, "--unit-dir", empty)
    assert done.returncode == 0, done.stderr
    return done


def test_what_an_uninstallation_before_has_left_out_is_put_back(target: Path) -> None:
    """`podwire uninstall` of an earlier version removed `loopback`, and kept the one before it."""
    target.mkdir()
    (target / "loopback").write_text("the reference's\n")
    assert install("--bin-dir", target, "--drop-in", "--python", sys.executable).returncode == 0
    (target / "loopback").unlink()
    undo_all(target.parent)
    assert (target / "loopback").read_text() == "the reference's\n"


def test_what_somebody_has_put_in_our_place_since_stays(target: Path) -> None:
    target.mkdir()
    (target / "bridge").write_text("the reference's\n")
    assert install("--bin-dir", target, "--drop-in", "--python", sys.executable).returncode == 0
    (target / "bridge").write_text("a newer one\n")
    undo_all(target.parent)
    assert [path.name for path in target.iterdir()] == ["bridge"]
    assert (target / "bridge").read_text() == "a newer one\n"


def test_the_version_before_stays_until_the_next_installation(target: Path, places: Path) -> None:
    """What another directory still runs stays, too; one stable path leads to the program in use."""
    prefix, other = target.parent / "lib", target.parent / "other"
    olds = {name: prefix / (name * 12) for name in "abc"}
    for old in olds.values():
        (old / "bin").mkdir(parents=True)
        (old / "bin/podwire").symlink_to("/bin/true")
    (places / "link").mkdir(parents=True)
    (places / "link/podwire").symlink_to(olds["b"] / "bin/podwire")
    other.mkdir()
    (other / "podwire").write_text(f"#!{olds['c']}/bin/python -IS\n# podwire-cni-executable 0.0.1\n")
    (places / "installed").write_text(f"executable {other}/podwire\n")
    done = install("--bin-dir", target, "--prefix", prefix)
    assert done.returncode == 0, done.stderr
    program = (places / "link/podwire").resolve()
    assert subprocess.check_output([places / "link/podwire", "--version"], text=True).startswith("podwire ")
    assert {path.name for path in prefix.iterdir()} == {"b" * 12, "c" * 12, program.parent.parent.name}
    assert "setuptools" not in {path.name for path in prefix.glob("*/lib/python3*/site-packages/*")}
    undo_all(target.parent)
    assert not prefix.exists()
    assert [*other.iterdir(), *(places / "link").iterdir()] == []


SHIPPED = ("scripts", "shim", "lock", "cni_plugin", "ipam", "conf", "pyproject.toml", "README.md", "LICENSE")


def check_out(directory: Path, version: str) -> Path:
    """Copy what an installation is made of, as another version; return the script that installs it."""
    directory.mkdir()
    for name in SHIPPED:
        kind = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        kind(ROOT / name, directory / name)
    module = directory / "cni_plugin/__init__.py"
    text, found = re.subn(r'(__version__ = )"[^"]+"', rf'\1"{version}"', module.read_text())
    assert found == 1
    module.write_text(text)
    return directory / "scripts/install"


def test_an_upgrade_keeps_the_version_before_and_the_pods_of_it(
    plain_node: Node, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two real versions, and one that is older than both: the next installation removes it."""
    node, program = plain_node, places / "link/podwire"
    prefix, config, pod = node.tmp / "lib", dual_stack(node), node.pod()
    node.bin_dir = node.tmp / "bin"

    def put(version: str) -> Path:
        monkeypatch.setattr(f"{__name__}.INSTALL", str(check_out(node.tmp / version, version)))
        done = install("--bin-dir", node.bin_dir, "--prefix", prefix)
        assert done.returncode == 0, done.stderr
        assert subprocess.check_output([program, "--version"], text=True) == f"podwire {version}\n"
        return program.resolve().parent.parent

    oldest = prefix / ("a" * 12)
    (oldest / "bin").mkdir(parents=True)
    (oldest / "bin/podwire").symlink_to("/bin/true")
    program.parent.mkdir(parents=True)
    program.symlink_to(oldest / "bin/podwire")

    first = put("0.0.1")
    assert {*prefix.iterdir()} == {oldest, first}
    result = node.add(config, pod)
    second = put("0.0.2")
    assert {*prefix.iterdir()} == {first, second}
    # An agent of the version before still runs from its directory.
    assert subprocess.check_output([first / "bin/podwire", "--version"], text=True) == "podwire 0.0.1\n"
    assert node.check(config, result, pod).status == 0
    node.delete(config, pod)
    undo_all(node.tmp)
    assert not prefix.exists()


def test_a_program_of_somebody_at_the_stable_path_stays(target: Path, places: Path) -> None:
    (places / "link").mkdir(parents=True)
    (places / "link/podwire").write_text("somebody's\n")
    done = install("--bin-dir", target, "--prefix", target.parent / "lib")
    assert done.returncode == 0, done.stderr
    assert "left as it is" in done.stderr
    undo_all(target.parent)
    assert (places / "link/podwire").read_text() == "somebody's\n"


def test_without_a_network_nothing_stays_and_wheels_help(
    target: Path, places: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prefix, temporary, wheels = tmp_path / "lib", tmp_path / "temporary", tmp_path / "wheels"
    temporary.mkdir()
    locked = [word for name in ("build", "program", "metrics") for word in ("-r", f"{ROOT}/lock/{name}.txt")]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", "--only-binary", ":all:"]
    subprocess.run([*pip, "--dest", wheels, *locked], check=True)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    done = install("--bin-dir", target, "--prefix", prefix, "--with", "metrics")
    assert done.returncode == 1
    assert "--wheels" in done.stderr
    assert [path for path in (prefix, places, *temporary.iterdir()) if path.exists()] == []
    done = install("--bin-dir", target, "--prefix", prefix, "--with", "metrics", "--wheels", wheels)
    assert done.returncode == 0, done.stderr
    assert [*prefix.glob("*/lib/python3*/site-packages/prometheus_client")] != []
    assert [*temporary.iterdir()] == []


def test_an_extra_that_there_is_not_is_refused(target: Path) -> None:
    done = install("--bin-dir", target, "--with", "metrics,graphs")
    assert done.returncode == 1
    assert "found graphs" in done.stderr
    assert not target.exists()


def test_the_directory_is_the_one_that_containerd_looks_into(target: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'version = 2\n[plugins."io.containerd.grpc.v1.cri".cni]\nbin_dir = "{target}"\n')
    done = install("--containerd-config", config, "--python", sys.executable)
    assert done.returncode == 0, done.stderr
    assert (target / "podwire").exists()


def test_a_loopback_that_is_there_is_kept(target: Path) -> None:
    target.mkdir()
    (target / "loopback").write_text("the reference's\n")
    assert install("--bin-dir", target, "--python", sys.executable).returncode == 0
    assert (target / "loopback").read_text() == "the reference's\n"
