"""Medians of the figures of several runs. Standard library only: the chart has the peers' environment."""

import statistics
from typing import Any

MB, GB = 1_000_000, 1_000_000_000

Run = dict[str, Any]
Results = dict[str, Any]


def median(runs: list[Run], name: str) -> float:
    """The median of a figure."""
    return statistics.median(run[name] for run in runs)


def growth(results: Results, name: str, runs: list[Run]) -> float:
    """Bytes by which a contender's processes grew: above their start, or above an export without rows."""
    grown = statistics.median(run["memory_peak"] - run["memory_before"] for run in runs)
    starts = results["starts"].get(name)
    return max(0.0, grown - median(starts, "memory_peak")) if starts else grown
