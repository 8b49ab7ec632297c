"""Draws results.png: rows per second and memory side by side. Runs in the environment of the peers.

python -m benchmarks.chart RESULTS.json results.png
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.figures import MB, growth, median

# The labels are shorter than those of the tables.
LABELS = {
    "ours": "PostgresToS3Operator",
    "ours-rows": 'PostgresToS3Operator\nmethod="rows"',
    "psql-aws": "psql | aws s3 cp -",
    "duckdb": "DuckDB",
    "duckdb-limit": "DuckDB in 64 MB",
    "rivet-fast": "Rivet, fast profile",
    "rivet": "Rivet",
    "sling": "Sling",
    "sqltos3-polars": "SqlToS3Operator\npolars",
    "sqltos3-pandas": "SqlToS3Operator\npandas",
}
OURS, OTHERS, TEXT, QUIET = "#0b6e4f", "#b8c0c8", "#22282e", "#6b747d"


def main(source: Path, target: Path) -> None:
    results = json.loads(source.read_text())
    found = max((one for one in results["sets"] if one["name"] == "orders"), key=lambda one: one["rows"])
    runs = {name: runs for name, runs in found["runs"].items() if name in LABELS and runs}
    speed = {name: found["rows"] / median(each, "seconds") for name, each in runs.items()}
    memory = {name: growth(results, name, each) for name, each in runs.items()}
    order = sorted(speed, key=lambda name: speed[name])
    plt.rcParams.update({"font.size": 11, "text.color": TEXT, "font.family": "DejaVu Sans"})
    figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 0.55 * len(order) + 1.7), sharey=True)
    _bars(left, order, {name: speed[name] / 1e6 for name in order}, "million rows per second", _rate)
    _bars(right, order, {name: memory[name] / MB for name in order}, "MB of memory that it grows by", _megabytes)
    for text, name in zip(left.get_yticklabels(), order, strict=True):
        text.set_fontweight("bold" if name == "ours" else "normal")
    figure.suptitle(f"{found['title']} from PostgreSQL to S3", x=0.02, ha="left", fontsize=15, weight="bold")
    figure.tight_layout(rect=(0, 0, 1, 0.99), w_pad=3)
    figure.savefig(target, dpi=120)


def _bars(axes: Axes, order: list[str], values: dict[str, float], title: str, label: Any) -> None:
    colours = [OURS if name == "ours" else OTHERS for name in order]
    bars = axes.barh([LABELS[name] for name in order], [values[name] for name in order], color=colours, height=0.62)
    axes.bar_label(bars, [label(values[name]) for name in order], padding=5, color=TEXT)
    axes.set_title(title, loc="left", fontsize=11, color=QUIET)
    axes.set_xlim(0, max(values.values()) * 1.14)
    axes.xaxis.set_visible(False)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)


def _rate(value: float) -> str:
    return f"{value:.2f}"


def _megabytes(value: float) -> str:
    return f"{value:,.0f}"


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
