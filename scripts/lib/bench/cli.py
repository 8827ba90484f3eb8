"""The command line of scripts/bench: measure inside, show outside."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from bench import picture, readme, table
from bench.contenders import ROOT, go_directories, install_ours
from bench.figures import Report, parse_json, render_json
from bench.place import describe_machine, run_inside, terminable, warn_when_busy
from bench.run import measure, names_of
from bench.works import QUICK, Sizes

_NEEDED = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "musl-gcc": "musl-tools",
    "nft": "nftables",
    "iptables": "iptables",
}
_PAGE, _PICTURE = Path("docs/speed.md"), Path("docs/bench.svg")
_EPILOG = "A group of works can be named by its beginning: `--only pods`. `--from-json` measures nothing."


def main(program: str) -> None:
    """Read the command line; measure, or take a report from a file, and show it."""
    options = _parser().parse_args()
    if options.inside:
        with terminable():
            _measure(options)
        return
    if options.from_json:
        text = options.from_json.read_text()
    else:
        _require(options)
        warn_when_busy(describe_machine())
        with terminable():
            text = run_inside([sys.executable, program, *sys.argv[1:], "--inside"], install_ours)
    _show(parse_json(text), options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Measure podwire beside the Go bridge + host-local.", epilog=_EPILOG
    )
    works = ", ".join(names_of(Sizes()))
    parser.add_argument("--quick", action="store_true", help="fewer calls, a few minutes")
    parser.add_argument("--only", action="append", default=[], metavar="WORK", help=f"one of {works}")
    parser.add_argument(
        "--go",
        action="append",
        type=Path,
        metavar="DIR",
        help="Go plugins; the first is compared with (those of tests/go/build, newest first, and Debian's)",
    )
    build = ROOT / "build"
    parser.add_argument(
        "--json", type=Path, default=build / "bench.json", metavar="FILE", help="write the figures"
    )
    parser.add_argument(
        "--svg", type=Path, default=build / "bench.svg", metavar="FILE", help="draw the picture"
    )
    parser.add_argument("--from-json", type=Path, metavar="FILE", help="show figures of an earlier run")
    parser.add_argument("--readme", action="store_true", help=f"also write them into {_PAGE} and {_PICTURE}")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    return parser


def _require(options: argparse.Namespace) -> None:
    """End with words for a person unless everything is there."""
    if os.geteuid() != 0:
        raise SystemExit("scripts/bench: wanted root (network namespaces): sudo scripts/bench")
    missing = sorted({package for name, package in _NEEDED.items() if not shutil.which(name)})
    if missing:
        raise SystemExit(f"scripts/bench: wanted these packages' programs: {' '.join(missing)}")
    for directory in _go(options):
        if not (directory / "bridge").exists():
            raise SystemExit(
                f"scripts/bench: wanted the Go plugins in {directory} (Debian: containernetworking-plugins)"
            )
    _named(options, Sizes())


def _go(options: argparse.Namespace) -> list[Path]:
    return [directory.resolve() for directory in options.go or go_directories()]


def _named(options: argparse.Namespace, sizes: Sizes) -> list[str]:
    """Return the works that --only names, each by its name or the beginning of it."""
    names = names_of(sizes)
    for only in options.only:
        if not any(_is_named(name, only) for name in names):
            raise SystemExit(f"scripts/bench: wanted one of {', '.join(names)} as --only, found {only}")
    return [name for name in names if any(_is_named(name, only) for only in options.only)]


def _is_named(name: str, only: str) -> bool:
    return name == only or name.startswith(f"{only}-")


def _measure(options: argparse.Namespace) -> None:
    sizes = QUICK if options.quick else Sizes()
    report = Report(machine=describe_machine(), contenders=[], quick=options.quick)
    found = measure(options.inside, _go(options), sizes, _named(options, sizes), report)
    (options.inside / "report").write_text(render_json(found))


def _show(report: Report, options: argparse.Namespace) -> None:
    sys.stdout.write(table.render_table(report))
    drawn = picture.render_picture(report)
    for path, text in ((options.json, render_json(report)), (options.svg, drawn)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if options.readme:
        path = ROOT / _PAGE
        words = table.render_readme(report, _PICTURE.name)
        path.write_text(readme.replace_between_markers(path.read_text(), words))
        (ROOT / _PICTURE).write_text(drawn)
