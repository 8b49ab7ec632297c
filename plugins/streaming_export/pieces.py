"""One export by several programs: one holds a snapshot, others export its key ranges, and one publishes them.

The holder enters `Holder` and hands its `plan` to the others. Each of them exports a piece, with `Export`, the plan's
snapshot and document and one of its ranges, and calls `report`. If `Holder.check` succeeds after all reports exist,
every piece was read on the snapshot; then `publish` writes the one manifest.

The keys of the pieces contain the plan's token. So pieces of another plan are never mistaken for this one's, and the
files of a published export stay untouched until the manifest of the next one replaces its manifest. Reports are not
manifests, and readers of manifests ignore them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from streaming_export import manifest
from streaming_export.cancellation import Stopped, cancelled
from streaming_export.errors import ExportError, InvalidArgument, VerificationError
from streaming_export.export import Export
from streaming_export.options import Options, check_whole_number
from streaming_export.postgres.errors import translated
from streaming_export.postgres.query import Source
from streaming_export.postgres.reader import KeyRange, walk
from streaming_export.postgres.stream import CsvStream
from streaming_export.report import ExportResult
from streaming_export.s3.bucket import Bucket
from streaming_export.s3.conditional import ANYTHING
from streaming_export.s3.layout import split_key
from streaming_export.s3.objects import ExportedFile

log = logging.getLogger(__name__)

#: The most pieces of one export.
MAX_PIECES = 1_000

# Rows of a step of the walk that finds the ranges. The sizes of two ranges differ by at most so many rows.
_MIN_STEP, _MAX_STEP, _STEPS_A_PIECE = 1_000, 50_000, 20

# The bounds of ranges are stored on their way to the programs that export the pieces, so keys must not be personal:
# only numbers, times and UUIDs are allowed (OIDs from PostgreSQL's pg_type.dat).
_KEYS = {20: "bigint", 21: "smallint", 23: "integer", 1700: "numeric", 2950: "uuid", 1082: "date"}
_KEYS |= {1114: "timestamp", 1184: "timestamptz", 26: "oid"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What the programs of one export share; `asdict` of it fits into JSON.

    :param token: unique to this plan.
    :param key: key of the export; the pieces' keys are derived from it.
    :param snapshot: id of the snapshot to read on.
    :param rows: the database's count of the rows in it.
    :param ranges: a key range for each piece, in order, of about the same number of rows.
    :param document: the manifest, without its files.
    """

    token: str
    key: str
    snapshot: str
    rows: int
    ranges: Sequence[KeyRange]
    document: Mapping[str, Any]

    @classmethod
    def parse(cls, shared: Mapping[str, Any]) -> Plan:
        """The plan from the mapping that `asdict` made of it."""
        return cls(**{**shared, "ranges": tuple(map(tuple, shared["ranges"]))})

    @property
    def prefix(self) -> str:
        """The prefix of the keys of its pieces and reports, and of no others."""
        return f"{split_key(self.key)[0]}-{self.token[:12]}-"

    def piece_key(self, number: int) -> str:
        """The key of a piece's file; `number` counts from 0."""
        return f"{self.prefix}{number + 1:05}{split_key(self.key)[1]}"

    def report_key(self, number: int) -> str:
        """The key of a piece's report."""
        return f"{self.piece_key(number)}.piece.json"


class Holder(Export):
    """An export whose rows others read: takes a snapshot, finds the key ranges, and holds it until the block ends.

    :param pieces: number of pieces; for few rows there are fewer ranges.

    The other parameters are those of `Export`. `cancel` ends it, also while it holds the snapshot: see `check`.

    :raises InvalidArgument: if the number of pieces, or an option, is not allowed.
    """

    def __init__(self, query: Source, *arguments: Any, pieces: int, **more: Any) -> None:
        super().__init__(query, *arguments, **more)
        check_whole_number("pieces", pieces, 1, MAX_PIECES)
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
        with self._failures():
            # A store that would refuse `publish` refuses here, before anything is read.
            window_end = self._window and self._window[1]
            manifest.current(self._bucket, manifest.manifest_key(self._key), window_end=window_end)
            self._wait()
            csv = self._held.enter_context(self._csv)
            _refuse_unfit(csv)
            rows, ranges = self._find_ranges(csv)
        document = self._manifest(csv) | {"rows_verified": True}  # or else it is not published
        return Plan(self._id, self._key, csv.snapshot.id, rows, ranges, document)

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


def _refuse_unfit(csv: CsvStream) -> None:
    """Refuse what can't be exported in pieces."""
    key = csv.query.key
    if key is None or key.oid not in _KEYS:
        allowed = f"a column of one of the types {', '.join(sorted(_KEYS.values()))}"
        raise InvalidArgument("unique_key", csv.query.unique_key, allowed)
    if csv.plan.repeats != "always":
        found = "volatile, or with the time, a foreign table, LIMIT, DISTINCT or a window function"
        raise InvalidArgument("query", found, "it must give the same rows on each run")


def report(bucket: Bucket, plan: Plan, number: int, files: Sequence[ExportedFile]) -> None:
    """Write down that a piece is complete, and which files it has.

    :param number: of the piece, from 0.
    :raises StoreError: if the store failed.
    """
    body = json.dumps({"token": plan.token, "piece": number, "files": [asdict(file) for file in files]}).encode()
    bucket.put(plan.report_key(number), body, replaces=ANYTHING, export_id=plan.token)


def reported(bucket: Bucket, plan: Plan) -> set[int]:
    """Numbers of the pieces that are complete.

    :raises StoreError: if the store failed.
    """
    found = {listed.key for listed in bucket.list(plan.prefix)}
    return {number for number in range(len(plan.ranges)) if plan.report_key(number) in found}


def publish(bucket: Bucket, plan: Plan) -> ExportResult:
    """Write the manifest of all pieces, after the holder has seen all reports while it held the snapshot.

    :raises VerificationError: if a piece is missing, the number of rows is not the database's count, or an export of a
        later snapshot or window is published.
    :raises StoreError: if the store failed.
    :raises ExportCancelled: if the bucket's `stop` is set by a cancellation.
    """
    key, window = manifest.manifest_key(plan.key), plan.document["window"]
    taken_at = datetime.fromisoformat(plan.document["snapshot"]["taken_at"])
    try:
        before = manifest.current(bucket, key, taken_at, window and window["to"])
        files = [file for number in range(len(plan.ranges)) for file in _files(bucket, plan, number)]
        rows = sum(file.rows for file in files)
        if rows != plan.rows:
            raise VerificationError(
                f"The pieces have {rows:,} rows, but the database counts {plan.rows:,} in the same snapshot.",
                f"The unique key must be unique and never NULL. Correct it, and export {bucket.url(plan.key)} again.",
            )
        manifest.publish(bucket, key, plan.document, before, files, taken_at)
    except (Stopped, ExportError) as exc:
        first = bucket.stop.reason or exc
        if isinstance(first, ExportError):
            first.during("No manifest was written. What was published before stays.")
        raise first from None
    started_at = datetime.fromisoformat(plan.document["started_at"])
    seconds = (datetime.now(UTC) - started_at).total_seconds()  # by the clocks of two machines, as in the manifest
    return ExportResult.of(plan.document, bucket.name, files, bucket.url(key), None, seconds)


def _files(bucket: Bucket, plan: Plan, number: int) -> list[ExportedFile]:
    """The files that a piece reported."""
    found = bucket.read(plan.report_key(number))
    said = json.loads(found[0]) if found else {}
    if said.get("token") != plan.token or said.get("piece") != number:
        raise VerificationError(
            f"Piece {number + 1} of {bucket.url(plan.key)} is missing.", "Start the whole export again."
        )
    return [ExportedFile(**file) for file in said["files"]]


def of_piece(options: Options) -> Options:
    """The options of a piece: the holder has waited already, and a piece without rows is a file with only a header."""
    return dataclasses.replace(options, on_empty="header", wait_for_transactions=None)
