"""Creates `.venv` and installs the given requirements files into it, with constraints.txt.

    python3 demo/install.py requirements.txt demo/requirements.txt

Runs before anything is installed, so it uses only the standard library. pip's own configuration (pip.conf, PIP_*)
applies. Its output goes to .venv/install.log.
"""

import subprocess
import sys
import venv
from pathlib import Path

from interrupts import end_in_order
from steps import alive, say

FOLDER = Path(".venv")
PYTHON = str(FOLDER / "bin" / "python")
LOG = FOLDER / "install.log"
SIZES = "1 to 3 minutes, about 150 MB to download and 900 MB on disk"


def main(files: list[str]) -> int:
    if not _has_pip():
        say(f"Making .venv with Python {sys.version.split()[0]}")
        venv.create(FOLDER, clear=True, with_pip=True, symlinks=True)
    arguments = [word for file in files for word in ("-r", file)]
    command = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", *arguments, "-c", "constraints.txt"]
    first = not any(FOLDER.glob("*.stamp"))
    say(f"Installing {' and '.join(files)} into .venv (output: {LOG})", _how_far)
    if first:
        print(f"          The first time this needs the network and {SIZES}.", flush=True)
    with alive(), LOG.open("wb") as log:
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
    if status:
        tail = LOG.read_text(errors="replace").splitlines()[-15:]
        print(f"\npip failed. The last lines of {LOG}:\n  " + "\n  ".join(tail), file=sys.stderr)
    return status


def _how_far() -> str:
    """pip's progress, by its output and the installed packages."""
    lines = LOG.read_text(errors="replace").splitlines()
    found = sum(line.startswith(("Collecting ", "Processing ")) for line in lines)
    if any(line.startswith("Installing collected packages") for line in lines):
        return f"{sum(1 for _ in FOLDER.glob('lib/python*/site-packages/*.dist-info'))} of {found} packages in place"
    return f"{found} packages fetched"


def _has_pip() -> bool:
    try:
        return subprocess.run([PYTHON, "-m", "pip", "--version"], capture_output=True).returncode == 0
    except OSError:
        return False


if __name__ == "__main__":
    end_in_order()
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("Stopped. The same command continues.")
