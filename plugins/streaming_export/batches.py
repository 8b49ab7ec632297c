"""Cuts the key of a query into batches of `yield_per` rows, and reads each by COPY."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import BinaryIO

import sqlalchemy as sa

from streaming_export.private import set_private
from streaming_export.query import Query
from streaming_export.read_ahead import ReadBatch
from streaming_export.snapshot import driver_connection, fetch_as_text


class Cuts:
    """The keys at which batches end, as text, while they are being found.

    One thread adds, others ask.
    """

    def __init__(self) -> None:
        self._bounds: list[str] = []
        self._finished = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def add(self, bound: str) -> None:
        """Add the key of the last row of the next batch."""
        with self._changed:
            self._bounds.append(bound)
            self._changed.notify_all()

    def finish(self, error: BaseException | None = None) -> None:
        """The batch after the last key added is the last one, or the search failed."""
        with self._changed:
            self._finished, self._error = True, error
            self._changed.notify_all()

    def batch(self, number: int) -> tuple[str | None, str | None] | None:
        """The bounds (after, upto] of a batch, None for a batch after the last one; waits until known.

        :raises BaseException: what the search failed with.
        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._bounds) > number or self._finished)
            if self._error:
                raise self._error
            if number > len(self._bounds):
                return None
            after = self._bounds[number - 1] if number else None
            upto = self._bounds[number] if number < len(self._bounds) else None
            return after, upto


def find_cuts(connection: sa.Connection, query: Query, yield_per: int, add: Callable[[str], None]) -> int:
    """Walk along the key once, and find the keys at which batches end.

    :param connection: used by nobody else meanwhile.
    :param add: called with each key, as text.
    :returns: the rows of the whole query, those without a key too.
    """
    fetch_as_text(connection, query)
    cursor = driver_connection(connection).cursor()
    # The planner prepares a cursor for being left early, so the first cut does not wait for a sort where an
    # index gives the order (PostgreSQL manual, 19.7.4, cursor_tuple_fraction).
    cursor.execute(f"DECLARE batch_keys NO SCROLL CURSOR FOR {query.keys()}")
    rows = 0
    while True:
        if yield_per > 1:  # MOVE 0 stays where it is, and counts that row again
            cursor.execute(f"MOVE {yield_per - 1} FROM batch_keys")
            rows += cursor.rowcount
        cursor.execute("FETCH FROM batch_keys")
        if (row := cursor.fetchone()) is None:
            return rows
        rows += 1
        if row[0] is not None:
            add(row[0])


def copy_batches(connection: sa.Connection, query: Query, cuts: Cuts) -> ReadBatch:
    """A reader of the batches between the cuts.

    :param connection: used by this reader alone.
    """
    cursor = driver_connection(connection).cursor()

    def read(number: int, writer: BinaryIO) -> int | None:
        bounds = cuts.batch(number)
        if bounds is None:
            return None
        where, private = query.key_range(*bounds)
        set_private(connection, private)
        cursor.copy_expert(query.copy(where), writer)
        return int(cursor.rowcount)

    return read
