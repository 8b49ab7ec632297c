"""One export by several programs: one holds a snapshot, others export its key ranges, and one publishes them.

The holder enters `Holder` (holder.py) and hands its `plan` to the others. Each of them exports a piece, with `Export`,
the plan's snapshot and one of its ranges, and calls `report`. If `Holder.check` succeeds after all reports exist, every
piece was read on the snapshot; then `publish` writes the one manifest.

The keys of the pieces contain the plan's token. So pieces of another plan are never mistaken for this one's, and the
files of a published export stay untouched until the manifest of the next one replaces its manifest. Reports are not
manifests, and readers of manifests ignore them.
"""

from __future__ import annotations

import dataclasses
import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from streaming_export import manifest
from streaming_export.cancellation import Stopped
from streaming_export.errors import ExportError, VerificationError
from streaming_export.options import Options
from streaming_export.postgres.reader import KeyRange
from streaming_export.report import ExportResult
from streaming_export.s3.bucket import Bucket
from streaming_export.s3.conditional import ANYTHING
from streaming_export.s3.objects import ExportedFile


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
        ranges = tuple((after, upto) for after, upto in shared["ranges"])
        return cls(**{**shared, "ranges": ranges})

    @property
    def prefix(self) -> str:
        """The prefix of the keys of its pieces and reports, and of no others."""
        return f"{self._split_key[0]}-{self.token[:12]}-"

    def piece_key(self, number: int) -> str:
        """The key of a piece's file; `number` counts from 0."""
        return f"{self.prefix}{number + 1:05}{self._split_key[1]}"

    def report_key(self, number: int) -> str:
        """The key of a piece's report."""
        return f"{self.piece_key(number)}.piece.json"

    @property
    def _split_key(self) -> tuple[str, str]:
        stem, extension = posixpath.splitext(self.key)
        if extension in (".gz", ".zst"):
            stem, inner = posixpath.splitext(stem)
            extension = inner + extension
        return stem, extension


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

    :raises VerificationError: if a piece is missing, or the number of rows is not the database's count.
    :raises StoreError: if the store failed.
    :raises ExportCancelled: if the bucket's `stop` is set by a cancellation.
    """
    key = manifest.manifest_key(plan.key)
    try:
        before = manifest.current(bucket, key)
        files = [file for number in range(len(plan.ranges)) for file in _files(bucket, plan, number)]
        rows = sum(file.rows for file in files)
        if rows != plan.rows:
            raise VerificationError(
                f"The pieces have {rows:,} rows, but the database counts {plan.rows:,} in the same snapshot.",
                f"The unique key must be unique and never NULL. Correct it, and export {bucket.url(plan.key)} again.",
            )
        document = {**plan.document, **manifest.of_files(bucket.name, files)}
        manifest.publish(bucket, key, document, before, files)
    except (Stopped, ExportError) as exc:
        first = bucket.stop.reason or exc
        if isinstance(first, ExportError):
            first.during("No manifest was written. What was published before stays.")
        raise first from None
    taken_at, started_at = plan.document["snapshot"]["taken_at"], datetime.fromisoformat(plan.document["started_at"])
    seconds = (datetime.now(UTC) - started_at).total_seconds()  # by the clocks of two machines, as in the manifest
    return ExportResult.of(bucket.name, files, bucket.url(key), True, None, taken_at, seconds)


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
