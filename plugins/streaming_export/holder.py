"""Holds a snapshot, and finds the key ranges that other programs export on it: see pieces.py."""

from __future__ import annotations

import contextlib
import itertools
import logging
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import sqlalchemy as sa

from streaming_export import manifest
from streaming_export.cancellation import Stop, Stopped
from streaming_export.errors import ExportError, InvalidArgument
from streaming_export.options import Options
from streaming_export.pieces import Plan
from streaming_export.postgres.errors import translated
from streaming_export.postgres.query import Query, Source
from streaming_export.postgres.reader import KeyRange, walk
from streaming_export.postgres.stream import CsvStream, open_csv
from streaming_export.postgres.transactions import Wait, wait_for_older

log = logging.getLogger(__name__)

#: The most pieces of one export.
MAX_PIECES = 1_000

# Rows of a step of the walk that finds the ranges. The sizes of two ranges differ by at most so many rows.
_MIN_STEP, _MAX_STEP, _STEPS_A_PIECE = 1_000, 50_000, 20

# The bounds of ranges are stored on their way to the programs that export the pieces, so keys must not be personal:
# only numbers, times and UUIDs are allowed (OIDs from PostgreSQL's pg_type.dat).
_KEYS = {20: "bigint", 21: "smallint", 23: "integer", 1700: "numeric", 2950: "uuid", 1082: "date"}
_KEYS |= {1114: "timestamp", 1184: "timestamptz", 26: "oid"}


class Holder:
    """Takes a snapshot, finds the key ranges of the pieces, and holds the snapshot until the block ends.

    :param key: of the export.
    :param pieces: number of pieces; for few rows there are fewer ranges.
    :param run: what runs the export, by name; for the manifest.
    :param stop: ends the wait for transactions and the walk when it is set.

    The other parameters are those of `Export`.

    :raises InvalidArgument: if the number of pieces, or an option, is not allowed.
    """

    def __init__(
        self,
        query: Source,
        parameters: Mapping[str, Any] | None = None,
        *,
        engine: sa.Engine,
        key: str,
        unique_key: str,
        pieces: int,
        window: tuple[str, str] | None = None,
        mask_key: str | None = None,
        run: Mapping[str, str | int | None] | None = None,
        application_name: str = "streaming_export",
        options: Options | None = None,
        stop: Stop | None = None,
    ) -> None:
        if isinstance(pieces, bool) or not isinstance(pieces, int) or not 1 <= pieces <= MAX_PIECES:
            raise InvalidArgument("pieces", pieces, f"a whole number from 1 to {MAX_PIECES:,}")
        self._options, self._stop = options or Options(), stop or Stop()
        if not self._options.overwrite:
            raise InvalidArgument("overwrite", False, "True: an export in pieces replaces the manifest")
        self._engine, self._application_name = engine, application_name
        self._key, self._pieces, self._window = key, pieces, window
        self._parameters, self._run = dict(parameters or {}), dict(run or {})
        self._csv = open_csv(
            query,
            self._parameters,
            engine=engine,
            unique_key=unique_key,
            options=self._options,
            mask_key=mask_key,
            application_name=application_name,
            stop=self._stop,
        )
        #: Cancels its queries on the server; safe from any thread.
        self.cancel = self._csv.snapshot.cancel

    def __enter__(self) -> Holder:
        """Take the snapshot and find the ranges.

        :raises ExportError: as `Export.run` does before it reads.
        """
        started_at = datetime.now(UTC)
        try:
            with contextlib.ExitStack() as stack:
                waited = wait_for_older(
                    self._engine, self._window, self._options.wait_for_transactions, self._application_name, self._stop
                )
                stack.enter_context(self._csv)
                _check(self._csv)
                rows, ranges = self._find_ranges()
                document = self._document(uuid.uuid4().hex, started_at, waited)
                #: What the programs that export the pieces need.
                self.plan = Plan(document["export_id"], self._key, self._csv.snapshot.id, rows, ranges, document)
                stack.pop_all()
        except (Stopped, ExportError) as exc:
            first = self._stop.reason or exc
            if isinstance(first, ExportError):
                first.during("Nothing was published.")
            raise first from None
        log.info("%s: %s rows, %s pieces.", self._csv.snapshot.server(), f"{rows:,}", len(ranges))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._csv.__exit__(kind, exc, trace)

    def check(self) -> None:
        """Check that the snapshot is still held.

        :raises DatabaseError: if its connection is lost.
        """
        with translated("holding the snapshot"):
            self._csv.snapshot.owner.exec_driver_sql("SELECT 1").close()

    def _find_ranges(self) -> tuple[int, tuple[KeyRange, ...]]:
        """The number of all rows, and the key ranges."""
        step = min(_MAX_STEP, max(_MIN_STEP, self._csv.plan.rows // (self._pieces * _STEPS_A_PIECE)))
        rows, passed = 0, []
        with translated("finding the key ranges"):
            for more, upto in walk(self._csv.snapshot.owner, self._csv.query, step):
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

    def _document(self, export_id: str, started_at: datetime, waited: Wait | None) -> dict[str, Any]:
        query: Query = self._csv.query
        return manifest.build(
            export_id=export_id,
            bucket="",
            files=[],
            rows_verified=True,
            columns=[(column.name, column.type) for column in query.columns],
            compression=self._options.compression,
            spreadsheet_safe=self._options.spreadsheet_safe,
            masked=self._options.mask,
            query_sha256=query.fingerprint,
            parameters=self._parameters,
            unique_key=query.unique_key,
            window=self._window,
            waited=waited,
            snapshot=asdict(self._csv.snapshot.info),
            run=self._run,
            started_at=started_at,
        )


def _check(csv: CsvStream) -> None:
    """Refuse what can't be exported in pieces."""
    key = csv.query.key
    if key is None or key.oid not in _KEYS:
        named = key.name if key else None
        raise InvalidArgument("unique_key", named, f"a column of one of the types {', '.join(sorted(_KEYS.values()))}")
    if csv.plan.repeats != "always":
        raise InvalidArgument("query", "volatile, or asks for the time", "it must give the same rows on each run")
