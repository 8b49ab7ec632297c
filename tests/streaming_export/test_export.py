"""export(): one query, one snapshot, one object; in order, whole, or not at all."""

from __future__ import annotations

import csv
import hashlib
import importlib
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool, QueuePool

import streaming_export
from demo import services
from orders.models import select_orders
from streaming_export import (
    EmptyResult,
    ExportResult,
    InvalidArgument,
    QueryError,
    UploadError,
    VerificationError,
    export,
)
from streaming_export.batches import find_cuts
from streaming_export.multipart import Upload
from streaming_export.query import describe
from streaming_export.reading import Reading
from streaming_export.snapshot import Snapshot
from tests.conftest import content, keys, open_uploads

KEY = "some/file.csv"
METHODS = ["copy", "rows"]
LENGTH = 23

Exports = Callable[..., tuple[ExportResult, bytes]]
Execute = Callable[[str], None]
Meanwhile = Callable[..., None]


@pytest.fixture
def exported(exporter: sa.Engine, schema: str, client: Any, bucket: str) -> Exports:
    """Exports a query to a bucket of the test's own; returns the result and the object's content."""

    def run(query: Any, **options: Any) -> tuple[ExportResult, bytes]:
        options = {"engine": exporter, "client": client, "bucket": bucket, "key": KEY, **options}
        result = export(query, **options)
        return result, content(client, bucket, options["key"])

    return run


@pytest.fixture
def execute(engine: sa.Engine, schema: str) -> Execute:
    """Executes SQL on a connection of its own, and commits."""

    def run(sql: str) -> None:
        with engine.begin() as connection:
            connection.execution_options(no_parameters=True).exec_driver_sql(sql)

    return run


@pytest.fixture
def numbers(execute: Execute) -> None:
    """A table `numbers` of 23 rows with the key `id` from 1, stored in another order."""
    execute(
        "CREATE TABLE numbers (id bigint PRIMARY KEY, name text);"
        f"INSERT INTO numbers SELECT i, 'row ' || i FROM generate_series({LENGTH}, 1, -1) AS i; ANALYZE numbers"
    )


@pytest.fixture
def always_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the planner's costs, which speak against batches of few rows, count for nothing."""
    monkeypatch.setattr(Reading, "_can_be_cut", lambda self, cost: self._query.unique_key is not None)


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Meanwhile:
    """Has an action done once in the middle of an export, when it first comes to a method.

    `Snapshot.connect`: the snapshot is taken, no reader is connected. `Upload.write`: no row is read.
    """

    def arrange(action: Callable[[], None], owner: type = Upload, name: str = "write") -> None:
        original, done = getattr(owner, name), []

        def act_first(*args: Any) -> Any:
            if not done:
                done.append(True)
                action()
            return original(*args)

        monkeypatch.setattr(owner, name, act_first)

    return arrange


@pytest.fixture
def role(engine: sa.Engine, schema: str) -> Iterator[sa.Engine]:
    """An engine of a role `test_reader` that may use the schema, and read nothing in it."""
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE ROLE test_reader LOGIN")
        connection.exec_driver_sql(f"ALTER ROLE test_reader SET search_path = {schema}")
        connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA {schema} TO test_reader")
    yield sa.create_engine(engine.url.set(username="test_reader"), poolclass=NullPool, hide_parameters=True)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP OWNED BY test_reader")
        connection.exec_driver_sql("DROP ROLE test_reader")


def lines(first: int, last: int) -> bytes:
    """The file of the rows of `numbers` from one key to another."""
    return ("id,name\n" + "".join(f"{i},row {i}\n" for i in range(first, last + 1))).encode()


def places(data: bytes) -> list[int]:
    """The numbers in the first column of a file."""
    _, *rows = csv.reader(io.StringIO(data.decode(), newline=""))
    return [int(row[0]) for row in rows]


def batch_sizes(engine: sa.Engine, query: str, unique_key: str | None, yield_per: int, readers: int = 2) -> list[int]:
    """Numbers of rows of the batches in which a query is read."""
    with Snapshot(engine, "test_export") as snapshot:
        described = describe(snapshot.holder, query, unique_key=unique_key)
        options: dict[str, Any] = {"method": "copy", "yield_per": yield_per, "readers": readers, "count": False}
        with Reading(snapshot, described, **options) as reading:
            return [rows for _, rows in reading if rows]


def sessions(engine: sa.Engine, application_name: str) -> list[str]:
    """States of the database's sessions of a name."""
    sql = sa.text("SELECT state FROM pg_stat_activity WHERE application_name = :name")
    with engine.connect() as connection:
        return list(connection.execute(sql, {"name": application_name}).scalars())


def sessions_end(engine: sa.Engine, application_name: str) -> bool:
    """Whether all sessions of a name end; the server takes a moment to notice that a client has gone."""
    deadline = time.monotonic() + 10
    while sessions(engine, application_name) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not sessions(engine, application_name)


def collation(engine: sa.Engine) -> str:
    """A collation that orders words as people do, if the server has one, and else the plainest."""
    for name in ("en-x-icu", "und-x-icu", "unicode"):
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql(f"SELECT 'a' < 'B' COLLATE \"{name}\"")
        except sa.exc.DBAPIError:
            continue
        return name
    return "C"


# Order and batches


@pytest.mark.parametrize(
    ("type_", "ordered"),
    [
        ("bigint", ["-9223372036854775808", "-10", "-9", "0", "9", "10", "9223372036854775807"]),
        ("smallint", ["-2", "-1", "0", "1"]),
        ("numeric", ["-1e30", "-0.5", "0", "0.0000000001", "9", "10", "1e30", "Infinity", "NaN"]),
        ("float8", ["-Infinity", "-1e300", "0.1", "0.30000000000000004", "1e300", "NaN"]),
        ("text", ["", " ", '"', "%s", "'", ",", "10", "9", "\\", "a\nb", "a\\'b", "ü", "😀"]),
        ("varchar(5)", ["10", "9", "a"]),
        ("char(4)", ["", "a", "a b", "ab"]),
        ("name", ["A", "a", "b"]),
        ("uuid", ["0" * 32, "0f" + "0" * 30, "f" * 32]),
        ("date", ["-infinity", "0044-03-15 BC", "1999-12-31", "2026-11-01", "12026-11-01", "infinity"]),
        (
            "timestamptz",
            ["-infinity", "0044-03-15 BC", "2026-11-01 00:00+02", "2026-11-01 00:00:00.000001+02", "infinity"],
        ),
        ("timestamp", ["0044-03-15 12:00 BC", "2026-11-01 00:00", "2026-11-01 00:00:00.000001", "infinity"]),
        ("interval", ["-1 day", "0", "1 hour", "1 mon -1 day", "1 year"]),
        ("boolean", ["false", "true"]),
        ("bytea", ["\\x", "\\x00", "\\x5c", "\\xff"]),
        ("inet", ["10.0.0.9", "10.0.0.10", "::1"]),
        ("rank", ["low", "middle", "high"]),
        ("integer[]", ["{}", "{1}", "{1,2}", "{NULL}"]),
        ("int4range", ["empty", "[1,3)", "[2,3)"]),
        ("small", ["1", "2", "10"]),
    ],
)
def test_keys_of_any_type_order_the_file(
    engine: sa.Engine, execute: Execute, exported: Exports, always_cut: None, type_: str, ordered: list[str]
) -> None:
    """Rows come in the order that the key has in Postgres, through batches of one row as in one stream."""
    execute("CREATE TYPE rank AS ENUM ('low', 'middle', 'high'); CREATE DOMAIN small AS smallint")
    execute(f"CREATE TABLE keyed (key {type_} PRIMARY KEY, place int)")
    insert = sa.text(f"INSERT INTO keyed VALUES (CAST(:key AS {type_}), :place)")
    with engine.begin() as connection:
        connection.execute(insert, [{"key": key, "place": place} for place, key in enumerate(ordered)][::-1])
    _, data = exported("SELECT place, key FROM keyed", unique_key="key", yield_per=1)
    assert places(data) == list(range(len(ordered)))
    assert data == exported("SELECT place, key FROM keyed ORDER BY key")[1]


def test_text_keys_have_their_own_collation(
    engine: sa.Engine, execute: Execute, exported: Exports, always_cut: None
) -> None:
    """Text is ordered, and cut, by the collation of the column, not by its bytes."""
    execute(f'CREATE TABLE keyed (key text COLLATE "{collation(engine)}" PRIMARY KEY, place int)')
    words = ["a", "B", "ä", "Z", "z", "aa", "a-b", "ab", "", " ", "É"]
    values = ", ".join(f"('{word}')" for word in words)
    execute(f"INSERT INTO keyed SELECT * FROM (VALUES {values}) AS v(key)")
    ranks = "SELECT key AS k, row_number() OVER (ORDER BY key) - 1 AS rank FROM keyed"
    execute(f"UPDATE keyed SET place = rank FROM ({ranks}) AS ranks WHERE key = k")
    _, data = exported("SELECT place, key FROM keyed", unique_key="key", yield_per=1)
    assert places(data) == list(range(len(words)))


@pytest.mark.parametrize("readers", [1, 2, 3])
@pytest.mark.parametrize("yield_per", [1, 2, 7, LENGTH - 1, LENGTH, LENGTH + 1])
def test_batches_hold_exactly_yield_per_rows(
    engine: sa.Engine, numbers: None, exported: Exports, always_cut: None, yield_per: int, readers: int
) -> None:
    """All batches have `yield_per` rows but for a shorter last one, and the file is that of one stream."""
    rest = LENGTH % yield_per
    expected = [yield_per] * (LENGTH // yield_per) + ([rest] if rest else [])
    assert batch_sizes(engine, "SELECT * FROM numbers", "id", yield_per, readers) == expected
    result, data = exported("SELECT * FROM numbers", unique_key="id", yield_per=yield_per, readers=readers)
    assert data == lines(1, LENGTH)
    assert (result.rows, result.rows_verified) == (LENGTH, True)


@pytest.mark.parametrize(
    ("yield_per", "cuts"), [(7, ["7", "14", "21"]), (LENGTH - 1, ["22"]), (LENGTH, ["23"]), (LENGTH + 1, [])]
)
def test_cuts_are_the_last_keys_of_whole_batches(
    engine: sa.Engine, numbers: None, yield_per: int, cuts: list[str]
) -> None:
    """A cut is the key of a batch's last row, as text; all rows are counted on the way."""
    with Snapshot(engine, "test_export") as snapshot:
        query = describe(snapshot.holder, "SELECT * FROM numbers", unique_key="id")
        found: list[str] = []
        assert find_cuts(snapshot.holder, query, yield_per, found.append) == LENGTH
        assert found == cuts


@pytest.mark.parametrize(("yield_per", "cuts"), [(1, 5), (2, 2), (3, 1), (4, 1), (5, 1), (6, 0), (10, 0)])
def test_rows_without_a_key_are_counted(engine: sa.Engine, execute: Execute, yield_per: int, cuts: int) -> None:
    """Rows whose key is NULL come last and in no batch, but the count has them, wherever the cuts fall."""
    nullable_keys(execute)
    execute("INSERT INTO nullable VALUES (NULL, 'another')")
    with Snapshot(engine, "test_export") as snapshot:
        query = describe(snapshot.holder, "SELECT * FROM nullable", unique_key="id")
        found: list[str] = []
        assert find_cuts(snapshot.holder, query, yield_per, found.append) == 7
        assert len(found) == cuts


def test_a_primary_key_is_cut(engine: sa.Engine, orders: int) -> None:
    """A query of a table, along its primary key, is read in batches: the planner has an index to jump along."""
    sizes = batch_sizes(engine, "SELECT * FROM orders WHERE status <> ''", "id", 1_000)
    assert sizes == [1_000] * 12 + [345]


def test_a_key_without_index_is_read_in_one_stream(
    engine: sa.Engine, numbers: None, execute: Execute, exported: Exports, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no index gives the key's order, one ordered stream is read, and the log says so; the file is the same."""
    execute("ALTER TABLE numbers DROP CONSTRAINT numbers_pkey")
    caplog.set_level("INFO", "streaming_export")
    _, data = exported("SELECT * FROM numbers", unique_key="id", yield_per=7)
    assert data == lines(1, LENGTH)
    assert "reading one ordered stream with one reader instead" in caplog.text
    assert "unique_key='id'" in caplog.text
    assert batch_sizes(engine, "SELECT * FROM numbers", "id", 7) == [LENGTH]


@pytest.mark.parametrize("method", METHODS)
def test_without_unique_key_the_query_orders(numbers: None, exported: Exports, method: Any) -> None:
    """Without a unique key the rows come in the query's own order."""
    query = "SELECT id FROM numbers ORDER BY id % 2, id DESC"
    _, data = exported(query, method=method, yield_per=2)
    expected = sorted(range(1, LENGTH + 1), key=lambda number: (number % 2, -number))
    assert data == b"id\n" + b"".join(b"%d\n" % number for number in expected)


@pytest.mark.parametrize("method", METHODS)
def test_the_unique_key_orders_whatever_the_query_says(
    numbers: None, exported: Exports, always_cut: None, method: Any
) -> None:
    """With a unique key the rows come in its order; the query's ORDER BY still decides what its LIMIT leaves."""
    query = "SELECT * FROM numbers ORDER BY id DESC LIMIT 10"
    _, data = exported(query, unique_key="id", method=method, yield_per=3)
    assert data == lines(14, LENGTH)


def test_a_key_that_repeats_loses_no_row(execute: Execute, exported: Exports, always_cut: None) -> None:
    """Rows that share a key stay in one batch, so that a key that is not unique costs order, never rows."""
    execute("CREATE TABLE pairs AS SELECT i / 3 AS key, i FROM generate_series(0, 9) AS i")
    result, data = exported("SELECT i, key FROM pairs", unique_key="key", yield_per=2)
    assert result.rows == 10
    assert sorted(places(data)) == list(range(10))


@pytest.mark.parametrize("readers", [1, 3])
def test_both_methods_give_the_same_file(orders: int, exported: Exports, readers: int) -> None:
    """The orders are the same file by either method, of as many rows as the table has."""
    copied, data = exported(select_orders(), unique_key="id", method="copy", yield_per=1_000, readers=readers)
    read, same = exported(select_orders(), unique_key="id", method="rows", yield_per=1_000, readers=readers)
    assert data == same
    assert copied.rows == read.rows == orders == len(places(data))


# Few rows


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("unique_key", ["id", None])
def test_one_row(numbers: None, exported: Exports, method: Any, unique_key: str | None) -> None:
    """One row is a header and a line."""
    result, data = exported("SELECT * FROM numbers WHERE id = 7", unique_key=unique_key, method=method, yield_per=1)
    assert data == lines(7, 7)
    assert (result.rows, result.parts) == (1, 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("unique_key", ["id", None])
def test_no_rows_by_default_are_a_header(
    numbers: None, exported: Exports, client: Any, bucket: str, method: Any, unique_key: str | None
) -> None:
    """A query without rows is a file of its header, which replaces what was there."""
    client.put_object(Bucket=bucket, Key=KEY, Body=b"earlier")
    result, data = exported("SELECT * FROM numbers WHERE id < 0", unique_key=unique_key, method=method)
    assert data == b"id,name\n"
    assert (result.key, result.rows, result.rows_verified, result.bytes) == (KEY, 0, True, 8)


@pytest.mark.parametrize("method", METHODS)
def test_no_rows_can_be_skipped(numbers: None, exporter: sa.Engine, client: Any, bucket: str, method: Any) -> None:
    """With on_empty="skip" a query without rows writes nothing, and the result has no key."""
    query = "SELECT * FROM numbers WHERE id < 0"
    target: dict[str, Any] = {"engine": exporter, "client": client, "bucket": bucket, "key": KEY}
    skipped = ExportResult(bucket, None, 0, True, 0, None, None, 0, (), None, snapshot_taken_at="", seconds=0)
    result = export(query, method=method, on_empty="skip", **target)
    assert replace(result, snapshot_taken_at="", seconds=0) == skipped
    assert keys(client, bucket) == []
    client.put_object(Bucket=bucket, Key=KEY, Body=b"earlier")
    assert export(query, method=method, on_empty="skip", **target).key is None
    assert content(client, bucket, KEY) == b"earlier"


@pytest.mark.parametrize("method", METHODS)
def test_no_rows_can_be_an_error(numbers: None, exported: Exports, client: Any, bucket: str, method: Any) -> None:
    """With on_empty="fail" a query without rows raises, and what was there stays."""
    client.put_object(Bucket=bucket, Key=KEY, Body=b"earlier")
    with pytest.raises(EmptyResult, match=f"s3://{bucket}/{KEY} returned no rows.*Nothing was published"):
        exported("SELECT * FROM numbers WHERE id < 0", unique_key="id", method=method, on_empty="fail")
    assert content(client, bucket, KEY) == b"earlier"


@pytest.mark.parametrize("on_empty", ["skip", "fail"])
def test_on_empty_is_for_empty_results(numbers: None, exported: Exports, on_empty: Any) -> None:
    """A query with rows is exported whatever on_empty says."""
    _, data = exported("SELECT * FROM numbers", unique_key="id", on_empty=on_empty)
    assert data == lines(1, LENGTH)


# One snapshot


@pytest.mark.parametrize("moment", [(Snapshot, "connect"), (Upload, "write")])
@pytest.mark.parametrize(("method", "unique_key"), [("copy", "id"), ("copy", None), ("rows", "id"), ("rows", None)])
def test_an_export_sees_one_snapshot(
    numbers: None,
    execute: Execute,
    exported: Exports,
    always_cut: None,
    meanwhile: Meanwhile,
    method: Any,
    unique_key: str | None,
    moment: tuple[type, str],
) -> None:
    """What others commit while an export runs, is not in its file: no row is missing, changed or added."""
    changes = (
        "DELETE FROM numbers WHERE id <= 5; UPDATE numbers SET name = 'changed';"
        " INSERT INTO numbers VALUES (-1, 'new'), (1000, 'new')"
    )
    meanwhile(lambda: execute(changes), *moment)
    query = "SELECT * FROM numbers ORDER BY id"
    result, data = exported(query, unique_key=unique_key, method=method, yield_per=3, readers=3)
    assert data == lines(1, LENGTH)
    assert result.rows_verified
    assert exported(query, method=method)[1].startswith(b"id,name\n-1,new\n6,changed\n")


def test_the_snapshot_survives_idle_timeouts(
    role: sa.Engine, execute: Execute, numbers: None, exported: Exports, always_cut: None, meanwhile: Meanwhile
) -> None:
    """A role's time-out for idle transactions ends neither the snapshot's holder nor a reader that waits."""
    execute("GRANT SELECT ON numbers TO test_reader")
    execute("ALTER ROLE test_reader SET idle_in_transaction_session_timeout = '250ms'")
    meanwhile(lambda: time.sleep(0.75))
    _, data = exported("SELECT * FROM numbers", engine=role, unique_key="id", yield_per=3)
    assert data == lines(1, LENGTH)


# Counting


def nullable_keys(execute: Execute) -> None:
    execute("CREATE TABLE nullable (id int UNIQUE, name text)")
    execute("INSERT INTO nullable SELECT nullif(i, 6), 'row ' || i FROM generate_series(1, 6) AS i")


def test_a_null_key_fails_the_count(
    execute: Execute, exported: Exports, always_cut: None, client: Any, bucket: str
) -> None:
    """A row that no range of keys holds is noticed: nothing is published, and what was there stays."""
    nullable_keys(execute)
    client.put_object(Bucket=bucket, Key=KEY, Body=b"earlier")
    with pytest.raises(VerificationError, match=r"5 rows were read, but the database counts 6 .*unique_key='id'"):
        exported("SELECT * FROM nullable", unique_key="id", yield_per=2)
    assert content(client, bucket, KEY) == b"earlier"
    assert open_uploads(client, bucket) == []


def test_without_the_count_the_result_says_so(execute: Execute, exported: Exports, always_cut: None) -> None:
    """With verify_rows=False nothing is counted, and the result does not claim otherwise."""
    nullable_keys(execute)
    result, _ = exported("SELECT * FROM nullable", unique_key="id", yield_per=2, verify_rows=False)
    assert (result.rows, result.rows_verified) == (5, False)


# The object


@pytest.mark.parametrize(("rows", "parts"), [(0, 1), (1, 1), (9, 2), (17, 3)])
def test_the_result_describes_the_object(exported: Exports, client: Any, bucket: str, rows: int, parts: int) -> None:
    """Rows, bytes, checksum, ETag and parts of the result are those of the object."""
    result, data = exported(f"SELECT i, repeat('x', 1000000) AS x FROM generate_series(1, {rows}) AS i")
    head = client.head_object(Bucket=bucket, Key=KEY)
    assert (result.bucket, result.key) == (bucket, KEY)
    assert result.rows == data.count(b"\n") - 1 == rows
    assert result.bytes == head["ContentLength"] == len(data)
    assert result.sha256 == hashlib.sha256(data).hexdigest()
    assert f'"{result.etag}"' == head["ETag"]
    assert result.parts == parts
    assert keys(client, bucket) == [KEY]
    assert open_uploads(client, bucket) == []


def test_results_are_values(exported: Exports) -> None:
    """A result can't be changed."""
    result, _ = exported("SELECT 1 AS a")
    with pytest.raises(FrozenInstanceError):
        result.rows = 2


@pytest.mark.parametrize(
    ("key", "disposition"),
    [
        ("orders-20261101.csv", 'attachment; filename="orders-20261101.csv"'),
        ("orders/2026/orders-20261101.csv", 'attachment; filename="orders-20261101.csv"'),
        ("two words.csv", "attachment; filename*=UTF-8''two%20words.csv"),
        ('a/say "hi".csv', "attachment; filename*=UTF-8''say%20%22hi%22.csv"),
        ("Aufträge.csv", "attachment; filename*=UTF-8''Auftr%C3%A4ge.csv"),
    ],
)
def test_headers_of_the_object(exported: Exports, client: Any, bucket: str, key: str, disposition: str) -> None:
    """A browser that opens the object saves a CSV file under the object's own name."""
    exported("SELECT 1 AS a", key=key)
    head = client.head_object(Bucket=bucket, Key=key)
    assert head["ContentType"] == "text/csv"
    assert head["ContentDisposition"] == disposition


def test_extra_arguments_replace_the_headers(exported: Exports, client: Any, bucket: str) -> None:
    """The caller's arguments of the S3 requests come before our own."""
    extra_args = {"ContentType": "text/csv; header=present", "Metadata": {"owner": "finance"}}
    exported("SELECT 1 AS a", extra_args=extra_args)
    head = client.head_object(Bucket=bucket, Key=KEY)
    assert head["ContentType"] == "text/csv; header=present"
    assert head["ContentDisposition"] == 'attachment; filename="file.csv"'
    assert head["Metadata"] == {"owner": "finance"}


# Sessions


def test_a_dba_sees_who_reads(
    engine: sa.Engine, numbers: None, exported: Exports, always_cut: None, meanwhile: Meanwhile
) -> None:
    """All connections of an export carry its application name: the snapshot's holder and the readers."""
    name, seen = "airflow orders_export.export", []
    meanwhile(lambda: seen.extend(sessions(engine, name)))
    exported("SELECT * FROM numbers", unique_key="id", yield_per=2, readers=3, application_name=name)
    assert len(seen) == 1 + 3
    assert sessions_end(engine, name)


@pytest.mark.parametrize(
    ("query", "options", "error"),
    [
        ("SELECT nothing FROM numbers", {}, QueryError),
        ("SELECT 1 / (id - 20) AS id FROM numbers", {}, QueryError),
        ("SELECT 1 / (id - 20) AS id FROM numbers", {"unique_key": "id"}, QueryError),
        ("SELECT 1 / (id - 20) AS id FROM numbers", {"method": "rows"}, QueryError),
        ("SELECT * FROM numbers", {"unique_key": "none"}, InvalidArgument),
        ("SELECT * FROM numbers", {"parameters": {"none": 1}}, InvalidArgument),
        ("SELECT * FROM numbers", {"bucket": "no-such-bucket"}, UploadError),
        ("SELECT * FROM numbers WHERE id < 0", {"on_empty": "fail"}, EmptyResult),
        ("SELECT nullif(id, 7) AS id FROM numbers", {"unique_key": "id"}, VerificationError),
    ],
)
def test_a_failed_export_leaves_nothing(
    engine: sa.Engine,
    numbers: None,
    exported: Exports,
    always_cut: None,
    client: Any,
    bucket: str,
    query: str,
    options: dict[str, Any],
    error: type[Exception],
) -> None:
    """Whatever an export fails with, it leaves no object, no upload, no connection and no settings behind."""
    with pytest.raises(error):
        exported(query, yield_per=2, application_name="failing", **options)
    assert keys(client, bucket) == []
    assert open_uploads(client, bucket) == []
    assert sessions_end(engine, "failing")


@pytest.mark.parametrize("method", METHODS)
def test_the_callers_pool_stays_clean(engine: sa.Engine, numbers: None, exported: Exports, method: Any) -> None:
    """What an export sets on its connections, never comes back through the pool of the caller's engine."""
    # Of a role that may write, since it has to be able to afterwards.
    pooled = sa.create_engine(engine.url, poolclass=QueuePool)
    ask = sa.text("SELECT name, setting FROM pg_settings WHERE name <> 'search_path' ORDER BY name")
    with pooled.connect() as connection:
        before = connection.execute(ask).all()
    exported("SELECT * FROM numbers", engine=pooled, unique_key="id", method=method, application_name="pooled")
    with pooled.connect() as first, pooled.connect() as second, pooled.connect() as third:
        for connection in (first, second, third):
            assert connection.execute(ask).all() == before
            assert connection.execute(sa.text("SELECT id FROM numbers WHERE id = 7")).scalar_one() == 7
            connection.execute(sa.text("UPDATE numbers SET name = name WHERE id = 7"))
            connection.rollback()
    pooled.dispose()


def test_a_role_that_may_not_read(role: sa.Engine, numbers: None, exported: Exports, client: Any, bucket: str) -> None:
    """A query that the role may not run is refused with the database's message, unpublished."""
    with pytest.raises(QueryError, match="permission denied for table numbers") as caught:
        exported("SELECT * FROM numbers", engine=role, unique_key="id")
    assert caught.value.sqlstate == "42501"
    assert keys(client, bucket) == []


def test_a_database_that_does_not_answer(exported: Exports, client: Any, bucket: str) -> None:
    """A database that can't be reached is an error of the query, without the password."""
    engine = sa.create_engine("postgresql+psycopg2://someone:hunter2@/somewhere?host=/nowhere")
    with pytest.raises(QueryError, match="connection to server on socket") as caught:
        exported("SELECT 1 AS a", engine=engine)
    assert "hunter2" not in str(caught.value)
    assert keys(client, bucket) == []


# Arguments


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("method", "fast"),
        ("yield_per", 0),
        ("readers", 17),
        ("on_empty", "ignore"),
        ("bucket", ""),
        ("bucket", " "),
        ("bucket", None),
        ("bucket", "a/b"),
        ("bucket", ".."),
        ("bucket", "a\nb"),
        ("bucket", "a b"),
        ("bucket", "ä"),
        ("bucket", "\ud800"),
        ("key", ""),
        ("key", None),
        ("key", "/a.csv"),
        ("key", "a/../b.csv"),
        ("key", "../b.csv"),
        ("key", "a/.."),
        ("key", "a/./b.csv"),
        ("key", "a\nb.csv"),
        ("key", "a\0.csv"),
        ("key", "a\x7f.csv"),
        ("key", "\u202e.csv"),
        ("key", "\ud800.csv"),
        ("key", "ä" * 513),
        ("key", "a" * 1001),
        ("application_name", "a\0"),
        ("application_name", "\ud800"),
    ],
)
def test_bad_arguments_are_refused_before_anything_else(argument: str, value: Any, client: Any, bucket: str) -> None:
    """A bad argument is refused by its name, before the database is asked for anything."""
    engine = sa.create_engine("postgresql+psycopg2://@/somewhere?host=/nowhere")
    options = {"engine": engine, "client": client, "bucket": bucket, "key": KEY, argument: value}
    with pytest.raises(InvalidArgument, match=f"^{argument}=") as caught:
        export("SELECT 1 AS a", **options)
    assert (caught.value.argument, caught.value.value) == (argument, value)


@pytest.mark.parametrize("url", ["postgresql+psycopg://", "sqlite://"])
def test_other_drivers_are_refused(exported: Exports, url: str) -> None:
    """The engine has to be one of psycopg2; the message says so."""
    with pytest.raises(InvalidArgument, match=r"^engine=.* is not allowed: postgresql\+psycopg2"):
        exported("SELECT 1 AS a", engine=sa.create_engine(url))


# The package


def test_progress_is_logged(
    numbers: None,
    exported: Exports,
    always_cut: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log says where the object goes, how far the export is, and what was published."""
    monkeypatch.setattr(importlib.import_module("streaming_export.export"), "_PROGRESS_SECONDS", 0)
    with caplog.at_level("INFO", "streaming_export"):
        exported("SELECT * FROM numbers", unique_key="id", yield_per=10)
    assert [record.levelname for record in caplog.records] == ["INFO"] * len(caplog.records)
    first, *progress, last = caplog.messages
    assert re.match(r"Exporting from database postgres on .*, snapshot of .*\) to s3://", first)
    assert f"/{KEY}: method=copy" in first
    assert any(
        re.fullmatch(r"20 rows, 87 % of the planner's estimate, \d+ bytes, [\d,]+ rows/s\.", m) for m in progress
    )
    assert re.search(rf"/{KEY}: 23 rows, {len(lines(1, LENGTH))} bytes, ", last)


def test_the_engine_needs_no_airflow() -> None:
    """The package imports no Airflow: it is usable from any Python program."""
    code = "import sys, streaming_export; print([name for name in sys.modules if name.split('.')[0] == 'airflow'])"
    environment = {**os.environ, "PYTHONPATH": str(services.PROJECT / "plugins")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_public_names() -> None:
    """The public names are these, and each can be imported."""
    assert streaming_export.__all__ == [
        "Cancellation",
        "ColumnsChanged",
        "EmptyResult",
        "ExportCancelled",
        "ExportError",
        "ExportResult",
        "ExportedFile",
        "ForeignBucket",
        "IngestError",
        "IngestResult",
        "InvalidArgument",
        "LoadError",
        "ManifestError",
        "ManifestInvalid",
        "ManifestMissing",
        "ManifestTooNew",
        "ObjectChanged",
        "Options",
        "Preview",
        "QueryError",
        "StoreError",
        "TransactionsRunning",
        "UploadError",
        "VerificationError",
        "check_key",
        "export",
        "impersonal",
        "ingest",
        "move_pointer",
        "preview",
        "published_by",
        "retry_helps",
    ]
    assert all(hasattr(streaming_export, name) for name in streaming_export.__all__)
