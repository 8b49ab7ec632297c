"""The manifest: true, written last, valid by its schema, free of personal data."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import jsonschema
import pandas as pd
import polars as pl
import pytest
import sqlalchemy as sa

import streaming_export
from demo import services
from orders.models import Order, select_orders
from streaming_export import UploadError, VerificationError, export, manifest
from tests.conftest import content, keys
from tests.streaming_export.store import hook, refusal

SCHEMA = json.loads((Path(streaming_export.__file__).parent / "manifest.schema.json").read_text())


def run(exporter: sa.Engine, client: Any, bucket: str, **options: Any) -> Any:
    """Export orders, and read the manifest."""
    arguments: dict[str, Any] = {"query": select_orders(), "unique_key": "id", "key": "a/orders.csv", **options}
    export(engine=exporter, client=client, bucket=bucket, **arguments)
    document = json.loads(content(client, bucket, f"{arguments['key']}.manifest.json"))
    jsonschema.validate(document, SCHEMA, format_checker=jsonschema.FormatChecker())
    return document


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "gzip", "max_file_rows": 5_000},
        {"unique_key": None, "verify_rows": False},
        {"method": "rows", "window": ("2026-11-01T00:00:00+00:00", "2026-11-02T00:00:00+00:00")},
    ],
)
def test_it_is_true_of_the_objects(
    orders: int, exporter: sa.Engine, client: Any, bucket: str, options: dict[str, Any]
) -> None:
    """Every manifest is valid by its schema, and sizes, ETags and numbers in it are those of the objects."""
    document = run(exporter, client, bucket, **options)
    assert document["rows"] == sum(file["rows"] for file in document["files"]) == orders
    assert [entry["url"] for entry in document["entries"]] == [file["url"] for file in document["files"]]
    for entry, file in zip(document["entries"], document["files"], strict=True):
        head = client.head_object(Bucket=bucket, Key=file["url"].removeprefix(f"s3://{bucket}/"))
        assert entry["meta"]["content_length"] == file["bytes"] == head["ContentLength"]
        assert file["etag"] == head["ETag"].strip('"')


def test_what_it_tells(orders: int, exporter: sa.Engine, client: Any, bucket: str) -> None:
    """Columns, key, snapshot and run are there for whoever asks later what this file was."""
    run_of = {"dag": "d", "task": "t", "run": "r", "try": 2}
    before = datetime.now(UTC)
    document = run(exporter, client, bucket, run=run_of)
    with exporter.connect() as connection:
        first, last = connection.execute(sa.text("SELECT min(id)::text, max(id)::text FROM orders")).one()
    assert document["unique_key"] == {"name": "id", "first": first, "last": last}
    assert document["columns"][0] == {"name": "id", "type": "bigint", "nullable": False}
    assert [column["type"] for column in document["columns"]][1:] == [
        *("text", "bigint", "text", "timestamp with time zone")
    ]
    assert document["run"] == run_of
    assert document["snapshot"]["standby"] is False
    assert "/" in document["snapshot"]["wal_position"]
    taken = datetime.fromisoformat(document["snapshot"]["taken_at"])
    assert before - timedelta(minutes=1) < taken < datetime.fromisoformat(document["finished_at"])
    assert document["window"] is None


def test_nullable_is_told_only_where_it_is_known(
    schema: str, engine: sa.Engine, exporter: sa.Engine, client: Any, bucket: str
) -> None:
    """A column of a plain query is nullable as in its table; an outer join makes that unknown."""
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (a int NOT NULL, b int)")
    plain = run(exporter, client, bucket, query="SELECT a, b, a + 1 AS c FROM t", unique_key=None)
    joined = run(
        exporter, client, bucket, query="SELECT x.a FROM (SELECT 1) AS y LEFT JOIN t AS x ON true", unique_key=None
    )
    assert [column["nullable"] for column in plain["columns"]] == [False, True, True]
    assert [column["nullable"] for column in joined["columns"]] == [None]


def test_it_holds_no_personal_data(orders: int, exporter: sa.Engine, client: Any, bucket: str) -> None:
    """Of parameters only dates, times and booleans are told, of a text key neither first nor last value."""
    query = (
        "SELECT customer_email || id AS who FROM orders"
        " WHERE customer_email <> :email AND id > :id AND created_at > :since AND created_at::date > :day AND :flag"
    )
    parameters = {
        "email": "canary@example.com",
        "id": 4711,
        "since": "2026-01-01T00:00:00+00:00",
        "day": date(2026, 1, 2),
        "flag": True,
    }
    document = run(exporter, client, bucket, query=query, unique_key="who", parameters=parameters)
    assert document["query"]["parameters"] == {
        "email": None,
        "id": None,
        "since": "2026-01-01T00:00:00+00:00",
        "day": "2026-01-02",
        "flag": "true",
    }
    assert document["unique_key"] == {"name": "who", "first": None, "last": None}
    assert "canary" not in json.dumps(document)
    assert "@example" not in json.dumps(document)


def test_the_fingerprint_is_of_the_query_without_its_values(
    orders: int, exporter: sa.Engine, client: Any, bucket: str
) -> None:
    """The same query with other values has the same fingerprint, another query another."""

    def fingerprint(query: Any) -> str:
        text: str = run(exporter, client, bucket, query=query)["query"]["sha256"]
        return text

    paid, shipped = (fingerprint(select_orders().where(Order.status == status)) for status in ("paid", "shipped"))
    assert paid == shipped != fingerprint(select_orders())


def test_an_empty_result(orders: int, exporter: sa.Engine, client: Any, bucket: str) -> None:
    """A file of just the header has a manifest that says so."""
    document = run(exporter, client, bucket, query=select_orders().where(sa.false()))
    assert document["rows"] == 0
    assert document["unique_key"] == {"name": "id", "first": None, "last": None}


def test_it_is_written_last(
    orders: int, exporter: sa.Engine, client: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the manifest appears, the object is complete; if it can't be written, the one before stays."""
    before = run(exporter, client, bucket)
    seen: list[list[str]] = []

    def put(*arguments: Any) -> None:
        seen.append(keys(client, bucket))
        raise streaming_export.UploadError("no")

    monkeypatch.setattr(manifest, "put", put)
    with pytest.raises(streaming_export.UploadError):
        export(select_orders(), engine=exporter, client=client, bucket=bucket, key="a/orders.csv", unique_key="id")
    assert seen == [["a/orders.csv"]]
    assert json.loads(content(client, bucket, "a/orders.csv.manifest.json")) == before


def test_concurrent_exports_do_not_interleave(
    orders: int, exporter: sa.Engine, client: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If another export to the key publishes meanwhile, this one fails and leaves the other's as it is."""
    other: list[Any] = []
    build = manifest.build

    def late(*arguments: Any) -> Any:
        monkeypatch.setattr(manifest, "build", build)
        other.append(run(exporter, client, bucket))
        return build(*arguments)

    monkeypatch.setattr(manifest, "build", late)
    with pytest.raises(VerificationError, match="written by another export"):
        run(exporter, client, bucket)
    assert json.loads(content(client, bucket, "a/orders.csv.manifest.json")) == other[0]


def test_a_put_whose_answer_was_lost_is_not_an_error(client: Any, bucket: str) -> None:
    """A retry is refused by the condition that the first try has made untrue: what counts is what is there."""
    document = {"a": 1}
    manifest.put(client, bucket, "m.json", document, {}, None, "")
    manifest.put(client, bucket, "m.json", document, {}, None, "")
    with pytest.raises(VerificationError):
        manifest.put(client, bucket, "m.json", {"a": 2}, {}, None, "")
    assert manifest.get(client, bucket, "m.json", {})[0] == document


def test_a_manifest_that_cannot_be_written(orders: int, exporter: sa.Engine, endpoint: str, bucket: str) -> None:
    """The error says that the files are visible, that nobody is told of them, and what to do."""
    client = services.s3_client(endpoint)

    def refuse(params: dict[str, Any]) -> Any:
        return refusal("SlowDown", 503) if params["url"].endswith("manifest.json") else None

    hook(client, "PutObject", refuse)
    with pytest.raises(UploadError, match=r"manifest\.json: SlowDown\. The files are visible.*export again") as caught:
        export(select_orders(), engine=exporter, client=client, bucket=bucket, key="orders.csv", unique_key="id")
    assert caught.value.code == "SlowDown"
    assert keys(client, bucket) == ["orders.csv"]


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
