"""Exports of a window: no row is missing whose transaction began in it, and what can't be seen is reported."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from demo import services
from demo.embedded_postgres import postgres
from streaming_export import Export, ExportCancelled, InvalidArgument, TransactionsRunning
from tests.conftest import content, keys, make_exporter
from tests.streaming_export.exporting import export, new_export
from tests.streaming_export.waiting import PATIENCE, Running, eventually

KEY = "day.csv"
Exports = Callable[..., list[int]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.Engine]:
    """A server of the module's own: sessions of other tests would be waited for."""
    with postgres(tmp_path_factory.mktemp("server"), {"max_prepared_transactions": "2"}) as uri:
        engine = sa.create_engine(uri.replace("postgresql://", "postgresql+psycopg2://"), poolclass=sa.NullPool)
        make_exporter(uri)
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE items (id bigint PRIMARY KEY, created_at timestamptz NOT NULL)")
            connection.exec_driver_sql("CREATE ROLE reader LOGIN")
            connection.exec_driver_sql(f"GRANT SELECT ON items TO reader, {services.EXPORTER}")
        yield engine


@pytest.fixture
def items(server: sa.Engine) -> Iterator[sa.Engine]:
    """The server, with one item of an hour ago."""
    with server.begin() as connection:
        connection.exec_driver_sql("INSERT INTO items VALUES (1, now() - interval '1 hour')")
    yield server
    with server.begin() as connection:
        connection.exec_driver_sql("DELETE FROM items")


@pytest.fixture
def exported(items: sa.Engine, client: Any, bucket: str) -> Exports:
    """Exports the items of the day that has ended at a time; returns the ids in the file."""
    exporter = sa.create_engine(items.url.set(username=services.EXPORTER), poolclass=sa.NullPool)

    def run(
        end: datetime, wait: int | None = PATIENCE, engine: sa.Engine | None = None, began: Any = id, **options: Any
    ) -> list[int]:
        window = ((end - timedelta(days=1)).isoformat(), end.isoformat())
        query = "SELECT id FROM items WHERE created_at >= :a AND created_at < :b"
        places = {"engine": engine or exporter, "client": client, "bucket": bucket, "key": KEY}
        values = {"a": window[0], "b": window[1]}
        options = {"unique_key": "id", "window": window, "wait_for_transactions": wait, **options}
        one = new_export(query, parameters=values, **places, **options)
        began(one)
        one.run()
        return [int(line) for line in content(client, bucket, KEY).split()[1:]]

    return run


def told(client: Any, bucket: str) -> dict[str, Any]:
    """What the manifest says of the wait."""
    found: dict[str, Any] = json.loads(content(client, bucket, f"{KEY}.manifest.json"))["older_transactions"]
    return found


def waiting(engine: sa.Engine, name: str) -> bool:
    """Whether an export waits: it has looked, and is connected without a query."""
    sql = sa.text("SELECT count(*) FROM pg_stat_activity WHERE application_name = :name AND state = 'idle'")
    with engine.connect() as connection:
        return bool(connection.execute(sql, {"name": name}).scalar())


def now(connection: sa.Connection) -> datetime:
    found: datetime = connection.exec_driver_sql("SELECT now()").scalar_one()
    return found


def test_a_transaction_open_across_the_end_is_waited_for(
    items: sa.Engine, exported: Exports, client: Any, bucket: str
) -> None:
    """An order whose transaction began before the window's end, and commits after it, is in the file."""
    with items.connect() as late:
        late.exec_driver_sql("INSERT INTO items VALUES (2, now())")
        end = now(late) + timedelta(milliseconds=1)
        exporting = Running(lambda: exported(end, application_name="across"))
        assert eventually(lambda: waiting(items, "across"))
        assert not exporting.ends(within=1)
        late.commit()
    assert exporting.ends()
    assert exporting.result == [1, 2]
    assert told(client, bucket)["waited_seconds"] >= 1
    assert told(client, bucket)["unseen"] is None


def test_without_the_wait_it_would_be_missing(items: sa.Engine, exported: Exports) -> None:
    """The case is real: an export that does not look publishes the window without the order."""
    with items.connect() as late:
        late.exec_driver_sql("INSERT INTO items VALUES (2, now())")
        assert exported(now(late) + timedelta(milliseconds=1), wait=None) == [1]
        late.commit()


def test_a_transaction_that_has_not_written_yet_is_waited_for(items: sa.Engine, exported: Exports) -> None:
    """It may still write, with the time of its beginning."""
    with items.connect() as late:
        end = now(late) + timedelta(milliseconds=1)
        exporting = Running(lambda: exported(end, application_name="unwritten"))
        assert eventually(lambda: waiting(items, "unwritten"))
        late.exec_driver_sql("INSERT INTO items VALUES (2, now())")
        late.commit()
    assert exporting.ends()
    assert exporting.result == [1, 2]


def test_later_transactions_are_not_waited_for(items: sa.Engine, exported: Exports) -> None:
    """What began after the window's end can't have a row of it: the past is exported whatever runs today."""
    with items.connect() as later:
        now(later)
        assert exported(datetime.now(UTC) - timedelta(seconds=10), wait=0) == [1]


def test_the_wait_is_bounded(items: sa.Engine, exported: Exports, client: Any, bucket: str) -> None:
    """A transaction that does not end fails the export, which says who it is and publishes nothing."""
    with items.connect() as late:
        pid = late.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        end = now(late) + timedelta(milliseconds=1)
        with pytest.raises(TransactionsRunning, match=rf"1 transactions .*pid {pid}; .*(?s:.*)Nothing was published"):
            exported(end, wait=1)
    assert keys(client, bucket) == []


def test_a_prepared_transaction_is_waited_for(items: sa.Engine, exported: Exports) -> None:
    """A transaction prepared for a two-phase commit has no session, and its rows are not there yet."""
    with items.connect() as late:
        end = now(late) + timedelta(milliseconds=1)
        late.exec_driver_sql("INSERT INTO items VALUES (2, now())")
        late.exec_driver_sql("PREPARE TRANSACTION 'late'")
    exporting = Running(lambda: exported(end, application_name="prepared"))
    assert eventually(lambda: waiting(items, "prepared"))
    with items.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
        other.exec_driver_sql("COMMIT PREPARED 'late'")
    assert exporting.ends()
    assert exporting.result == [1, 2]


def test_later_prepared_transactions_are_not_waited_for(items: sa.Engine, exported: Exports) -> None:
    """Those prepared when no older session was left are younger: steady two-phase commits hold up nobody for ever."""
    stop = threading.Event()

    def commit_in_two_phases() -> None:
        with items.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for number in itertools.count(3):
                connection.exec_driver_sql(
                    f"BEGIN; INSERT INTO items VALUES ({number}, now()); PREPARE TRANSACTION 'steady {number}'"
                )
                if number > 3:
                    connection.exec_driver_sql(f"COMMIT PREPARED 'steady {number - 1}'")
                if stop.wait(0.05):
                    connection.exec_driver_sql(f"COMMIT PREPARED 'steady {number}'")
                    return

    steady = Running(commit_in_two_phases)
    try:
        with items.connect() as connection:
            ids = exported(now(connection) - timedelta(seconds=30), wait=15)
    finally:
        stop.set()
        assert steady.ends()
    assert ids == [1]


def test_the_servers_clock_is_waited_for(items: sa.Engine, exported: Exports) -> None:
    """A run that starts before the window is over, by the server's clock, waits until it is."""
    with items.connect() as connection:
        end = now(connection) + timedelta(seconds=1.5)
    exporting = Running(lambda: exported(end, application_name="early"))
    assert eventually(lambda: waiting(items, "early"))
    with items.begin() as connection:
        connection.exec_driver_sql("INSERT INTO items VALUES (2, now())")
    assert exporting.ends()
    assert exporting.result == [1, 2]


def test_sessions_that_the_role_cannot_see_are_told(
    items: sa.Engine, exported: Exports, client: Any, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without pg_read_all_stats the sessions of other roles are not waited for: log and manifest say so."""
    reader = sa.create_engine(items.url.set(username="reader"), poolclass=sa.NullPool)
    with items.connect() as late:
        late.exec_driver_sql("INSERT INTO items VALUES (2, now())")
        assert exported(now(late) + timedelta(milliseconds=1), engine=reader) == [1]
    assert "pg_read_all_stats" in told(client, bucket)["unseen"]
    assert "pg_read_all_stats" in caplog.text


def test_with_the_privilege_they_are_waited_for(items: sa.Engine, exported: Exports, client: Any, bucket: str) -> None:
    """The role of exports may see them, and waits for the transactions of other roles."""
    with items.connect() as late:
        end = now(late) + timedelta(milliseconds=1)
        with pytest.raises(TransactionsRunning):
            exported(end, wait=0)
    assert exported(end) == [1]
    assert told(client, bucket)["unseen"] is None


def test_a_wait_can_be_cancelled(items: sa.Engine, exported: Exports, client: Any, bucket: str) -> None:
    """A task that is stopped while it waits ends, and has published nothing."""
    begun: list[Export] = []
    with items.connect() as late:
        end = now(late) + timedelta(milliseconds=1)
        exporting = Running(lambda: exported(end, began=begun.append, application_name="stopped"))
        assert eventually(lambda: waiting(items, "stopped"))
        begun[0].cancel()
        assert exporting.ends()
    assert isinstance(exporting.error, ExportCancelled)
    assert keys(client, bucket) == []


def test_the_engines_pool_is_not_used(items: sa.Engine, exported: Exports) -> None:
    """An engine whose pool is exhausted can wait as well, and gets nothing back that the wait has set."""
    url = items.url.set(username=services.EXPORTER)
    pooled = sa.create_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    ask = sa.text("SELECT name, setting FROM pg_settings ORDER BY name")
    with pooled.connect() as connection:
        before = connection.execute(ask).all()
        assert exported(datetime.now(UTC) - timedelta(seconds=10), engine=pooled) == [1]
    assert exported(datetime.now(UTC) - timedelta(seconds=10), engine=pooled) == [1]
    with pooled.connect() as connection:
        assert connection.execute(ask).all() == before
    pooled.dispose()


@pytest.mark.parametrize(
    "window",
    [
        None,
        ("2026-11-02T00:00:00+00:00", "2026-11-01T00:00:00+00:00"),
        ("2026-11-01T00:00:00", "2026-11-02T00:00:00"),
        ("yesterday", "today"),
    ],
)
def test_a_window_that_cannot_be_is_refused(items: sa.Engine, client: Any, bucket: str, window: Any) -> None:
    """The wait needs a window, and a window two times with an offset, in their order."""
    with pytest.raises(InvalidArgument, match="window="):
        export("SELECT 1", engine=items, client=client, bucket=bucket, key=KEY, window=window, wait_for_transactions=1)
