"""Who is measured, and how each is run: the job of its runner (see runners/)."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.setting import BUCKET, PEERS, Setting, Store, psql

Job = dict[str, Any]

# What a user writes; the text of the values is up to whoever runs it.
QUERY = "select id, customer_email, total_cents, status, created_at from orders"

# DuckDB reads the timestamps in binary form and writes them itself as the others have Postgres write them.
# make_timestamp(epoch_us(…)) is its fastest way to UTC: `at time zone` takes twice as long.
_DUCKDB_SELECT = """
select id, customer_email, total_cents, status,
    replace(strftime(make_timestamp(epoch_us(created_at)), '%Y-%m-%dT%H:%M:%S.%f+00:00'), '.000000', '') as created_at
from orders_db.orders order by id
"""


@dataclass(frozen=True)
class Contender:
    """A way of exporting the orders.

    :param name: for the command line, and of its object.
    :param label: for tables.
    :param runner: module of `benchmarks.runners`.
    :param job: makes the runner's job from the setting, the key of the object, and the SELECT.
    :param peer: whether it runs in the environment of the peers.
    :param uploads: whether it writes an object.
    :param discards: whether it writes to the store that keeps nothing.
    :param slow: takes so long for millions of rows that it gets fewer rounds of them.
    :param starts: whether its figures include the start of its programs.
    :param same: whether its file has the same fields as the others'.
    """

    name: str
    label: str
    runner: str
    job: Callable[[Setting, str, str], Job]
    peer: bool = False
    uploads: bool = True
    discards: bool = False
    slow: bool = False
    starts: bool = False
    same: bool = True

    @property
    def python(self) -> Path:
        """The interpreter that runs it."""
        return PEERS / "python" if self.peer else Path(sys.executable)

    @property
    def key(self) -> str:
        """The key of its object."""
        return f"{self.name}.csv"

    def store(self, setting: Setting) -> Store:
        """Where it writes."""
        return setting.discard if self.discards else setting.store


def ours(query: str = QUERY, **options: Any) -> Callable[[Setting, str, str], Job]:
    """The job of this project's operator; `options` are those that differ from its defaults."""

    def job(setting: Setting, key: str, select: str) -> Job:
        arguments = {
            "query": query,
            "unique_key": "id",
            "s3_bucket": BUCKET,
            "s3_key": key,
            "postgres_conn_id": "orders_db",
            "aws_conn_id": "exports_s3",
            **options,
        }
        return _operator("postgres_to_s3.PostgresToS3Operator", arguments)

    return job


def _sql_to_s3(frames: str, query: str | None = None) -> Callable[[Setting, str, str], Job]:
    def job(setting: Setting, key: str, select: str) -> Job:
        arguments = {
            "query": query or select,
            "s3_bucket": BUCKET,
            "s3_key": key,
            "sql_conn_id": "orders_db",
            "aws_conn_id": "exports_s3",
            "replace": True,
            "df_type": frames,
            "df_kwargs": {"index": False} if frames == "pandas" else {},
        }
        return _operator("airflow.providers.amazon.aws.transfers.sql_to_s3.SqlToS3Operator", arguments, frames)

    return job


def _operator(path: str, arguments: Job, *imports: str) -> Job:
    connections = ["orders_db", "exports_s3"]
    return {"operator": path, "arguments": arguments, "imports": imports, "connections": connections}


def _psql(select: str) -> list[str]:
    return [str(psql()), "--no-psqlrc", "--quiet", "--command", f"copy ({select}) to stdout (format csv, header)"]


def _limit(setting: Setting, key: str, select: str) -> Job:
    return {"commands": [_psql(select)]}


def _pipe(setting: Setting, key: str, select: str) -> Job:
    return {"commands": [_psql(select), [str(PEERS / "aws"), "s3", "cp", "--quiet", "-", f"s3://{BUCKET}/{key}"]]}


def _duckdb(select: Callable[[str], str]) -> Callable[[Setting, str, str], Job]:
    def job(setting: Setting, key: str, whole: str) -> Job:
        url = urlsplit(setting.store.endpoint)
        secret = (
            f"create secret (type s3, key_id '{setting.store.access_key}', secret '{setting.store.secret_key}',"
            f" endpoint '{url.netloc}', url_style 'path', use_ssl {url.scheme == 'https'},"
            f" region '{setting.store.region}')"
        )
        return {
            "extensions": ["duckdb_extension_postgres_scanner", "duckdb_extension_httpfs"],
            "setup": [secret, "attach '' as orders_db (type postgres, read_only)"],
            "copy": f"copy ({select(whole)}) to 's3://{BUCKET}/{key}' (format csv, header)",
        }

    return job


def _postgres_query(select: str) -> str:
    quoted = select.replace("'", "''")
    return f"select * from postgres_query('orders_db', '{quoted}')"


OURS = "ours"
DISCARDED = "ours-discarded"
LIMIT = "psql"
PIPE = "psql-aws"
DUCKDB = ("duckdb", "duckdb-query")
PANDAS = "sqltos3-pandas"
PLAIN_PANDAS = "sqltos3-pandas-plain"

CONTENDERS = [
    Contender(OURS, "**PostgresToS3Operator**, defaults", "airflow_task", ours()),
    Contender("ours-1", "**PostgresToS3Operator**, readers=1", "airflow_task", ours(readers=1)),
    Contender("ours-3", "**PostgresToS3Operator**, readers=3", "airflow_task", ours(readers=3)),
    Contender("ours-rows", '**PostgresToS3Operator**, method="rows"', "airflow_task", ours(method="rows"), slow=True),
    Contender(PIPE, "`psql -c 'copy …' \\| aws s3 cp -`", "pipeline", _pipe, starts=True),
    Contender(
        "duckdb",
        "DuckDB, table attached, sorted by DuckDB",
        "duckdb_copy",
        _duckdb(lambda _: _DUCKDB_SELECT),
        peer=True,
    ),
    Contender(
        "duckdb-query",
        "DuckDB, sorted by Postgres (`postgres_query`)",
        "duckdb_copy",
        _duckdb(_postgres_query),
        peer=True,
    ),
    Contender("sqltos3-polars", "SqlToS3Operator, polars", "airflow_task", _sql_to_s3("polars"), peer=True, slow=True),
    Contender(PANDAS, "SqlToS3Operator, pandas", "airflow_task", _sql_to_s3("pandas"), peer=True, slow=True),
    Contender(
        PLAIN_PANDAS,
        "SqlToS3Operator, pandas, which writes the timestamps its own way",
        "airflow_task",
        _sql_to_s3("pandas", f"{QUERY} order by id"),
        peer=True,
        slow=True,
        same=False,
    ),
    Contender(LIMIT, "`psql -c 'copy …' > /dev/null`, no upload", "pipeline", _limit, uploads=False, starts=True),
    Contender(DISCARDED, "**PostgresToS3Operator**, defaults, store discards", "airflow_task", ours(), discards=True),
]
