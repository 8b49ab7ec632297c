"""Loads what a manifest of an export names into a Postgres table: verified, in one transaction, once."""

from streaming_ingest.ingest import IngestResult, ingest
from streaming_ingest.table import ColumnsChanged

__all__ = ["ColumnsChanged", "IngestResult", "ingest"]
