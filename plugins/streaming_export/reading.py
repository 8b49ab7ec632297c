"""Reads a query on a snapshot: by COPY in batches, by COPY in one stream, or row by row."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import BinaryIO

import sqlalchemy as sa

from streaming_export.batches import Cuts, copy_batches, find_cuts
from streaming_export.columns import explain
from streaming_export.errors import VerificationError
from streaming_export.private import set_private
from streaming_export.query import Query
from streaming_export.read_ahead import ReadAhead, ReadBatch, Stopped
from streaming_export.rows import read_rows
from streaming_export.snapshot import Snapshot

log = logging.getLogger(__name__)

_STOP_SECONDS = 5.0  # how long a stopped reader may take to end before it is left behind


class Reading:
    """An iterable of (bytes, rows that end in them), in the file's order; a context manager.

    The snapshot's holder meanwhile finds the cuts and the key's bounds, and counts the rows: along the key
    where it cuts it, by count(*) otherwise.

    :param method: "copy" or "rows".
    :param yield_per: rows of a batch.
    :param readers: connections that read at the same time, where the query can be cut.
    :param count: whether to have the database count the rows.
    """

    def __init__(
        self, snapshot: Snapshot, query: Query, *, method: str, yield_per: int, readers: int, count: bool
    ) -> None:
        self._snapshot = snapshot
        self._query = query
        self._yield_per = yield_per
        self._count = count
        self._cuts = Cuts()
        self._counted: int | None = None
        self.key_bounds: tuple[str | None, str | None] = (None, None)
        self._count_error: BaseException | None = None
        self._holder_ended = threading.Event()
        self._stopped = False
        plan = explain(snapshot.holder, query.select())
        self.estimated_rows = int(plan["Plan Rows"])
        self._indexed = self._can_be_cut(plan["Total Cost"])
        self._cut = method == "copy" and self._indexed
        batches = [self._reader(method) for _ in range(readers if self._cut else 1)]
        self._read_ahead = ReadAhead(batches)
        self._holder = threading.Thread(target=self._use_holder, name="snapshot-holder", daemon=True)

    def __enter__(self) -> Reading:
        self._holder.start()
        return self

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        return iter(self._read_ahead)

    def verify(self, rows: int) -> None:
        """Compare the rows that were read with those that the database counted.

        :raises VerificationError: if they differ.
        """
        self._holder_ended.wait()
        if self._stopped:
            raise Stopped
        if self._count_error:
            raise self._count_error
        if self._count and rows != self._counted:
            raise VerificationError(
                f"{rows} rows were read, but the database counts {self._counted} in the same snapshot."
                f" Nothing was published. unique_key={self._query.unique_key!r} must be unique and never NULL, and"
                " the query must give the same rows each time it runs (no random(), no LIMIT without ORDER BY)."
            )

    def stop(self) -> None:
        """End the reading; whoever waits for it raises `Stopped`. Safe from any thread."""
        self._stopped = True
        self._holder_ended.set()
        self._cuts.finish(Stopped())
        self._read_ahead.stop()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        deadline = time.monotonic() + _STOP_SECONDS
        # A cancel that comes between two statements stops neither: repeat it until they have ended.
        while (self._read_ahead.alive() or self._holder.is_alive()) and time.monotonic() < deadline:
            self._snapshot.cancel()
            time.sleep(0.05)

    def _reader(self, method: str) -> ReadBatch:
        connection = self._snapshot.connect()
        set_private(connection, self._query.private)
        if method == "copy":
            return copy_batches(connection, self._query, self._cuts)
        return _row_batches(connection, self._query, self._yield_per)

    def _use_holder(self) -> None:
        try:
            if self._cut:
                self._counted = find_cuts(self._snapshot.holder, self._query, self._yield_per, self._add_cut)
            self._cuts.finish()
            if self._indexed and self._query.key and self._query.key.impersonal:
                bounds = [self._ask(self._query.key_bound(last=last)) for last in (False, True)]
                self.key_bounds = (bounds[0], bounds[1])
            if self._count and not self._cut:
                self._counted = int(self._ask(self._query.count()) or 0)
        except BaseException as exc:  # whatever it is, the readers or verify() raise it
            self._count_error = exc
            self._cuts.finish(exc)
        finally:
            self._holder_ended.set()

    def _add_cut(self, key: str) -> None:
        if self._stopped:
            raise Stopped
        self._cuts.add(key)

    def _ask(self, sql: str) -> str | None:
        if self._stopped:
            raise Stopped
        answer = self._snapshot.holder.execution_options(no_parameters=True).exec_driver_sql(sql).scalar()
        return None if answer is None else str(answer)

    def _can_be_cut(self, cost_of_whole: float) -> bool:
        """Whether batches cost less than one stream, as the planner sees it.

        Without an index on the key, or with a query that has to be run in whole for each of its parts, every
        cut and every batch would cost as much as the whole.
        """
        if self._query.unique_key is None:
            return False
        batches = self.estimated_rows / self._yield_per
        cost_of_cut = explain(self._snapshot.holder, f"{self._query.keys()} LIMIT {self._yield_per}")["Total Cost"]
        if batches * cost_of_cut <= 2 * cost_of_whole:
            return True
        log.info(
            "Reading batches along unique_key=%r would cost more than one stream (no index gives its order, or"
            " yield_per is small): reading one ordered stream with one reader instead.",
            self._query.unique_key,
        )
        return False


def _row_batches(connection: sa.Connection, query: Query, yield_per: int) -> ReadBatch:
    batches = read_rows(connection, query, yield_per)

    def read(number: int, writer: BinaryIO) -> int | None:
        data, rows = next(batches, (b"", None))
        writer.write(data)
        return rows

    return read
