"""The manifest of an export says what was exported, and readers of all kinds load what it names."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import sqlalchemy as sa

from orders.models import Order, select_orders
from streaming_export import Bucket, Export, Options
from tests.conftest import content
from tests.streaming_export.test_manifest import validate


def run(exporter: sa.Engine, client: Any, bucket: str, **arguments: Any) -> Any:
    """Export orders, and read the manifest."""
    names = {field.name for field in dataclasses.fields(Options)} & arguments.keys()
    options = Options(**{name: arguments.pop(name) for name in names})
    known: dict[str, Any] = {"query": select_orders(), "unique_key": "id", "key": "a/orders.csv", "options": options}
    Export(engine=exporter, bucket=Bucket(client, bucket), **known | arguments).run()
    document = json.loads(content(client, bucket, "a/orders.csv.manifest.json"))
    validate(document)
    return document


def test_what_it_says(orders: int, exporter: sa.Engine, client: Any, bucket: str) -> None:
    """The manifest has columns, key, snapshot and run, so that anyone can find out later what the file was."""
    run_of = {"dag": "d", "task": "t", "run": "r", "try": 2}
    before = datetime.now(UTC)
    document = run(exporter, client, bucket, run=run_of)
    assert document["unique_key"] == {"name": "id"}
    assert document["columns"][0] == {"name": "id", "type": "bigint"}
    assert [column["type"] for column in document["columns"]][1:] == [
        *("text", "bigint", "text", "timestamp with time zone")
    ]
    assert document["run"] == run_of
    assert document["snapshot"]["standby"] is False
    assert "/" in document["snapshot"]["wal_position"]
    taken = datetime.fromisoformat(document["snapshot"]["taken_at"])
    assert before - timedelta(minutes=1) < taken < datetime.fromisoformat(document["finished_at"])
    assert document["window"] is None


def test_the_fingerprint_is_of_the_query_without_its_values(
    orders: int, exporter: sa.Engine, client: Any, bucket: str
) -> None:
    """The same query with other values has the same fingerprint, another query another."""

    def fingerprint(query: Any) -> str:
        text: str = run(exporter, client, bucket, query=query)["query"]["sha256"]
        return text

    paid, shipped = (fingerprint(select_orders().where(Order.status == status)) for status in ("paid", "shipped"))
    assert paid == shipped != fingerprint(select_orders())


def test_of_the_parameters(orders: int, exporter: sa.Engine, client: Any, bucket: str) -> None:
    """The manifest has their names, and the values that can't be personal."""
    query = "SELECT id FROM orders WHERE created_at > :since AND status <> :status"
    given = {"since": "2026-01-01", "status": "canary"}
    document = run(exporter, client, bucket, query=query, parameters=given)
    assert document["query"]["parameters"] == {"since": "2026-01-01", "status": None}


def test_an_empty_result(orders: int, exporter: sa.Engine, client: Any, bucket: str) -> None:
    """A file of just the header has a manifest that says so."""
    document = run(exporter, client, bucket, query=select_orders().where(sa.false()))
    assert document["rows"] == 0


def test_readers_agree(orders: int, exporter: sa.Engine, client: Any, bucket: str, tmp_path: Path) -> None:
    """DuckDB, pandas, polars and Postgres load the files of a manifest with equal counts and sums."""
    document = run(exporter, client, bucket, compression="gzip", max_file_rows=5_000)
    paths = []
    for number, file in enumerate(document["files"]):
        path = tmp_path / f"{number}.csv.gz"
        path.write_bytes(content(client, bucket, file["url"].removeprefix(f"s3://{bucket}/")))
        paths.append(str(path))
    frame = pd.concat([pd.read_csv(path) for path in paths])
    lazy = pl.concat([pl.read_csv(path) for path in paths])
    duck = duckdb.sql(
        f"SELECT count(*), sum(total_cents % 1000)::int8 FROM read_csv({paths}, header = true)"
    ).fetchall()[0]
    with exporter.connect() as connection:
        table = tuple(connection.execute(sa.text("SELECT count(*), sum(total_cents % 1000)::int8 FROM orders")).one())
    assert table == duck
    assert table == (len(frame), int((frame["total_cents"] % 1000).sum()))
    assert table == (lazy.height, (lazy["total_cents"] % 1000).sum())
