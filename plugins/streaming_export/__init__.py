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
    UploadError,
    VerificationError,
)
from streaming_export.export import ExportResult, Options, export
from streaming_export.files import ExportedFile
from streaming_export.ingest import IngestResult, ingest
from streaming_export.pointer import move_pointer

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
    "QueryError",
    "StoreError",
    "UploadError",
    "VerificationError",
    "export",
    "ingest",
    "move_pointer",
]
