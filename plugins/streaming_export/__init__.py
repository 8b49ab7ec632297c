"""Streams Postgres queries into object storage, in flat memory, without Airflow."""

from streaming_export.errors import (
    AlreadyExists,
    DatabaseError,
    EmptyResult,
    ExportCancelled,
    ExportError,
    ForeignBucket,
    InvalidArgument,
    LoginRefused,
    ManifestError,
    ManifestInvalid,
    ManifestMissing,
    ManifestTooNew,
    ObjectChanged,
    SnapshotGone,
    StoreError,
    Superseded,
    TransactionsRunning,
    VerificationError,
)
from streaming_export.export import Export
from streaming_export.manifest import move_latest, published_by
from streaming_export.options import Options
from streaming_export.postgres.stream import CsvStream, open_csv
from streaming_export.report import ExportResult, Preview
from streaming_export.s3.bucket import Bucket, check_key
from streaming_export.s3.objects import ExportedFile

__all__ = [
    "AlreadyExists",
    "Bucket",
    "CsvStream",
    "DatabaseError",
    "EmptyResult",
    "Export",
    "ExportCancelled",
    "ExportError",
    "ExportResult",
    "ExportedFile",
    "ForeignBucket",
    "InvalidArgument",
    "LoginRefused",
    "ManifestError",
    "ManifestInvalid",
    "ManifestMissing",
    "ManifestTooNew",
    "ObjectChanged",
    "Options",
    "Preview",
    "SnapshotGone",
    "StoreError",
    "Superseded",
    "TransactionsRunning",
    "VerificationError",
    "check_key",
    "move_latest",
    "open_csv",
    "published_by",
]
