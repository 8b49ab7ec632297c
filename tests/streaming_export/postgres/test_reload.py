"""Tables that somebody reloads, rewrites or swaps while an export begins: it has the old rows, or the new ones."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg2
import psycopg2.extensions
import pytest
import sqlalchemy as sa

from demo import services
from streaming_export import DatabaseError, Options, open_csv
from tests.streaming_export.waiting import PATIENCE, Running, eventually

OLD, NEW = 300, 400

#: By name: what makes the table, with OLD rows, and what changes it to NEW rows, in one transaction.
TABLE = f"""
    CREATE TABLE t (id int PRIMARY KEY, v int);
    INSERT INTO t SELECT n, 1 FROM generate_series(1, {OLD}) AS n
"""
PARTITIONED = f"""
    CREATE TABLE t (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
    CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO ({OLD // 2});
    CREATE TABLE t_2 PARTITION OF t FOR VALUES FROM ({OLD // 2}) TO (10000);
    INSERT INTO t SELECT n, 1 FROM generate_series(1, {OLD}) AS n
"""
CHANGES = {
    "a reload": (TABLE, f"TRUNCATE t; INSERT INTO t SELECT n, 2 FROM generate_series(1, {NEW}) AS n"),
    "a rewrite": (
        TABLE,
        "ALTER TABLE t ALTER v TYPE bigint USING 2;"
        f" INSERT INTO t SELECT n, 2 FROM generate_series({OLD + 1}, {NEW}) AS n",
    ),
    "a swap": (
        TABLE,
        "CREATE TABLE fresh (LIKE t INCLUDING ALL);"
        f" INSERT INTO fresh SELECT n, 2 FROM generate_series(1, {NEW}) AS n;"
        " ALTER TABLE t RENAME TO retired; ALTER TABLE fresh RENAME TO t",
    ),
    "a partition": (
        PARTITIONED,
        f"UPDATE t_1 SET v = 2; TRUNCATE t_2; INSERT INTO t SELECT n, 2 FROM generate_series({OLD // 2}, {NEW}) AS n",
    ),
}
WAYS: dict[str, dict[str, Any]] = {
    "ranges": {"unique_key": "id", "options": Options(yield_per=100)},
    "stream": {"options": Options(verify_rows=False)},
    "rows": {"unique_key": "id", "options": Options(method="rows")},
}


class Change:
    """A transaction of somebody else's, in a thread of its own."""

    def __init__(self, engine: sa.Engine, statements: str) -> None:
        self._engine = engine
        self._statements = statements
        self._commit = threading.Event()
        self._pid = 0
        self._done = False
        self._running: Running | None = None

    def begin(self) -> None:
        """Return when all is done but for the commit, or when it waits for a lock."""
        self._running = Running(self._work)
        assert eventually(lambda: self._done or self._waits())

    def finish(self) -> None:
        """Commit; it may have to wait for the export, which must not wait for it then."""
        self._commit.set()

    def end(self) -> None:
        """Return when it is over."""
        self._commit.set()
        if self._running:
            assert self._running.ends(within=PATIENCE)
            assert self._running.error is None

    def _work(self) -> None:
        with self._engine.begin() as connection:
            self._pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            connection.exec_driver_sql(self._statements)
            self._done = True
            assert self._commit.wait(PATIENCE)

    def _waits(self) -> bool:
        sql = f"SELECT FROM pg_stat_activity WHERE pid = {self._pid} AND wait_event_type = 'Lock'"
        with self._engine.connect() as connection:
            return bool(connection.exec_driver_sql(sql).fetchall())


def exporting(engine: sa.Engine, schema: str, before: Callable[[str], None]) -> sa.Engine:
    """An engine of the role that exports, which calls `before` with each statement."""

    class Cursor(psycopg2.extensions.cursor):
        def execute(self, query: Any, vars: Any = None) -> None:
            before(str(query))
            super().execute(query, vars)

        def copy_expert(self, sql: Any, file: Any, size: int = 8192) -> None:
            before(str(sql))
            super().copy_expert(sql, file, size)

    url = engine.url.set(username=services.EXPORTER)
    arguments = {"cursor_factory": Cursor, "options": f"-c search_path={schema}"}
    return sa.create_engine(url, poolclass=sa.NullPool, connect_args=arguments)


def read(engine: sa.Engine, way: dict[str, Any]) -> list[str]:
    """The rows, in order, as lines."""
    with open_csv("SELECT * FROM t", engine=engine, **way) as csv:
        return sorted(b"".join(csv).decode().splitlines()[1:])


def rows_of(engine: sa.Engine) -> list[str]:
    with engine.connect() as connection:
        return sorted(f"{key},{value}" for key, value in connection.exec_driver_sql("SELECT id, v FROM t"))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(("table", "change"), CHANGES.values(), ids=CHANGES)
def test_a_change_that_is_open_is_waited_for(
    engine: sa.Engine, schema: str, table: str, change: str, way: dict[str, Any]
) -> None:
    """A change that has begun and not ended is waited for, as a SELECT would wait; the rows are the new ones."""
    with engine.begin() as connection:
        connection.exec_driver_sql(table)
    other = Change(engine, change)
    other.begin()
    reading = Running(lambda: read(exporting(engine, schema, lambda _: None), way))
    waiting = (
        f"SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = '{services.EXPORTER}'"
        " AND application_name = 'streaming_export'"
    )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        assert eventually(lambda: connection.exec_driver_sql(waiting).fetchall())
    other.end()
    assert reading.ends()
    assert reading.error is None
    assert reading.result == rows_of(engine)
    assert len(rows_of(engine)) == NEW


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(("table", "change"), CHANGES.values(), ids=CHANGES)
def test_a_change_between_two_steps(
    engine: sa.Engine, schema: str, table: str, change: str, way: dict[str, Any]
) -> None:
    """A change that begins before any statement of an export gives the old rows, the new ones, or an error."""
    step, outcomes = 0, set()
    while (outcome := _outcome(engine, schema, table, change, way, step)) is not None:
        outcomes.add(outcome)
        step += 1
    assert step > 8, "the export has more steps"
    assert outcomes <= {"old", "new", "error"}
    assert "old" in outcomes
    assert "new" in outcomes


def _outcome(engine: sa.Engine, schema: str, table: str, change: str, way: dict[str, Any], step: int) -> str | None:
    """What an export reads when the change begins before its statement `step`; None if it has none."""
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS t, retired")
        connection.exec_driver_sql(table)
    old, statements, lock = rows_of(engine), 0, threading.Lock()
    other = Change(engine, change)

    def before(statement: str) -> None:
        nonlocal statements
        with lock:
            statements += 1
            if statements == step + 1:
                other.begin()
                other.finish()

    try:
        rows = read(exporting(engine, schema, before), way)
    except DatabaseError as exc:
        assert exc.transient  # noqa: PT017 - the rows are what the test is about
        return "error"
    finally:
        other.end()
    if statements <= step:
        return None
    return {tuple(old): "old", tuple(rows_of(engine)): "new"}.get(tuple(rows), f"{len(rows)} rows at step {step}")
