"""A pod on a dual-stack bridge, from ADD to DEL, as the kernel shows it."""

from __future__ import annotations

from tests.kernel.networks import dual_stack


def test_smoke(node):
    pod = node.pod()
    config = dual_stack(node)
    result = node.add(config, pod)
    assert node.check(config, result, pod).status == 0
    node.delete(config, pod)
