"""A unique_key that is none, or not the table's: the load fails, changes nothing, and names what to correct."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from streaming_export import Bucket, DatabaseError
from streaming_ingest import ingest
from tests.streaming_export.exporting import export

WINDOW = ("2026-11-01T00:00:00+00:00", "2026-11-02T00:00:00+00:00")


@pytest.mark.parametrize("window", [None, WINDOW], ids=["all rows", "window"])
@pytest.mark.parametrize("values", ["(1), (1)", "(1), (NULL)"], ids=["twice", "NULL"])
def test_the_export_to_correct_is_named(
    engine: sa.Engine, exporter: sa.Engine, client: Any, bucket: str, schema: str, values: str, window: Any
) -> None:
    """The file is whole, so the export can't know; the table's primary key does."""
    query = f"SELECT column1 AS id FROM (VALUES {values}) AS v"
    run: dict[str, Any] = {"dag": "a_dag", "task": "a_task"}
    where: dict[str, Any] = {"engine": exporter, "client": client, "bucket": bucket, "key": "a.csv"}
    result = export(query, unique_key="id", run=run, window=window, **where)
    with pytest.raises(DatabaseError, match="Nothing was loaded") as caught:
        ingest(str(result.manifest_url), engine=engine, bucket=Bucket(client, bucket), table="a", schema=schema)
    assert caught.value.remedy == (
        "unique_key='id' has a repeated value or NULL in this export. Correct the query of a_dag.a_task, and export"
        " again."
    )
    with engine.connect() as connection:
        assert connection.exec_driver_sql(f"SELECT to_regclass('{schema}.a')").scalar_one() is None


def test_a_table_without_the_key(engine: sa.Engine, exporter: sa.Engine, client: Any, bucket: str, schema: str) -> None:
    """An export of all rows without unique_key made it, so windows can't be put in until it gets the key."""
    where: dict[str, Any] = {"engine": exporter, "client": client, "bucket": bucket}
    target: dict[str, Any] = {"engine": engine, "bucket": Bucket(client, bucket), "table": "a", "schema": schema}
    all_rows = export("SELECT 1 AS id", key="all.csv", **where)
    window = export("SELECT 2 AS id", key="window.csv", unique_key="id", window=WINDOW, **where)
    ingest(str(all_rows.manifest_url), **target)
    with pytest.raises(DatabaseError, match="Nothing was loaded") as caught:
        ingest(str(window.manifest_url), **target)
    assert caught.value.remedy == (
        "Windows are upserted by unique_key='id'. Make it the table's primary key (ALTER TABLE … ADD PRIMARY KEY), and"
        " load again."
    )
    with engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {schema}.a ADD PRIMARY KEY (id)")
    assert ingest(str(window.manifest_url), **target).outcome == "upserted"
