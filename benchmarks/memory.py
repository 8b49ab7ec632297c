"""How much the operator's process grows, by the number and by the width of the rows."""

import statistics
from collections.abc import Iterator

import psycopg

from benchmarks.contenders import Contender, ours
from benchmarks.measure import run
from benchmarks.setting import Setting
from demo import services
from demo.steps import alive, say

ROWS = (1_000_000, 10_000_000)
WIDTHS = (80, 1_000, 10_000, 100_000, 1_000_000)  # bytes of a row
_TOTAL_BYTES = 400_000_000  # of the rows of one width
_ROUNDS = 3


def by_rows(setting: Setting) -> Iterator[tuple[int, float]]:
    """Bytes by which the process grows, for each number of orders; leaves the last number in the table."""
    for rows in ROWS:
        say(f"Memory: {rows:,} orders")
        with alive():
            services.load_orders(setting.uri, rows)
            services.make_exporter(setting.uri)
        yield rows, _growth(setting, Contender("memory", "", "airflow_task", ours(), discards=True))


def by_width(setting: Setting) -> Iterator[tuple[int, float]]:
    """Bytes by which the process grows, for each width of rows."""
    for width in WIDTHS:
        rows = _TOTAL_BYTES // width
        say(f"Memory: {rows:,} rows of {width:,} bytes")
        with psycopg.connect(setting.uri, autocommit=True) as connection:
            connection.execute("drop table if exists wide")
            connection.execute("create table wide (id bigint primary key, body text not null)")
            connection.execute(
                "insert into wide select n, left(repeat(md5(n::text), %(body)s / 32 + 1), %(body)s)"
                " from generate_series(1, %(rows)s) as n",
                {"body": width - len(f"{rows},\n"), "rows": rows},
            )
            connection.execute(f"grant select on wide to {services.EXPORTER}")
            connection.execute("vacuum analyze wide")
        job = ours("select id, body from wide")
        yield width, _growth(setting, Contender("memory", "", "airflow_task", job, discards=True))
    with psycopg.connect(setting.uri, autocommit=True) as connection:
        connection.execute("drop table wide")


def _growth(setting: Setting, contender: Contender) -> float:
    runs = [run(setting, contender, "") for _ in range(_ROUNDS)]
    return statistics.median(figures.memory_peak - figures.memory_before for figures in runs)
