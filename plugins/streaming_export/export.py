"""Streams a Postgres query into one CSV object: query → batches → bytes → parts → object."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import psycopg2
import sqlalchemy as sa

from streaming_export.cancellation import Cancellation, run_cancellable
from streaming_export.errors import (
    EmptyResult,
    ExportCancelled,
    InvalidArgument,
    UploadError,
    query_error,
)
from streaming_export.multipart import StoredObject, Upload
from streaming_export.query import Source, describe
from streaming_export.read_ahead import Stopped
from streaming_export.reading import Reading
from streaming_export.snapshot import Snapshot

log = logging.getLogger(__name__)

Method = Literal["copy", "rows"]
OnEmpty = Literal["header", "skip", "fail"]

#: Rows of a batch by method: "rows" holds a batch in memory as Python objects, "copy" does not.
DEFAULT_YIELD_PER: dict[str, int] = {"copy": 50_000, "rows": 5_000}

_PROGRESS_SECONDS = 10.0
_MAX_KEY_BYTES = 1024  # Amazon S3 User Guide, "Naming Amazon S3 objects"


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What was exported.

    :param bucket: where the object is.
    :param key: where the object is; None if there were no rows and `on_empty` is "skip".
    :param rows: number of data rows, without the header.
    :param rows_verified: whether the database counted the same number in the same snapshot.
    :param bytes: size of the object.
    :param sha256: of the object's content, in hex.
    :param etag: of the object, as the store gives it.
    :param parts: number of parts it was uploaded in.
    :param seconds: from the call to the confirmed object.
    """

    bucket: str
    key: str | None
    rows: int
    rows_verified: bool
    bytes: int
    sha256: str | None
    etag: str | None
    parts: int
    seconds: float


def check_options(*, method: str, yield_per: int | None, readers: int, on_empty: str) -> None:
    """Refuse options that no export can have.

    :raises InvalidArgument: naming the option, its value and what is allowed.
    """
    for name, choice, choices in (("method", method, get_args(Method)), ("on_empty", on_empty, get_args(OnEmpty))):
        if choice not in choices:
            raise InvalidArgument(name, choice, f"one of {', '.join(choices)}")
    for name, number, most in (("yield_per", yield_per, 10_000_000), ("readers", readers, 16)):
        if name == "yield_per" and number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= most:
            raise InvalidArgument(name, number, f"a whole number from 1 to {most:,}")


def export(
    query: Source,
    *,
    engine: sa.Engine,
    client: Any,
    bucket: str,
    key: str,
    parameters: Mapping[str, Any] | None = None,
    unique_key: str | None = None,
    method: Method = "copy",
    yield_per: int | None = None,
    readers: int = 2,
    on_empty: OnEmpty = "header",
    verify_rows: bool = True,
    extra_args: Mapping[str, Any] | None = None,
    application_name: str = "streaming_export",
    cancellation: Cancellation | None = None,
) -> ExportResult:
    """Stream a query into a CSV object; the object is whole, or it is what was there before.

    :param query: SQLAlchemy ``Select``, or the text of a SELECT with ``:name`` parameters.
    :param engine: engine of the psycopg2 dialect (``postgresql+psycopg2://``).
    :param client: boto3 S3 client.
    :param bucket: where the object goes.
    :param key: where the object goes.
    :param parameters: a value for each parameter of the query.
    :param unique_key: name of a column that is unique and not null: the file is ordered by it, and batches
        are cut along it. Without it the query is read as one stream in its own order.
    :param method: "copy", or "rows" where COPY is not to be had; the bytes are the same.
    :param yield_per: rows of a batch; by default 50,000 for "copy", and 5,000 for "rows", which holds a batch
        in memory.
    :param readers: connections that read batches at the same time; used by "copy" with a unique key.
    :param on_empty: for a query without rows: "header" writes just the header, "skip" writes nothing and
        leaves what was there, "fail" raises.
    :param verify_rows: have the database count the query's rows in the same snapshot, and compare.
    :param extra_args: further arguments of the S3 requests (see `Upload`).
    :param application_name: what ``pg_stat_activity`` shows.
    :param cancellation: to stop the export from elsewhere.
    :raises InvalidArgument: if an argument is not allowed; nothing was read or written.
    :raises QueryError: if Postgres refused the query or failed.
    :raises EmptyResult: if there are no rows and `on_empty` is "fail".
    :raises UploadError: if the object store refused the object or failed.
    :raises VerificationError: if what was read, sent and stored do not agree.
    :raises ExportCancelled: if it was cancelled.
    """
    check_options(method=method, yield_per=yield_per, readers=readers, on_empty=on_empty)
    _check_target(engine, bucket, key)
    upload = Upload(client, bucket, key, {**_headers(key), **(extra_args or {})})
    cancellation = cancellation or Cancellation()
    read = functools.partial(
        Reading,
        method=method,
        yield_per=yield_per or DEFAULT_YIELD_PER[method],
        readers=readers,
        count=verify_rows,
    )

    def work() -> tuple[int, StoredObject | None]:
        with _translated(cancellation), Snapshot(engine, application_name) as snapshot:
            cancellation.on_cancel(snapshot.cancel)
            described = describe(snapshot.holder, query, parameters, unique_key)
            with read(snapshot, described) as reading, upload:
                cancellation.on_cancel(reading.stop)
                cancellation.on_cancel(upload.abort)
                return _transfer(reading, upload, described.header, on_empty)

    started = time.monotonic()
    log.info("Exporting to %s by %s.", upload.url, method)
    rows, stored = run_cancellable(work, cancellation)
    result = _result(bucket, key, rows, verify_rows, stored, time.monotonic() - started)
    _log_end(result)
    return result


def _transfer(reading: Reading, upload: Upload, header: bytes, on_empty: OnEmpty) -> tuple[int, StoredObject | None]:
    """Move all bytes and publish them; returns the number of rows, and the object unless it was skipped."""
    rows = 0
    upload.write(header)
    progress = _Progress(reading.estimated_rows)
    for data, ended in reading:
        upload.write(data)
        rows += ended
        progress.report(rows, upload.size)
    reading.verify(rows)
    if not rows and on_empty == "fail":
        raise EmptyResult(
            f"The query for {upload.url} returned no rows, and on_empty is 'fail'. Nothing was published."
        )
    if not rows and on_empty == "skip":
        return rows, None
    return rows, upload.complete()


class _Progress:
    """Logs how far an export is, at most every 10 seconds."""

    def __init__(self, estimated_rows: int) -> None:
        self._estimated_rows = max(1, estimated_rows)
        self._started = self._reported = time.monotonic()

    def report(self, rows: int, size: int) -> None:
        now = time.monotonic()
        if now - self._reported < _PROGRESS_SECONDS:
            return
        self._reported = now
        log.info(
            "%s rows, %.0f %% of the planner's estimate, %s bytes, %s rows/s.",
            f"{rows:,}",
            100 * rows / self._estimated_rows,
            f"{size:,}",
            f"{rows / (now - self._started):,.0f}",
        )


def _headers(key: str) -> dict[str, str]:
    """What a browser needs to save the object under its own name (RFC 6266)."""
    name = key.rsplit("/", 1)[-1]
    quoted = urllib.parse.quote(name, safe="")
    form = f'filename="{name}"' if name == quoted else f"filename*=UTF-8''{quoted}"
    return {"ContentType": "text/csv", "ContentDisposition": f"attachment; {form}"}


def _result(
    bucket: str, key: str, rows: int, verified: bool, stored: StoredObject | None, seconds: float
) -> ExportResult:
    if stored is None:
        return ExportResult(bucket, None, rows, verified, 0, None, None, 0, round(seconds, 3))
    return ExportResult(
        bucket, key, rows, verified, stored.size, stored.sha256, stored.etag, stored.parts, round(seconds, 3)
    )


def _log_end(result: ExportResult) -> None:
    if result.key is None:
        log.info("The query returned no rows: nothing was written to s3://%s.", result.bucket)
        return
    log.info(
        "Published s3://%s/%s: %s rows, %s bytes, %.1f s, %s rows/s.",
        result.bucket,
        result.key,
        f"{result.rows:,}",
        f"{result.bytes:,}",
        result.seconds,
        f"{result.rows / max(result.seconds, 0.001):,.0f}",
    )


@contextlib.contextmanager
def _translated(cancellation: Cancellation) -> Iterator[None]:
    """Raise the errors of this package in place of the driver's."""
    try:
        yield
    except (sa.exc.DBAPIError, psycopg2.Error, UploadError, Stopped) as exc:
        if cancellation.cancelled:
            raise ExportCancelled("The export was cancelled. Nothing was published.") from None
        if isinstance(exc, UploadError | Stopped):
            raise
        # Not `from exc`: its text holds SQL, and may hold values of rows.
        raise query_error("running the query", exc) from None


def _check_target(engine: sa.Engine, bucket: str, key: str) -> None:
    if (engine.dialect.name, engine.dialect.driver) != ("postgresql", "psycopg2"):
        raise InvalidArgument("engine", f"{engine.dialect.name}+{engine.dialect.driver}", "postgresql+psycopg2")
    for name, value in (("bucket", bucket), ("key", key)):
        if not isinstance(value, str) or not value.strip():
            raise InvalidArgument(name, value, "a name that is not empty")
    if len(key.encode()) > _MAX_KEY_BYTES:
        raise InvalidArgument("key", key, f"at most {_MAX_KEY_BYTES} bytes of UTF-8")
    if key.startswith("/") or ".." in key.split("/") or not key.isprintable():
        raise InvalidArgument("key", key, "no leading /, no .. between slashes, no control characters")
