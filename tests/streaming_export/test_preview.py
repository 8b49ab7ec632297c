"""Export.preview(): what an export would do, and that it does nothing."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from orders.models import select_orders_by
from streaming_export import DatabaseError, InvalidArgument
from tests.conftest import content, keys, open_uploads
from tests.streaming_export.exporting import export, preview

SECRET = "jane@example.com"


def test_a_preview_writes_nothing(orders: int, exporter: sa.Engine, client: Any, bucket: str) -> None:
    """It has the columns, a good estimate, and the keys; nothing is in the bucket afterwards."""
    values = dict.fromkeys(("created_from", "created_to", "statuses"))
    arguments: dict[str, Any] = {"engine": exporter, "client": client, "bucket": bucket, "key": "a/orders.csv"}
    found = preview(select_orders_by(), parameters=values, unique_key="id", compression="zstd", **arguments)
    assert found.columns == ("id", "customer_email", "total_cents", "status", "created_at")
    assert found.estimated_rows == pytest.approx(orders, rel=0.1)
    assert found.estimated_bytes > orders * 20
    assert found.targets == {
        f"s3://{bucket}/a/orders.csv.zst": None,
        f"s3://{bucket}/a/orders.csv.manifest.json": None,
    }
    assert keys(client, bucket) == []
    assert open_uploads(client, bucket) == []


def test_a_preview_tells_what_would_be_replaced(orders: int, exporter: sa.Engine, client: Any, bucket: str) -> None:
    """An object that is there already is named with its size and time, and stays."""
    arguments: dict[str, Any] = {"engine": exporter, "client": client, "bucket": bucket, "key": "orders.csv"}
    export("SELECT 1 AS one", **arguments)
    before = content(client, bucket, "orders.csv")
    found = preview("SELECT 2 AS two", **arguments)
    assert str(found.targets[f"s3://{bucket}/orders.csv"]).startswith(f"{len(before)} bytes of 20")
    assert found.targets[f"s3://{bucket}/orders.csv.manifest.json"]
    assert content(client, bucket, "orders.csv") == before


def test_a_preview_shows_no_values_of_parameters(orders: int, exporter: sa.Engine, client: Any, bucket: str) -> None:
    """The SQL has the names of its parameters: their values can be personal."""
    arguments: dict[str, Any] = {"engine": exporter, "client": client, "bucket": bucket, "key": "orders.csv"}
    found = preview("SELECT * FROM orders WHERE customer_email = :email", parameters={"email": SECRET}, **arguments)
    assert "email" in found.sql
    assert SECRET not in str(found)


def test_a_preview_takes_what_an_export_takes(orders: int, exporter: sa.Engine, client: Any, bucket: str) -> None:
    """A window and the wait for its transactions too; it waits for none."""
    window = ("2026-11-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00")
    arguments: dict[str, Any] = {"engine": exporter, "client": client, "bucket": bucket, "key": "orders.csv"}
    assert preview("SELECT * FROM orders", window=window, wait_for_transactions=3600, **arguments).estimated_rows


def test_a_preview_refuses_what_an_export_refuses(exporter: sa.Engine, client: Any, bucket: str) -> None:
    """Arguments and queries are checked as the export would check them."""
    arguments: dict[str, Any] = {"engine": exporter, "client": client, "bucket": bucket}
    with pytest.raises(InvalidArgument, match="yield_per=0"):
        preview("SELECT 1 AS one", key="a.csv", yield_per=0, **arguments)
    with pytest.raises(InvalidArgument, match="key="):
        preview("SELECT 1 AS one", key="../a.csv", **arguments)
    with pytest.raises(DatabaseError, match="nowhere"):
        preview("SELECT * FROM nowhere", key="a.csv", **arguments)
