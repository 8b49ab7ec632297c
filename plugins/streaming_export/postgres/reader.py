"""Reads a query on a snapshot: by COPY in key ranges, by COPY in one stream, or row by row."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import BinaryIO, cast

import sqlalchemy as sa

from streaming_export.cancellation import Stop, Stopped, in_thread
from streaming_export.errors import DatabaseError, VerificationError
from streaming_export.options import Options
from streaming_export.postgres.counting import KeyFaults, count_rows, count_within
from streaming_export.postgres.errors import translated
from streaming_export.postgres.plan import Plan
from streaming_export.postgres.query import Query, csv_field
from streaming_export.postgres.read_ahead import ReadAhead
from streaming_export.postgres.sessions import driver_connection, fetch_as_text, text_literal
from streaming_export.postgres.snapshot import LOCK_NOT_AVAILABLE, Snapshot

log = logging.getLogger(__name__)

#: Keys (after, upto], as text; None for no bound.
KeyRange = tuple[str | None, str | None]
#: All keys.
EVERYTHING: KeyRange = (None, None)

#: A database that takes so long to answer gets a reader more: each range begins with a wait for the network.
FAR_SECONDS = 0.015

_LOOK_SECONDS = 30.0  # how long the owner may look for faults of the key, if the rows are counted anyway

_STOP_SECONDS = 5.0  # how long a stopped reader may take to end before it is left behind


class Reader:
    """An iterable of (bytes, rows that end in them), in the file's order; a context manager.

    With several readers, and a key that an index orders, the snapshot's owner walks along the key and finds the ranges
    of `batch_rows` rows that the readers COPY, counting the rows. Otherwise one reader reads one stream, and the
    owner counts by count(*). So is a query that numbers or limits rows: each range would run it anew, and the order of
    its rows may differ. A query that asks for the time is counted by its reader, in the same transaction, and a
    volatile one is not counted. Whoever counts also looks for keys that are NULL or repeated, unless an index shows
    that there are none.

    Rows of key ranges are always counted, those of a stream if `options.verify_rows`. Without it, faults of the key are
    not looked for.

    :param stop: ends the reading.
    """

    def __init__(self, snapshot: Snapshot, options: Options, stop: Stop) -> None:
        plan, count = snapshot.plan, options.verify_rows
        self._snapshot = snapshot
        self._query = snapshot.query
        self._batch_rows = plan.batch_rows
        self._options = options
        self._stop = stop
        self._ranges = self._can_be_ranges(plan)
        counts = count and not self._ranges
        self._owner_counts = counts and plan.repeats in ("always", "as many")
        self._reader_counts = counts and plan.repeats == "in one transaction"
        #: Whether the rows are compared with the database's own count.
        self.verified = self._ranges or self._owner_counts or self._reader_counts
        self._counted: int | None = None
        self._looks = count and self._query.key is not None and not plan.unique
        #: Faults of the key, once everything is read; None if unknown, or there is no key.
        self.key_faults: KeyFaults | None = KeyFaults(0, 0) if plan.unique else None
        self._read_ahead = ReadAhead[KeyRange](stop)
        jobs = [("feeder", self._feed)]
        jobs += [(f"reader-{n}", self._read) for n in range((options.readers or 2) if self._ranges else 1)]
        if self._ranges and not options.readers and snapshot.sessions.round_trip > FAR_SECONDS:
            jobs.append(("reader-2", partial(self._read, optional=True)))
        self._jobs = jobs
        self._running = len(jobs)
        _log_repeats(plan, count)

    def __enter__(self) -> Reader:
        for begun, (name, job) in enumerate(self._jobs):
            try:
                in_thread(name, partial(self._run, job))
            except BaseException as exc:  # no memory, for instance
                with self._stop.changing():
                    self._running -= len(self._jobs) - begun
                self.__exit__(type(exc), exc, None)
                raise
        return self

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        """Raises `VerificationError` at the end if there are too few or too many rows.

        :raises Stopped: if the stop is set; a reader that fails sets it.
        """
        rows = 0
        for data, ended in self._read_ahead:
            rows += ended
            yield data, ended
        self._stop.wait_for(lambda: not self._running)
        if self.verified and rows != self._counted:
            raise VerificationError(
                f"{rows} rows were read, but the database counts {self._counted} in the same snapshot.",
                f"unique_key={self._query.unique_key!r} must be unique and never NULL, and the query must give the same"
                " rows each time it runs (no LIMIT without ORDER BY). Correct it, and export again.",
            )

    def __exit__(self, _: object, exc: BaseException | None, trace: object) -> None:
        if exc is None and not self._running:
            return
        self._stop.set(exc or Stopped())
        deadline = time.monotonic() + _STOP_SECONDS
        # A cancel between two statements stops neither, so repeat it until the threads have ended.
        while self._running and time.monotonic() < deadline:
            self._snapshot.sessions.cancel()
            time.sleep(0.05)

    def _run(self, job: Callable[[], None]) -> None:
        try:
            with self._stop.on_failure(), translated("running the query"):
                job()
        finally:
            with self._stop.changing():
                self._running -= 1

    def _feed(self) -> None:
        """Find the key ranges, or count, on the owner's connection while the readers read."""
        if self._ranges:
            self._counted, after = 0, None
            for rows, upto in walk(self._snapshot.owner, self._query, self._batch_rows):
                self._counted += rows
                if upto is not None:
                    self._read_ahead.add((after, upto))
                    after = upto
            self._read_ahead.add((after, None))
        else:
            self._read_ahead.add(EVERYTHING)
        self._read_ahead.end()
        if self._owner_counts:
            self._count(self._snapshot.owner)
        elif self._ranges and self._looks:
            self._look()

    def _count(self, connection: sa.Connection) -> None:
        self._counted, faults = count_rows(connection, self._query, keys=self._looks)
        if self._looks:
            self.key_faults = faults

    def _look(self) -> None:
        """Look for faults of the key; a failure of this does not fail the export."""
        try:
            _, self.key_faults = count_within(self._snapshot.owner, self._query, _LOOK_SECONDS, self._stop, keys=True)
            why = "counting took too long."
        except DatabaseError as exc:
            why = exc.failed
        if self.key_faults is None:
            log.info("It is not known whether unique_key=%r is unique: %s", self._query.unique_key, why)

    def _read(self, optional: bool = False) -> None:
        """Read with a connection of its own.

        :param optional: whether to do without, if there is none to be had.
        """
        try:
            with translated("beginning to read"):
                connection = self._snapshot.connect()
        except DatabaseError as exc:
            # Somebody who waits for a lock lets only the first reader read.
            if exc.sqlstate != LOCK_NOT_AVAILABLE and not (optional and exc.transient):
                raise
            log.warning("Reading with one connection fewer: %s", exc.failed)
            return
        if self._options.method == "copy":
            self._read_ahead.work(self._copy(connection))
        else:
            self._read_ahead.work(lambda _, writer: write_rows(connection, self._query, self._batch_rows, writer))
        if self._reader_counts:
            self._count(connection)

    def _copy(self, connection: sa.Connection) -> Callable[[KeyRange, BinaryIO], int]:
        cursor, literal = driver_connection(connection).cursor(), text_literal(connection)

        def read(key_range: KeyRange, writer: BinaryIO) -> int:
            cursor.copy_expert(self._query.within(*key_range, literal).copy(), writer)
            return int(cursor.rowcount)

        return read

    def _can_be_ranges(self, plan: Plan) -> bool:
        """Whether key ranges are possible, and by the planner's estimate not much more expensive than one stream.

        Without an index on the key, or if the query has to run as a whole for each of its ranges, every
        range would cost as much as the whole.
        """
        options, key = self._options, self._query.key
        if key is None or options.method != "copy" or options.readers == 1 or plan.repeats != "always":
            return False
        if not key.comparable:
            log.info(
                "unique_key=%r has a composite type, or one whose operators are not on the search path: one connection"
                " reads it.",
                key.name,
            )
            return False
        if plan.range_cost is not None and plan.rows / plan.batch_rows * plan.range_cost <= 2 * plan.cost:
            return True
        log.info(
            "Reading batches along unique_key=%r would cost more than one stream (no index gives its order, or"
            " yield_per is small): reading one ordered stream with one reader instead.",
            key.name,
        )
        return False


def walk(connection: sa.Connection, query: Query, yield_per: int) -> Iterator[tuple[int, str | None]]:
    """Walk along the key once, `yield_per` rows at a time: the rows passed, and the key of the last one, as text.

    The key is None for the rest: fewer than `yield_per` rows, and all rows whose key is NULL.

    :param connection: used by nobody else meanwhile.
    """
    fetch_as_text(connection, query)
    cursor = driver_connection(connection).cursor()
    # For a cursor, the planner prefers a fast start, so the first range does not wait for a sort where an
    # index gives the order (PostgreSQL manual, 19.7.4, cursor_tuple_fraction).
    fetch = f"FETCH RELATIVE {yield_per} FROM batch_keys"
    command = f"DECLARE batch_keys NO SCROLL CURSOR FOR {query.keys()};\n{fetch}"
    last, passed = None, 0
    while True:
        cursor.execute(command)
        row, command = cursor.fetchone(), fetch
        if row is None or row[0] is None:
            break
        last, passed = row[0], passed + yield_per
        yield yield_per, last
    # The server does not report how many rows the last FETCH has skipped.
    if last is not None:
        cursor.execute(query.count_from(last, text_literal(connection)))
        rest, same = map(int, cursor.fetchone())
    if last is None or same > 1:  # of the rows with this key, the cursor may have passed only some
        cursor.execute(query.count())
        rest = int(cursor.fetchone()[0]) - passed
    yield rest, None


def write_rows(connection: sa.Connection, query: Query, yield_per: int, writer: BinaryIO) -> int:
    """Write a query as CSV, read row by row with SQLAlchemy and a server-side cursor; returns the number of rows.

    At most `yield_per` rows are in memory; for wide rows, lower it.

    :param connection: used by nobody else meanwhile.
    """
    fetch_as_text(connection, query)
    options = {"stream_results": True, "yield_per": yield_per, "no_parameters": True}
    rows = 0
    with connection.execution_options(**options).exec_driver_sql(query.select()) as result:
        for batch in result.partitions(yield_per):
            writer.writelines(csv_line(row).encode() for row in batch)
            rows += len(batch)
    return rows


def csv_line(row: Sequence[str | None]) -> str:
    """A row of texts as COPY would write it."""
    # Most rows need no quotes: a check of the whole line is faster than one of each field.
    if None not in row and "" not in row:
        line = ",".join(cast(Sequence[str], row))
        if line.count(",") == len(row) - 1 and '"' not in line and line.isprintable() and line != "\\.":
            return line + "\n"
    alone = len(row) == 1
    return ",".join([csv_field(field, alone) for field in row]) + "\n"


def _log_repeats(plan: Plan, count: bool) -> None:
    if plan.repeats == "as many":
        log.info("The query numbers or limits rows (LIMIT, DISTINCT, a window function): one connection reads it.")
    elif plan.repeats == "in one transaction":
        log.info(
            "The query asks for the time or another server, or calls a function that may: one connection reads it."
        )
    elif plan.repeats == "never":
        log.warning(
            "The query calls a volatile function and may return other rows each time: one connection reads it once%s.",
            ", and can't be counted" if count else "",
        )
