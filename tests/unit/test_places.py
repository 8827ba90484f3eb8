"""Which directory of plugins a command takes when nobody says one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_plugin.cli.places import find_bin_dir

if TYPE_CHECKING:
    from pathlib import Path


def test_the_executable_s_own_directory_then_containerd_s_then_what_was_installed(tmp_path: Path) -> None:
    own, config, record = tmp_path / "own", tmp_path / "config.toml", tmp_path / "installed"
    own.mkdir()
    places = (str(own / "podwire"), str(config), str(record))
    assert find_bin_dir(*places) == "/opt/cni/bin"
    record.write_text("link /x/podwire\nexecutable /there/podwire\nexecutable /there/podwire-ipam\n")
    assert find_bin_dir(*places) == "/there"
    config.write_text('version = 2\n[plugins."io.containerd.grpc.v1.cri".cni]\nbin_dir = "/usr/lib/cni"\n')
    assert find_bin_dir(*places) == "/usr/lib/cni"
    (own / "podwire-ipam").touch()
    assert find_bin_dir(*places) == str(own)
