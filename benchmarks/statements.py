"""The longest statement that Postgres ran, from its log."""

import re
from pathlib import Path

_DURATION = re.compile(r"LOG:  duration: ([\d.]+) ms")


def end_of(log: Path) -> int:
    """Size of the log in bytes."""
    return log.stat().st_size


def longest(log: Path, since: int) -> float:
    """Seconds of the longest statement that ended after the log had `since` bytes; 0 for none."""
    with log.open("rb") as file:
        file.seek(since)
        text = file.read().decode(errors="replace")
    return max((float(found) / 1000 for found in _DURATION.findall(text)), default=0.0)
