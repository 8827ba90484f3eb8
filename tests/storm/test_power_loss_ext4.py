"""Power loss on a real ext4 with its real journal: names come back without data, addresses all come back.

Run as a script the file is the one that lives in a mount namespace of its own. The power is lost by
copying the block device's file: what the kernel has not written to it by then is not in the copy.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ipam import boot_mark
from ipam.allocator import allocate, release
from ipam.errors import PoolExhausted
from ipam.ranges import make_range, make_range_sets
from ipam.store import Owner, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
POOL = make_range_sets([[make_range(subnet="10.1.0.0/28")]])
SIZE = 13  # addresses
ANOTHER_BOOT = b"1b4e28ba-2fa1-11d2-883f-b9a761bde3fb"


def test_after_power_loss_on_ext4_every_address_is_given_once(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, __file__, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    sys.stdout.write(done.stdout)


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    place.mkdir()
    # A commit comes when somebody asks for it, here.
    subprocess.run(["mount", "-o", "loop,commit=300", image, place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)
    place.rmdir()


def commit(place: Path) -> None:
    """Have the journal written, as any fsync does: names and attributes, and not the data of others."""
    fd = os.open(place / "somebody", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"x")
    os.fsync(fd)
    os.close(fd)


def lose_power(tmp: Path, image: Path) -> tuple[int, int]:
    """Return how many address files were there when it came back, and how many of them empty."""
    cut = tmp / "cut.img"
    subprocess.run(["cp", "--sparse=always", image, cut], check=True)
    with mounted(cut, tmp / "after") as place:
        files = list((place / "net").glob("10.*"))
        empty = sum(not file.stat().st_size for file in files)
        for file in files:
            assert os.getxattr(file, boot_mark.BOOT_MARK) == boot_mark.current()  # it came with the name
            os.setxattr(file, boot_mark.BOOT_MARK, ANOTHER_BOOT)
        store, given = Store(place, "net"), []
        while True:
            try:
                given += allocate(store, POOL, Owner(container_id=f"new{len(given)}", ifname="eth0"))
            except PoolExhausted:
                break
        addresses = {each.address for each in given}
        assert len(addresses) == len(given) == SIZE, (len(given), files)
        assert set(store.owners()) == addresses
    return len(files), empty


def main(tmp: Path) -> None:
    image = tmp / "disk.img"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    found = []
    with mounted(image, tmp / "before") as place:
        store = Store(place, "net")
        for number in range(6):
            owner = Owner(container_id=f"old{number}", ifname="eth0")
            allocate(store, POOL, owner)
            found.append(lose_power(tmp, image))
            commit(place)
            found.append(lose_power(tmp, image))
            if number % 2:
                release(store, owner)
                found.append(lose_power(tmp, image))
    sys.stdout.write(f"power loss on ext4: {len(found)} cuts; address files found, and empty: {found}\n")
    # The journal really brought names without data.
    assert any(empty for _, empty in found), found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
