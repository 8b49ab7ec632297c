"""Holds a snapshot, and finds the key ranges that other programs export on it: see pieces.py."""

from __future__ import annotations

import contextlib
import itertools
import logging
import uuid
from datetime import UTC, datetime
from typing import Any

from streaming_export.cancellation import cancelled
from streaming_export.errors import InvalidArgument
from streaming_export.export import Export
from streaming_export.pieces import Plan
from streaming_export.postgres.errors import translated
from streaming_export.postgres.query import Source
from streaming_export.postgres.reader import KeyRange, walk
from streaming_export.postgres.stream import CsvStream

log = logging.getLogger(__name__)

#: The most pieces of one export.
MAX_PIECES = 1_000

# Rows of a step of the walk that finds the ranges. The sizes of two ranges differ by at most so many rows.
_MIN_STEP, _MAX_STEP, _STEPS_A_PIECE = 1_000, 50_000, 20

# The bounds of ranges are stored on their way to the programs that export the pieces, so keys must not be personal:
# only numbers, times and UUIDs are allowed (OIDs from PostgreSQL's pg_type.dat).
_KEYS = {20: "bigint", 21: "smallint", 23: "integer", 1700: "numeric", 2950: "uuid", 1082: "date"}
_KEYS |= {1114: "timestamp", 1184: "timestamptz", 26: "oid"}


class Holder(Export):
    """An export whose rows others read: takes a snapshot, finds the key ranges, and holds it until the block ends.

    :param pieces: number of pieces; for few rows there are fewer ranges.

    The other parameters are those of `Export`. `cancel` ends it, also while it holds the snapshot: see `check`.

    :raises InvalidArgument: if the number of pieces, or an option, is not allowed.
    """

    def __init__(self, query: Source, *arguments: Any, pieces: int, **more: Any) -> None:
        super().__init__(query, *arguments, **more)
        if isinstance(pieces, bool) or not isinstance(pieces, int) or not 1 <= pieces <= MAX_PIECES:
            raise InvalidArgument("pieces", pieces, f"a whole number from 1 to {MAX_PIECES:,}")
        if not self._options.overwrite:
            raise InvalidArgument("overwrite", False, "True: an export in pieces replaces the manifest")
        self._pieces = pieces
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Holder:
        """Take the snapshot and find the ranges.

        :raises ExportError: as `Export.run` does before it reads.
        """
        try:
            #: What the programs that export the pieces need.
            self.plan = self._cancellation.run(self._take)
        except BaseException:
            self._held.close()
            raise
        log.info("%s: %s rows, %s pieces.", self._csv.snapshot.server(), f"{self.plan.rows:,}", len(self.plan.ranges))
        return self

    def __exit__(self, *raised: object) -> None:
        self._held.close()

    def check(self) -> None:
        """Check that the snapshot is still held.

        :raises DatabaseError: if its connection is lost.
        :raises ExportCancelled: after `cancel`.
        """
        if self._cancellation.cancelled:
            raise cancelled()
        with translated("holding the snapshot"):
            self._csv.snapshot.owner.exec_driver_sql("SELECT 1").close()

    def _take(self) -> Plan:
        started_at = datetime.now(UTC)
        with self._failures():
            waited = self._wait()
            csv = self._held.enter_context(self._reading())
            _check(csv)
            rows, ranges = self._find_ranges(csv)
        document = self._manifest(uuid.uuid4().hex, csv, [], waited, started_at)
        return Plan(document["export_id"], self._key, csv.snapshot.id, rows, ranges, document)

    def _find_ranges(self, csv: CsvStream) -> tuple[int, tuple[KeyRange, ...]]:
        """The number of all rows, and the key ranges."""
        step = min(_MAX_STEP, max(_MIN_STEP, csv.plan.rows // (self._pieces * _STEPS_A_PIECE)))
        rows, passed = 0, []
        with translated("finding the key ranges"):
            for more, upto in walk(csv.snapshot.owner, csv.query, step):
                self._stop.check()
                rows += more
                if upto is not None:
                    passed.append((rows, upto))
        bounds: list[str] = []
        for count, upto in passed:
            if count >= rows * (len(bounds) + 1) / self._pieces and len(bounds) < self._pieces - 1 and count < rows:
                bounds.append(upto)
        edges = [None, *bounds, None]
        return rows, tuple(itertools.pairwise(edges))


def _check(csv: CsvStream) -> None:
    """Refuse what can't be exported in pieces."""
    key = csv.query.key
    if key is None or key.oid not in _KEYS:
        named = key.name if key else None
        raise InvalidArgument("unique_key", named, f"a column of one of the types {', '.join(sorted(_KEYS.values()))}")
    if csv.plan.repeats != "always":
        raise InvalidArgument("query", "volatile, or asks for the time", "it must give the same rows on each run")
