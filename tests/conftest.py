"""Real services for all tests: the demo's PostgreSQL and S3 server, started once a run."""

from __future__ import annotations

import atexit
import functools
import gc
import os
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import botocore.session
import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from demo import services
from demo.locked import locked
from tests.scheduling import pytest_collection_modifyitems, pytest_xdist_make_scheduler  # noqa: F401, pytest's hooks

services.isolate_environment()

# Airflow makes very many objects, which stay: to look for garbage among them so often took a quarter of its time.
gc.set_threshold(300_000)
# To take them apart takes seconds, for which the run would wait at its end, when everything is reported.
if "PYTEST_XDIST_WORKER" in os.environ:
    atexit.register(os._exit, 0)

# Each of Airflow's AWS hooks makes a session of its own, which would read S3's description from JSON again.
botocore.session.create_loader = functools.cache(botocore.session.create_loader)


ORDERS = 12_345

# libpq's option that gives a connection its search path.
SEARCH_PATH = "-c search_path="


def pytest_collection_finish() -> None:
    """Nothing that has been imported is garbage: who looks for some later, as Hypothesis does, can leave that out."""
    gc.freeze()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the services of this run."""
    return tmp_path_factory.mktemp("services")


@pytest.fixture(scope="session")
def database(folder: Path) -> Iterator[str]:
    """URI of a PostgreSQL server, without tables of ours; its role `orders_exporter` has no rights yet."""
    with services.postgres(folder / "postgres") as uri:
        make_exporter(uri)
        yield uri


@pytest.fixture(scope="session")
def endpoint(folder: Path) -> Iterator[str]:
    """URL of the S3 server that the demo uses: SeaweedFS, where there is one."""
    with services.s3(folder / "s3") as url:
        yield url


@pytest.fixture(scope="session")
def moto_endpoint(folder: Path) -> Iterator[str]:
    """URL of a moto, for what only that does."""
    with services.moto(folder / "moto.log") as url:
        yield url


@pytest.fixture(scope="session")
def airflow_home(folder: Path, database: str, endpoint: str) -> Path:
    """Airflow's environment, with connections to the services; must come before any import of Airflow."""
    home = folder / "airflow"
    home.mkdir()
    services.create_bucket(endpoint)
    services.analytics(database)
    os.environ.update(services.airflow_environment(home, database, endpoint))
    return home


@pytest.fixture(scope="session")
def airflow_database(airflow_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Airflow's own database, for what runs DAGs; returns a copy as it was at first, for an Airflow of its own."""
    folder = tmp_path_factory.getbasetemp()
    run = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    new = run / "airflow" / "new.db"  # of all processes of this run
    made = airflow_home / "airflow.db"
    with locked(new.with_name("lock"), seconds=120):
        if not new.exists():
            from airflow.utils import db

            db.initdb()
            with sqlite3.connect(made) as source, sqlite3.connect(new) as copy:
                source.backup(copy)
    if not made.exists():
        shutil.copy(new, made)
    gc.freeze()  # nor is any of it garbage later
    return new


@pytest.fixture(scope="session")
def engine(database: str) -> Iterator[sa.Engine]:
    """An engine of the superuser, for what tests set up and look at."""
    engine = sa.create_engine(
        database.replace("postgresql://", "postgresql+psycopg2://"), poolclass=NullPool, hide_parameters=True
    )
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def pooled(engine: sa.Engine) -> Iterator[sa.Engine]:
    """The same with a pool, for what many tests set up: a new connection takes longer than most statements."""
    pooled = sa.create_engine(engine.url, hide_parameters=True)

    @sa.event.listens_for(pooled, "checkout")
    def set_search_path(connection: Any, record: Any, proxy: object) -> None:
        """Give it the search path that a new connection would have."""
        path = os.environ.get("PGOPTIONS", "").removeprefix(SEARCH_PATH) or "DEFAULT"
        if record.info.get("path") != path:
            connection.cursor().execute(f"SET search_path = {path}")
            connection.commit()
            record.info["path"] = path

    yield pooled
    pooled.dispose()


@pytest.fixture(scope="session")
def exporter(engine: sa.Engine) -> sa.Engine:
    """An engine of the role that exports, and can do nothing else."""
    return sa.create_engine(engine.url.set(username=services.EXPORTER), poolclass=NullPool, hide_parameters=True)


@pytest.fixture(scope="session")
def client(endpoint: str) -> Any:
    """A boto3 S3 client."""
    return services.s3_client(endpoint)


@pytest.fixture(scope="session")
def buckets(endpoint: str) -> Iterator[Iterator[str]]:
    """New buckets, made ahead: before the first object in one, SeaweedFS waits for a fifth of a second."""
    client = services.s3_client(endpoint)

    def make() -> str:
        name = f"test-{uuid.uuid4().hex}"
        client.create_bucket(Bucket=name)
        client.put_object(Bucket=name, Key="first", Body=b"x")
        client.delete_object(Bucket=name, Key="first")
        return name

    def made(ahead: int) -> Iterator[str]:
        making = [pool.submit(make) for _ in range(ahead)]
        while True:
            making.append(pool.submit(make))
            yield making.pop(0).result()

    with ThreadPoolExecutor(3, thread_name_prefix="buckets") as pool:
        yield made(ahead=4)


@pytest.fixture
def bucket(request: pytest.FixtureRequest, client: Any, endpoint: str) -> str:
    """A new, empty bucket of the client's store."""
    if client.meta.endpoint_url == endpoint:
        return str(next(request.getfixturevalue("buckets")))
    name = f"test-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=name)
    return name


@pytest.fixture
def schema(pooled: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A new schema, first on the search path of new connections, gone after the test; its tables can be exported."""
    with new_schema(pooled) as name:
        monkeypatch.setenv("PGOPTIONS", SEARCH_PATH + name)  # libpq's, of this process and its children alone
        yield name


@contextmanager
def new_schema(engine: sa.Engine) -> Iterator[str]:
    """A new schema, gone after the block; its tables can be exported."""
    name = f"test_{uuid.uuid4().hex}"
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {name}")
        let_export(connection, name)
    yield name
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL lock_timeout = '60s'")  # whoever still reads it must not hang the run
        connection.exec_driver_sql(f"DROP SCHEMA {name} CASCADE")


def others_environment() -> dict[str, str]:
    """The environment of a program with settings of its own: without those that fixtures and tasks have left in ours.

    Airflow leaves AIRFLOW_CTX_* of the last task, and each fixture above the settings of this session.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "_AIRFLOW", "PG"))}


def make_exporter(uri: str) -> None:
    """Make the role that exports, as users do, and take the table away again that it may read."""
    services.load_orders(uri, 1)
    services.make_exporter(uri)
    with psycopg.connect(uri) as connection:
        connection.execute("DROP TABLE orders")


def let_export(connection: sa.Connection, schema: str) -> None:
    """Let the role that exports read what is made in a schema from now on."""
    connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA {schema} TO {services.EXPORTER}")
    connection.exec_driver_sql(
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT SELECT ON TABLES TO {services.EXPORTER}"
    )


@pytest.fixture(scope="session")
def made_orders(database: str) -> Iterator[str]:
    """The name of a table with the rows of `orders` below."""
    schema = f"made_{uuid.uuid4().hex}"
    with pytest.MonkeyPatch.context() as environment, psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        environment.setenv("PGOPTIONS", SEARCH_PATH + schema)
        services.load_orders(database, ORDERS)
    yield f"{schema}.orders"
    with psycopg.connect(database) as connection:
        connection.execute(f"DROP SCHEMA {schema} CASCADE")


@pytest.fixture
def orders(pooled: sa.Engine, made_orders: str, schema: str) -> int:
    """A table `orders` of 12,345 rows, hostile addresses among them; returns their number."""
    with pooled.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql(f"CREATE TABLE orders (LIKE {made_orders} INCLUDING CONSTRAINTS)")
        connection.exec_driver_sql(f"INSERT INTO orders SELECT * FROM {made_orders}")
        connection.exec_driver_sql("ALTER TABLE orders ADD PRIMARY KEY (id)")
        connection.exec_driver_sql("CREATE INDEX ON orders (created_at)")
        connection.exec_driver_sql("VACUUM ANALYZE orders")  # otherwise autovacuum does it during the export
    return ORDERS


def content(client: Any, bucket: str, key: str) -> bytes:
    """All bytes of an object."""
    body: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    return body


def keys(client: Any, bucket: str) -> list[str]:
    """Keys of all visible objects; a manifest is named only where its file is not there."""
    found = [item["Key"] for item in client.list_objects_v2(Bucket=bucket).get("Contents", [])]
    return [key for key in found if key.removesuffix(".manifest.json") not in set(found) - {key}]


def open_uploads(client: Any, bucket: str) -> list[str]:
    """Keys of all multipart uploads that are neither completed nor aborted."""
    return [item["Key"] for item in client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])]
