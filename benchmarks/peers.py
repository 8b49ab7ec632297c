"""How the peers are run: the job of each for its runner (see runners/)."""

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from benchmarks.data import Data
from benchmarks.setting import BUCKET, PEERS, Setting, Store, psql
from demo import services

Job = dict[str, Any]

OPERATOR_MEMORY = "64MB"  # what the operator may grow by (RESULTS.md)


@dataclass(frozen=True)
class Task:
    """A contender's task.

    :param setting: where the database is.
    :param store: where the object goes.
    :param key: of the object; for those that write several, the folder.
    :param data: what to export.
    :param select: the SELECT of the file's text.
    """

    setting: Setting
    store: Store
    key: str
    data: Data
    select: str


def operator(path: str, arguments: Job, *imports: str) -> Job:
    """A job of airflow_task.py."""
    connections = ["orders_db", "exports_s3"]
    return {"operator": path, "arguments": arguments, "imports": imports, "connections": connections}


def sql_to_s3(task: Task, frames: str, own: bool = False) -> Job:
    """Airflow's SqlToS3Operator with a kind of data frames; with `own` it makes the text of the values."""
    arguments = {
        "query": f"{task.data.query} order by {task.data.columns[0]}" if own else task.select,
        "s3_bucket": BUCKET,
        "s3_key": task.key,
        "sql_conn_id": "orders_db",
        "aws_conn_id": "exports_s3",
        "replace": True,
        "df_type": frames,
        "df_kwargs": {"index": False} if frames == "pandas" else {},
    }
    return operator("airflow.providers.amazon.aws.transfers.sql_to_s3.SqlToS3Operator", arguments, frames)


def limit(task: Task) -> Job:
    """psql alone."""
    return {"commands": [_psql(task.select)]}


def pipe(task: Task) -> Job:
    """psql and the AWS command line."""
    upload = [str(PEERS / "aws"), "s3", "cp", "--quiet", "-", f"s3://{BUCKET}/{task.key}"]
    return {"commands": [_psql(task.select), upload]}


def _psql(select: str) -> list[str]:
    return [str(psql()), "--no-psqlrc", "--quiet", "--command", f"copy ({select}) to stdout (format csv, header)"]


def duckdb_attached(task: Task) -> Job:
    """DuckDB reads the table in binary form, sorts it, and writes the timestamps as Postgres does for the others.

    make_timestamp(epoch_us(…)) is its fastest way to UTC: `at time zone` takes twice as long.
    """
    text = "replace(strftime(make_timestamp(epoch_us({0})), '%Y-%m-%dT%H:%M:%S.%f+00:00'), '.000000', '') as {0}"
    columns = [text.format(name) if name == task.data.timestamp else name for name in task.data.columns]
    return _duckdb(
        task, f"select {', '.join(columns)} from orders_db.{task.data.table} order by {task.data.columns[0]}"
    )


def duckdb_query(task: Task, memory_limit: str | None = None) -> Job:
    """DuckDB has Postgres run the same SELECT."""
    quoted = task.select.replace("'", "''")
    # It buffers whole parts, which have 80 MB unless it is told that the file will be smaller.
    limits = [f"set memory_limit = '{memory_limit}'", "set s3_uploader_max_filesize = '50GB'"]
    settings = limits if memory_limit else []
    return _duckdb(task, f"select * from postgres_query('orders_db', '{quoted}')", settings)


def _duckdb(task: Task, select: str, settings: list[str] | None = None) -> Job:
    url = urlsplit(task.store.endpoint)
    secret = (
        f"create secret (type s3, key_id '{task.store.access_key}', secret '{task.store.secret_key}',"
        f" endpoint '{url.netloc}', url_style 'path', use_ssl {url.scheme == 'https'}, region '{task.store.region}')"
    )
    return {
        "extensions": ["duckdb_extension_postgres_scanner", "duckdb_extension_httpfs"],
        "setup": [secret, "attach '' as orders_db (type postgres, read_only)", *(settings or [])],
        "copy": f"copy ({select}) to 's3://{BUCKET}/{task.key}' (format csv, header)",
    }


def rivet(task: Task, fast: bool = False, own: bool = False) -> Job:
    """Rivet, at its defaults or at its fastest; with `own` it makes the text of the values. Writes a folder."""
    export = {
        "name": "benchmark",
        "query": task.data.query if own else task.select,
        "mode": "chunked" if fast else "full",
        **({"chunk_column": task.data.columns[0], "parallel": 2} if fast else {}),
        "format": "csv",
        "compression": "none",
        "destination": {
            "type": "s3",
            "bucket": BUCKET,
            "prefix": f"{task.key}/",
            "region": task.store.region,
            "endpoint": task.store.endpoint,
            "access_key_env": "AWS_ACCESS_KEY_ID",
            "secret_key_env": "AWS_SECRET_ACCESS_KEY",
        },
    }
    host = quote(task.setting.host, safe="")
    source = {
        "type": "postgres",
        "url": f"postgresql://{services.EXPORTER}@{host}/postgres",
        "tls": {"mode": "disable"},
        **({"tuning": {"profile": "fast"}} if fast else {}),
    }
    config = json.dumps({"source": source, "exports": [export]})  # JSON is YAML
    command = [str(rivet_program()), "--no-notify", "run", "--config", "rivet.yaml"]
    return {"commands": [command], "files": {"rivet.yaml": config}}


def sling(task: Task) -> Job:
    """Sling."""
    store = {
        "type": "s3",
        "bucket": BUCKET,
        "endpoint": task.store.endpoint,
        "access_key_id": task.store.access_key,
        "secret_access_key": task.store.secret_key,
        "region": task.store.region,
    }
    source = f"postgresql://{services.EXPORTER}@/postgres?host={quote(task.setting.host, safe='')}&sslmode=disable"
    command = [str(sling_program()), "run", "--src-conn", "SOURCE", "--src-stream", task.select]
    command += ["--tgt-conn", "TARGET", "--tgt-object", f"s3://{BUCKET}/{task.key}"]
    environment = {"SOURCE": source, "TARGET": json.dumps(store), "SLING_DISABLE_TELEMETRY": "true"}
    return {"commands": [command], "environment": environment, "home": "SLING_HOME_DIR"}


def rivet_program() -> Path | None:
    """Where Rivet is, if it is installed."""
    program = PEERS / "rivet"
    return program if program.exists() else None


def sling_program() -> Path | None:
    """Where Sling is, if it is installed and runs here; its package can be installed anywhere."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return None
    found = PEERS.parent.glob("lib/python*/site-packages/sling_linux_amd64/bin/sling-linux-amd64")
    return next(found, None)
