"""Loads published exports into a Postgres table: verified, each once, in one transaction."""

from streaming_ingest.catch_up import NotAllLoaded, catch_up
from streaming_ingest.ingest import IngestResult, ingest
from streaming_ingest.table import ColumnsChanged

__all__ = ["ColumnsChanged", "IngestResult", "NotAllLoaded", "catch_up", "ingest"]
