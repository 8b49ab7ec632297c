"""open_csv(): a query's CSV as bytes, whole or with an error at its end."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import sqlalchemy as sa

from streaming_export import (
    DatabaseError,
    ExportCancelled,
    InvalidArgument,
    Options,
    VerificationError,
    open_csv,
)
from streaming_export.cancellation import Stop
from streaming_export.postgres.read_ahead import AHEAD_BYTES
from tests.streaming_export.conftest import LENGTH, Execute, lines
from tests.streaming_export.postgres.statements import another, watched
from tests.streaming_export.waiting import PATIENCE, Running

METHODS = ["copy", "rows"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("unique_key", ["id", None])
def test_a_stream_is_the_header_and_the_rows(
    numbers: None, exporter: sa.Engine, ranges: None, method: Any, unique_key: str | None
) -> None:
    """The header comes first, no chunk is empty, and at the end the rows are counted and verified."""
    options = Options(method=method, yield_per=10)
    with open_csv("SELECT * FROM numbers ORDER BY id", engine=exporter, unique_key=unique_key, options=options) as csv:
        assert csv.rows == 0
        chunks = list(csv)
        assert (csv.rows, csv.verified) == (LENGTH, True)
    assert chunks[0] == b"id,name\n"
    assert b"".join(chunks) == lines(1, LENGTH)
    assert all(chunks)


@pytest.mark.parametrize("method", METHODS)
def test_chunks_of_wide_rows_are_small(exporter: sa.Engine, method: Any) -> None:
    """A row of megabytes comes in chunks of 1 MiB at most."""
    query = "SELECT repeat('x', 3000000) AS a FROM generate_series(1, 2)"
    with open_csv(query, engine=exporter, options=Options(method=method)) as csv:
        chunks = list(csv)
    assert max(map(len, chunks)) <= 1024 * 1024
    assert sum(map(len, chunks)) == 2 + 2 * 3_000_001


def test_ranges_of_wide_rows_are_no_larger_than_a_reader_may_be_ahead(execute: Execute, exporter: sa.Engine) -> None:
    """Otherwise one reader would wait until the range of another has gone by, and two were no faster than one."""
    execute("CREATE TABLE wide (id int PRIMARY KEY, text text)")
    execute("INSERT INTO wide SELECT n, repeat('x', 1000) FROM generate_series(1, 20000) AS n; ANALYZE wide")
    asked: list[str] = []
    with open_csv("SELECT * FROM wide", engine=watched(another(exporter), asked.append), unique_key="id") as csv:
        size = sum(map(len, csv))
    ranges = sum(statement.startswith("COPY") for statement in asked)
    assert size / AHEAD_BYTES <= ranges <= size / AHEAD_BYTES + 2


def test_a_parameter(numbers: None, exporter: sa.Engine) -> None:
    """Parameters are filled in by name."""
    with open_csv("SELECT * FROM numbers WHERE id = :id", {"id": 7}, engine=exporter) as csv:
        assert b"".join(csv) == lines(7, 7)


def test_a_row_that_is_missing_is_an_error_at_the_end(execute: Execute, exporter: sa.Engine, ranges: None) -> None:
    """All other rows have arrived by then: a program that sends them on must fail, not end normally."""
    execute("CREATE TABLE nullable (id int UNIQUE); INSERT INTO nullable VALUES (1), (2), (NULL)")
    got: list[bytes] = []
    with (
        open_csv("SELECT * FROM nullable", engine=exporter, unique_key="id", options=Options(yield_per=1)) as csv,
        pytest.raises(VerificationError, match="2 rows were read, but the database counts 3"),
    ):
        got.extend(csv)
    assert b"".join(got) == b"id\n1\n2\n"


@pytest.mark.parametrize("method", METHODS)
def test_a_query_that_fails_in_the_middle(numbers: None, exporter: sa.Engine, ranges: None, method: Any) -> None:
    """The error is of the database, with its SQLSTATE, wherever it is met."""
    options = Options(method=method, yield_per=2)
    with (
        pytest.raises(DatabaseError, match="while running the query") as caught,
        open_csv(
            "SELECT id, 1 / (id - 20) AS a FROM numbers", engine=exporter, unique_key="id", options=options
        ) as csv,
    ):
        list(csv)
    assert (caught.value.sqlstate, caught.value.transient) == ("22012", False)


def test_what_is_refused_is_refused_on_entry(exporter: sa.Engine) -> None:
    """Arguments that need no database at once, the query when the block is entered."""
    with pytest.raises(InvalidArgument, match="mask_key=None"):
        open_csv("SELECT 1 AS a", engine=exporter, options=Options(mask={"a": "hash"}))
    for query, error in (("SELECT * FROM nowhere", DatabaseError), ("SELECT :a AS a", InvalidArgument)):
        stream = open_csv(query, engine=exporter)
        with pytest.raises(error), stream:
            pytest.fail("the block was entered")


@pytest.mark.parametrize("method", METHODS)
def test_a_stream_can_be_cancelled(exporter: sa.Engine, method: Any) -> None:
    """`cancel` from another thread ends the query on the server; the reading raises `ExportCancelled`."""
    begun = threading.Event()

    def run() -> None:
        with open_csv("SELECT 1 AS a, pg_sleep(60) AS b", engine=exporter, options=Options(method=method)) as csv:
            streams.append(csv)
            for _ in csv:
                begun.set()

    streams: list[Any] = []
    reading = Running(run)
    assert begun.wait(PATIENCE)
    streams[0].cancel()
    assert reading.ends(within=10)
    assert isinstance(reading.error, ExportCancelled)


def test_a_stop_of_the_callers_ends_it(numbers: None, exporter: sa.Engine) -> None:
    """Whoever shares a `Stop` with the reading sets the reason, which the reading raises."""
    stop, reason = Stop(), KeyError("mine")
    with open_csv("SELECT * FROM numbers", engine=exporter, stop=stop) as csv:
        chunks = iter(csv)
        next(chunks)
        stop.set(reason)
        with pytest.raises(KeyError) as caught:
            next(chunks)
    assert caught.value is reason


def test_a_block_may_be_left_early(numbers: None, exporter: sa.Engine) -> None:
    """Nothing is raised when the caller has what it wants."""
    query = "SELECT i, pg_sleep(0.001) AS nap FROM generate_series(1, 100000) AS i"
    with open_csv(query, engine=exporter) as csv:
        for chunk in csv:
            assert chunk == b"i,nap\n"
            break
    with open_csv("SELECT * FROM numbers", engine=exporter):
        pass
