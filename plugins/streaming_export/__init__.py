"""Streams Postgres queries into object storage, in flat memory; knows nothing of Airflow."""

from streaming_export.cancellation import Cancellation
from streaming_export.errors import (
    EmptyResult,
    ExportCancelled,
    ExportError,
    InvalidArgument,
    QueryError,
    UploadError,
    VerificationError,
)
from streaming_export.export import ExportResult, check_options, export

__all__ = [
    "Cancellation",
    "EmptyResult",
    "ExportCancelled",
    "ExportError",
    "ExportResult",
    "InvalidArgument",
    "QueryError",
    "UploadError",
    "VerificationError",
    "check_options",
    "export",
]
