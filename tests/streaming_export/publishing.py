"""Publishes rows as an export does, without a database: files, then their manifest."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from streaming_export import manifest
from streaming_export.cancellation import Stop, Stopped
from streaming_export.s3.bucket import Bucket
from streaming_export.s3.files import FileWriter
from streaming_export.s3.layout import FileLayout
from streaming_export.s3.objects import ExportedFile

KEY = "a/orders.csv"
MANIFEST = "a/orders.csv.manifest.json"
NOON = datetime(2026, 11, 5, 12, tzinfo=UTC)


def document(bucket: Bucket, files: Sequence[ExportedFile], **changes: Any) -> dict[str, Any]:
    """The manifest of files with the column id."""
    taken_at = {"taken_at": NOON.isoformat()}
    about: dict[str, Any] = {
        "manifest_version": 1,
        "export_id": uuid.uuid4().hex,
        "rows_verified": True,
        "columns": [{"name": "id", "type": "bigint"}],
        "csv": manifest.FORMAT | {"compression": None, "spreadsheet_safe": False},
        "masked": {},
        "query": {"sha256": "0" * 64, "parameters": {}},
        "unique_key": {"name": "id"},
        "window": None,
        "older_transactions": None,
        "snapshot": taken_at | {"wal_position": None, "standby": False, "server_version": "18.0"},
        "run": {"run": "scheduled"},
        "started_at": NOON.isoformat(),
        "versions": manifest.VERSIONS,
    }
    return about | changes | manifest.of_files(bucket.name, files)


def publish(bucket: Bucket, rows: Sequence[bytes], key: str = KEY, max_rows: int | None = None) -> dict[str, Any]:
    """Export rows to a key; returns the manifest."""
    stop, export_id = Stop(), uuid.uuid4().hex
    bucket = bucket.within(stop)
    place = manifest.manifest_key(key)
    try:
        before = manifest.current(bucket, place)
        layout = FileLayout(max_rows=max_rows)
        with FileWriter(bucket, key, layout, b"id\n", export_id=export_id) as writer:
            writer.open()
            for row in rows:
                writer.write(row, 1)
            files = writer.complete()
        written = document(bucket, files, export_id=export_id)
        manifest.publish(bucket, place, written, before, files)
    except Stopped:
        assert stop.reason is not None
        raise stop.reason from None
    published = bucket.read(place)
    assert published is not None
    return dict(json.loads(published[0]))
