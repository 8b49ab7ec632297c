"""Exports from a standby server: what the manifest says of it, and what happens when recovery is in the way."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from demo import services
from demo.embedded_postgres import not_root, postgres, program
from streaming_export import DatabaseError
from tests.conftest import content, keys, make_exporter, open_uploads
from tests.streaming_export.exporting import export
from tests.streaming_export.waiting import Running, eventually

REPLICATION = {"wal_level": "replica", "max_wal_senders": "4"}
ROWS = 20_000


@pytest.fixture(scope="module")
def primary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of a server with a table of items, that others can follow."""
    with postgres(tmp_path_factory.mktemp("primary"), REPLICATION) as uri:
        make_exporter(uri)
        with psycopg.connect(uri) as connection:
            connection.execute("CREATE TABLE items (id bigint PRIMARY KEY, name text)")
            connection.execute("INSERT INTO items SELECT i, 'item ' || i FROM generate_series(1, %s) AS i", [ROWS])
            connection.execute(f"GRANT SELECT ON items TO {services.EXPORTER}")
        yield uri


@pytest.fixture(scope="module")
def standby(primary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.Engine]:
    """A server that follows the primary, and waits for no query when it has to remove something."""
    folder = tmp_path_factory.mktemp("standby")
    command = [*not_root(), program("pg_basebackup"), "--dbname", primary, "--pgdata", str(folder / "data")]
    subprocess.run([*command, "--write-recovery-conf", "--checkpoint=fast", "--no-sync"], check=True)
    with postgres(folder, {**REPLICATION, "max_standby_streaming_delay": "0"}) as uri:
        url = sa.make_url(uri).set(drivername="postgresql+psycopg2", username=services.EXPORTER)
        yield sa.create_engine(url, poolclass=sa.NullPool)


def test_an_export_from_a_standby(standby: sa.Engine, client: Any, bucket: str) -> None:
    """It has all rows, and its manifest says that it is from a standby, and how far that had come."""
    query = "SELECT id, name FROM items"
    result = export(
        query, engine=standby, client=client, bucket=bucket, key="a.csv", unique_key="id", yield_per=ROWS // 3
    )
    assert (result.rows, result.rows_verified) == (ROWS, True)
    assert content(client, bucket, "a.csv").endswith(b"\n20000,item 20000\n")
    snapshot = json.loads(content(client, bucket, "a.csv.manifest.json"))["snapshot"]
    assert snapshot["standby"] is True
    assert snapshot["wal_position"]


def test_the_wait_on_a_standby(standby: sa.Engine, client: Any, bucket: str) -> None:
    """A standby does not show what runs on its primary: a window is exported, and the manifest says so."""
    window = ("2026-11-01T00:00:00+00:00", "2026-11-02T00:00:00+00:00")
    arguments = {"engine": standby, "client": client, "bucket": bucket, "key": "a.csv", "window": window}
    export("SELECT id, name FROM items", wait_for_transactions=10, **arguments)
    waited = json.loads(content(client, bucket, "a.csv.manifest.json"))["older_transactions"]
    assert "standby" in waited["unseen"]


def test_a_conflict_with_recovery(primary: str, standby: sa.Engine, client: Any, bucket: str) -> None:
    """An export that reads what the standby must remove ends, unpublished, and says what to do."""
    query = f"SELECT id, name, CASE WHEN id = {ROWS - 1} THEN pg_sleep(60)::text END AS nap FROM items"
    arguments = {"engine": standby, "client": client, "bucket": bucket, "key": "a.csv", "unique_key": "id"}
    exporting = Running(lambda: export(query, application_name="conflict", **arguments))
    assert eventually(lambda: sleeps(standby))
    with psycopg.connect(primary, autocommit=True) as connection:
        connection.execute("DELETE FROM items WHERE id <= 10000")
        connection.execute("VACUUM items")
    assert exporting.ends()
    assert isinstance(exporting.error, DatabaseError)
    assert exporting.error.sqlstate == "40001"
    told = str(exporting.error)
    assert "Nothing was published" in told
    assert "max_standby_streaming_delay" in told
    assert "hot_standby_feedback" in told
    assert keys(client, bucket) == []
    assert open_uploads(client, bucket) == []


def sleeps(engine: sa.Engine) -> bool:
    """Whether the export on this server has come to its nap."""
    naps = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'conflict' AND wait_event = 'PgSleep'"
    with engine.connect() as connection:
        return bool(connection.exec_driver_sql(naps).scalar())
