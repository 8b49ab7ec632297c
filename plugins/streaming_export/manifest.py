"""What was published, as a JSON document beside the files: written last, read by consumers.

`manifest.schema.json` beside this module describes it.
"""

from __future__ import annotations

import json
import logging
import platform
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime, time
from typing import Any

import boto3
import psycopg2

from streaming_export.errors import ManifestError, ManifestMissing, StoreError, Superseded, VerificationError
from streaming_export.manifest_reader import VERSION, parse, read
from streaming_export.s3.bucket import Bucket, check_key
from streaming_export.s3.layout import LONGEST_SUFFIX as _LONGEST_FILE_SUFFIX
from streaming_export.s3.objects import ExportedFile

log = logging.getLogger(__name__)

#: By how many bytes the key of any object of an export may be longer than the export's key.
LONGEST_SUFFIX = _LONGEST_FILE_SUFFIX + len(".manifest.json")

# Each lost race means that another export has written; few exports to one key run at the same time.
_TRIES = 20

_DATE = re.compile(r"\d{4}-\d\d-\d\d")


def manifest_key(key: str) -> str:
    """The key of the manifest of an export to `key`, whether it is one file or several."""
    return f"{key}.manifest.json"


def build(
    *,
    export_id: str,
    rows_verified: bool,
    columns: Sequence[tuple[str, str]],
    compression: str | None,
    spreadsheet_safe: bool,
    masked: Mapping[str, str],
    query_sha256: str,
    parameters: Mapping[str, Any],
    unique_key: str | None,
    window: tuple[str, str] | None,
    waited: tuple[float, str | None] | None,
    snapshot: Mapping[str, Any],
    run: Mapping[str, str | int | None],
    started_at: datetime,
) -> dict[str, Any]:
    """The manifest of an export, without its files (see `publish`).

    :param export_id: the id in the metadata of its objects.
    :param rows_verified: whether the database counted the same rows.
    :param columns: name and Postgres type of each, in order.
    :param masked: mask of each masked column, by name.
    :param spreadsheet_safe: whether text that a spreadsheet would take for a formula begins with '.
    :param query_sha256: of the query's text, without the values of its parameters.
    :param parameters: the values of the query's parameters; only those that `loggable` allows are kept.
    :param unique_key: name of the column that orders the files; None if there is none.
    :param window: begin and end of the period that the rows cover; None for all rows.
    :param waited: seconds of the wait for transactions that began before the window's end, and which of them could not
        be seen; None if the export did not look.
    :param snapshot: `taken_at` (a datetime), `wal_position`, `standby`, `server_version`.
    :param run: what ran the export.
    :param started_at: when the export began.
    """
    return {
        "manifest_version": VERSION,
        "export_id": export_id,
        "rows_verified": rows_verified,
        "columns": [{"name": name, "type": type_name} for name, type_name in columns],
        "csv": {
            "encoding": "utf-8",
            "delimiter": ",",
            "quote": '"',
            "line_end": "\n",
            "header": True,
            "null": "",
            "compression": compression,
            "spreadsheet_safe": spreadsheet_safe,
        },
        "masked": dict(masked),
        "query": {
            "sha256": query_sha256,
            "parameters": {name: _text(value) if loggable(value) else None for name, value in parameters.items()},
        },
        "unique_key": {"name": unique_key} if unique_key is not None else None,
        "window": {"from": window[0], "to": window[1]} if window else None,
        "older_transactions": {"waited_seconds": waited[0], "unseen": waited[1]} if waited else None,
        "snapshot": {**snapshot, "taken_at": snapshot["taken_at"].isoformat()},
        "run": dict(run),
        "started_at": started_at.isoformat(),
        "versions": {
            "python": platform.python_version(),
            "psycopg2": psycopg2.__version__.split()[0],
            "boto3": boto3.__version__,
        },
    }


def of_files(bucket: str, files: Sequence[ExportedFile]) -> dict[str, Any]:
    """The part of a manifest that describes its files, which are complete now."""
    described = []
    for file in files:
        values = asdict(file)
        described.append({"url": f"s3://{bucket}/{values.pop('key')}", **values})
    return {
        "entries": [
            {"url": file["url"], "mandatory": True, "meta": {"content_length": file["bytes"]}} for file in described
        ],
        "files": described,
        "rows": sum(file.rows for file in files),
        "bytes": sum(file.bytes for file in files),
        "finished_at": datetime.now(UTC).isoformat(),
    }


def loggable(value: object) -> bool:
    """Whether a value may be logged because it can't be personal: a date, a time, a boolean, or None."""
    if isinstance(value, str):
        try:
            datetime.fromisoformat(value)
        except ValueError:
            return False
        return _DATE.match(value) is not None  # fromisoformat() also takes eight digits, which may be anything
    return value is None or isinstance(value, bool | date | datetime | time)


def _text(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if isinstance(value, date | datetime | time) else str(value)


def published_by(bucket: Bucket, key: str) -> str | None:
    """The name of the run that published the export at `key`: `run["run"]` of `Export`.

    :returns: None if there is no export; "" if its run had no name.
    :raises InvalidArgument: if `key` is not a valid key.
    :raises ManifestError: if what is at the manifest's key is no manifest.
    :raises StoreError: if the store failed.
    """
    check_key("key", key)
    try:
        return str(read(bucket, bucket.url(manifest_key(key))).run.get("run") or "")
    except ManifestMissing:
        return None


def current(bucket: Bucket, key: str) -> str | None:
    """The ETag of the manifest at `key`, without quotes; None if there is none.

    Read it before the uploads of a new export are opened. If the object there is no manifest, this logs a warning.

    :param key: of the manifest.
    :raises StoreError: if the store failed.
    :raises Stopped: if the export is stopped.
    """
    found = bucket.read(key)
    if found is None:
        return None
    try:
        parse(found[0], bucket.name, bucket.url(key))
    except ManifestError as exc:
        log.warning("%s This export replaces it.", exc.failed)
    return found[1]


def publish(
    bucket: Bucket, key: str, document: Mapping[str, Any], before: str | None, files: Sequence[ExportedFile]
) -> None:
    """Write the manifest of an export whose objects are complete.

    If several exports write to one key at a time, the one whose objects are visible replaces the others' manifests.
    Each of the others fails; its retry publishes a matching object and manifest.

    :param key: of the manifest.
    :param document: what `build` gives.
    :param before: the result of `current` before the uploads were opened.
    :param files: all of them, complete.
    :raises Superseded: if another export has replaced an object.
    :raises StoreError: if the store failed.
    :raises Stopped: if the export is stopped.
    """
    body = _encode({**document, **of_files(bucket.name, files)})
    replaces, export_id = before, str(document["export_id"])
    for _ in range(_TRIES):
        if bucket.put(key, body, replaces=replaces, export_id=export_id):
            break
        # The manifest's ETag before the objects: an export that replaces one after the check writes its manifest later.
        found = bucket.head(key)
        replaces = found.etag if found else None
        _check_objects(bucket, export_id, files)
        log.info("Another export wrote %s, but this export's files are visible. Writing it again.", bucket.url(key))
    else:
        raise _superseded(bucket.url(key))
    try:
        # The store may ignore conditions, or a late export may have replaced an object.
        _check_objects(bucket, export_id, files)
    except (StoreError, Superseded) as exc:
        exc.during("The files and their manifest are visible; another export may have replaced some of them.", True)
        raise


def move_latest(
    bucket: Bucket, key: str, manifest_url: str, taken_at: datetime, extra: Mapping[str, Any] | None = None
) -> bool:
    """Make the document at `key` name this export's manifest, unless it names one of the same or a later snapshot.

    A store without conditional writes keeps the last write: if two exports end at the same moment, the document may
    then name the older one.

    :param manifest_url: URL of the manifest to name.
    :param taken_at: when the export's snapshot was taken.
    :param extra: further members of the document, such as the number of rows.
    :returns: whether the document was changed.
    :raises InvalidArgument: if `key` is not a valid key.
    :raises VerificationError: if other exports kept changing it.
    :raises StoreError: if the store failed.
    """
    check_key("key", key)
    body = _encode({"manifest_url": manifest_url, "taken_at": taken_at.isoformat(), **(extra or {})})
    try:
        for _ in range(_TRIES):
            found = bucket.read(key)
            there = _taken_at(found[0]) if found else None
            if there and there >= taken_at:
                return False
            if found and not there:
                log.warning("%s does not name a manifest and its time. This export replaces it.", bucket.url(key))
            if bucket.put(key, body, replaces=found[1] if found else None, export_id=str(uuid.uuid4())):
                return True
        raise VerificationError(f"Other exports kept changing {bucket.url(key)}.", "Retry.", transient=True)
    except (StoreError, VerificationError) as exc:
        exc.during(f"{manifest_url} is published, but {bucket.url(key)} does not name it yet.", True)
        raise


def _check_objects(bucket: Bucket, export_id: str, files: Sequence[ExportedFile]) -> None:
    """Check that the visible objects are those of this export, or equal to them.

    :raises Superseded: if one is not.
    """
    for file in files:
        found = bucket.head(file.key)
        if found is None or (found.export_id != export_id and (found.etag, found.size) != (file.etag, file.bytes)):
            raise _superseded(bucket.url(file.key))


def _superseded(url: str) -> Superseded:
    return Superseded(f"Another export replaced {url} while this one was being published; its files stay.")


def _encode(document: Mapping[str, Any]) -> bytes:
    # UTF-8 can't encode half of a surrogate pair: it becomes a JSON escape.
    return json.dumps(document, ensure_ascii=False, indent=2).encode(errors="backslashreplace") + b"\n"


def _taken_at(document: bytes) -> datetime | None:
    """The time of the snapshot that a document names; None for a document that can't be read, and is replaced."""
    try:
        there = json.loads(document)
        moment, names = datetime.fromisoformat(there["taken_at"]), isinstance(there["manifest_url"], str)
    except (TypeError, KeyError, ValueError, RecursionError):
        return None
    return moment if names and moment.tzinfo else None
