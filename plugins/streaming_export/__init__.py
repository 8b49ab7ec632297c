"""Streams Postgres queries into object storage and from there into Postgres, in flat memory; knows no Airflow."""

from streaming_export.cancellation import Cancellation
from streaming_export.errors import (
    ColumnsChanged,
    EmptyResult,
    ExportCancelled,
    ExportError,
    ForeignBucket,
    IngestError,
    InvalidArgument,
    LoadError,
    ManifestError,
    ManifestInvalid,
    ManifestMissing,
    ManifestTooNew,
    ObjectChanged,
    QueryError,
    StoreError,
    TransactionsRunning,
    UploadError,
    VerificationError,
    retry_helps,
)
from streaming_export.export import ExportResult, Preview, export, preview
from streaming_export.files import ExportedFile
from streaming_export.ingest import IngestResult, ingest
from streaming_export.keys import check_key
from streaming_export.manifest import published_by
from streaming_export.options import Options
from streaming_export.pointer import move_pointer
from streaming_export.private import impersonal

__all__ = [
    "Cancellation",
    "ColumnsChanged",
    "EmptyResult",
    "ExportCancelled",
    "ExportError",
    "ExportResult",
    "ExportedFile",
    "ForeignBucket",
    "IngestError",
    "IngestResult",
    "InvalidArgument",
    "LoadError",
    "ManifestError",
    "ManifestInvalid",
    "ManifestMissing",
    "ManifestTooNew",
    "ObjectChanged",
    "Options",
    "Preview",
    "QueryError",
    "StoreError",
    "TransactionsRunning",
    "UploadError",
    "VerificationError",
    "check_key",
    "export",
    "impersonal",
    "ingest",
    "move_pointer",
    "preview",
    "published_by",
    "retry_helps",
]
