"""What was published, as a JSON document beside the files: written last, read by consumers.

`manifest.schema.json` beside this module describes it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import platform
import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time
from typing import Any

import boto3
import psycopg2

from streaming_export.cancellation import Stopped
from streaming_export.errors import ManifestError, ManifestMissing, StoreError, Superseded, VerificationError
from streaming_export.manifest_reader import OF_A_FILE, parse, read
from streaming_export.s3.bucket import Bucket, check_key
from streaming_export.s3.conditional import say
from streaming_export.s3.layout import LONGEST_SUFFIX as _LONGEST_FILE_SUFFIX
from streaming_export.s3.objects import ExportedFile

log = logging.getLogger(__name__)

#: By how many bytes the key of any object of an export may be longer than the export's key.
LONGEST_SUFFIX = _LONGEST_FILE_SUFFIX + len(".manifest.json")

#: How the files are written, whatever the options.
FORMAT = {"encoding": "utf-8", "delimiter": ",", "quote": '"', "line_end": "\n", "header": True, "null": ""}

#: The versions of what wrote them.
VERSIONS = {
    "python": platform.python_version(),
    "psycopg2": psycopg2.__version__.split()[0],
    "boto3": boto3.__version__,
}

# Each lost race means that another export has written; few exports to one key run at the same time.
_TRIES = 20

# The end of an export's window, None for all rows; and when its snapshot was taken.
_Moment = tuple[datetime | None, datetime]

_DATE = re.compile(r"\d{4}-\d\d-\d\d")


def manifest_key(key: str) -> str:
    """The key of the manifest of an export to `key`, whether it is one file or several."""
    return f"{key}.manifest.json"


def of_files(bucket: str, files: Sequence[ExportedFile]) -> dict[str, Any]:
    """The part of a manifest that describes its files, which are complete now."""
    described = [
        {"url": f"s3://{bucket}/{file.key}", **{name: getattr(file, name) for name in OF_A_FILE}} for file in files
    ]
    return {
        "entries": [
            {"url": file["url"], "mandatory": True, "meta": {"content_length": file["bytes"]}} for file in described
        ],
        "files": described,
        "rows": sum(file.rows for file in files),
        "bytes": sum(file.bytes for file in files),
        "finished_at": datetime.now(UTC).isoformat(),
    }


def check_piece(description: Mapping[str, Any], whole: Mapping[str, Any] | None) -> None:
    """Check that the manifest of the whole export describes a piece of it, whose program has arguments of its own.

    :param description: what a manifest of the piece would say of its files.
    :param whole: the manifest of the whole, without its files; None if it is not a piece.
    :raises VerificationError: naming the members that differ.
    """
    if whole is not None and (other := [name for name, value in description.items() if value != whole[name]]):
        raise VerificationError(
            f"This piece differs from the whole export in: {', '.join(other)}. The query, its parameters or the options"
            " have changed since the snapshot was taken.",
            "Start the whole export again.",
        )


def loggable(value: object) -> str | None:
    """The text of a value that may be logged, as it can't be personal: a date, a time or a boolean; None otherwise."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, str) and _DATE.match(value):  # fromisoformat() also takes eight digits, which may be anything
        with contextlib.suppress(ValueError):
            datetime.fromisoformat(value)
            return value
    return None


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


def current(bucket: Bucket, key: str, taken_at: datetime | None = None, window_end: str | None = None) -> str | None:
    """The ETag of the manifest at `key`, without quotes; None if there is none.

    Read it before the uploads of a new export are opened. If the object there is no manifest, this logs a warning.

    :param key: of the manifest.
    :param taken_at: when the snapshot of the new export was taken, if it must not replace a later one.
    :param window_end: end of the new export's window, which must not replace one that ends later.
    :raises VerificationError: if the manifest is of a later snapshot or window.
    :raises StoreError: if the store failed.
    :raises Stopped: if the export is stopped.
    """
    found = bucket.read(key)
    if found is None:
        return None
    try:
        there = parse(found[0], bucket.name, bucket.url(key))
    except ManifestError as exc:
        log.warning("%s This export replaces it.", exc.failed)
        return found[1]
    if taken_at is not None and there.taken_at > taken_at:
        raise VerificationError(
            f"{there.url} is of a later snapshot ({there.taken_at.isoformat()}) than this export"
            f" ({taken_at.isoformat()}).",
            "Nothing has to be done, unless the two exports should have had keys of their own.",
        )
    if window_end and there.window and there.window[1] > datetime.fromisoformat(window_end):
        raise VerificationError(
            f"{there.url} is of a later window (to {there.window[1].isoformat()}) than this export (to {window_end}).",
            "Put the window into the key, so that each has a file of its own. To replace it nevertheless, remove that"
            " manifest first.",
        )
    return found[1]


def publish(
    bucket: Bucket,
    key: str,
    document: Mapping[str, Any],
    before: str | None,
    files: Sequence[ExportedFile],
    taken_at: datetime | None = None,
) -> None:
    """Write the manifest of an export whose objects are complete.

    If several exports write to one key at a time, the one whose objects are visible replaces the others' manifests.
    Each of the others fails; its retry publishes a matching object and manifest.

    :param key: of the manifest.
    :param document: the manifest, without its files.
    :param before: the result of `current` before the uploads were opened.
    :param files: all of them, complete.
    :param taken_at: for objects that no other export can replace: that of `current`. A later manifest stays.
    :raises Superseded: if another export has replaced an object.
    :raises VerificationError: as `current`.
    :raises StoreError: if the store failed.
    :raises Stopped: if the export is stopped.
    """
    body = _encode({**document, **of_files(bucket.name, files)})
    replaces, export_id = before, str(document["export_id"])
    window = document["window"] if taken_at else None
    for _ in range(_TRIES):
        if bucket.put(key, body, replaces=replaces, export_id=export_id):
            break
        # The manifest's ETag before the objects: an export that replaces one after the check writes its manifest later.
        replaces = current(bucket, key, taken_at, window and window["to"])
        _check_objects(bucket, export_id, files)
        log.info("Another export wrote %s, but this export's files are visible. Writing it again.", bucket.url(key))
    else:
        raise _superseded(bucket.url(key))
    try:
        # The store may ignore conditions, or a late export may have replaced an object.
        _check_objects(bucket, export_id, files)
    except (StoreError, Superseded, Stopped) as exc:
        say(
            bucket,
            exc,
            "The files and their manifest are visible; another export may have replaced some of them.",
            True,
        )
        raise


def move_latest(
    bucket: Bucket,
    key: str,
    manifest_url: str,
    taken_at: datetime,
    extra: Mapping[str, Any] | None = None,
    window: Sequence[str] | None = None,
) -> bool:
    """Make the document at `key` name this export's manifest, unless it names one of the same or a later snapshot.

    Of two windows the one that ends later stays, whatever their snapshots: a period that is exported again is no news.

    A store without conditional writes keeps the last write: if two exports end at the same moment, the document may
    then name the older one.

    :param manifest_url: URL of the manifest to name.
    :param taken_at: when the export's snapshot was taken.
    :param extra: further members of the document, such as the number of rows.
    :param window: begin and end of the export's window; None for all rows.
    :returns: whether the document was changed.
    :raises InvalidArgument: if `key` is not a valid key.
    :raises VerificationError: if other exports kept changing it.
    :raises StoreError: if the store failed.
    """
    check_key("key", key)
    members = {"window": {"from": window[0], "to": window[1]}} if window else {}
    body = _encode({"manifest_url": manifest_url, "taken_at": taken_at.isoformat(), **members, **(extra or {})})
    own = datetime.fromisoformat(window[1]) if window else None, taken_at
    try:
        for _ in range(_TRIES):
            found = bucket.read(key)
            there = _named(found[0]) if found else None
            if there and not _is_newer(own, there):
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


def _named(document: bytes) -> _Moment | None:
    """What a document names; None for a document that can't be read, and is replaced."""
    try:
        there = json.loads(document)
        taken_at, names = datetime.fromisoformat(there["taken_at"]), isinstance(there["manifest_url"], str)
        end = datetime.fromisoformat(there["window"]["to"]) if there.get("window") else None
    except (AttributeError, TypeError, KeyError, ValueError, RecursionError):
        return None
    return (end, taken_at) if names and taken_at.tzinfo and (end is None or end.tzinfo) else None


def _is_newer(own: _Moment, there: _Moment) -> bool:
    if own[0] and there[0] and own[0] != there[0]:
        return own[0] > there[0]
    return own[1] > there[1]
