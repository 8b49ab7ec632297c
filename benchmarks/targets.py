"""The targets of the export, and what it reached."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.contenders import DUCKDB, LIMIT, OURS, PANDAS, PIPE, PLAIN_PANDAS, POLARS, RIVET, RIVET_FAST, SLING
from benchmarks.data import ORDERS, WIDE
from benchmarks.figures import MB, Results, growth, median

NETWORK_LOSS = 0.15
MILLION = 1_000_000  # the rows that the first target is for; of more orders the second applies, of fewer none

Found = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One line of the table.

    :param label: what is measured.
    :param value: the figure of a data set; None where it is not known.
    :param reach: targets: of a million orders, of more, of wide rows; None for no target.
    :param least: whether the target is the least that is wanted, or the most.
    :param text: how a figure is written.
    """

    label: str
    value: Callable[[Results, Found], float | None]
    reach: tuple[float | None, float | None, float | None] = (None, None, None)
    least: bool = True
    text: str = "{:.2f}"

    def cell(self, results: Results, found: Found) -> str:
        """A figure with its target; in bold if it misses it."""
        value, target = self.value(results, found), self._target(found)
        if value is None:
            return ""
        figure = self.text.format(value)
        if target is None:
            return figure
        missed = value < target if self.least else value > target
        return f"{f'**{figure}**' if missed else figure} ({'≥' if self.least else '≤'} {self.text.format(target)})"

    def _target(self, found: Found) -> float | None:
        if found["rows"] < MILLION:
            return None
        if found["name"] == WIDE.name:
            return self.reach[2]
        if found["name"] == ORDERS.name:
            return self.reach[found["rows"] > MILLION]
        return None


def table(results: Results) -> str:
    """All lines, a column for each data set."""
    sets = results["sets"]
    lines = [
        "## How many times as fast, and what was to be reached",
        "",
        "Rows/s of PostgresToS3Operator divided by the peer's, the median of the rounds' ratios, and below what it"
        " costs. In brackets the target; **bold** figures miss it.",
        "",
        f"| against | {' | '.join(found['title'] for found in sets)} |",
        f"|---|{'--:|' * len(sets)}",
    ]
    for line in _lines(results):
        cells = [line.cell(results, found) for found in sets]
        if any(cells):
            lines.append(f"| {line.label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _lines(results: Results) -> list[Line]:
    start = min((run["seconds"] for run in results["starts"].get(PIPE, [])), default=0.0)
    return [
        Line("`psql \\| aws s3 cp -`", partial(_ratio, [PIPE]), (1.8, 1.3, 1.3)),
        Line(
            f"the same, without the {start:.1f} s that its programs take to start", partial(_ratio, [PIPE], start=start)
        ),
        Line("DuckDB, the faster of its two ways", partial(_ratio, DUCKDB), (1.2, 1.08, 1.1)),
        Line("DuckDB, running the same SELECT", partial(_ratio, ["duckdb-query"])),
        Line("DuckDB in the operator's memory", partial(_ratio, ["duckdb-limit"])),
        Line("Rivet, fast profile, chunked, 2 at a time", partial(_ratio, ["rivet-fast"]), (1.3, 1.2, 1.2)),
        Line("the same or with its own timestamps, the faster", partial(_ratio, RIVET_FAST)),
        Line("Rivet as it comes", partial(_ratio, [RIVET]), (4, 4, 3)),
        Line("Sling", partial(_ratio, [SLING]), (3, 3, 3)),
        Line("SqlToS3Operator, polars", partial(_ratio, [POLARS])),
        Line("SqlToS3Operator, pandas", partial(_ratio, [PANDAS])),
        Line("the same, timestamps its own way", partial(_ratio, [PLAIN_PANDAS])),
        Line("`psql … > /dev/null`, without a store", partial(_ratio, [LIMIT])),
        Line("own CPU s per million rows", _own_cpu, (0.40, 0.36, None), least=False),
        Line("CPU s of Postgres beyond one COPY (`psql`)", _beyond_copy, (0.05,) * 3, least=False, text="{:.0%}"),
        Line("memory growth, MB", _growth, (64,) * 3, least=False, text="{:.0f}"),
    ]


def _ratio(peers: Sequence[str], results: Results, found: Found, start: float = 0.0) -> float | None:
    """How many times as fast as the fastest of several peers, each without its `start` seconds."""
    runs = found["runs"]
    known = [runs[peer] for peer in peers if runs.get(peer)]
    if not runs.get(OURS) or not known:
        return None
    pairs = zip(runs[OURS], *known, strict=False)
    return statistics.median(
        (min(peer["seconds"] for peer in others) - start) / own["seconds"] for own, *others in pairs
    )


def _own_cpu(results: Results, found: Found) -> float | None:
    runs = found["runs"].get(OURS)
    return median(runs, "cpu_seconds") / (found["rows"] / 1e6) if runs else None


def _beyond_copy(results: Results, found: Found) -> float | None:
    ours, copy = found["runs"].get(OURS), found["runs"].get(LIMIT)
    if not ours or not copy:
        return None
    return median(ours, "postgres_cpu_seconds") / median(copy, "postgres_cpu_seconds") - 1


def _growth(results: Results, found: Found) -> float | None:
    runs = found["runs"].get(OURS)
    return growth(results, OURS, runs) / MB if runs else None
