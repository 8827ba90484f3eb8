"""Many at once, in agents and in processes of one call: no address is given before it has cooled down."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ipam.allocator import Terms, allocate, release
from ipam.cache import StoreCache
from ipam.errors import PoolCooling
from ipam.ranges import make_range, make_range_sets
from ipam.store import Owner, Store

if TYPE_CHECKING:
    from pathlib import Path

POOLS = make_range_sets([[make_range(subnet="10.1.0.0/26")], [make_range(subnet="fd00::/122")]])
COOL = Terms(cool_down=1)
ROUNDING = 0.001  # seconds, of a written time
SECONDS = 4.0


def test_no_address_is_given_again_before_its_time(tmp_path: Path) -> None:
    caches = [StoreCache(), StoreCache(), None]
    given: list[tuple[float, str]] = []
    released: list[tuple[float, str]] = []
    end = time.time() + SECONDS

    def live(name: str) -> int:
        chance, waits = random.Random(name), 0
        owner = Owner(container_id=name, ifname="eth0")
        while time.time() < end:
            store = Store(tmp_path, "net", cache=chance.choice(caches))
            try:
                made = allocate(store, POOLS, owner, terms=COOL)
            except PoolCooling:
                waits += 1
                time.sleep(0.02)
                continue
            given.extend((time.time(), str(each.address)) for each in made)
            time.sleep(chance.uniform(0, 0.2))
            began = time.time()
            released.extend((began, str(each)) for each in release(store, owner, COOL))
        return waits

    with ThreadPoolExecutor(16) as threads:
        waits = sum(threads.map(live, (f"pod{number}" for number in range(16))))
    assert waits > 0
    assert len(given) == len(released) > 200
    for at, address in given:
        before = [each for each, name in released if name == address and each < at]
        assert not before or at - max(before) >= 1 - ROUNDING, address
    assert Store(tmp_path, "net").owners() == {}
