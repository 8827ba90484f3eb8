"""How our sets are declared, since that is what an older nft may die of."""

from __future__ import annotations

import re

from tests.conftest import ROOT


def test_no_set_is_declared_by_its_type_and_no_rule_has_a_map_of_verdicts() -> None:
    """An nft before 1.1.2 ends with a segmentation fault at a newer one's; host ports are the exception."""
    declared = re.compile(r"\btype (?:ipv|inet_|ifname|ether_)| vmap \{")
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted((ROOT / "cni_plugin").rglob("*.py"))
        for line in path.read_text().splitlines()
        if declared.search(line)
    ]
    assert found == []
