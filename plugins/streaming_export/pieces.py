"""One export by several programs: one holds a snapshot, others export its key ranges, and one publishes them.

The holder enters `Holder` (holder.py) and hands its `plan` to the others. Each of them exports a piece, by `Export`
with the plan's snapshot and one of its ranges, and calls `report`. If `Holder.check` succeeds once all reports are
there, every piece was read on the snapshot; then `publish` writes the one manifest.

A plan has a token of its own that is in the keys of its pieces: pieces of another plan are never taken for its own, and
the files of an export that is published stay as they are until its successor's manifest replaces it. Reports are not
manifests, and no reader of manifests takes them for one.
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
from streaming_export.cancellation import Stop, Stopped
from streaming_export.errors import ExportError, VerificationError
from streaming_export.options import Options
from streaming_export.postgres.reader import KeyRange
from streaming_export.report import ExportResult
from streaming_export.s3.bucket import Bucket
from streaming_export.s3.conditional import ANYTHING
from streaming_export.s3.files import ExportedFile


@dataclass(frozen=True, slots=True)
class Plan:
    """What the programs of one export share; JSON can hold `asdict` of it.

    :param token: names this plan, and no other.
    :param key: of the export, which its pieces' keys are made of.
    :param snapshot: id of the snapshot to read on.
    :param rows: that the database has counted in it.
    :param ranges: of keys, of about as many rows each, in order; one for each piece.
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
        """The plan of `asdict`."""
        ranges = tuple((after, upto) for after, upto in shared["ranges"])
        return cls(**{**shared, "ranges": ranges})

    @property
    def prefix(self) -> str:
        """What the keys of its pieces and reports begin with, and no others."""
        return f"{self._split_key[0]}-{self.token[:12]}-"

    def piece_key(self, number: int) -> str:
        """The key of a piece's file, from 0."""
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
    """Note that a piece is complete, and what its files are.

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


def publish(bucket: Bucket, plan: Plan, *, stop: Stop | None = None) -> ExportResult:
    """Write the manifest of all pieces, once the holder has seen all of them reported while it held the snapshot.

    :raises VerificationError: if a piece is missing, or their rows are not those that the database has counted.
    :raises StoreError: if the store failed.
    :raises ExportCancelled: if `stop` is set by a cancellation.
    """
    key = manifest.manifest_key(plan.key)
    try:
        before = manifest.current(bucket, key, stop=stop)
        files = [file for number in range(len(plan.ranges)) for file in _files(bucket, plan, number)]
        rows = sum(file.rows for file in files)
        if rows != plan.rows:
            raise VerificationError(
                f"The pieces have {rows:,} rows, but the database counts {plan.rows:,} in the same snapshot.",
                f"The unique key must be unique and never NULL. Correct it, and export {bucket.url(plan.key)} again.",
            )
        document = {**plan.document, **manifest.of_files(bucket.name, files)}
        manifest.publish(bucket, key, document, before=before, export_id=plan.token, files=files, stop=stop)
    except (Stopped, ExportError) as exc:
        first = (stop and stop.reason) or exc
        if isinstance(first, ExportError):
            first.during("No manifest was written: what was published before stays.")
        raise first from None
    taken_at, started_at = plan.document["snapshot"]["taken_at"], datetime.fromisoformat(plan.document["started_at"])
    seconds = (datetime.now(UTC) - started_at).total_seconds()  # by the clocks of two machines, as in the manifest
    return ExportResult.of(bucket.name, files, bucket.url(key), True, taken_at, seconds)


def _files(bucket: Bucket, plan: Plan, number: int) -> list[ExportedFile]:
    """The files that a piece has reported."""
    found = bucket.read(plan.report_key(number))
    said = json.loads(found[0]) if found else {}
    if said.get("token") != plan.token or said.get("piece") != number:
        raise VerificationError(
            f"Piece {number + 1} of {bucket.url(plan.key)} is not there.", "Have the whole export start again."
        )
    return [ExportedFile(**file) for file in said["files"]]


def of_piece(options: Options) -> Options:
    """The options of a piece: the holder has waited, and a piece without rows is a file with a header."""
    return dataclasses.replace(options, on_empty="header", wait_for_transactions=None)
