"""Streams a Postgres query into CSV files in S3: query → batches → bytes → parts → objects → manifest."""

from __future__ import annotations

import contextlib
import logging
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

import psycopg2
import sqlalchemy as sa

from streaming_export import manifest
from streaming_export.cancellation import Cancellation, run_cancellable
from streaming_export.columns import Content, explain
from streaming_export.compression import ENCODINGS
from streaming_export.errors import (
    EmptyResult,
    ExportCancelled,
    ExportError,
    InvalidArgument,
    UploadAborted,
    query_error,
)
from streaming_export.files import ExportedFile, Files, Format
from streaming_export.keys import MAX_KEY_BYTES, check_bucket, check_key
from streaming_export.multipart import Upload
from streaming_export.options import DEFAULT_YIELD_PER, Options
from streaming_export.query import Query, Source, describe
from streaming_export.read_ahead import Stopped
from streaming_export.reading import Reading
from streaming_export.snapshot import Snapshot, driver_connection
from streaming_export.transactions import Wait, wait_for_older

log = logging.getLogger(__name__)

_PROGRESS_SECONDS = 10.0
_LONGEST_SUFFIX = len("-00001.zst.manifest.json")


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What was exported.

    :param bucket: where the files are.
    :param key: where the file is, or the first of several; None if there were no rows and `on_empty` is "skip".
    :param rows: number of data rows, without headers.
    :param rows_verified: whether the database counted the same number in the same snapshot.
    :param bytes: size of all files.
    :param sha256: of the file's content, in hex; None for several files.
    :param etag: of the file, as the store gives it; None for several files.
    :param parts: number of parts that were uploaded.
    :param files: all files, in order.
    :param manifest_url: where the manifest is.
    :param snapshot_taken_at: when the snapshot that was read was taken, in ISO 8601.
    :param seconds: from the call to the published manifest.
    """

    bucket: str
    key: str | None
    rows: int
    rows_verified: bool
    bytes: int
    sha256: str | None
    etag: str | None
    parts: int
    files: tuple[ExportedFile, ...]
    manifest_url: str | None
    snapshot_taken_at: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Preview:
    """What an export would do.

    :param sql: the query, with the names of its parameters in place of their values.
    :param columns: names of the columns.
    :param estimated_rows: by the planner.
    :param estimated_bytes: by the planner, before compression.
    :param targets: URL of each object that would be written, the first if there are several files, and of the
        manifest; with what it would replace, in words, or None.
    """

    sql: str
    columns: tuple[str, ...]
    estimated_rows: int
    estimated_bytes: int
    targets: dict[str, str | None]


def export(
    query: Source,
    *,
    engine: sa.Engine,
    client: Any,
    bucket: str,
    key: str,
    parameters: Mapping[str, Any] | None = None,
    unique_key: str | None = None,
    window: tuple[str, str] | None = None,
    mask_key: str | None = None,
    run: Mapping[str, str | int | None] | None = None,
    application_name: str = "streaming_export",
    cancellation: Cancellation | None = None,
    **options: Any,
) -> ExportResult:
    """Stream a query into CSV files and their manifest; they are whole, or what was there before.

    :param query: SQLAlchemy ``Select``, or the text of a SELECT with ``:name`` parameters.
    :param engine: engine of the psycopg2 dialect (``postgresql+psycopg2://``).
    :param client: boto3 S3 client.
    :param bucket: where the file goes.
    :param key: where the file goes.
    :param parameters: a value for each parameter of the query.
    :param unique_key: name of a column that is unique and not null: the file is ordered by it, and batches
        are cut along it. Without it the query is read as one stream in its own order.
    :param window: begin and end, in ISO 8601 with an offset, of the time whose rows the query gives; for the
        manifest, and for `wait_for_transactions`.
    :param mask_key: secret of the mask "hash", of at least 16 bytes: with the same one, the same value has the same
        hash in every export.
    :param run: what runs the export, by name; for the manifest.
    :param application_name: what ``pg_stat_activity`` shows.
    :param cancellation: to stop the export from elsewhere.
    :param options: see `Options`.
    :raises InvalidArgument: if an argument is not allowed; nothing was read or written.
    :raises QueryError: if Postgres refused the query or failed.
    :raises TransactionsRunning: if transactions that began before the window's end do not end.
    :raises EmptyResult: if there are no rows and `on_empty` is "fail".
    :raises UploadError: if the object store refused the object or failed.
    :raises VerificationError: if what was read, sent and stored do not agree.
    :raises ExportCancelled: if it was cancelled.
    """
    job = _job(
        query,
        engine=engine,
        client=client,
        bucket=bucket,
        key=key,
        parameters=parameters,
        unique_key=unique_key,
        window=window,
        mask_key=mask_key,
        run=run,
        application_name=application_name,
        cancellation=cancellation,
        **options,
    )
    result = run_cancellable(job.work, job.cancellation)
    _log_end(result)
    return result


def preview(query: Source, **arguments: Any) -> Preview:
    """What `export` would do with the same arguments; waits for nothing, reads no row and writes nothing.

    :raises InvalidArgument: as `export`.
    :raises QueryError: as `export`.
    :raises UploadError: if the object store does not answer.
    """
    job = _job(query, **arguments)
    return run_cancellable(job.preview, job.cancellation)


def _job(
    query: Source,
    *,
    parameters: Mapping[str, Any] | None = None,
    run: Mapping[str, str | int | None] | None = None,
    cancellation: Cancellation | None = None,
    **arguments: Any,
) -> _Export:
    """The arguments of `export`, checked."""
    names = {option.name for option in fields(Options)} & arguments.keys()
    options = Options(**{name: arguments.pop(name) for name in names})
    job = _Export(
        query=query,
        parameters=parameters or {},
        run=run or {},
        cancellation=cancellation or Cancellation(),
        options=options,
        **arguments,
    )
    job.check()
    return job


@dataclass(frozen=True, slots=True, kw_only=True)
class _Export:
    """The arguments of an export, and its steps."""

    query: Source
    engine: sa.Engine
    client: Any
    bucket: str
    key: str
    parameters: Mapping[str, Any]
    unique_key: str | None = None
    window: tuple[str, str] | None = None
    mask_key: str | None = field(default=None, repr=False)
    run: Mapping[str, str | int | None]
    application_name: str = "streaming_export"
    cancellation: Cancellation
    options: Options

    def check(self) -> None:
        """Refuse what needs no connection to be refused."""
        dialect = self.engine.dialect
        if (dialect.name, dialect.driver) != ("postgresql", "psycopg2"):
            raise InvalidArgument("engine", f"{dialect.name}+{dialect.driver}", "postgresql+psycopg2")
        check_bucket(self.bucket)
        check_key("key", self.key, MAX_KEY_BYTES - _LONGEST_SUFFIX)
        if not self.application_name.isprintable():
            raise InvalidArgument("application_name", self.application_name, "no control characters")
        self._check_window()
        self._content().private_values()  # refuses a key that is missing
        self._upload(self.key, lambda: None)

    def _content(self) -> Content:
        options = self.options
        return Content(options.columns, options.mask, self.mask_key, options.spreadsheet_safe)

    def _check_window(self) -> None:
        if self.window is None:
            if self.options.wait_for_transactions is not None:
                raise InvalidArgument("window", None, "needed by wait_for_transactions: begin and end of the time")
            return
        try:
            begin, end = (datetime.fromisoformat(text) for text in self.window)
            if begin.utcoffset() is None or end.utcoffset() is None or begin >= end:
                raise ValueError
        except (TypeError, ValueError):
            raise InvalidArgument(
                "window", self.window, "two times in ISO 8601 with an offset, the first before the second"
            ) from None

    def work(self) -> ExportResult:
        """Export, in the thread that `run_cancellable` makes."""
        started, started_at = time.monotonic(), datetime.now(UTC)
        cancel = self.cancellation
        with _translated(cancel):
            waited = self._wait()
        with _translated(cancel) as told, Snapshot(self.engine, self.application_name) as snapshot:
            cancel.on_cancel(snapshot.cancel)
            self._log_start(snapshot)
            query = self._describe(snapshot)
            manifest_key = manifest.manifest_key(self.key)
            _, replaces = manifest.get(self.client, self.bucket, manifest_key, self.options.extra_args)
            with self._read(snapshot, query) as reading, self._write(query, reading.stop) as files:
                cancel.on_cancel(reading.stop)
                cancel.on_cancel(files.cancel)
                exported = self._transfer(reading, files, told)
            if exported:
                published = manifest.Published(
                    query=query,
                    snapshot=snapshot.info,
                    rows_verified=self.options.verify_rows,
                    key_bounds=reading.key_bounds,
                    parameters=self.parameters,
                    compression=self.options.compression,
                    mask=self.options.mask,
                    spreadsheet_safe=self.options.spreadsheet_safe,
                    window=self.window,
                    waited=waited,
                    run=self.run,
                    started_at=started_at,
                )
                document = manifest.build(published, self.bucket, exported)
                extra_args = self.options.extra_args
                state = "The files are visible, whole and verified, but nobody is told of them yet: export again"
                manifest.put(self.client, self.bucket, manifest_key, document, extra_args, replaces, state)
        manifest_url = f"s3://{self.bucket}/{manifest_key}"
        return self._result(exported, manifest_url, snapshot.info.taken_at, time.monotonic() - started)

    def preview(self) -> Preview:
        """Look at what would be done, in the thread that `run_cancellable` makes."""
        cancel = self.cancellation
        with _translated(cancel), Snapshot(self.engine, self.application_name) as snapshot:
            cancel.on_cancel(snapshot.cancel)
            query = self._describe(snapshot)
            plan = explain(snapshot.holder, query.select())
        keys = [self._form(query).key(self.key, 1), manifest.manifest_key(self.key)]
        return Preview(
            sql=query.text,
            columns=tuple(column.name for column in query.columns),
            estimated_rows=int(plan["Plan Rows"]),
            estimated_bytes=int(plan["Plan Rows"] * plan["Plan Width"]),
            targets={f"s3://{self.bucket}/{key}": self._upload(key, lambda: None).replaced() for key in keys},
        )

    def _describe(self, snapshot: Snapshot) -> Query:
        return describe(snapshot.holder, self.query, self.parameters, self.unique_key, self._content())

    def _wait(self) -> Wait | None:
        seconds = self.options.wait_for_transactions
        if seconds is None or self.window is None:
            return None
        end = datetime.fromisoformat(self.window[1])
        return wait_for_older(self.engine, end, seconds, self.application_name, self._raise_cancelled)

    def _raise_cancelled(self) -> None:
        if self.cancellation.cancelled:
            raise Stopped

    def _log_start(self, snapshot: Snapshot) -> None:
        server = driver_connection(snapshot.holder).info
        log.info(
            "Exporting from database %s on %s (%s, snapshot of %s) to s3://%s/%s: method=%s, readers=%s.",
            server.dbname,
            f"{server.host}:{server.port}",
            "standby" if snapshot.info.standby else "primary",
            snapshot.info.taken_at.isoformat(),
            self.bucket,
            self.key,
            self.options.method,
            self.options.readers,
        )

    def _read(self, snapshot: Snapshot, query: Query) -> Reading:
        return Reading(
            snapshot,
            query,
            method=self.options.method,
            yield_per=self.options.yield_per or DEFAULT_YIELD_PER[self.options.method],
            readers=self.options.readers,
            count=self.options.verify_rows,
        )

    def _write(self, query: Query, on_error: Callable[[], None]) -> Files:
        return Files(lambda key: self._upload(key, on_error), self.key, self._form(query))

    def _form(self, query: Query) -> Format:
        options = self.options
        return Format(query.header, options.compression, options.max_file_rows, options.max_file_bytes)

    def _upload(self, key: str, on_error: Callable[[], None]) -> Upload:
        headers = _headers(key, self.options.compression)
        return Upload(self.client, self.bucket, key, {**headers, **self.options.extra_args}, on_error)

    def _transfer(self, reading: Reading, files: Files, told: _Told) -> list[ExportedFile]:
        """Move all bytes and complete the files; there are none if they were skipped."""
        rows = 0
        progress = _Progress(reading.estimated_rows)
        try:
            for data, ended in reading:
                files.write(data, ended)
                rows += ended
                progress.report(rows, files.size)
            reading.verify(rows)
        except Stopped:
            files.raise_error()
            raise
        if not rows and self.options.on_empty == "fail":
            raise EmptyResult(
                f"The query for s3://{self.bucket}/{self.key} returned no rows, and on_empty is 'fail'."
                " Nothing was published."
            )
        if not rows and self.options.on_empty == "skip":
            return []
        told.state = "Whether it was published is not known"
        return files.complete()

    def _result(self, files: list[ExportedFile], manifest_url: str, taken_at: datetime, seconds: float) -> ExportResult:
        only = files[0] if len(files) == 1 else None
        return ExportResult(
            bucket=self.bucket,
            key=files[0].key if files else None,
            rows=sum(file.rows for file in files),
            rows_verified=self.options.verify_rows,
            bytes=sum(file.bytes for file in files),
            sha256=only.sha256 if only else None,
            etag=only.etag if only else None,
            parts=sum(file.parts for file in files),
            files=tuple(files),
            manifest_url=manifest_url if files else None,
            snapshot_taken_at=taken_at.isoformat(),
            seconds=round(seconds, 3),
        )


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


def _headers(key: str, compression: str | None) -> dict[str, str]:
    """What a browser needs to save the object under its own name, decompressed (RFC 6266, RFC 9110 8.4)."""
    encoding = ENCODINGS[compression] if compression else None
    name = key.rsplit("/", 1)[-1].removesuffix(encoding.extension if encoding else "")
    quoted = urllib.parse.quote(name, safe="")
    form = f'filename="{name}"' if name == quoted else f"filename*=UTF-8''{quoted}"
    headers = {"ContentType": "text/csv", "ContentDisposition": f"attachment; {form}"}
    return headers | ({"ContentEncoding": encoding.content_encoding} if encoding else {})


def _log_end(result: ExportResult) -> None:
    if result.key is None:
        log.info("The query returned no rows: nothing was written to s3://%s.", result.bucket)
        return
    log.info(
        "Published s3://%s/%s%s: %s rows, %s bytes, %.1f s, %s rows/s. Manifest: %s",
        result.bucket,
        result.key,
        f" and {len(result.files) - 1} more files" if len(result.files) > 1 else "",
        f"{result.rows:,}",
        f"{result.bytes:,}",
        result.seconds,
        f"{result.rows / max(result.seconds, 0.001):,.0f}",
        result.manifest_url,
    )


class _Told:
    """What an error that knows nothing of exports tells of one."""

    state = "Nothing was published"


@contextlib.contextmanager
def _translated(cancellation: Cancellation) -> Iterator[_Told]:
    """Raise the errors of this package in place of the driver's; note on others what is published."""
    told = _Told()
    try:
        yield told
    except (sa.exc.DBAPIError, psycopg2.Error, UploadAborted, Stopped) as exc:
        if cancellation.cancelled:
            raise ExportCancelled(
                "The export was cancelled. Nothing was published. If that was not meant, export again."
            ) from None
        if isinstance(exc, UploadAborted | Stopped):
            raise
        # Not `from exc`: its text holds SQL, and may hold values of rows.
        raise query_error("running the query", exc) from None
    except ExportError:
        raise
    except Exception as exc:
        exc.add_note(f"{told.state}. Retry; if it comes again, see what the worker lacks: memory, perhaps.")
        raise
