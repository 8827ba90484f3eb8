"""The kustomizations in conf/ use no word that kustomize warns about, and name only files that are there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

# api/types/kustomization.go of kustomize: what `kustomize edit fix` rewrites.
DEPRECATED = {"bases", "commonLabels", "imageTags", "patchesJson6902", "patchesStrategicMerge", "vars"}


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("kustomization.yaml")), ids=str)
def test_a_kustomization_uses_today_s_words(path: Path) -> None:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    assert found.keys() & DEPRECATED == set()
    named = [*found["resources"], *(each["path"] for each in found.get("patches", ()))]
    assert [name for name in named if not (path.parent / name).exists()] == []
