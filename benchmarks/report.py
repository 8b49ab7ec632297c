"""Writes RESULTS.md from the figures of a run, and has the chart drawn."""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import psycopg

from benchmarks.contenders import CONTENDERS, DISCARDED, DUCKDB, LIMIT, OURS, PANDAS, PIPE, PLAIN_PANDAS, Contender
from benchmarks.setting import FOLDER, PEERS, Setting
from demo import services

HERE = Path(__file__).parent
PROFILE = HERE / "profile.md"
PEER_PACKAGES = ("awscli", "duckdb", "apache-airflow-providers-amazon", "pandas", "polars")
MB = 1_000_000

Run = dict[str, Any]
Results = dict[str, Any]


def machine(setting: Setting) -> dict[str, str]:
    """What the figures were made on, and with."""
    with psycopg.connect(setting.uri) as connection:
        server = connection.info.parameter_status("server_version") or ""
    code = "import sys, importlib.metadata as m; print(*(m.version(name) for name in sys.argv[1:]))"
    command = [PEERS / "python", "-c", code, *PEER_PACKAGES]
    versions = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    ours = ("apache-airflow", "psycopg2-binary", "boto3")
    return {
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "Python": platform.python_version(),
        "PostgreSQL": server.split()[0],
        **{name: version(name) for name in ours},
        **dict(zip(PEER_PACKAGES, versions, strict=True)),
    }


def write(results: Results, folder: Path) -> None:
    """Write RESULTS.md and results.png."""
    parts = [INTRODUCTION, _machine(results), tables(results), METHOD, PROFILE.read_text(encoding="utf-8")]
    text = "\n\n".join(part.strip() for part in parts)
    (folder / "RESULTS.md").write_text(text + "\n", encoding="utf-8")
    command = [PEERS / "python", "-m", "benchmarks.chart", FOLDER / "results.json", folder / "results.png"]
    subprocess.run(command, check=True, cwd=services.PROJECT)


def tables(results: Results) -> str:
    """The figures, as Markdown."""
    parts = [_ratios(results)]
    parts += [_size(results, size) for size in sorted(results["sizes"], key=int, reverse=True)]
    parts += [_memory(results["memory"])] if results["memory"] else []
    parts += [_profile(results)]
    return "\n\n".join(parts)


def _machine(results: Results) -> str:
    return "Measured on: " + ", ".join(f"{name} {value}" for name, value in results["machine"].items()) + "."


def _size(results: Results, size: str) -> str:
    found = results["sizes"][size]
    lines = [
        f"## {int(size):,} orders, {found['bytes'] / MB:,.0f} MB of CSV",
        "",
        "| | s | rows/s | CPU s, own | of Postgres | of the store | memory, growth | memory, whole | rounds | file |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for contender in CONTENDERS:
        if runs := found["runs"].get(contender.name):
            lines.append(_row(results, contender, int(size), runs))
    return "\n".join(lines)


def _row(results: Results, contender: Contender, size: int, runs: list[Run]) -> str:
    seconds = median(runs, "seconds")
    cells = [
        contender.label,
        f"{seconds:.2f}",
        f"{size / seconds:,.0f}",
        *(f"{median(runs, name):.2f}" for name in ("cpu_seconds", "postgres_cpu_seconds", "store_cpu_seconds")),
        f"{growth(results, contender.name, runs) / MB:,.0f} MB",
        f"{median(runs, 'memory_peak') / MB:,.0f} MB",
        str(len(runs)),
        _file(contender, {run["right"] for run in runs}),
    ]
    return "| " + " | ".join(cells) + " |"


def _file(contender: Contender, checks: set[bool | None]) -> str:
    """What the checks say of the contender's files."""
    if not contender.uploads or contender.discards:
        return ""
    if not contender.same:
        return "other timestamps"
    return "**wrong**" if False in checks else "right"


def median(runs: list[Run], name: str) -> float:
    """The median of a figure."""
    return statistics.median(run[name] for run in runs)


def growth(results: Results, name: str, runs: list[Run]) -> float:
    """Bytes by which a contender's processes grew: above their start, or above an export without rows."""
    grown = statistics.median(run["memory_peak"] - run["memory_before"] for run in runs)
    starts = results["starts"].get(name)
    return max(0.0, grown - median(starts, "memory_peak")) if starts else grown


def _ratios(results: Results) -> str:
    """How many times as fast as each peer, round by round."""
    sizes = sorted(results["sizes"], key=int)
    head = " | ".join(f"{int(size):,} orders" for size in sizes)
    lines = [
        "## How many times as fast",
        "",
        "Rows/s of PostgresToS3Operator divided by the peer's, the median of the rounds' ratios.",
        "",
        f"| against | target | {head} |",
        "|---|--:|" + "--:|" * len(sizes),
    ]
    starts = results["starts"]
    start = min((run["seconds"] for run in starts.get(PIPE, [])), default=0.0)
    rows: list[tuple[str, str, Callable[[dict[str, list[Run]]], str]]] = [
        ("`psql … > /dev/null`; both without a store", "1.3", lambda runs: _ratio(runs, DISCARDED, [LIMIT])),
        ("`psql \\| aws s3 cp -`", "1.25", lambda runs: _ratio(runs, OURS, [PIPE])),
        (
            f"`psql \\| aws s3 cp -`, without the {start:.1f} s that its programs take to start",
            "",
            lambda runs: _ratio(runs, OURS, [PIPE], less=start),
        ),
        ("DuckDB, the faster of the two", "1.3", lambda runs: _ratio(runs, OURS, list(DUCKDB))),
        ("DuckDB, running the same SELECT", "", lambda runs: _ratio(runs, OURS, ["duckdb-query"])),
        ("SqlToS3Operator, polars", "", lambda runs: _ratio(runs, OURS, ["sqltos3-polars"])),
        ("SqlToS3Operator, pandas", "12", lambda runs: _ratio(runs, OURS, [PANDAS])),
        ("the same, timestamps its own way", "12", lambda runs: _ratio(runs, OURS, [PLAIN_PANDAS])),
        ("SqlToS3Operator, pandas: its memory", "20", lambda runs: _memory_ratio(results, runs)),
    ]
    for label, target, ratio in rows:
        cells = " | ".join(ratio(results["sizes"][size]["runs"]) for size in sizes)
        lines.append(f"| {label} | {target} | {cells} |")
    return "\n".join(lines)


def _ratio(runs: dict[str, list[Run]], mine: str, peers: list[str], less: float = 0.0) -> str:
    if not runs.get(mine) or not all(runs.get(peer) for peer in peers):
        return ""
    pairs = zip(runs[mine], *(runs[peer] for peer in peers), strict=False)
    ratios = [(min(peer["seconds"] for peer in others) - less) / own["seconds"] for own, *others in pairs]
    return f"{statistics.median(ratios):.2f}"


def _memory_ratio(results: Results, runs: dict[str, list[Run]]) -> str:
    if not runs.get(OURS) or not runs.get(PANDAS):
        return ""
    return f"{growth(results, PANDAS, runs[PANDAS]) / growth(results, OURS, runs[OURS]):.0f}"


def _memory(memory: dict[str, list[tuple[int, float]]]) -> str:
    fewest, most = memory["rows"]
    lines = [
        "## Memory of PostgresToS3Operator",
        "",
        f"From {fewest[0]:,} to {most[0]:,} orders the growth of its process changes by"
        f" {(most[1] - fewest[1]) / MB:+.1f} MB ({fewest[1] / MB:.1f} to {most[1] / MB:.1f} MB; target: at most +8).",
        "",
        "By the width of the rows, 400 MB of each, defaults (target: at most 64 MB):",
        "",
        "| " + " | ".join(f"{width:,} bytes" for width, _ in memory["width"]) + " |",
        "|" + "--:|" * len(memory["width"]),
        "| " + " | ".join(f"{grown / MB:.1f} MB" for _, grown in memory["width"]) + " |",
    ]
    return "\n".join(lines)


def _profile(results: Results) -> str:
    size = max(results["sizes"], key=int)
    lines = [f"## Where the CPU time goes: {int(size):,} orders"]
    heads = {"own": "PostgresToS3Operator's process", "postgres": "PostgreSQL, each statement by itself"}
    for name, head in heads.items():
        lines += ["", f"| {head} | CPU s |", "|---|--:|"]
        lines += [f"| {text} | {seconds:.2f} |" for text, seconds in results["profile"][name].items()]
    return "\n".join(lines)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


INTRODUCTION = """
# Results

`make bench` wrote this file. The time it takes to get a table of orders out of PostgreSQL into an S3 object, as
CSV ordered by id, and what that costs, for this project's operator and for its peers.

![rows per second and memory of each](results.png)
"""

METHOD = """
## How it was measured

- **Interleaved.** Each contender runs once, then each once more, and so on, so that a machine that slows down slows
  all of them. After one round that does not count, the tables show medians of the rounds. Those that take longest
  get two rounds of the large table (column *rounds*).
- **The same SELECT.** The text of every value is made by one SELECT, the operator's own, with one exception: DuckDB's
  first way reads the table in binary form and renders the timestamps itself, which is faster for it. It sorts in
  memory; its second way has Postgres run that SELECT and sort by the index.
- **The same file.** After each run the object is fetched and compared with what `psql` wrote: the same fields in
  the same order, or the table says *wrong*.
- **Fresh processes.** Each run has a process of its own. For operators the clock covers `execute`, and for DuckDB
  the COPY statement; imports, extensions and the look-up of connections come before. For pipelines it covers the
  programs from their start, because that is how they are run; the ratios also give the figure without it.
- **CPU seconds** are user and system time: *own* of the contender's processes, *Postgres* of the server and all its
  backends, *store* of the S3 server.
- **Memory, growth**: the most that was resident, above what was resident when the clock started; for pipelines,
  above the same pipeline without rows. **Memory, whole** includes that start. Pipelines: the sum over their programs.
- **The store** (store.py) keeps the parts as they come and checks nothing, so that it takes as little of this
  machine as it can: it stands for a store that runs elsewhere. It speaks plain HTTP; over HTTP every client signs
  each part with its SHA-256, over HTTPS it encrypts instead.
- **PostgreSQL** runs with its default settings (but for those that make it throw-away, see demo/services.py), through
  a Unix socket, the table in the system's page cache.
- **pandas and polars** get `df_kwargs` that write no index; everything else of every contender is at its defaults.
"""


if __name__ == "__main__":
    write(json.loads((FOLDER / "results.json").read_text()), HERE)
