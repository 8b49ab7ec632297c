"""Reads and checks a manifest, which is untrusted input."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema

from streaming_export.errors import ForeignBucket, InvalidArgument, ManifestInvalid, ManifestMissing, ManifestTooNew
from streaming_export.s3.bucket import MAX_DOCUMENT_BYTES, Bucket, check_key
from streaming_export.s3.objects import ExportedFile

#: The version of manifests that this program writes, and the newest that it reads.
VERSION = 1

#: Members that describe a file, beside its URL: the fields of `ExportedFile`.
OF_A_FILE = ("rows", "bytes", "sha256", "etag", "parts")
_SCHEMA = Path(__file__).with_name("manifest.schema.json")
_MAX_NAME_BYTES = 63  # PostgreSQL manual, 4.1.1: longer names are truncated, and two could become the same


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a reader needs of a manifest.

    :param url: where it is.
    :param sha256: of its own text, in hex, which differs between exports.
    :param export_id: the id in the metadata of its objects; None in manifests that are older than this id.
    :param files: all objects, in order.
    :param rows: data rows of all files.
    :param columns: name and Postgres type of each column, in order.
    :param unique_key: name of the column that orders the files; None if there is none.
    :param window: begin and end of the period that the rows cover; None for all rows.
    :param taken_at: when the snapshot was taken.
    :param compression: None, "gzip" or "zstd".
    :param run: what ran the export.
    :param rows_verified: whether the database counted the same rows.
    :param masked: mask of each masked column, by name.
    :param snapshot: `wal_position`, `standby` and `server_version`, as the schema describes them.
    :param older_transactions: the wait for older transactions, as the schema describes it; None if there was none.
    :param spreadsheet_safe: whether text that a spreadsheet would take for a formula was changed.
    :param query_sha256: of the query's text, in hex.
    :param started_at: when the export began.
    :param finished_at: when it was published.
    :param etag: of the manifest's own object, without quotes; None if it was not read from a store.
    """

    url: str
    sha256: str
    export_id: str | None
    files: tuple[ExportedFile, ...]
    rows: int
    columns: tuple[tuple[str, str], ...]
    unique_key: str | None
    window: tuple[datetime, datetime] | None
    taken_at: datetime
    compression: str | None
    run: Mapping[str, str | int | None]
    rows_verified: bool
    masked: Mapping[str, str]
    snapshot: Mapping[str, Any]
    older_transactions: Mapping[str, Any] | None
    spreadsheet_safe: bool
    query_sha256: str
    started_at: datetime
    finished_at: datetime
    etag: str | None = None

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.files)


def read(bucket: Bucket, url: str, most: int = MAX_DOCUMENT_BYTES) -> Manifest:
    """Read the manifest at an ``s3://`` URL.

    :param bucket: the only bucket that may hold the manifest and its objects.
    :param most: see `parse`; no more of it is read.
    :raises ManifestError: if it is missing, invalid, too new, or names another bucket.
    :raises StoreError: if the store failed.
    """
    found = bucket.read(_key(url, bucket.name, url), most)
    if found is None:
        raise ManifestMissing(
            f"There is no manifest at {url}. The export was not published, or the bucket's lifecycle removed it.",
            "Export again.",
        )
    return replace(parse(found[0], bucket.name, url, most), etag=found[1])


def parse(body: bytes, bucket: str, url: str, most: int = MAX_DOCUMENT_BYTES) -> Manifest:
    """Check the text of a manifest.

    :param bucket: name of the only bucket that may hold its objects.
    :param url: where it is, for errors.
    :param most: bytes that it must not reach.
    :raises ManifestError: if it is invalid, too new, or names another bucket.
    """
    if len(body) >= most:
        raise _invalid(url, f"it has {most:,} bytes or more")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise _invalid(url, f"its {len(body):,} bytes are not JSON; it may be truncated") from exc
    version = document.get("manifest_version") if isinstance(document, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise ManifestTooNew(
            f"The manifest {url} has version {version}, but this program reads versions up to {VERSION}.",
            "Update this program. In future, update consumers before exporters.",
        )
    error = jsonschema.exceptions.best_match(_validator().iter_errors(document))
    if error:
        where = ".".join(map(str, error.absolute_path)) or "the document"
        raise _invalid(url, f"{where} violates {_SCHEMA.name} ({error.validator})")
    key, window = document["unique_key"], document["window"]
    manifest = Manifest(
        url=url,
        sha256=hashlib.sha256(body).hexdigest(),
        export_id=document.get("export_id"),
        files=tuple(
            ExportedFile(**{name: file[name] for name in OF_A_FILE}, key=_key(file["url"], bucket, url))
            for file in document["files"]
        ),
        rows=document["rows"],
        columns=tuple((column["name"], column["type"]) for column in document["columns"]),
        unique_key=key["name"] if key else None,
        window=(_time(window["from"], url), _time(window["to"], url)) if window else None,
        taken_at=_time(document["snapshot"]["taken_at"], url),
        compression=document["csv"]["compression"],
        run=document["run"],
        rows_verified=document["rows_verified"],
        masked=document.get("masked", {}),
        snapshot=document["snapshot"],
        older_transactions=document.get("older_transactions"),
        spreadsheet_safe=document["csv"].get("spreadsheet_safe", False),
        query_sha256=document["query"]["sha256"],
        started_at=_time(document["started_at"], url),
        finished_at=_time(document["finished_at"], url),
    )
    for contradiction in _contradictions(manifest, document):
        raise _invalid(url, contradiction)
    return manifest


def is_identifier(name: str) -> bool:
    """Whether Postgres can have a column, table or schema of this name."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError:  # JSON can hold half of a surrogate pair
        return False
    return 1 <= len(encoded) <= _MAX_NAME_BYTES and b"\0" not in encoded


def _contradictions(manifest: Manifest, document: dict[str, Any]) -> Iterator[str]:
    """Contradictions that the schema can't express."""
    names = [name for name, _ in manifest.columns]
    if len(set(names)) < len(names):
        yield "two columns have the same name"
    if not all(map(is_identifier, names)):
        yield "a column has a name that Postgres does not allow"
    if manifest.unique_key is not None and manifest.unique_key not in names:
        yield f"its unique key {manifest.unique_key!r} is not one of its columns"
    if sum(file.rows for file in manifest.files) != manifest.rows:
        yield "the rows of its files do not add up"
    entries = [(entry["url"], entry["meta"]["content_length"]) for entry in document["entries"]]
    if entries != [(file["url"], file["bytes"]) for file in document["files"]]:
        yield "its entries and its files differ"
    if manifest.bytes != document["bytes"]:
        yield "the bytes of its files do not add up"


def _key(url: str, bucket: str, manifest_url: str) -> str:
    """The key in an ``s3://`` URL of the bucket."""
    scheme, _, rest = url.partition("://")
    found, _, key = rest.partition("/")
    if scheme != "s3" or not found or not key:
        raise _invalid(manifest_url, f"{url!r} is not of the form s3://bucket/key")
    if found != bucket:
        raise ForeignBucket(
            f"{manifest_url} names {url!r}, but only objects in the bucket {bucket!r} are allowed.",
            "If this is the right manifest, allow its bucket.",
        )
    try:
        check_key("key", key)
    except InvalidArgument as exc:
        raise _invalid(manifest_url, f"{url!r} has no valid key ({exc.allowed})") from None
    return key


def _time(text: str, url: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        raise _invalid(url, f"{text!r} is not a time in ISO 8601") from exc
    if moment.tzinfo is None:
        raise _invalid(url, f"the time {text!r} has no time zone")
    return moment


def _invalid(url: str, why: str) -> ManifestInvalid:
    remedy = "Export again to replace it. If it is another program's file, export to another key."
    return ManifestInvalid(f"The manifest {url} can't be used: {why}.", remedy)


@functools.cache
def _validator() -> Any:
    """The validator of the schema, which ignores unknown members: a later program may have added them."""
    tolerant = jsonschema.validators.extend(
        jsonschema.Draft202012Validator, {"additionalProperties": lambda *_: iter(())}
    )
    return tolerant(json.loads(_SCHEMA.read_text(encoding="utf-8")))
