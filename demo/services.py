"""PostgreSQL, an S3 server and Airflow's environment for `make demo`, `make ui` and the tests.

Each service is a context manager. It ends with the block, or with the program that opened it, however that ends (see
guard.py). All of them listen on this machine only.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import date
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
from psycopg.sql import SQL, Identifier

from demo.embedded_postgres import postgres
from demo.embedded_s3 import ACCESS_KEY, REGION, SECRET_KEY, moto, s3_client, seaweedfs, weed
from demo.guard import guarded
from demo.locked import locked
from demo.steps import say

__all__ = [
    "ACCESS_KEY",
    "REGION",
    "SECRET_KEY",
    "airflow_environment",
    "alone",
    "analytics",
    "count_orders",
    "create_bucket",
    "guarded",
    "isolate_environment",
    "keeps_objects",
    "load_orders",
    "make_exporter",
    "moto",
    "postgres",
    "s3",
    "s3_client",
    "unpublish",
    "written",
]

PROJECT = Path(__file__).resolve().parent.parent
BUCKET = "exports"
UNTIL = date(2026, 11, 22)  # fixed, for tests that name days
EXPORTER = "orders_exporter"  # as in plugins/orders/exporter_role.sql


@contextmanager
def s3(folder: Path | None = None) -> Iterator[str]:
    """Run an S3 server, SeaweedFS; yields its endpoint URL.

    Its objects stay in `folder`; without one they are deleted at the end. On platforms without SeaweedFS it is moto,
    which never keeps its objects.
    """
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="s3-")))
        folder.mkdir(parents=True, exist_ok=True)
        if weed():
            server = seaweedfs(folder)
        else:
            say("There is no SeaweedFS for this machine. moto replaces it, and does not keep its objects.")
            server = moto(folder / "log")
        yield stack.enter_context(server)


def keeps_objects() -> bool:
    """Whether the server of `s3` finds its objects again when it is started in the same folder."""
    return weed() is not None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only demo in `folder`. Raises RuntimeError at once if another one is running."""
    with locked(folder / "lock"):
        yield


def create_bucket(endpoint_url: str, bucket: str = BUCKET) -> None:
    """Create `bucket` on the server at `endpoint_url`, unless it is there."""
    client = s3_client(endpoint_url)
    with suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket=bucket)


def unpublish(endpoint_url: str, bucket: str = BUCKET, prefix: str = "orders/orders-") -> None:
    """Remove the manifests of the nightly files: a run by hand replaces no file that has one (orders/runs.py)."""
    client = s3_client(endpoint_url)
    for item in client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", []):
        if item["Key"].endswith(".manifest.json"):
            client.delete_object(Bucket=bucket, Key=item["Key"])


def load_orders(uri: str, rows: int, until: date = UNTIL) -> int:
    """Fill the table `orders` with `rows` rows by orders.sql; returns the number of rows it holds.

    Replaces the table, unless it is from the same orders.sql and has that many rows.

    :param until: the day after the last of the 30 days (UTC) of the orders; the demo's is today.
    """
    sql = Path(__file__).with_name("orders.sql").read_text(encoding="utf-8")
    label = f"demo/orders.sql {hashlib.sha256(sql.encode()).hexdigest()[:16]} until {until}"
    with psycopg.connect(uri, autocommit=True) as connection:
        found = connection.execute("select obj_description(to_regclass('orders'), 'pg_class')").fetchone()
        if found != (label,) or count_orders(uri) != rows:
            with connection.transaction():
                connection.execute("drop table if exists orders")
                connection.execute("select set_config('demo.orders', %s, true)", [str(rows)])
                connection.execute("select set_config('demo.until', %s, true)", [until.isoformat()])
                connection.execute(sql)
                connection.execute(f"comment on table orders is '{label}'")
            connection.execute("vacuum orders")  # otherwise autovacuum does it during the export
    return count_orders(uri)


def written(uri: str) -> str:
    """The size of the databases, in words, as progress."""
    with psycopg.connect(uri) as connection:
        [(size,)] = connection.execute("select sum(pg_database_size(oid))::bigint from pg_database").fetchall()
    return f"{size / 1e6:,.0f} MB in the database"


def make_exporter(uri: str) -> None:
    """Create the role that can export the table `orders` and nothing else, by the script that users run."""
    script = PROJECT / "plugins" / "orders" / "exporter_role.sql"
    with psycopg.connect(uri) as connection:
        connection.execute(script.read_text(encoding="utf-8"))


def analytics(uri: str) -> str:
    """The URI of the database `analytics` on the same server, which is created if necessary."""
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
    """Remove from `os.environ` what would connect Airflow, libpq, boto3 or OpenLineage to the user's own systems.

    Call it before Airflow is imported. Child processes inherit the result.
    """
    for name in list(os.environ):
        if name.startswith(("AIRFLOW", "AWS_", "BOTO_", "OPENLINEAGE", "PG")):
            del os.environ[name]
    os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))


def airflow_environment(home: Path, postgres_uri: str, endpoint_url: str, bucket: str = BUCKET) -> dict[str, str]:
    """Environment variables that make Airflow keep its files in `home` and use this project's DAGs and the services.

    Set them before Airflow is imported.
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
