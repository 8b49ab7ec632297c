"""Whatever a table, a schema, a column or a manifest is called, it is a name or refused; it is never SQL."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sqlalchemy as sa

from streaming_export import Bucket, InvalidArgument, ManifestInvalid
from streaming_ingest import ingest
from tests.conftest import content
from tests.streaming_export.exporting import export
from tests.streaming_export.postgres.test_query import HOSTILE_NAMES, as_identifier


def test_names_of_what_is_loaded_are_names(
    schema: str, engine: sa.Engine, exporter: sa.Engine, client: Any, bucket: str
) -> None:
    """Schema, table and columns of any name are made, replaced and put in by a window's key, under that name."""
    first, *others = map(as_identifier, HOSTILE_NAMES)
    query = f"SELECT i AS {first}, {', '.join(f'i AS {name}' for name in others)} FROM generate_series(1, 3) AS i"
    window = ("2026-11-01T00:00:00+00:00", "2026-11-02T00:00:00+00:00")
    places: dict[str, Any] = {"engine": exporter, "client": client, "bucket": bucket}
    urls = [
        export(query.replace(":", "\\:"), unique_key=HOSTILE_NAMES[0], key=key, window=of, **places).manifest_url
        for key, of in (("all.csv", None), ("day.csv", window))
    ]
    for name in HOSTILE_NAMES:
        target = f"{schema} {name}"[-60:]
        for url in urls:
            assert ingest(str(url), engine=engine, bucket=Bucket(client, bucket), schema=target, table=name).rows == 3
        with engine.begin() as connection:
            plain = connection.execution_options(no_parameters=True)
            table = f"{as_identifier(target)}.{as_identifier(name)}"
            found = plain.exec_driver_sql(f"SELECT {as_identifier(name)} FROM {table} ORDER BY 1")
            assert found.scalars().all() == [1, 2, 3]
            plain.exec_driver_sql(f"DROP SCHEMA {as_identifier(target)} CASCADE")


@pytest.mark.parametrize("argument", ["table", "schema"])
@pytest.mark.parametrize("value", ["", "a\0b", "\ud800", "x" * 64, "ä" * 32])
def test_what_is_no_name_is_refused(engine: sa.Engine, client: Any, argument: str, value: str) -> None:
    """What Postgres has no name for, or would cut off, is refused by name and value before anything is read."""
    places: dict[str, Any] = {"engine": engine, "bucket": Bucket(client, "exports"), "table": "t", "schema": "s"}
    with pytest.raises(InvalidArgument) as caught:
        ingest("s3://exports/not-there.json", **{**places, argument: value})
    assert (caught.value.argument, caught.value.value) == (argument, value)


@pytest.mark.parametrize(
    "change",
    [
        lambda document, url: document["columns"][0].update(name="\ud800"),
        lambda document, url: document["columns"][0].update(name="a\0"),
        lambda document, url: document["files"][0].update(url=f"{url}/../other/a.csv"),
        lambda document, url: document["files"][0].update(url=f"{url}/\ud800"),
    ],
    ids=["surrogate", "NUL", "a way out", "surrogate in a key"],
)
def test_a_manifest_is_input(
    schema: str, engine: sa.Engine, exporter: sa.Engine, client: Any, bucket: str, change: Any
) -> None:
    """What somebody has written into a manifest that no export writes is refused, and nothing is loaded."""
    places: dict[str, Any] = {"engine": exporter, "client": client, "bucket": bucket, "key": "a.csv"}
    result = export("SELECT 1 AS a", **places)
    document = json.loads(content(client, bucket, "a.csv.manifest.json"))
    change(document, f"s3://{bucket}")
    client.put_object(Bucket=bucket, Key="a.csv.manifest.json", Body=json.dumps(document).encode())
    with pytest.raises(ManifestInvalid, match="Nothing was loaded"):
        ingest(
            str(result.manifest_url), engine=engine, bucket=Bucket(client, bucket), table="t", schema=f"{schema}_new"
        )
