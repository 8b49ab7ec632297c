"""The contenders. peers.py and runners/ say how each is run."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.data import DATA, MICROS, ORDERS, WIDE, ZEROS
from benchmarks.peers import Job, Task
from benchmarks.setting import BUCKET, PEERS

#: Names of data sets, and of the orders behind a network.
EVERYWHERE = frozenset({*(data.name for data in DATA), "network"})
NARROW = frozenset({ORDERS.name, MICROS.name, ZEROS.name})
LOCAL = EVERYWHERE - {"network"}
BULK = frozenset({ORDERS.name, WIDE.name})


@dataclass(frozen=True)
class Contender:
    """A way of exporting a table.

    :param name: for the command line, and of its object.
    :param label: for tables.
    :param runner: module of `benchmarks.runners`.
    :param job: makes the runner's job.
    :param data: the data sets that it is measured with.
    :param peer: whether it runs in the environment of the peers.
    :param uploads: whether it writes an object.
    :param slow: takes so long for hundreds of megabytes that it gets fewer rounds of them.
    :param starts: whether its figures include the start of its programs.
    :param program: what must be there for it to run.
    """

    name: str
    label: str
    runner: str
    job: Callable[[Task], Job]
    data: frozenset[str] = frozenset({ORDERS.name})
    peer: bool = False
    uploads: bool = True
    slow: bool = False
    starts: bool = False
    program: Callable[[], Path | None] | None = None

    @property
    def python(self) -> Path:
        """The interpreter that runs it."""
        return PEERS / "python" if self.peer else Path(sys.executable)

    @property
    def key(self) -> str:
        """The key of its object."""
        return f"{self.name}.csv"

    @property
    def missing(self) -> bool:
        """Whether it can't be run here."""
        return self.program is not None and self.program() is None


def ours(task: Task, **options: Any) -> Job:
    """The job of this project's operator, with the `options` that differ from its defaults."""
    arguments = {
        "query": task.data.query,
        "unique_key": task.data.columns[0],
        "s3_bucket": BUCKET,
        "s3_key": task.key,
        "postgres_conn_id": "orders_db",
        "aws_conn_id": "exports_s3",
        **options,
    }
    return peers.operator("postgres_to_s3.PostgresToS3Operator", arguments)


OURS = "ours"
LIMIT = "psql"
PIPE = "psql-aws"
DUCKDB = ("duckdb", "duckdb-query")
RIVET = "rivet"
RIVET_FAST = ("rivet-fast", "rivet-fast-own")
SLING = "sling"
POLARS, PANDAS, PLAIN_PANDAS = "sqltos3-polars", "sqltos3-pandas", "sqltos3-pandas-plain"

_AIRFLOW = "airflow_task"
_DUCKDB = partial(Contender, runner="duckdb_copy", peer=True)
_PROGRAMS = partial(Contender, runner="pipeline", starts=True)
_RIVET = partial(_PROGRAMS, program=peers.rivet_program)
_SQL_TO_S3 = partial(Contender, runner=_AIRFLOW, peer=True, slow=True)

CONTENDERS = [
    Contender(OURS, "**PostgresToS3Operator**, defaults", _AIRFLOW, ours, EVERYWHERE),
    Contender("ours-1", "**PostgresToS3Operator**, readers=1", _AIRFLOW, partial(ours, readers=1)),
    Contender("ours-3", "**PostgresToS3Operator**, readers=3", _AIRFLOW, partial(ours, readers=3)),
    Contender(
        "ours-rows", '**PostgresToS3Operator**, method="rows"', _AIRFLOW, partial(ours, method="rows"), slow=True
    ),
    _PROGRAMS(PIPE, "`psql -c 'copy …' \\| aws s3 cp -`", job=peers.pipe, data=EVERYWHERE),
    _DUCKDB("duckdb", "DuckDB, table attached, sorted by DuckDB", job=peers.duckdb_attached, data=LOCAL),
    _DUCKDB("duckdb-query", "DuckDB, sorted by Postgres (`postgres_query`)", job=peers.duckdb_query, data=EVERYWHERE),
    _DUCKDB(
        "duckdb-limit",
        f"DuckDB, sorted by Postgres, `memory_limit` {peers.OPERATOR_MEMORY}",
        job=partial(peers.duckdb_query, memory_limit=peers.OPERATOR_MEMORY),
        data=BULK,
    ),
    _RIVET(
        "rivet-fast",
        "Rivet, fast profile, chunked, 2 at a time",
        job=partial(peers.rivet, fast=True),
        data=LOCAL,
    ),
    _RIVET(
        "rivet-fast-own",
        "the same, timestamps its own way",
        job=partial(peers.rivet, fast=True, own=True),
        data=NARROW,
    ),
    _RIVET(RIVET, "Rivet as it comes", job=peers.rivet, data=BULK, slow=True),
    _PROGRAMS(SLING, "Sling", job=peers.sling, data=BULK, slow=True, program=peers.sling_program),
    _SQL_TO_S3(POLARS, "SqlToS3Operator, polars", job=partial(peers.sql_to_s3, frames="polars")),
    _SQL_TO_S3(PANDAS, "SqlToS3Operator, pandas", job=partial(peers.sql_to_s3, frames="pandas")),
    _SQL_TO_S3(
        PLAIN_PANDAS,
        "SqlToS3Operator, pandas, timestamps its own way",
        job=partial(peers.sql_to_s3, frames="pandas", own=True),
    ),
    _PROGRAMS(LIMIT, "`psql -c 'copy …' > /dev/null`, no upload", job=peers.limit, data=LOCAL, uploads=False),
]
