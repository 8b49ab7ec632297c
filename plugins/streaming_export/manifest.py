"""What was published, as a JSON document beside the files: written last, read by consumers.

`manifest.schema.json` beside this module describes it.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time
from typing import Any

import boto3
import psycopg2
from botocore.exceptions import BotoCoreError, ClientError

from streaming_export.errors import UploadError, VerificationError, upload_error
from streaming_export.files import ExportedFile
from streaming_export.keys import check_bucket, check_key
from streaming_export.multipart import known_arguments
from streaming_export.private import impersonal
from streaming_export.query import Query
from streaming_export.snapshot import SnapshotInfo
from streaming_export.transactions import Wait

VERSION = 1

# Of the extra arguments, those that say how the content of the files is to be read; ours is JSON as it is.
_OF_THE_FILES = {"ContentType", "ContentDisposition", "ContentEncoding", "ContentLanguage"}

# What to do about an answer to a request that reads.
_HINTS = {
    "AccessDenied": " (S3 also answers this for an object that is not there, unless s3:ListBucket is allowed)",
    "InvalidRequest": " (it may be encrypted by another key than extra_args name: remove it, or export to another key)",
}


def manifest_key(key: str) -> str:
    """The key of the manifest of an export to `key`, whether it is one file or several."""
    return f"{key}.manifest.json"


@dataclass(frozen=True, slots=True)
class Published:
    """What the manifest says of an export, but for its files.

    :param query: the query that was read.
    :param snapshot: the snapshot that it was read on.
    :param rows_verified: whether the database counted the same rows.
    :param key_bounds: text of the first and the last value of the unique key, where known.
    :param parameters: the values of the query's parameters.
    :param compression: of the files.
    :param mask: by column, what stands in the place of its values.
    :param spreadsheet_safe: whether ' stands before what a spreadsheet would take for a formula.
    :param window: begin and end of the time whose rows these are; None for all rows.
    :param waited: how the wait for transactions that began before the window's end went; None if there was none.
    :param run: what ran the export.
    :param started_at: when the export began.
    """

    query: Query
    snapshot: SnapshotInfo
    rows_verified: bool
    key_bounds: tuple[str | None, str | None]
    parameters: Mapping[str, Any]
    compression: str | None
    mask: Mapping[str, str]
    spreadsheet_safe: bool
    window: tuple[str, str] | None
    waited: Wait | None
    run: Mapping[str, str | int | None]
    started_at: datetime


def build(published: Published, bucket: str, files: Sequence[ExportedFile]) -> dict[str, Any]:
    """The manifest of an export."""
    query, snapshot, window = published.query, published.snapshot, published.window
    urls = [f"s3://{bucket}/{file.key}" for file in files]
    return {
        "manifest_version": VERSION,
        "entries": [
            {"url": url, "mandatory": True, "meta": {"content_length": file.bytes}}
            for url, file in zip(urls, files, strict=True)
        ],
        "files": [
            {"url": url, **{name: value for name, value in asdict(file).items() if name != "key"}}
            for url, file in zip(urls, files, strict=True)
        ],
        "rows": sum(file.rows for file in files),
        "rows_verified": published.rows_verified,
        "bytes": sum(file.bytes for file in files),
        "columns": [
            {"name": column.name, "type": column.type, "nullable": column.nullable} for column in query.columns
        ],
        "csv": {
            "encoding": "utf-8",
            "delimiter": ",",
            "quote": '"',
            "line_end": "\n",
            "header": True,
            "null": "",
            "compression": published.compression,
            "spreadsheet_safe": published.spreadsheet_safe,
        },
        "masked": dict(published.mask),
        "query": {
            "sha256": query.fingerprint,
            "parameters": {name: _impersonal(value) for name, value in published.parameters.items()},
        },
        "unique_key": _unique_key(query, published.key_bounds),
        "window": {"from": window[0], "to": window[1]} if window else None,
        "older_transactions": (
            {"waited_seconds": published.waited.seconds, "unseen": published.waited.unseen}
            if published.waited
            else None
        ),
        "snapshot": {**asdict(snapshot), "taken_at": snapshot.taken_at.isoformat()},
        "run": dict(published.run),
        "started_at": published.started_at.isoformat(),
        "finished_at": datetime.now(UTC).isoformat(),
        "versions": {
            "python": platform.python_version(),
            "psycopg2": psycopg2.__version__.split()[0],
            "boto3": boto3.__version__,
        },
    }


def put(
    client: Any,
    bucket: str,
    key: str,
    document: Mapping[str, Any],
    extra_args: Mapping[str, Any],
    etag: str | None,
    state: str,
) -> None:
    """Write a JSON document, if it is still the one with `etag` that it replaces (None: there is none).

    :param extra_args: further arguments of the requests by their boto3 names, as for the files.
    :param state: for the error, what is published.
    :raises VerificationError: if another one was written meanwhile.
    :raises UploadError: if the store failed.
    """
    # What UTF-8 has not, half of a surrogate pair, gets JSON's escape.
    body = json.dumps(document, ensure_ascii=False, indent=2).encode(errors="backslashreplace") + b"\n"
    condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
    arguments = {name: value for name, value in extra_args.items() if name not in _OF_THE_FILES}
    arguments |= {"Bucket": bucket, "Key": key, "Body": body, "ContentType": "application/json"}
    try:
        _put(client, arguments, condition)
    except (ClientError, BotoCoreError) as exc:
        code = exc.response["Error"]["Code"] if isinstance(exc, ClientError) else type(exc).__name__
        # The answer to a put that succeeded may have been lost, and the retry refused.
        try:
            if get(client, bucket, key, extra_args)[0] == document:
                return
        except UploadError as unseen:
            reason = f"{code}, and {unseen.code} when looking whether it was"
            raise upload_error(f"writing s3://{bucket}/{key}", str(unseen.code), reason, state) from exc
        if code in ("PreconditionFailed", "ConditionalRequestConflict"):
            raise VerificationError(
                f"s3://{bucket}/{key} was written by another export meanwhile, and stays as that left it. Files of"
                " this one may be visible, which its readers notice. See whether two runs write to this key, and"
                " export again."
            ) from exc
        raise upload_error(f"writing s3://{bucket}/{key}", code, code, state) from exc


def get(
    client: Any, bucket: str, key: str, extra_args: Mapping[str, Any], state: str = "Nothing was published"
) -> tuple[Any, str | None]:
    """A JSON document and its ETag; (None, None) if there is none.

    :param extra_args: those that it was written with.
    :param state: for the error, what is published.
    :raises UploadError: if the store failed.
    """
    try:
        answer = client.get_object(Bucket=bucket, Key=key, **known_arguments(client, "get_object", extra_args))
        return json.loads(answer["Body"].read()), answer["ETag"]
    except ValueError:
        return None, answer["ETag"]
    except ClientError as exc:
        code = exc.response["Error"]["Code"]
        if exc.response["ResponseMetadata"]["HTTPStatusCode"] == 404 and code != "NoSuchBucket":
            return None, None
        raise upload_error(f"reading s3://{bucket}/{key}", code, f"{exc}{_HINTS.get(code, '')}", state) from exc
    except BotoCoreError as exc:
        raise upload_error(f"reading s3://{bucket}/{key}", type(exc).__name__, str(exc), state) from exc


def published_by(client: Any, bucket: str, key: str) -> str | None:
    """The run (`run` of `export`'s argument of this name) that has published an export to `key`; None if none has.

    An export that is encrypted by a customer's key can't be read.

    :raises InvalidArgument: if bucket or key is none.
    :raises UploadError: if the store failed.
    """
    check_bucket(bucket)
    check_key("key", key)
    document, _ = get(client, bucket, manifest_key(key), {})
    return str(document["run"].get("run")) if document else None


def _put(client: Any, arguments: dict[str, Any], condition: dict[str, str]) -> None:
    try:
        client.put_object(**arguments, **condition)
    except ClientError as exc:
        # Stores that know no conditional writes say so; the last writer wins there.
        if exc.response["Error"]["Code"] != "NotImplemented":
            raise
        client.put_object(**arguments)


def _unique_key(query: Query, bounds: tuple[str | None, str | None]) -> dict[str, str | None] | None:
    if query.key is None:
        return None
    first, last = bounds if query.key.impersonal else (None, None)
    return {"name": query.key.name, "first": first, "last": last}


def _impersonal(value: object) -> str | None:
    """The text of a value that may be seen."""
    if not impersonal(value) or value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if isinstance(value, date | datetime | time) else str(value)
