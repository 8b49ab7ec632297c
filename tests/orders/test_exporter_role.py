"""exporter_role.sql: the role that it makes exports, and can do nothing else."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from demo import services
from demo.embedded_postgres import program
from orders.models import select_orders
from streaming_export import DatabaseError
from tests.conftest import content
from tests.streaming_export.exporting import export

SCRIPT = services.PROJECT / "plugins" / "orders" / "exporter_role.sql"
ROWS = 1_000


@pytest.fixture(scope="module")
def shop(engine: sa.Engine, database: str) -> Iterator[sa.Engine]:
    """A superuser's engine of a database of its own: orders, another table, and the script run on it."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE DATABASE shop")
    uri = str(sa.make_url(database).set(database="shop"))
    services.load_orders(uri, ROWS)
    services.make_exporter(uri)
    superuser = sa.create_engine(engine.url.set(database="shop"), poolclass=sa.NullPool)
    with superuser.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE others (id int)")
        connection.exec_driver_sql("CREATE SEQUENCE counter")
    yield superuser
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DROP DATABASE shop WITH (FORCE)")


@pytest.fixture
def exporter(shop: sa.Engine) -> sa.Engine:
    """An engine of the role."""
    return sa.create_engine(shop.url.set(username=services.EXPORTER), poolclass=sa.NullPool)


def psql(shop: sa.Engine) -> None:
    """Run the script as its first lines say."""
    command = [program("psql"), "--single-transaction", "--set=ON_ERROR_STOP=1", "-f", SCRIPT]
    subprocess.run([*command, str(shop.url.set(drivername="postgresql"))], check=True, capture_output=True)


def rights(shop: sa.Engine) -> list[Any]:
    """What the role is, and what it was granted, in this database."""
    granted = "SELECT relname, relacl::text FROM pg_class WHERE relacl::text LIKE '%%orders_exporter%%'"
    role = "SELECT rolname, rolconfig::text FROM pg_roles WHERE rolname = 'orders_exporter'"
    member = "SELECT roleid::regrole::text, '' FROM pg_auth_members WHERE member = 'orders_exporter'::regrole"
    with shop.connect() as connection:
        return [tuple(row) for sql in (role, granted, member) for row in connection.exec_driver_sql(sql)]


@pytest.mark.parametrize("method", ["copy", "rows"])
def test_the_role_can_export(exporter: sa.Engine, client: Any, bucket: str, method: str) -> None:
    """It exports, and sees what the daily export has to wait for."""
    window = ("2026-10-01T00:00:00+00:00", "2026-11-01T00:00:00+00:00")
    result = export(
        select_orders(),
        engine=exporter,
        client=client,
        bucket=bucket,
        key="orders.csv",
        unique_key="id",
        method=method,
        window=window,
        wait_for_transactions=30,
    )
    assert result.rows == ROWS
    assert json.loads(content(client, bucket, "orders.csv.manifest.json"))["older_transactions"]["unseen"] is None


def test_the_role_has_connections_for_a_worker(exporter: sa.Engine, shop: sa.Engine, client: Any, bucket: str) -> None:
    """An export takes a connection for each reader and one more; the limit is for 16 exports, all being stopped."""
    role = f"ALTER ROLE {services.EXPORTER} CONNECTION LIMIT"
    with shop.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        limit = connection.exec_driver_sql(
            f"SELECT rolconnlimit FROM pg_roles WHERE rolname = '{services.EXPORTER}'"
        ).scalar_one()
        assert limit == 16 * (3 + 2)
        places: dict[str, Any] = {"engine": exporter, "client": client, "bucket": bucket, "unique_key": "id"}
        try:
            connection.exec_driver_sql(f"{role} 4")
            assert export(select_orders(), key="enough.csv", yield_per=100, readers=3, **places).rows == ROWS
            connection.exec_driver_sql(f"{role} 3")
            with pytest.raises(DatabaseError, match="too many connections") as caught:
                export(select_orders(), key="more.csv", yield_per=100, readers=3, **places)
            assert caught.value.transient
        finally:
            connection.exec_driver_sql(f"{role} {limit}")


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO orders SELECT * FROM orders",
        "UPDATE orders SET id = id",
        "DELETE FROM orders",
        "TRUNCATE orders",
        "DROP TABLE orders",
        "DO 'BEGIN LOCK TABLE orders; END'",
        "SELECT * FROM orders FOR UPDATE",
        "CREATE TABLE mine (id int)",
        "CREATE SCHEMA mine",
        "SELECT * FROM others",
        "SELECT nextval('counter')",
        "CREATE ROLE another",
        "ALTER ROLE orders_exporter CREATEDB",
        "CREATE DATABASE another",
        "SET SESSION AUTHORIZATION postgres",
        "COPY orders TO PROGRAM 'true'",
        "COPY orders TO '/dev/null'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres'",
        "SELECT rolpassword FROM pg_authid",
    ],
)
def test_the_role_can_do_nothing_else(exporter: sa.Engine, shop: sa.Engine, statement: str) -> None:
    """It reads one table: it writes nothing, makes nothing, and reads no other, even where it leaves read-only mode."""
    with (
        shop.connect(),  # a session to be left alone
        exporter.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
    ):
        connection.exec_driver_sql("SET default_transaction_read_only = off")
        with pytest.raises(sa.exc.ProgrammingError, match=r"permission denied|must be owner of"):
            connection.exec_driver_sql(statement)


def test_the_role_is_read_only_by_itself(exporter: sa.Engine, shop: sa.Engine) -> None:
    """What somebody else lets it call does not write either."""
    with shop.begin() as connection:
        connection.exec_driver_sql(
            "CREATE OR REPLACE FUNCTION spoil() RETURNS void LANGUAGE sql SECURITY DEFINER AS 'DELETE FROM orders'"
        )
    with exporter.connect() as connection, pytest.raises(sa.exc.InternalError, match="read-only transaction"):
        connection.exec_driver_sql("SELECT spoil()")
    assert services.count_orders(str(shop.url.set(drivername="postgresql"))) == ROWS


def test_the_script_runs_again_by_psql(shop: sa.Engine) -> None:
    """Run once more, and by psql, it changes nothing; after the table was created again it restores the grants."""
    before = rights(shop)
    assert [name for name, _ in before] == ["orders_exporter", "orders", "pg_read_all_stats"]
    psql(shop)
    assert rights(shop) == before
    with shop.begin() as connection:
        connection.exec_driver_sql("REVOKE ALL ON orders FROM orders_exporter")
    assert rights(shop) != before
    psql(shop)
    assert rights(shop) == before
