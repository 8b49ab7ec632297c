"""Growth of the operator's process, by the number and by the width of the rows."""

import statistics
from collections.abc import Iterator

from benchmarks.contenders import Contender, ours
from benchmarks.data import ORDERS, Data, create, drop
from benchmarks.measure import run
from benchmarks.setting import Setting
from demo.steps import alive, say

ROWS = (1_000_000, 10_000_000)
WIDTHS = (80, 1_000, 10_000, 100_000, 1_000_000)  # bytes of a row
_TOTAL_BYTES = 400_000_000  # of the rows of one width
_ROUNDS = 3
_WIDE = Data("memory", "", "wide", ("id", "body"), None, lambda setting, rows: None)


def by_rows(setting: Setting) -> Iterator[tuple[int, float]]:
    """Bytes by which the process grows, for each number of orders; leaves the last number in the table."""
    for rows in ROWS:
        say(f"Memory: {rows:,} orders")
        with alive():
            ORDERS.load(setting, rows)
        yield rows, _growth(setting, ORDERS)


def by_width(setting: Setting) -> Iterator[tuple[int, float]]:
    """Bytes by which the process grows, for each width of rows."""
    for width in WIDTHS:
        rows = _TOTAL_BYTES // width
        say(f"Memory: {rows:,} rows of {width:,} bytes")
        body = f"left(repeat(md5(n::text), {width} / 32 + 1), {width - len(str(rows)) - 2})"
        create(setting, "wide", f"select n as id, {body} as body from generate_series(1::bigint, {rows}) as n")
        yield width, _growth(setting, _WIDE)
    drop(setting, _WIDE)


def _growth(setting: Setting, data: Data) -> float:
    contender = Contender("memory", "", "airflow_task", ours)
    runs = [run(setting, contender, data, "") for _ in range(_ROUNDS)]
    return statistics.median(figures.memory_peak - figures.memory_before for figures in runs)
