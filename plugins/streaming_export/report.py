"""What an export reports: its progress, and what it did or would do."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streaming_export.postgres.counting import KeyFaults
from streaming_export.s3.files import FileWriter
from streaming_export.s3.objects import ExportedFile

log = logging.getLogger(__name__)

#: Seconds for which a preview counts rows.
COUNT_SECONDS = 30.0

_PROGRESS_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What was exported.

    :param bucket: name of the bucket.
    :param key: key of the file, or of the first of several; None if there were no rows and `on_empty` is "skip".
    :param rows: number of data rows, without headers.
    :param rows_verified: whether the database counted the same number in the same snapshot.
    :param unique: whether the unique key is unique and never NULL; None if unknown, or there is no key.
    :param bytes: size of all files.
    :param sha256: of the file's content, in hex; None for several files.
    :param etag: of the file, without quotes; None for several files.
    :param parts: number of parts that were uploaded.
    :param files: all files, in order.
    :param manifest_url: URL of the manifest; None if nothing was written, and for a piece.
    :param snapshot_taken_at: when the snapshot that was read was taken, in ISO 8601.
    :param seconds: from the start of the export until it was published.
    """

    bucket: str
    key: str | None
    rows: int
    rows_verified: bool
    unique: bool | None
    bytes: int
    sha256: str | None
    etag: str | None
    parts: int
    files: tuple[ExportedFile, ...]
    manifest_url: str | None
    snapshot_taken_at: str
    seconds: float

    @classmethod
    def of(
        cls,
        document: Mapping[str, Any],
        bucket: str,
        files: Sequence[ExportedFile],
        manifest_url: str | None,
        faults: KeyFaults | None,
        seconds: float,
    ) -> ExportResult:
        """The result of an export of these files; `document` is its manifest, without them."""
        only = files[0] if len(files) == 1 else None
        return cls(
            bucket=bucket,
            key=files[0].key if files else None,
            rows=sum(file.rows for file in files),
            rows_verified=document["rows_verified"],
            unique=None if faults is None else not faults,
            bytes=sum(file.bytes for file in files),
            sha256=only.sha256 if only else None,
            etag=only.etag if only else None,
            parts=sum(file.parts for file in files),
            files=tuple(files),
            manifest_url=manifest_url,
            snapshot_taken_at=document["snapshot"]["taken_at"],
            seconds=round(seconds, 3),
        )


@dataclass(frozen=True, slots=True)
class Preview:
    """What an export would do.

    :param sql: the query, with the names of its parameters instead of their values.
    :param columns: names of the columns.
    :param rows: number of rows in the snapshot; None if counting took too long.
    :param estimated_rows: the planner's estimate.
    :param estimated_bytes: size before compression: the planner's width of a row, times the rows.
    :param targets: URLs of the first file and of the manifest, each with what it would replace, or None.
    """

    sql: str
    columns: tuple[str, ...]
    rows: int | None
    estimated_rows: int
    estimated_bytes: int
    targets: dict[str, str | None]


class Progress:
    """Logs how far an export is, at most every 10 seconds."""

    def __init__(self, estimated_rows: int) -> None:
        self._estimated_rows = max(1, estimated_rows)
        self._started = self._reported = time.monotonic()

    def report(self, rows: int, files: FileWriter) -> None:
        """Log the number of rows read and of bytes written so far, if the last report is long enough ago."""
        now = time.monotonic()
        if now - self._reported < _PROGRESS_SECONDS:
            return
        self._reported = now
        log.info(
            "%s rows, %.0f %% of the planner's estimate, %s bytes, %s rows/s.",
            f"{rows:,}",
            100 * rows / self._estimated_rows,
            f"{files.size:,}",
            f"{rows / (now - self._started):,.0f}",
        )


def log_end(result: ExportResult) -> None:
    """Log what was published."""
    if result.key is None:
        log.info("The query returned no rows. Nothing was written to s3://%s.", result.bucket)
        return
    log.info(
        "Published s3://%s/%s%s: %s, %s bytes, %.1f s, %s rows/s. Manifest: %s",
        result.bucket,
        result.key,
        f" and {len(result.files) - 1} more files" if len(result.files) > 1 else "",
        f"{result.rows:,} row{'' if result.rows == 1 else 's'}",
        f"{result.bytes:,}",
        result.seconds,
        f"{result.rows / max(result.seconds, 0.001):,.0f}",
        result.manifest_url or "none, because this is a piece of an export",
    )


def warn_of_key(unique_key: str | None, faults: KeyFaults | None) -> None:
    """Warn if the unique key is NULL or repeated, which an ingest refuses."""
    if not faults:
        return
    log.warning("unique_key=%r should be unique and never NULL, but %s.", unique_key, faults)
    log.warning("The file is whole, but an ingest will refuse it. Correct the query, and export again.")
