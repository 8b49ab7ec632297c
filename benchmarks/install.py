"""Makes `.bench/peers`, the environment of the peers, from benchmarks/requirements.txt.

    python3 -m benchmarks.install

Runs before anything is installed: standard library only. The project's own environment is not touched.
"""

import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import IO

from demo.steps import alive, say

FOLDER = Path(".bench")
PEERS = FOLDER / "peers"
LOG = FOLDER / "install.log"
REQUIREMENTS = Path("benchmarks/requirements.txt")
CONSTRAINTS = Path("constraints.txt")
OPTIONAL = re.compile("# optional")


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    say(f"Making {PEERS} with Python {sys.version.split()[0]}")
    venv.create(PEERS, clear=True, with_pip=True, symlinks=True)
    (FOLDER / "constraints.txt").write_text(constraints_for_peers())
    say(f"Installing the peers (a minute or two; output: {LOG})")
    with alive(), LOG.open("wb") as log:
        status = _install(log, [line for line in _requirements() if not OPTIONAL.search(line)])
        if not status:
            for line in filter(OPTIONAL.search, _requirements()):
                if _install(log, [line]):
                    say(f"Without {_name(line)}: pip has none for this machine (see {LOG})")
    if status:
        tail = LOG.read_text(errors="replace").splitlines()[-15:]
        print(f"\npip failed. The last lines of {LOG}:\n  " + "\n  ".join(tail), file=sys.stderr)
    return status


def _install(log: IO[bytes], requirements: list[str]) -> int:
    """Install some lines of the requirements; returns pip's exit status."""
    file = FOLDER / "requirements.txt"
    file.write_text("\n".join(requirements))
    pip = [PEERS / "bin" / "python", "-m", "pip", "install", "--disable-pip-version-check"]
    command = [*pip, "-r", file, "-c", FOLDER / "constraints.txt"]
    return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode


def _requirements() -> list[str]:
    return [line for line in REQUIREMENTS.read_text().splitlines() if _name(line)]


def constraints_for_peers() -> str:
    """The project's constraints, except for packages that the peers pin themselves."""
    pinned = {_name(line) for line in _requirements()}
    return "\n".join(line for line in CONSTRAINTS.read_text().splitlines() if _name(line) not in pinned)


def _name(line: str) -> str:
    return re.split(r"[\[=\s;#]", line, maxsplit=1)[0]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Stopped. The same command continues.")
