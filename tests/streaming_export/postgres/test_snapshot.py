"""One view of the data for all connections, which are the export's own, read only, and gone at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from streaming_export import DatabaseError, ExportError, open_csv
from streaming_export.postgres import snapshot
from streaming_export.postgres.sessions import BEGIN, Sessions, begun_by_driver
from tests.streaming_export.conftest import LENGTH, Execute, lines
from tests.streaming_export.exporting import read, take_options
from tests.streaming_export.postgres.statements import another, watched
from tests.streaming_export.waiting import Running, eventually

WAYS = [("copy", "id"), ("copy", None), ("rows", "id"), ("rows", None)]


@pytest.fixture
def role(engine: sa.Engine, schema: str) -> Iterator[sa.Engine]:
    """An engine of a role `test_reader` that may use the schema, and read nothing in it."""
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE ROLE test_reader LOGIN")
        connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA {schema} TO test_reader")
    yield sa.create_engine(engine.url.set(username="test_reader"), poolclass=sa.NullPool, hide_parameters=True)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP OWNED BY test_reader")
        connection.exec_driver_sql("DROP ROLE test_reader")


def sessions(engine: sa.Engine, application_name: str) -> list[str]:
    """States of the database's sessions of a name."""
    sql = sa.text("SELECT state FROM pg_stat_activity WHERE application_name = :name")
    with engine.connect() as connection:
        return list(connection.execute(sql, {"name": application_name}).scalars())


# One view


@pytest.mark.parametrize("moment", ["before the first byte", "after the first row"])
@pytest.mark.parametrize(("method", "unique_key"), WAYS)
def test_an_export_sees_one_snapshot(
    numbers: None,
    execute: Execute,
    exporter: sa.Engine,
    ranges: None,
    method: Any,
    unique_key: str | None,
    moment: str,
) -> None:
    """What others commit while an export runs, is not in its file: no row is missing, changed or added."""
    changes = (
        "DELETE FROM numbers WHERE id <= 5; UPDATE numbers SET name = 'changed';"
        " INSERT INTO numbers VALUES (-1, 'new'), (1000, 'new')"
    )
    query = "SELECT * FROM numbers ORDER BY id"
    options = take_options({"method": method, "yield_per": 3, "readers": 3})
    with open_csv(query, engine=exporter, unique_key=unique_key, options=options) as csv:
        if moment == "before the first byte":
            execute(changes)
        chunks = iter(csv)
        data = next(chunks) + next(chunks)
        if moment == "after the first row":
            execute(changes)
        data += b"".join(chunks)
        assert csv.verified
    assert data == lines(1, LENGTH)
    assert read(query, engine=exporter).startswith(b"id,name\n-1,new\n6,changed\n")


def test_the_snapshot_survives_idle_timeouts(role: sa.Engine, execute: Execute, numbers: None, ranges: None) -> None:
    """A role's time-out for idle transactions ends neither the snapshot's owner nor a reader that waits."""
    execute("GRANT SELECT ON numbers TO test_reader")
    execute("ALTER ROLE test_reader SET idle_in_transaction_session_timeout = '100ms'")
    with open_csv("SELECT * FROM numbers", engine=role, unique_key="id", options=take_options({"yield_per": 3})) as csv:
        time.sleep(0.3)
        assert b"".join(csv) == lines(1, LENGTH)


def test_what_is_known_of_a_snapshot(engine: sa.Engine, exporter: sa.Engine, execute: Execute) -> None:
    """Time and position, standby and version; no position where the role may not ask for it, as on hosted servers."""

    def look() -> Any:
        with open_csv("SELECT 1 AS a", engine=exporter) as csv:
            return csv.snapshot.info, csv.snapshot.server()

    info, server = look()
    assert info.taken_at.utcoffset() is not None
    assert (info.standby, "/" in info.wal_position, info.server_version[:2]) == (False, True, "18")
    assert server.startswith("database postgres on ")
    assert "(primary, snapshot of 20" in server
    execute("REVOKE EXECUTE ON FUNCTION pg_current_wal_lsn FROM PUBLIC")
    try:
        assert look()[0].wal_position is None
    finally:
        execute("GRANT EXECUTE ON FUNCTION pg_current_wal_lsn TO PUBLIC")


def test_a_lock_is_waited_for_for_a_bounded_time(
    engine: sa.Engine, numbers: None, exporter: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever holds a lock on what is read for longer fails the export before it has read a row; a retry may help."""
    monkeypatch.setattr(snapshot, "LOCK_SECONDS", 1.0)
    with engine.begin() as other:
        other.exec_driver_sql("LOCK TABLE numbers")
        with pytest.raises(DatabaseError, match=r"lock timeout.*\n.*pg_blocking_pids") as caught:
            read("SELECT * FROM numbers", engine=exporter, application_name="locked out")
    assert (caught.value.sqlstate, caught.value.transient) == ("55P03", True)
    assert eventually(lambda: not sessions(engine, "locked out"))


# Sessions


def test_a_dba_sees_who_reads(engine: sa.Engine, numbers: None, exporter: sa.Engine, ranges: None) -> None:
    """All connections of an export carry its application name: the snapshot's owner and the readers."""
    name = "airflow orders_export.export"
    options = take_options({"yield_per": 2, "readers": 3})
    with open_csv(
        "SELECT * FROM numbers", engine=exporter, unique_key="id", application_name=name, options=options
    ) as csv:
        assert len(sessions(engine, name)) == 2
        chunks = iter(csv)
        next(chunks)
        next(chunks)
        assert eventually(lambda: len(sessions(engine, name)) == 1 + 3)
    assert eventually(lambda: not sessions(engine, name))


@pytest.mark.parametrize(
    "query", ["SELECT nothing FROM numbers", "SELECT 1 / (id - 20) AS id FROM numbers", "SELECT pg_sleep(60) AS id"]
)
@pytest.mark.parametrize(("method", "unique_key"), WAYS)
def test_no_session_is_left(
    engine: sa.Engine, numbers: None, exporter: sa.Engine, ranges: None, query: str, method: Any, unique_key: str | None
) -> None:
    """Whatever a reading fails with, or who leaves it in the middle of a long query: its connections are gone."""
    options = take_options({"method": method, "yield_per": 2})
    arguments = {"engine": exporter, "unique_key": unique_key, "application_name": "failing", "options": options}

    def fail() -> None:
        with open_csv(query, **arguments) as csv:
            chunks = iter(csv)
            next(chunks)
            if "pg_sleep" in query:
                reading = Running(lambda: next(chunks))
                assert eventually(lambda: "active" in sessions(engine, "failing"))
                csv.cancel()
                assert reading.ends()
                assert reading.error
                raise reading.error
            list(chunks)

    with pytest.raises(ExportError):
        fail()
    assert eventually(lambda: not sessions(engine, "failing"))


@pytest.mark.parametrize("method", ["copy", "rows"])
def test_the_engines_pool_is_not_used(engine: sa.Engine, numbers: None, method: Any) -> None:
    """An engine whose pool is exhausted can export; and what an export sets never comes back through the pool."""
    # Of a role that may write, since it has to be able to afterwards.
    pooled = sa.create_engine(engine.url, poolclass=sa.QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.1)
    ask = sa.text("SELECT name, setting FROM pg_settings ORDER BY name")
    with pooled.connect() as connection:
        before = connection.execute(ask).all()
        data = read("SELECT * FROM numbers", engine=pooled, unique_key="id", method=method, application_name="pooled")
        assert data == lines(1, LENGTH)
    with pooled.connect() as connection:
        assert connection.execute(ask).all() == before
        connection.execute(sa.text("UPDATE numbers SET name = name WHERE id = 7"))
        connection.rollback()
    assert pooled.pool.checkedin() == 1  # type: ignore[attr-defined]
    pooled.dispose()
    assert eventually(lambda: not sessions(engine, "pooled"))


def test_connections_are_made_as_the_engine_makes_them(numbers: None, exporter: sa.Engine) -> None:
    """Its connect arguments, its events and its function that connects are used."""
    made: list[str] = []
    connect = exporter.dialect.loaded_dbapi.connect
    arguments = exporter.dialect.create_connect_args(exporter.url)[1]

    def creator() -> Any:
        made.append("own")
        return connect(**arguments)

    own = sa.create_engine("postgresql+psycopg2://", creator=creator, poolclass=sa.NullPool)
    assert read("SELECT * FROM numbers", engine=own, unique_key="id", readers=1) == lines(1, LENGTH)
    assert len(made) >= 2
    told = another(exporter, connect_args={"options": "-c work_mem=123kB"})
    sa.event.listen(told, "connect", lambda connection, record: made.append("event"))
    assert read("SELECT current_setting('work_mem') AS a", engine=told) == b"a\n123kB\n"
    assert made.count("event") >= 2


def test_an_export_asks_few_questions_before_it_reads(numbers: None, exporter: sa.Engine, ranges: None) -> None:
    """Each is a round trip: to a database far away, what comes before the first row would take longer than the rows."""
    asked: list[tuple[str, str]] = []

    def ask(statement: str) -> None:
        asked.append((threading.current_thread().name, statement))

    with open_csv("SELECT * FROM numbers", engine=watched(another(exporter), ask), unique_key="id") as csv:
        assert b"".join(csv) == lines(1, LENGTH)
    first = next(number for number, (_, statement) in enumerate(asked) if statement.startswith("COPY"))
    # The other reader opens its connection meanwhile.
    meanwhile = {thread for thread, statement in asked if thread.startswith("reader") and "pg_backend_pid" in statement}
    before = [statement for thread, statement in asked[:first] if thread not in meanwhile]
    assert len(before) <= 10, before


def test_a_session_only_reads(exporter: sa.Engine, engine: sa.Engine) -> None:
    """The transaction is read only, whoever begins it, and any other that a query's text could begin."""
    own = Sessions(engine, "test", {})
    connection, by_driver = own.open(5.0), begun_by_driver(own.open(5.0), "REPEATABLE READ")
    connection.exec_driver_sql(BEGIN)
    for one in (connection, by_driver):
        assert one.exec_driver_sql("SHOW transaction_read_only").scalar_one() == "on"
        assert one.exec_driver_sql("SHOW transaction_isolation").scalar_one() == "repeatable read"
        one.exec_driver_sql("COMMIT")
    assert by_driver.exec_driver_sql("SHOW transaction_read_only").scalar_one() == "on"
    assert connection.exec_driver_sql("SHOW transaction_read_only").scalar_one() == "on"
    own.end()


# Who may not, and what does not answer


def test_a_role_that_may_not_read(role: sa.Engine, numbers: None) -> None:
    """A query that the role may not run is refused with the database's message."""
    with pytest.raises(DatabaseError, match="permission denied for table numbers") as caught:
        read("SELECT * FROM numbers", engine=role, unique_key="id")
    assert (caught.value.sqlstate, caught.value.transient) == ("42501", False)


def test_a_database_that_does_not_answer() -> None:
    """A database that can't be reached is a transient error, without the password."""
    engine = sa.create_engine("postgresql+psycopg2://someone:hunter2@/somewhere?host=/nowhere")
    with pytest.raises(DatabaseError, match=r"^Cannot connect to the database: .*/nowhere/") as caught:
        read("SELECT 1 AS a", engine=engine)
    assert caught.value.transient is True
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("option", [{"sslmod": "require"}, {"sslmode": "requires"}, {"target_session_attrs": "read"}])
def test_an_option_that_libpq_does_not_know(option: dict[str, str]) -> None:
    """No retry helps against a misspelt option of the connection, and the error says what to correct."""
    engine = sa.create_engine("postgresql+psycopg2://someone:hunter2@/somewhere?host=/nowhere", connect_args=option)
    with pytest.raises(DatabaseError, match=r"invalid .*(sslmod|read)(?s:.*)extra of the connection") as caught:
        read("SELECT 1 AS a", engine=engine)
    assert caught.value.transient is False
    assert "hunter2" not in str(caught.value)
