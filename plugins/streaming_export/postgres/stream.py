"""The reading half of an export: a query's CSV as bytes, from one snapshot, verified at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from streaming_export.cancellation import Stop, Stopped, cancelled
from streaming_export.errors import InvalidArgument
from streaming_export.options import DEFAULT_YIELD_PER, Options
from streaming_export.postgres.counting import KeyFaults, count_within
from streaming_export.postgres.plan import Plan, plan
from streaming_export.postgres.query import Query, Source, describe
from streaming_export.postgres.read_ahead import AHEAD_BYTES
from streaming_export.postgres.reader import EVERYTHING, KeyRange, Reader
from streaming_export.postgres.sessions import text_literal
from streaming_export.postgres.snapshot import Snapshot


class CsvStream:
    """The CSV of a query; a context manager that can be iterated once. `open_csv` creates it.

    On entry, the query's tables are locked and the snapshot is taken; nothing is read yet. On exit, queries that still
    run are cancelled, and all connections are closed.
    """

    def __init__(self, snapshot: Snapshot, options: Options, stop: Stop) -> None:
        self.snapshot = snapshot
        self._options = options
        self._stop = stop
        self._open = contextlib.ExitStack()
        self._reader: Reader | None = None
        #: Rows read so far.
        self.rows = 0
        #: Whether the rows are compared with the database's own count; valid once reading has begun.
        self.verified = False
        #: Faults of the unique key, at the end; None if unknown, or there is no key.
        self.key_faults: KeyFaults | None = None

    def __enter__(self) -> CsvStream:
        self._open.enter_context(self.snapshot)
        #: The query that is read, and the planner's estimates.
        self.query, self.plan = self.snapshot.query, self.snapshot.plan
        return self

    def __exit__(self, *raised: Any) -> None:
        self._open.__exit__(*raised)

    def __iter__(self) -> Iterator[bytes]:
        """The header row, and then the rows, in chunks.

        :raises DatabaseError: if Postgres fails.
        :raises VerificationError: at the end, if the database's count is another.
        :raises ExportCancelled: after `cancel`.
        """
        try:
            yield self.query.header
            for data, _ in self.batches():
                if data:
                    yield data
        except Stopped:
            raise (self._stop.reason or cancelled()) from None

    def begin(self) -> Reader:
        """Begin to read ahead, unless that was done; `batches` does it when the first bytes are asked for."""
        if self._reader is None:
            self._reader = self._open.enter_context(Reader(self.snapshot, self._options, self._stop))
            self.verified = self._reader.verified
        return self._reader

    def batches(self) -> Iterator[tuple[bytes, int]]:
        """Bytes without the header, with the number of rows of the batch if they are its last ones, and 0 otherwise.

        :raises Stopped: if the stop is set; a reader that fails sets it.
        """
        reader = self.begin()
        for data, rows in reader:
            self.rows += rows
            yield data, rows
        self.key_faults = reader.key_faults

    def count(self, seconds: float) -> int | None:
        """The number of rows in the snapshot; None if counting takes longer than `seconds`.

        :raises DatabaseError: if Postgres fails.
        :raises Stopped: if the stop is set.
        """
        return count_within(self.snapshot.owner, self.query, seconds, self._stop)[0]

    def cancel(self) -> None:
        """Stop reading, from any thread: have the server cancel the queries."""
        self._stop.set(cancelled())
        self.snapshot.sessions.cancel()


def open_csv(
    query: Source,
    parameters: Mapping[str, Any] | None = None,
    *,
    engine: sa.Engine,
    unique_key: str | None = None,
    options: Options | None = None,
    mask_key: str | None = None,
    application_name: str = "streaming_export",
    stop: Stop | None = None,
    snapshot: str | None = None,
    key_range: KeyRange = EVERYTHING,
) -> CsvStream:
    """A query's CSV as bytes, from one snapshot, in flat memory.

    ``with open_csv("SELECT * FROM orders", engine=engine, unique_key="id") as csv: for chunk in csv: …`` raises at the
    end if a row is missing. Connections are opened when the block is entered.

    :param query: SQLAlchemy ``Select``, or the text of a SELECT with ``:name`` parameters.
    :param parameters: a value for each parameter.
    :param engine: of the psycopg2 dialect (``postgresql+psycopg2://``); its pool is not used.
    :param unique_key: name of a column that is unique and not null: it orders the rows, and the query is read in ranges
        along it. Without it the query is read as one stream in its own order.
    :param options: those of `Options` that concern reading are used.
    :param mask_key: secret of the mask "hash", of at least 16 bytes.
    :param application_name: what ``pg_stat_activity`` shows.
    :param stop: ends the reading when it is set.
    :param snapshot: id of a snapshot that another transaction has exported, to read on it instead of a new one.
    :param key_range: read only keys after the first and up to the second, as text; None for no bound.
    :raises SnapshotGone: when the block is entered, if the snapshot is no longer held.
    :raises InvalidArgument: if an argument is not allowed; some are only checked when the block is entered.
    :raises DatabaseError: when the block is entered, if Postgres refuses the query, or another session holds a lock on
        its tables for longer than `LOCK_SECONDS`.
    """
    options, stop = options or Options(), stop or Stop()
    if key_range != EVERYTHING and unique_key is None:
        raise InvalidArgument("key_range", key_range, "needs unique_key")

    def batch_rows(width: int) -> int:
        if options.yield_per:
            return options.yield_per
        # While one range is consumed, another reader may be so many bytes ahead: in larger ranges it waits.
        return min(DEFAULT_YIELD_PER[options.method], max(1, AHEAD_BYTES // width))

    def prepare(connection: sa.Connection) -> tuple[Query, Plan]:
        whole = describe(connection, query, parameters, unique_key, options)
        part = whole.within(*key_range, text_literal(connection))
        return part, plan(connection, part, batch_rows)

    secrets, compiled = options.mask_settings(mask_key), not isinstance(query, str)
    view = Snapshot(engine, prepare, application_name, secrets, snapshot, compiled)
    return CsvStream(view, options, stop)
