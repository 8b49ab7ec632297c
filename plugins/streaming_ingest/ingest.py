"""Loads the files of a manifest into a Postgres table: verified, once, in one transaction."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import psycopg2
import sqlalchemy as sa

from streaming_export import manifest_reader
from streaming_export.errors import ExportError, InvalidArgument, ManifestInvalid, VerificationError
from streaming_export.manifest_reader import Manifest, is_identifier
from streaming_export.postgres.errors import database_error
from streaming_export.s3.bucket import Bucket
from streaming_ingest.history import HISTORY
from streaming_ingest.table import Table
from streaming_ingest.verified import VerifiedFile

log = logging.getLogger(__name__)

# With these settings, Postgres reads the text in the files as it was written.
_SETTINGS = {"TimeZone": "UTC", "DateStyle": "ISO, YMD", "IntervalStyle": "iso_8601"}

# A value of the primary key is repeated, or NULL. An upsert says of a repeated one that it would meet a row twice.
_KEY_VIOLATIONS = ("23505", "23502", "21000")
_NO_KEY = "42P10"  # the column of an upsert's ON CONFLICT has no unique index

Outcome = Literal["replaced", "upserted", "already_loaded", "outdated"]


@dataclass(frozen=True, slots=True)
class IngestResult:
    """The outcome of loading a manifest.

    :param manifest_url: where the manifest is.
    :param table: schema and name of the table.
    :param outcome: "replaced" all rows, "upserted" those of a window, or nothing changed: the manifest was
        "already_loaded", or is "outdated", because a later snapshot of the same rows was loaded before.
    :param rows: number of rows of the manifest.
    :param seconds: from the call to the end of the transaction.
    :param load_again: manifests of windows whose rows are missing or older in the table, because an export with an
        earlier snapshot was loaded after them; to be loaded in this order.
    """

    manifest_url: str
    table: str
    outcome: Outcome
    rows: int
    seconds: float
    load_again: tuple[str, ...] = ()


def ingest(
    manifest_url: str,
    *,
    engine: sa.Engine,
    bucket: Bucket,
    table: str,
    schema: str,
    add_columns: bool = False,
) -> IngestResult:
    """Load exactly the objects of a manifest into a table: all of them, or nothing changes.

    An export of all rows replaces the table's rows; one of a window is upserted by its unique key. The load is recorded
    in ``load_history`` in the same transaction, so that a second call changes nothing. Schema, table and history are
    created if they do not exist. Loads into the same table wait for each other.

    :param manifest_url: ``s3://`` URL of the manifest.
    :param engine: engine of the psycopg2 dialect, for the analytics database; PostgreSQL 15 or newer.
    :param bucket: the only bucket that may hold the manifest and its objects. If the objects are encrypted with your
        own key, its extra arguments must have that key.
    :param table: name of the table.
    :param schema: the table's schema.
    :param add_columns: add new columns of the export to the table, instead of failing.
    :raises InvalidArgument: if an argument is not allowed.
    :raises ManifestError: if the manifest is missing, invalid, too new, or names another bucket; or if an object is no
        longer the one that it describes.
    :raises ColumnsChanged: if the columns of table and export differ.
    :raises VerificationError: if the database got another number of rows than the manifest lists.
    :raises StoreError: if the object store failed.
    :raises DatabaseError: if the database refused the rows or failed.
    """
    started = time.monotonic()
    try:
        check_target(engine, table, schema)
        read = manifest_reader.read(bucket, manifest_url)
        with _translated(read), engine.begin() as connection:
            target = _table(connection, schema, table, read)
            outcome = _load(target, bucket, add_columns)
            load_again = tuple(target.superseded_windows())
    except ExportError as exc:
        exc.during("Nothing was loaded.")
        raise
    seconds = round(time.monotonic() - started, 3)
    log.info("%s of %s: %s, %s rows, %.1f s.", read.url, table, outcome, f"{read.rows:,}", seconds)
    return IngestResult(read.url, f"{schema}.{table}", outcome, read.rows, seconds, load_again)


def check_target(engine: sa.Engine, table: str, schema: str) -> None:
    """Refuse an engine or a table that can't be the target of a load.

    :raises InvalidArgument: naming the argument.
    """
    dialect = engine.dialect
    if (dialect.name, dialect.driver) != ("postgresql", "psycopg2"):
        raise InvalidArgument("engine", f"{dialect.name}+{dialect.driver}", "postgresql+psycopg2")
    for name, value in (("table", table), ("schema", schema)):
        if not is_identifier(value):
            raise InvalidArgument(name, value, "a name of 1 to 63 bytes")
    if table == HISTORY:
        raise InvalidArgument("table", table, "any other name; this is the history of loads")


def _table(connection: sa.Connection, schema: str, table: str, manifest: Manifest) -> Table:
    for name, value in _SETTINGS.items():
        connection.execute(sa.text("SELECT set_config(:name, :value, true)"), {"name": name, "value": value})
    driver_connection: Any = connection.connection.driver_connection
    return Table(driver_connection.cursor(), schema, table, manifest)


def _load(target: Table, bucket: Bucket, add_columns: bool) -> Outcome:
    """Load, in the one transaction."""
    manifest = target.manifest
    if manifest.window and manifest.unique_key is None:
        raise ManifestInvalid(
            f"{manifest.url} has the rows of a window but no unique key, so they can't be upserted.",
            "Export with unique_key.",
        )
    target.lock()
    target.create_history()
    target.create_table()
    if target.was_loaded():
        target.found_again()
        return "already_loaded"
    if target.is_outdated():
        target.record("outdated")
        return "outdated"
    # Not earlier: an outdated export must not fail because of columns that were added later.
    target.match_columns(add_columns)
    target.create_staging()
    _stage(target, bucket)
    outcome: Outcome = "upserted" if manifest.window else "replaced"
    # A row may be in two windows that overlap, or have moved from one to another: then the later snapshot has it right.
    if not manifest.window or target.is_late():
        target.supersede_windows()
    rows = target.upsert() if manifest.window else target.replace()
    _compare(target.manifest.url, rows, manifest.rows)
    target.record(outcome)
    return outcome


def _stage(target: Table, bucket: Bucket) -> None:
    for file in target.manifest.files:
        content = VerifiedFile(bucket, file, target.manifest.compression)
        try:
            rows = target.copy(content)
        except psycopg2.Error:
            if content.error:
                raise content.error from None
            # If Postgres can't read the file, it may not be what was exported: then that is the error to report.
            content.verify()
            raise
        content.verify()
        _compare(bucket.url(file.key), rows, file.rows)
        log.info("Verified %s: %s rows.", bucket.url(file.key), f"{rows:,}")


def _compare(what: str, loaded: int, listed: int) -> None:
    if loaded != listed:
        raise VerificationError(
            f"Postgres loaded {loaded:,} rows of {what}, but the manifest lists {listed:,}.", "Export again."
        )


@contextlib.contextmanager
def _translated(read: Manifest) -> Iterator[None]:
    try:
        yield
    except (sa.exc.DBAPIError, psycopg2.Error) as exc:
        # Not `from exc`: its text may contain values of rows.
        error = database_error(f"loading {read.url}", exc)
        if error.sqlstate in _KEY_VIOLATIONS:
            error.remedy = (
                f"unique_key={read.unique_key!r} has a repeated value or NULL in this export. Correct the query of"
                f" {read.run.get('dag')}.{read.run.get('task')}, and export again."
            )
        if error.sqlstate == _NO_KEY:
            error.remedy = (
                f"Windows are upserted by unique_key={read.unique_key!r}. Make it the table's primary key"
                " (ALTER TABLE … ADD PRIMARY KEY), and load again."
            )
        raise error from None
