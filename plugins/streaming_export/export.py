"""Streams a Postgres query into CSV files in S3: query → batches → bytes → parts → objects → manifest."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import wait
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from streaming_export import manifest
from streaming_export.cancellation import Cancellation, Stop, Stopped, in_thread
from streaming_export.errors import (
    AlreadyExists,
    DatabaseError,
    EmptyResult,
    ExportCancelled,
    ExportError,
    InvalidArgument,
)
from streaming_export.manifest_reader import VERSION
from streaming_export.options import Options, check_window
from streaming_export.postgres.query import Source
from streaming_export.postgres.reader import EVERYTHING, KeyRange
from streaming_export.postgres.stream import CsvStream, open_csv
from streaming_export.postgres.transactions import wait_for_older
from streaming_export.report import COUNT_SECONDS, ExportResult, Preview, Progress, log_end, warn_of_key
from streaming_export.s3.bucket import MAX_KEY_BYTES, Bucket, check_key
from streaming_export.s3.files import FileWriter
from streaming_export.s3.layout import FileLayout

log = logging.getLogger(__name__)


class Export:
    """One export of a query into CSV files and their manifest: all of them become visible, or nothing changes.

    :param query: SQLAlchemy ``Select``, or the text of a SELECT with ``:name`` parameters.
    :param parameters: a value for each parameter of the query.
    :param engine: engine of the psycopg2 dialect (``postgresql+psycopg2://``); its pool is not used.
    :param bucket: where the files go.
    :param key: key of the file in the bucket.
    :param unique_key: name of a column that is unique and not null: the file is ordered by it, and the query is read in
        ranges along it. Without it the query is read as one stream in its own order.
    :param window: begin and end, in ISO 8601 with an offset, of the period that the query covers; for the manifest, and
        for `Options.wait_for_transactions`.
    :param mask_key: secret of the mask "hash", of at least 16 bytes: with the same one, the same value has the same
        hash in every export.
    :param run: names of what runs the export, such as DAG and task; for the manifest.
    :param application_name: what ``pg_stat_activity`` shows.
    :param options: how to export.
    :param snapshot: id of a snapshot that another transaction holds. The export then reads on it, as a piece of a
        larger export, and writes no manifest of its own (see `streaming_export.pieces`).
    :param key_range: for a piece: read only keys after the first and up to the second, as text; None for no bound.
    :param whole: for a piece: the manifest of the whole, without its files. What it says of them must be true here.
    :raises InvalidArgument: if an argument is not allowed.
    """

    def __init__(
        self,
        query: Source,
        parameters: Mapping[str, Any] | None = None,
        *,
        engine: sa.Engine,
        bucket: Bucket,
        key: str,
        unique_key: str | None = None,
        window: tuple[str, str] | None = None,
        mask_key: str | None = None,
        run: Mapping[str, str | int | None] | None = None,
        application_name: str = "streaming_export",
        options: Options | None = None,
        snapshot: str | None = None,
        key_range: KeyRange = EVERYTHING,
        whole: Mapping[str, Any] | None = None,
    ) -> None:
        self._id = uuid.uuid4().hex
        self._is_piece, self._whole = snapshot is not None, whole
        self._options = options = options or Options()
        _check(engine, key, application_name, window, options)
        self._layout = FileLayout(options.compression, options.max_file_rows, options.max_file_bytes)
        self._layout.key(key, 1)  # refuses an extension that contradicts the compression
        self._engine = engine
        self._key, self._window = key, window
        self._parameters = dict(parameters or {})
        self._run_by = dict(run or {})
        self._application_name = application_name
        self._cancellation = Cancellation()
        self._stop = self._cancellation.stop
        self._bucket = bucket.within(self._stop)
        self._csv = open_csv(
            query,
            self._parameters,
            engine=engine,
            unique_key=unique_key,
            options=options,
            mask_key=mask_key,
            application_name=application_name,
            stop=self._stop,
            snapshot=snapshot,
            key_range=key_range,
        )
        self._cancellation.on_cancel = self._csv.snapshot.sessions.cancel

    def run(self) -> ExportResult:
        """Export; call it only once. The errors say what is published and what to do (see `ExportError`).

        :raises InvalidArgument: if Postgres or the store shows that an argument is not allowed; nothing was read.
        :raises DatabaseError: if Postgres refused the query or failed.
        :raises SnapshotGone: if the snapshot of a piece is no longer held.
        :raises TransactionsRunning: if transactions that began before the window's end do not end in time.
        :raises AlreadyExists: if an object or the manifest exists and `overwrite` is False.
        :raises EmptyResult: if there are no rows and `on_empty` is "fail".
        :raises StoreError: if the object store refused the object or failed.
        :raises VerificationError: if rows read, sent and stored, a piece and the whole, or two exports do not match.
        :raises ExportCancelled: if it was cancelled.
        """
        result = self._cancellation.run(self._publish)
        log_end(result)
        warn_of_key(self._csv.query.unique_key, self._csv.key_faults)
        return result

    def preview(self) -> Preview:
        """What `run` would do. Counts the rows, waits for no transactions, and writes nothing. Call it only once.

        :raises ExportError: as `run`.
        """
        return self._cancellation.run(self._look)

    def cancel(self) -> None:
        """End the export, from any thread or a signal handler: `run` raises `ExportCancelled` and leaves nothing open.

        Returns within three seconds; the export may take longer to end.
        """
        self._cancellation.cancel()

    def _publish(self) -> ExportResult:
        """The whole path of the data, in the thread that `Cancellation.run` starts."""
        started, path = time.monotonic(), manifest.manifest_key(self._key)
        with contextlib.ExitStack() as uploads:  # outlives the database connections: those are closed first
            with self._failures():
                self._wait()
                with self._csv as csv:
                    log.info("Exporting from %s to %s.", csv.snapshot.server(), self._bucket.url(self._key))
                    manifest.check_piece(self._description(csv), self._whole)
                    csv.begin()
                    files = uploads.enter_context(self._writer(csv))
                    asked = in_thread("store", lambda: self._ask(files, path))
                    uploads.callback(wait, [asked])  # it may abort uploads that another attempt has begun by then
                    self._transfer(csv, files)
                    document = self._manifest(csv)
            with self._failures(files):
                before = asked.result()
                exported = files.complete() if self._is_wanted(csv.rows) else []
        url = None
        if exported and not self._is_piece:
            unstopped = self._bucket.within(Stop())  # visible files get their manifest
            with self._failures(files):
                manifest.publish(unstopped, path, document, before, exported)
            url = self._bucket.url(path)
        seconds = time.monotonic() - started
        return ExportResult.of(document, self._bucket.name, exported, url, csv.key_faults, seconds)

    def _look(self) -> Preview:
        """Find out what `run` would do, in the thread that `Cancellation.run` starts."""
        with self._failures():
            self._stop.check()
            with self._csv as csv:
                query, plan, rows = csv.query, csv.plan, csv.count(COUNT_SECONDS)
            keys = [self._layout.key(self._key, 1), manifest.manifest_key(self._key)]
            found = {self._bucket.url(key): self._bucket.head(key) for key in keys}
        targets = {url: str(replaced) if replaced else None for url, replaced in found.items()}
        size = plan.bytes if rows is None else rows * plan.bytes // max(1, plan.rows)
        return Preview(query.text, tuple(column.name for column in query.columns), rows, plan.rows, size, targets)

    def _wait(self) -> None:
        """Note the time, and wait for older transactions, if the options say so."""
        self._stop.check()
        self._started_at = datetime.now(UTC)
        timeout = self._options.wait_for_transactions
        self._waited = wait_for_older(self._engine, self._window, timeout, self._application_name, self._stop)

    def _ask(self, files: FileWriter, path: str) -> str | None:
        """See what the store has, in a thread, while the first rows are read; returns the manifest's ETag."""
        with self._stop.on_failure():
            before = manifest.current(self._bucket, path, window_end=self._window and self._window[1])
            self._stop.check()
            files.open()
            if before is not None and not self._options.overwrite:  # its files have other names, or are gone
                raise AlreadyExists(self._bucket.url(path), "the manifest of another export")
            return before

    def _transfer(self, csv: CsvStream, files: FileWriter) -> None:
        """Move all bytes."""
        progress = Progress(csv.plan.rows)
        for data, rows in csv.batches():
            files.write(data, rows)
            progress.report(csv.rows, files)

    def _is_wanted(self, rows: int) -> bool:
        """Whether a file with so many rows is to be published."""
        if not rows and self._options.on_empty == "fail":
            raise EmptyResult(
                f"The query for {self._bucket.url(self._key)} returned no rows, and on_empty is 'fail'.",
                "Find out why there are none, and export again.",
            )
        return bool(rows) or self._options.on_empty == "header"

    @contextlib.contextmanager
    def _failures(self, files: FileWriter | None = None) -> Iterator[None]:
        """Raise the first failure of the export, with what is published by then, unless it says so already.

        :param files: the files that are being published, once all rows are verified.
        """
        try:
            yield
        except BaseException as exc:
            self._stop.set(exc)
            reason = self._stop.reason or exc
            # A cancellation makes queries fail, because the server cancels them.
            cancelled = isinstance(reason, ExportCancelled) and isinstance(exc, DatabaseError)
            first = reason if cancelled or isinstance(exc, Stopped) else exc
            state, published = _state(files)
            if isinstance(first, ExportError):
                if published and first.published is None:
                    first.state = "The files are visible, whole and verified; their manifest may or may not be."
                first.during(state, published)
            else:
                first.add_note(f"{state} Retry. If it happens again, check the worker, for instance its memory.")
            raise first from first.__cause__

    def _writer(self, csv: CsvStream) -> FileWriter:
        return FileWriter(
            self._bucket,
            self._key,
            self._layout,
            csv.query.header,
            export_id=self._id,
            estimated_bytes=csv.plan.bytes,
            overwrite=self._options.overwrite,
        )

    def _manifest(self, csv: CsvStream) -> dict[str, Any]:
        """The manifest, without its files, as the schema describes it."""
        info, window, waited = csv.snapshot.info, self._window, self._waited
        return {
            "manifest_version": VERSION,
            "export_id": self._id,
            "rows_verified": csv.verified,
            **self._description(csv),
            "window": {"from": window[0], "to": window[1]} if window else None,
            "older_transactions": {"waited_seconds": waited.seconds, "unseen": waited.unseen} if waited else None,
            "snapshot": asdict(info) | {"taken_at": info.taken_at.isoformat()},
            "run": self._run_by,
            "started_at": self._started_at.isoformat(),
            "versions": manifest.VERSIONS,
        }

    def _description(self, csv: CsvStream) -> dict[str, Any]:
        """The part of the manifest that every piece of an export has in common."""
        options, query = self._options, csv.query
        given = {name: manifest.loggable(value) for name, value in self._parameters.items()}
        return {
            "columns": [{"name": column.name, "type": column.type} for column in query.columns],
            "csv": manifest.FORMAT | {"compression": options.compression, "spreadsheet_safe": options.spreadsheet_safe},
            "masked": dict(options.mask),
            "query": {"sha256": query.fingerprint, "parameters": given},
            "unique_key": {"name": query.unique_key} if query.unique_key is not None else None,
        }


def _check(
    engine: sa.Engine, key: str, application_name: str, window: tuple[str, str] | None, options: Options
) -> None:
    """Refuse what can be refused without a connection."""
    dialect = engine.dialect
    if (dialect.name, dialect.driver) != ("postgresql", "psycopg2"):
        raise InvalidArgument("engine", f"{dialect.name}+{dialect.driver}", "postgresql+psycopg2")
    check_key("key", key, MAX_KEY_BYTES - manifest.LONGEST_SUFFIX)
    if not application_name.isprintable():
        raise InvalidArgument("application_name", application_name, "no control characters")
    if window is not None:
        check_window(window)
    elif options.wait_for_transactions is not None:
        raise InvalidArgument("window", None, "wait_for_transactions needs the begin and end of a window")


def _state(files: FileWriter | None) -> tuple[str, bool | None]:
    """A sentence that says what is visible of an export, and whether anything is."""
    if files is None or not files.visible:
        return "Nothing was published.", False
    if files.visible < files.opened:
        return f"{files.visible} of the {files.opened} files are visible, but no manifest names them.", True
    return "The files are visible, whole and verified, but their manifest is not written yet.", True
