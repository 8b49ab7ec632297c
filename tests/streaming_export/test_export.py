"""Export: one query, one snapshot, its files and their manifest; whole, or not at all."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import sqlalchemy as sa

import streaming_export
from demo import services
from streaming_export import (
    DatabaseError,
    EmptyResult,
    Export,
    ExportCancelled,
    ExportError,
    ExportResult,
    InvalidArgument,
    Options,
    StoreError,
    VerificationError,
)
from streaming_export.s3.parts import MIN_PART_BYTES
from tests.conftest import content, keys, open_uploads
from tests.streaming_export.conftest import LENGTH, Execute, lines
from tests.streaming_export.exporting import export, new_export
from tests.streaming_export.store import Answer, hook, record
from tests.streaming_export.waiting import PATIENCE, Running, eventually

KEY = "some/file.csv"
METHODS = ["copy", "rows"]

Exports = Callable[..., tuple[ExportResult, bytes]]


@pytest.fixture
def exported(exporter: sa.Engine, schema: str, client: Any, bucket: str) -> Exports:
    """Exports a query to a bucket of the test's own; returns the result and the object's content."""

    def run(query: Any, **options: Any) -> tuple[ExportResult, bytes]:
        options = {"engine": exporter, "client": client, "bucket": bucket, "key": KEY, **options}
        result = export(query, **options)
        return result, content(client, bucket, options["key"])

    return run


def manifest(client: Any, bucket: str) -> Any:
    return json.loads(content(client, bucket, f"{KEY}.manifest.json"))


# The object


@pytest.mark.parametrize(("rows", "parts"), [(0, 1), (1, 1), (9, 2), (17, 3)])
def test_the_result_describes_the_object(exported: Exports, client: Any, bucket: str, rows: int, parts: int) -> None:
    """Rows, bytes, checksum, ETag and parts of the result are those of the object."""
    result, data = exported(f"SELECT i, repeat('x', 1000000) AS x FROM generate_series(1, {rows}) AS i")
    head = client.head_object(Bucket=bucket, Key=KEY)
    assert (result.bucket, result.key) == (bucket, KEY)
    assert result.rows == data.count(b"\n") - 1 == rows
    assert result.rows_verified
    assert result.bytes == head["ContentLength"] == len(data)
    assert result.sha256 == hashlib.sha256(data).hexdigest()
    assert f'"{result.etag}"' == head["ETag"]
    assert result.parts == parts
    assert [file.key for file in result.files] == keys(client, bucket) == [KEY]
    assert result.manifest_url == f"s3://{bucket}/{KEY}.manifest.json"
    assert open_uploads(client, bucket) == []


def test_results_are_values(exported: Exports) -> None:
    """A result can't be changed."""
    result, _ = exported("SELECT 1 AS a")
    with pytest.raises(FrozenInstanceError):
        result.rows = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "disposition"),
    [
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
    assert head["Metadata"]["owner"] == "finance"


@pytest.mark.parametrize("method", METHODS)
def test_the_file_is_what_is_read(numbers: None, exported: Exports, ranges: None, method: Any) -> None:
    """The object is the header and the rows, in order, as one reader or several read them."""
    for readers in (1, 3):
        result, data = exported("SELECT * FROM numbers", unique_key="id", method=method, yield_per=5, readers=readers)
        assert data == lines(1, LENGTH)
        assert (result.rows, result.rows_verified) == (LENGTH, True)


@pytest.mark.parametrize(("query", "verified"), [("SELECT now() AS a", True), ("SELECT random() AS a", False)])
def test_result_and_manifest_say_whether_rows_were_counted(
    exported: Exports, client: Any, bucket: str, query: str, verified: bool
) -> None:
    """What only one transaction, or none, can give again is verified, or is said not to be."""
    result, _ = exported(query)
    assert result.rows_verified is verified
    assert manifest(client, bucket)["rows_verified"] is verified
    result, _ = exported(query, verify_rows=False)
    assert result.rows_verified is False


def test_rows_are_read_while_the_store_is_asked(
    engine: sa.Engine, exporter: sa.Engine, client: Any, bucket: str
) -> None:
    """They fill the first part, and then wait: nothing is sent before the store has said what is there."""
    hooked = services.s3_client(client.meta.endpoint_url)
    requests = record(hooked)
    copied, seen = [0], list[Any]()

    def reading_waits() -> bool:
        with engine.connect() as connection:
            sent = "SELECT bytes_processed FROM pg_stat_progress_copy JOIN pg_stat_activity USING (pid)"
            mine = f"{sent} WHERE application_name = 'reading'"
            copied.append(connection.exec_driver_sql(mine).scalar() or 0)
        return copied[-1] == copied[-2] > MIN_PART_BYTES

    def delay(params: dict[str, Any]) -> Answer:
        seen.append((eventually(reading_waits), [name for name, _ in requests]))
        return None

    hook(hooked, "ListMultipartUploads", delay)
    query = "SELECT i, repeat('x', 1000000) AS x FROM generate_series(1, 40) AS i"
    result = export(query, engine=exporter, client=hooked, bucket=bucket, key=KEY, application_name="reading")
    assert seen == [(True, ["GetObject", "ListMultipartUploads"])]
    assert (result.rows, result.bytes) == (40, len(content(client, bucket, KEY)))


def test_what_a_transaction_commits_meanwhile_is_not_in_the_file(
    numbers: None, execute: Execute, exported: Exports, client: Any, ranges: None
) -> None:
    """The manifest that is there is read, then the rows: of the snapshot that was taken before."""
    hooked, done = services.s3_client(client.meta.endpoint_url), []

    def change(params: dict[str, Any]) -> Answer:
        if not done:
            done.append(execute("DELETE FROM numbers WHERE id <= 5; UPDATE numbers SET name = 'changed'"))
        return None

    hook(hooked, "GetObject", change)
    result, data = exported("SELECT * FROM numbers", unique_key="id", yield_per=3, client=hooked)
    assert done
    assert data == lines(1, LENGTH)
    assert result.rows_verified


# No rows


@pytest.mark.parametrize("unique_key", ["id", None])
def test_no_rows_by_default_are_a_header(
    numbers: None, exported: Exports, client: Any, bucket: str, unique_key: str | None
) -> None:
    """A query without rows is a file of its header, which replaces what was there."""
    client.put_object(Bucket=bucket, Key=KEY, Body=b"earlier")
    result, data = exported("SELECT * FROM numbers WHERE id < 0", unique_key=unique_key)
    assert data == b"id,name\n"
    assert (result.key, result.rows, result.rows_verified, result.bytes) == (KEY, 0, True, 8)


def test_no_rows_can_be_skipped(numbers: None, exporter: sa.Engine, client: Any, bucket: str) -> None:
    """With on_empty="skip" a query without rows writes nothing, and the result has no key."""
    query = "SELECT * FROM numbers WHERE id < 0"
    target: dict[str, Any] = {"engine": exporter, "client": client, "bucket": bucket, "key": KEY}
    skipped = ExportResult(bucket, None, 0, True, None, 0, None, None, 0, (), None, snapshot_taken_at="", seconds=0)
    result = export(query, on_empty="skip", **target)
    assert replace(result, snapshot_taken_at="", seconds=0) == skipped
    assert keys(client, bucket) == []
    client.put_object(Bucket=bucket, Key=KEY, Body=b"earlier")
    assert export(query, on_empty="skip", **target).key is None
    assert content(client, bucket, KEY) == b"earlier"


def test_no_rows_can_be_an_error(numbers: None, exported: Exports, client: Any, bucket: str) -> None:
    """With on_empty="fail" a query without rows raises, and what was there stays."""
    client.put_object(Bucket=bucket, Key=KEY, Body=b"earlier")
    with pytest.raises(EmptyResult, match=f"s3://{bucket}/{KEY} returned no rows.*\nNothing was published"):
        exported("SELECT * FROM numbers WHERE id < 0", unique_key="id", on_empty="fail")
    assert content(client, bucket, KEY) == b"earlier"


@pytest.mark.parametrize("on_empty", ["skip", "fail"])
def test_on_empty_is_for_empty_results(numbers: None, exported: Exports, on_empty: Any) -> None:
    """A query with rows is exported whatever on_empty says."""
    assert exported("SELECT * FROM numbers", unique_key="id", on_empty=on_empty)[1] == lines(1, LENGTH)


# Errors


@pytest.mark.parametrize(
    ("query", "options", "error"),
    [
        ("SELECT nothing FROM numbers", {}, DatabaseError),
        ("SELECT 1 / (id - 20) AS id FROM numbers", {}, DatabaseError),
        ("SELECT 1 / (id - 20) AS id FROM numbers", {"unique_key": "id"}, DatabaseError),
        ("SELECT 1 / (id - 20) AS id FROM numbers", {"method": "rows"}, DatabaseError),
        ("SELECT id, repeat('x', 1000000), 1 / (id - 20) AS id2 FROM numbers", {"unique_key": "id"}, DatabaseError),
        ("SELECT * FROM numbers", {"unique_key": "none"}, InvalidArgument),
        ("SELECT * FROM numbers", {"parameters": {"none": 1}}, InvalidArgument),
        ("SELECT * FROM numbers", {"bucket": "no-such-bucket"}, StoreError),
        ("SELECT * FROM numbers WHERE id < 0", {"on_empty": "fail"}, EmptyResult),
        ("SELECT nullif(id, 7) AS id FROM numbers", {"unique_key": "id"}, VerificationError),
    ],
)
def test_a_failed_export_leaves_nothing(
    engine: sa.Engine,
    numbers: None,
    exported: Exports,
    ranges: None,
    client: Any,
    bucket: str,
    query: str,
    options: dict[str, Any],
    error: type[ExportError],
) -> None:
    """Whatever it fails with, there is no object, no upload and no connection; the error says all three lines."""
    with pytest.raises(error) as caught:
        exported(query, yield_per=2, application_name="failing", **options)
    assert keys(client, bucket) == []
    assert open_uploads(client, bucket) == []
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        left = "SELECT FROM pg_stat_activity WHERE application_name = 'failing'"
        assert eventually(lambda: not connection.exec_driver_sql(left).fetchall())
    assert caught.value.published is False
    failed, state, *remedy = str(caught.value).splitlines()
    assert failed.endswith(".")
    assert state in ("Nothing was published.", "Nothing was read or written.")
    assert bool(remedy) is not isinstance(caught.value, InvalidArgument)


@pytest.mark.parametrize("method", METHODS)
def test_an_export_can_be_cancelled(exporter: sa.Engine, client: Any, bucket: str, method: Any) -> None:
    """`cancel`, from any thread and more than once: `run` raises, and nothing is published."""
    query = "SELECT i, CASE WHEN i = 2 THEN pg_sleep(60)::text END AS nap FROM generate_series(1, 2) AS i"
    begun = threading.Event()
    hooked = services.s3_client(client.meta.endpoint_url)
    hook(hooked, "GetObject", lambda params: begun.set())  # type: ignore[arg-type, func-returns-value]
    one = new_export(query, engine=exporter, client=hooked, bucket=bucket, key=KEY, method=method)
    running = Running(one.run)
    assert begun.wait(PATIENCE)
    one.cancel()
    one.cancel()
    assert running.ends(within=10)
    assert isinstance(running.error, ExportCancelled)
    assert str(running.error).splitlines()[1] == "Nothing was published."
    assert (running.error.transient, running.error.published) == (None, False)
    assert keys(client, bucket) == []
    one.cancel()


def test_an_export_can_be_cancelled_before_it_runs(exporter: sa.Engine, client: Any, bucket: str) -> None:
    """Whoever stops a task that has not begun to export yet does not wait for its end."""
    one = new_export("SELECT pg_sleep(60) AS a", engine=exporter, client=client, bucket=bucket, key=KEY)
    one.cancel()
    running = Running(one.run)
    assert running.ends(within=10)
    assert isinstance(running.error, ExportCancelled)
    assert keys(client, bucket) == []


# Arguments


@pytest.mark.parametrize(
    ("argument", "value"),
    [
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
def test_bad_arguments_are_refused_before_anything_else(argument: str, value: Any, client: Any) -> None:
    """A bad argument is refused by its name when the export is made, without a database or a store."""
    engine = sa.create_engine("postgresql+psycopg2://@/somewhere?host=/nowhere")
    arguments = {"engine": engine, "client": client, "bucket": "exports", "key": KEY, argument: value}
    with pytest.raises(InvalidArgument, match=f"^{argument}=") as caught:
        new_export("SELECT 1 AS a", **arguments)
    assert (caught.value.argument, caught.value.value) == (argument, value)


@pytest.mark.parametrize("url", ["postgresql+psycopg://", "sqlite://"])
def test_other_drivers_are_refused(client: Any, url: str) -> None:
    """The engine has to be one of psycopg2; the message says so."""
    with pytest.raises(InvalidArgument, match=r"^engine=.* is not allowed: postgresql\+psycopg2"):
        new_export("SELECT 1 AS a", engine=sa.create_engine(url), client=client, bucket="exports", key=KEY)


def test_the_run_may_be_called_anything(exported: Exports, client: Any, bucket: str) -> None:
    """The manifest's description of the run may be any text, even half a surrogate pair."""
    names = {"run": "\ud800", "dag": '\0 " \\ \u2028', "try": 1}
    exported("SELECT 1 AS a", run=names)
    assert manifest(client, bucket)["run"] == names


# Options


@pytest.mark.parametrize(
    "options",
    [
        {"method": method, "on_empty": on_empty, "yield_per": yield_per, "readers": readers}
        for method in ("copy", "rows")
        for on_empty in ("header", "skip", "fail")
        for yield_per, readers in ((None, 1), (1, 1), (10_000_000, 16))
    ],
    ids=str,
)
def test_good_options_are_accepted(options: dict[str, Any]) -> None:
    """The limits themselves are allowed, and `yield_per` may be left to the method."""
    assert {name: getattr(Options(**options), name) for name in options} == options


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        *[("method", value, "one of copy, rows") for value in ("COPY", "", "pandas", None, ["copy"])],
        *[("on_empty", value, "one of header, skip, fail") for value in ("Skip", "", None, True)],
        *[("compression", value, "one of None, gzip, zstd") for value in ("gz", "", True)],
        *[("verify_rows", value, "one of True, False") for value in (None, "yes")],
        *[
            (option, value, f"a whole number from {least} to {most}")
            for option, least, most in (
                ("yield_per", 1, "10,000,000"),
                ("readers", 1, "16"),
                ("max_file_rows", 1, "1,000,000,000,000"),
                ("max_file_bytes", 1, "5,497,558,138,880"),
                ("wait_for_transactions", 0, "604,800"),
            )
            for value in (least - 1, int(most.replace(",", "")) + 1, 1.0, "5", True, float("nan"))
        ],
    ],
)
def test_bad_options_are_refused(option: str, value: Any, allowed: str) -> None:
    """A bad option is refused with its name, its value and what is allowed, as a ValueError."""
    with pytest.raises(ValueError, match=f"^{option}=") as caught:
        Options(**{option: value})
    assert isinstance(caught.value, InvalidArgument)
    assert (caught.value.argument, caught.value.value) == (option, value)
    assert f"{value!r} is not allowed: {allowed}." in str(caught.value)


# The log, the package


def test_progress_is_logged(
    numbers: None,
    exported: Exports,
    ranges: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log says where the object goes, how far the export is, and what was published; no value of a parameter."""
    monkeypatch.setattr(importlib.import_module("streaming_export.report"), "_PROGRESS_SECONDS", 0)
    with caplog.at_level("DEBUG", "streaming_export"):
        query = "SELECT * FROM numbers WHERE name <> :name"
        exported(query, parameters={"name": "jane@example.com"}, unique_key="id", yield_per=10)
    assert [record.levelname for record in caplog.records] == ["INFO"] * len(caplog.records)
    first, *progress, last = caplog.messages
    assert re.match(rf"Exporting from database postgres on .*, snapshot of .*\) to s3://.*/{KEY}\.$", first)
    line = r"20 rows, \d+ % of the planner's estimate, \d+ bytes, [\d,]+ rows/s\."
    assert any(re.fullmatch(line, message) for message in progress)
    assert re.search(rf"/{KEY}: 23 rows, {len(lines(1, LENGTH))} bytes, .*{KEY}\.manifest\.json$", last)
    assert "jane" not in caplog.text


def test_the_engine_needs_no_airflow() -> None:
    """The packages import no Airflow: they are usable from any Python program."""
    code = (
        "import sys, streaming_export, streaming_ingest;"
        " print([name for name in sys.modules if name.split('.')[0] == 'airflow'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(services.PROJECT / "plugins")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_public_names() -> None:
    """The public names are these, and each can be imported."""
    assert streaming_export.__all__ == [
        "AlreadyExists",
        "Bucket",
        "CsvStream",
        "DatabaseError",
        "EmptyResult",
        "Export",
        "ExportCancelled",
        "ExportError",
        "ExportResult",
        "ExportedFile",
        "ForeignBucket",
        "InvalidArgument",
        "LoginRefused",
        "ManifestError",
        "ManifestInvalid",
        "ManifestMissing",
        "ManifestTooNew",
        "ObjectChanged",
        "Options",
        "Preview",
        "SnapshotGone",
        "StoreError",
        "Superseded",
        "TransactionsRunning",
        "VerificationError",
        "check_key",
        "move_latest",
        "open_csv",
        "published_by",
    ]
    assert all(hasattr(streaming_export, name) for name in streaming_export.__all__)
    assert Export.__doc__
