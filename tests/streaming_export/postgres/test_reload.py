"""Tables that somebody reloads, rewrites or swaps while an export begins: it has the old rows, or the new ones."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from demo import services
from streaming_export import DatabaseError, Options, open_csv
from streaming_export.postgres.counting import KeyFaults
from tests.conftest import let_export
from tests.streaming_export.postgres.statements import another, watched
from tests.streaming_export.waiting import PATIENCE, Running, eventually

OLD, NEW = 300, 400

SIDE_BY_SIDE = 12  # at a time: the server takes 100 connections

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
    "ranges": {"unique_key": "id", "options": Options(yield_per=100, readers=2)},
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
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            assert eventually(lambda: self._done or self._waits(connection))

    @property
    def begun(self) -> bool:
        """Whether it has begun."""
        return self._running is not None

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

    def _waits(self, connection: sa.Connection) -> bool:
        sql = f"SELECT FROM pg_stat_activity WHERE pid = {self._pid} AND wait_event_type = 'Lock'"
        return bool(connection.exec_driver_sql(sql).fetchall())


def search(schema: str) -> dict[str, str]:
    """Connect arguments with a schema as search path."""
    return {"options": f"-c search_path={schema}"}


def read(engine: sa.Engine, way: dict[str, Any]) -> list[str]:
    """The rows, in order, as lines."""
    with open_csv("SELECT * FROM t", engine=engine, **way) as csv:
        return sorted(b"".join(csv).decode().splitlines()[1:])


def rows_of(engine: sa.Engine) -> list[str]:
    with engine.connect() as connection:
        return sorted(f"{key},{value}" for key, value in connection.exec_driver_sql("SELECT id, v FROM t"))


@contextmanager
def a_table(engine: sa.Engine, table: str) -> Iterator[tuple[sa.Engine, str]]:
    """A new schema with a table, and an engine with it as its search path."""
    schema = f"reload_{uuid.uuid4().hex}"
    own = sa.create_engine(engine.url, connect_args=search(schema))
    with own.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
        let_export(connection, schema)
        connection.exec_driver_sql(table)
    yield own, schema
    with own.begin() as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")
    own.dispose()


def until_it_waits(engine: sa.Engine) -> None:
    """Return when an export waits for a lock."""
    waiting = (
        f"SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = '{services.EXPORTER}'"
        " AND application_name = 'streaming_export'"
    )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        assert eventually(lambda: connection.exec_driver_sql(waiting).fetchall())


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(("table", "change"), CHANGES.values(), ids=CHANGES)
def test_a_change_that_is_open_is_waited_for(
    engine: sa.Engine, exporter: sa.Engine, table: str, change: str, way: dict[str, Any]
) -> None:
    """A change that has begun and not ended is waited for, as a SELECT would wait; the rows are the new ones."""
    with a_table(engine, table) as (own, schema):
        other = Change(own, change)
        other.begin()
        reading = Running(lambda: read(another(exporter, connect_args=search(schema)), way))
        until_it_waits(engine)
        other.end()
        assert reading.ends()
        assert reading.error is None
        assert reading.result == rows_of(own)
        assert len(rows_of(own)) == NEW


def test_the_key_is_judged_by_the_table_that_is_read(engine: sa.Engine, exporter: sa.Engine) -> None:
    """Somebody who drops the key's index and repeats a key is waited for; then the old index proves nothing."""

    def faults() -> KeyFaults | None:
        place = another(exporter, connect_args=search(schema))
        with open_csv("SELECT * FROM t", engine=place, unique_key="id", options=Options(readers=1)) as csv:
            assert b"".join(csv).count(b"\n") == 1 + OLD + 1
        return csv.key_faults

    with a_table(engine, TABLE) as (own, schema):
        other = Change(own, "ALTER TABLE t DROP CONSTRAINT t_pkey; INSERT INTO t VALUES (1, 2)")
        other.begin()
        reading = Running(faults)
        until_it_waits(engine)
        other.end()
        assert reading.ends()
        assert (reading.error, reading.result) == (None, KeyFaults(nulls=0, repeated=1))


def test_a_function_that_has_become_volatile(engine: sa.Engine, exporter: sa.Engine) -> None:
    """What the query calls is judged by the functions that it calls, also if they were replaced while it waited."""
    before = f"{TABLE}; CREATE FUNCTION f(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN $1; END'"
    after = "LOCK TABLE t; CREATE OR REPLACE FUNCTION f(int) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN $1; END'"

    def repeats() -> str:
        place = another(exporter, connect_args=search(schema))
        with open_csv("SELECT id, f(v) AS v FROM t", engine=place, unique_key="id") as csv:
            return csv.plan.repeats

    with a_table(engine, before) as (own, schema):
        other = Change(own, after)
        other.begin()
        reading = Running(repeats)
        until_it_waits(engine)
        other.end()
        assert reading.ends()
        assert (reading.error, reading.result) == (None, "never")


@pytest.mark.parametrize(("table", "change"), CHANGES.values(), ids=CHANGES)
def test_a_change_between_two_steps(engine: sa.Engine, exporter: sa.Engine, table: str, change: str) -> None:
    """A change that begins before any statement of an export gives the old rows, the new ones, or an error."""

    def run(way: str, step: int | None) -> tuple[str, int]:
        with a_table(engine, table) as (own, schema):
            return _outcome(own, another(exporter, connect_args=search(schema)), change, WAYS[way], step)

    # Side by side, since most of the time somebody waits for a lock.
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        undisturbed = dict(zip(WAYS, pool.map(run, WAYS, itertools.repeat(None)), strict=True))
        steps = [(way, step) for way, (_, statements) in undisturbed.items() for step in range(statements)]
        ends = pool.map(lambda step: run(*step), steps)
        outcomes = [(*step, outcome) for step, (outcome, _) in zip(steps, ends, strict=True)]
    for way, (outcome, statements) in undisturbed.items():
        assert outcome == "old"
        assert statements > 8, "the export has more steps"
        found = {outcome for of, _, outcome in outcomes if of == way}
        assert {"old", "new"} <= found, way
    assert [one for one in outcomes if one[2] not in ("old", "new", "error")] == []


def test_a_patient_role_waits_for_nobody_who_waits_for_it(engine: sa.Engine, exporter: sa.Engine) -> None:
    """Whoever asks for a lock between those of the export waits for it: it lets go soon, whatever lock_timeout is."""
    with a_table(engine, TABLE) as (own, schema):
        other = Change(own, CHANGES["a reload"][1])

        def before(statement: str) -> None:
            if "pg_export_snapshot" in statement and not other.begun:
                other.begin()
                other.finish()

        patient = another(exporter, connect_args={"options": f"-c search_path={schema} -c lock_timeout=1min"})
        reading = Running(lambda: read(watched(patient, before), WAYS["ranges"]))
        assert reading.ends(within=20)
        assert reading.error is None
        other.end()
        assert reading.result == rows_of(own)


def _outcome(
    own: sa.Engine, exporter: sa.Engine, change: str, way: dict[str, Any], step: int | None
) -> tuple[str, int]:
    """What an export reads when the change begins before its statement `step`, and how many statements it has."""
    old, statements, lock = rows_of(own), 0, threading.Lock()
    other = Change(own, change)

    def before(statement: str) -> None:
        nonlocal statements
        with lock:
            if statements == step:
                other.begin()
                other.finish()
            statements += 1

    try:
        rows = read(watched(exporter, before), way)
    except DatabaseError as exc:
        assert (exc.transient, exc.sqlstate) == (True, "55P03")  # noqa: PT017 - the rows are what the test is about
        return "error", statements
    finally:
        other.end()
    if step is not None:
        assert statements > step
        assert rows_of(own) != old
    return {tuple(rows_of(own)): "new", tuple(old): "old"}.get(tuple(rows), f"{len(rows)} rows"), statements
