"""The images of a kind node's control plane, each of one static program, in the form of `docker save`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.harness.kind.programs import directories
from tests.harness.runtime import image, tools


def write(name: str, image_name: str, work: Path) -> None:
    """Write the archive WORK/NAME.tar; kube-proxy's has WORK/proxy beside its program."""
    places = directories()
    directory = Path(places.get(name, places["kubernetes"]))
    program = tools.cached("pause") if name == "pause" else directory / name
    beside = work / "proxy" if name == "kube-proxy" else None
    image.write_program(work / f"{name}.tar", image_name, program, beside=beside)


if __name__ == "__main__":
    write(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
