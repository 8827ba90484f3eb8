"""Run the targets: over the corpus as it is, or with atheris, which makes more of it.

    fuzz.py replay DIRECTORY...                 every file of these, by the directory's name
    fuzz.py confinement                         that what follows holds
    fuzz.py TARGET SECONDS SEED DIRECTORY...    new finds go to the first directory

It confines itself first, for the input may name any file and any link: network and mount namespaces
of its own, and nothing writable but the working directory.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_CONFINED = "PODWIRE_FUZZ_CONFINED"
_WALLS = (
    'mount --bind "$1" "$1" && mount -o remount,bind,ro / && mount --bind -o ro /proc/sys /proc/sys && '
    'mount -t tmpfs none /run && cd "$1/work" && shift && exec "$@"'
)
# What is JSON, or has some; how often it is changed as such.
_JSON = frozenset({"call", "result", "transfer", "peers", "values", "state"})
_STRUCTURED = 0.6
OURS = ["cni_plugin", "ipam"]


def confined(place: Path, *words: str) -> list[str]:
    """Return the command that runs this file with `words` where it can only write below `place`."""
    (place / "work").mkdir(parents=True, exist_ok=True)
    spaces = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return [*spaces, "sh", "-c", _WALLS, "sh", str(place), sys.executable, __file__, *words]


def run(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), _CONFINED: "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(confined(place, *words), env=environ, capture_output=True, text=True, check=False)


def replay(directories: list[str]) -> None:
    """Give every file to its target and say how many there were."""
    from tests.fuzz.targets import TARGETS

    for directory in directories:
        files = sorted(Path(directory).iterdir())
        for file in files:
            try:
                TARGETS[Path(directory).name](file.read_bytes())
            except Exception as error:
                error.add_note(f"in {file}")
                raise
        sys.stdout.write(f"fuzz {Path(directory).name}: {len(files)} files\n")


def fuzz(target: str, seconds: str, seed: str, directories: list[str]) -> None:
    """Let atheris look for what breaks a target."""
    import atheris

    from tests.fuzz.mutate import mutate_bytes

    with atheris.instrument_imports(include=OURS):
        from tests.fuzz.targets import TARGETS
    options = [
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        "-timeout=10",
        "-rss_limit_mb=2048",
        "-max_len=4096",
        "-print_final_stats=1",
        f"-artifact_prefix={Path.cwd().parent}/",
        f"-dict={ROOT}/tests/fuzz/words.dict",
    ]
    words = (ROOT / "tests/fuzz/words.dict").read_text().replace('"', "").split("\n")[1:]

    def change(data: bytes, size: int, number: int) -> bytes:
        rng = random.Random(number)
        changed = mutate_bytes(data, words, rng) if rng.random() < _STRUCTURED else None
        return changed[:size] if changed else atheris.Mutate(data, size)

    mutator = {"custom_mutator": change} if target in _JSON else {}
    atheris.Setup([sys.argv[0], *options, *directories], TARGETS[target], **mutator)
    atheris.Fuzz()


def require_confined() -> None:
    """Say so if nothing can be written but below the working directory's parent, nor any link be seen."""
    assert socket.if_nameindex() == [(1, "lo")]
    for place in ("/", str(ROOT), "/etc", "/var/lib", "/opt", "/proc/sys/kernel", "/tmp"):
        try:
            Path(place, f"podwire-{os.getpid()}").touch()
        except OSError:
            continue
        raise AssertionError(f"{place} can be written to")
    Path("here").touch()
    Path("here").unlink()
    sys.stdout.write("confined\n")


if __name__ == "__main__":
    if _CONFINED not in os.environ:
        sys.exit("fuzz.py: wanted to be run by tests/fuzz/test_fuzz.py, which confines it")
    if sys.argv[1] == "replay":
        replay(sys.argv[2:])
    elif sys.argv[1] == "confinement":
        require_confined()
    else:
        fuzz(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
