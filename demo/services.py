"""PostgreSQL, an S3 server and Airflow's environment for `make demo`, `make ui` and the tests.

Each service is a context manager. It is gone when the block ends, and also when the program that
opened it dies in whatever way (see guard.py). Nothing listens beyond this machine.
"""

import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import psycopg
from botocore.config import Config
from psycopg.sql import SQL, Identifier

from demo.embedded_postgres import postgres
from demo.guard import guarded, wait_until

__all__ = [
    "airflow_environment",
    "analytics",
    "count_orders",
    "create_bucket",
    "isolate_environment",
    "load_orders",
    "make_exporter",
    "postgres",
    "s3",
    "s3_client",
]

PROJECT = Path(__file__).resolve().parent.parent
BUCKET = "exports"
REGION = "us-east-1"
EXPORTER = "orders_exporter"  # as in plugins/orders/exporter_role.sql
ACCESS_KEY, SECRET_KEY = "demo", "demo-secret"  # the S3 server takes any


@contextmanager
def s3(log: Path | None = None) -> Iterator[str]:
    """Run an S3 server (moto) in a process of its own; yields its endpoint URL.

    It takes any access key, listens on a loopback port that the kernel chooses, and forgets its
    objects at the end. Its log goes to `log`, or nowhere.
    """
    command = [sys.executable, "-P", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    found: list[str] = []
    with log.open("w+b") if log else tempfile.TemporaryFile() as output:

        def find() -> bool:
            text = os.pread(output.fileno(), 10_000, 0).decode(errors="replace")
            found.extend(re.findall(r"Running on (http://127\.0\.0\.1:\d+)", text))
            return bool(found)

        with guarded(command, output) as server:
            wait_until(find, server, output, "The S3 server")
            yield found[0]


def create_bucket(endpoint_url: str, bucket: str = BUCKET) -> None:
    """Create `bucket` on the server at `endpoint_url`; a browser may read what is in it."""
    s3_client(endpoint_url).create_bucket(Bucket=bucket, ACL="public-read")


def s3_client(endpoint_url: str, config: Config | None = None) -> Any:
    """A boto3 client for the server of `s3`, whatever AWS settings the user has."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=config,
    )


def load_orders(uri: str, rows: int) -> int:
    """Fill the table `orders` with `rows` rows by orders.sql; returns the number of rows it holds.

    Replaces the table unless it is from the same orders.sql and has that many rows already.
    """
    sql = Path(__file__).with_name("orders.sql").read_text(encoding="utf-8")
    label = f"demo/orders.sql {hashlib.sha256(sql.encode()).hexdigest()[:16]}"
    with psycopg.connect(uri, autocommit=True) as connection:
        found = connection.execute("select obj_description(to_regclass('orders'), 'pg_class')").fetchone()
        if found != (label,) or count_orders(uri) != rows:
            with connection.transaction():
                connection.execute("drop table if exists orders")
                connection.execute("select set_config('demo.orders', %s, true)", [str(rows)])
                connection.execute(sql)
                connection.execute(f"comment on table orders is '{label}'")
            connection.execute("vacuum orders")  # now, or autovacuum does it in the middle of the export
    return count_orders(uri)


def make_exporter(uri: str) -> None:
    """Make the role that exports the table `orders` and can do nothing else, by the script that users run."""
    script = PROJECT / "plugins" / "orders" / "exporter_role.sql"
    with psycopg.connect(uri) as connection:
        connection.execute(script.read_text(encoding="utf-8"))


def analytics(uri: str) -> str:
    """The URI of the database `analytics` on the same server, made if it is not there."""
    with psycopg.connect(uri, autocommit=True) as connection:
        if not connection.execute("select from pg_database where datname = 'analytics'").fetchall():
            connection.execute("create database analytics")
    return urlsplit(uri)._replace(path="/analytics").geturl()


def count_orders(uri: str, schema: str | None = None) -> int:
    """The number of rows in the table `orders`, of this schema or of the first on the search path."""
    with psycopg.connect(uri) as connection:
        table = Identifier(schema, "orders") if schema else Identifier("orders")
        query = SQL("select count(*) from {}").format(table)
        [(count,)] = connection.execute(query).fetchall()
    return int(count)


def isolate_environment() -> None:
    """Remove from `os.environ` what would lead Airflow, libpq, boto3 or OpenLineage to the user's own systems.

    To be called before Airflow is imported. Child processes inherit the result.
    """
    for name in list(os.environ):
        if name.startswith(("AIRFLOW", "AWS_", "BOTO_", "OPENLINEAGE", "PG")):
            del os.environ[name]
    os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))


def airflow_environment(home: Path, postgres_uri: str, endpoint_url: str, bucket: str = BUCKET) -> dict[str, str]:
    """The variables that make Airflow keep its files in `home` and use this project's DAGs and the services.

    To be set before Airflow is imported.
    """
    database = {
        "conn_type": "postgres",
        "host": parse_qs(urlsplit(postgres_uri).query)["host"][0],
        "port": 5432,
        "schema": "postgres",
    }
    store = {
        "conn_type": "aws",
        "login": ACCESS_KEY,
        "password": SECRET_KEY,
        "extra": {"endpoint_url": endpoint_url, "region_name": REGION},
    }
    return {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{str(home).replace('%', '%25')}/airflow.db",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW_CONN_ORDERS_DB": json.dumps(database | {"login": EXPORTER}),
        "AIRFLOW_CONN_ANALYTICS_DB": json.dumps(database | {"login": "postgres", "schema": "analytics"}),
        "AIRFLOW_CONN_EXPORTS_S3": json.dumps(store),
        "AIRFLOW_VAR_ORDERS_EXPORT_BUCKET": bucket,
    }
