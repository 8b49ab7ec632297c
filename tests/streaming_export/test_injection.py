"""Whatever a parameter, a name or a key holds, it is data, or it is refused; it is never SQL, nor a way out."""

from __future__ import annotations

import csv
import io
import json
import traceback
from typing import Any

import pytest
import sqlalchemy as sa

from orders.models import select_orders_by
from streaming_export import ExportError, InvalidArgument, ManifestInvalid, export, ingest
from tests.conftest import content, keys
from tests.streaming_export.test_export import METHODS, Execute, Exports, always_cut, execute, exported
from tests.streaming_export.test_query import HOSTILE_NAMES, HOSTILE_VALUES, as_identifier

__all__ = ["always_cut", "execute", "exported"]

CANARY = "canary@example.com"
UNREADABLE = [f"{CANARY}\0", f"{CANARY}\ud800"]


@pytest.fixture
def hostile(engine: sa.Engine, schema: str) -> sa.Engine:
    """A table `orders` with a row for each hostile value, as its address and its status."""
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE orders (id bigint PRIMARY KEY, customer_email text, total_cents bigint, status text,"
            " created_at timestamptz DEFAULT now())"
        )
        insert = sa.text("INSERT INTO orders VALUES (:id, :value, 1, :value)")
        connection.execute(insert, [{"id": number, "value": value} for number, value in enumerate(HOSTILE_VALUES)])
    return engine


def rows(data: bytes) -> list[list[str]]:
    """The rows of a file without its header."""
    return list(csv.reader(io.StringIO(data.decode(), newline="")))[1:]


@pytest.mark.parametrize("method", METHODS)
def test_a_parameter_is_data(hostile: sa.Engine, exported: Exports, method: Any) -> None:
    """Each value finds the row that holds it, alone and in a list, and comes into the file as it is."""
    one = "id = {0} AND customer_email = :v{0} AND status = ANY(:values)"
    terms = " OR ".join(one.format(number) for number in range(len(HOSTILE_VALUES)))
    given = " ".join(f"WHEN {number} THEN :v{number}" for number in range(len(HOSTILE_VALUES)))
    parameters = {f"v{number}": value for number, value in enumerate(HOSTILE_VALUES)} | {"values": HOSTILE_VALUES}
    query = f"SELECT id, status, CASE id {given} END AS given FROM orders WHERE {terms}"
    result, data = exported(query, parameters=parameters, unique_key="id", method=method)
    assert rows(data) == [[str(number), value, value] for number, value in enumerate(HOSTILE_VALUES)]
    assert result.rows_verified


def test_a_status_is_data(hostile: sa.Engine, exported: Exports) -> None:
    """What the trigger form's query is given as statuses is compared, whatever it is."""
    times = dict.fromkeys(("created_from", "created_to"))
    _, data = exported(select_orders_by(), parameters={**times, "statuses": HOSTILE_VALUES[3:7]}, unique_key="id")
    assert [row[3] for row in rows(data)] == HOSTILE_VALUES[3:7]
    assert exported(select_orders_by(), parameters={**times, "statuses": ["' OR true --"]})[0].rows == 0


@pytest.mark.parametrize("value", UNREADABLE, ids=["NUL", "half a surrogate pair"])
@pytest.mark.parametrize("wrap", [str, lambda value: [value]], ids=["text", "list"])
def test_text_that_postgres_cannot_have_is_refused(
    hostile: sa.Engine, exported: Exports, client: Any, bucket: str, value: str, wrap: Any
) -> None:
    """It is refused by the parameter's name; neither the error nor what it is raised from shows the value."""
    with pytest.raises(InvalidArgument, match=r"^parameters=\['who'\] is not allowed") as caught:
        exported("SELECT id FROM orders WHERE customer_email = ANY(:who)", parameters={"who": wrap(value)})
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    assert keys(client, bucket) == []


def test_a_column_of_any_name_can_be_the_unique_key(schema: str, exported: Exports, always_cut: None) -> None:
    """Batches are cut along it, and it is counted and bounded, as any other."""
    for name in HOSTILE_NAMES:
        query = f"SELECT i AS {as_identifier(name)} FROM generate_series(1, 5) AS i".replace(":", "\\:")
        result, data = exported(query, unique_key=name, yield_per=2)
        assert (rows(data), result.rows_verified) == ([[str(number)] for number in range(1, 6)], True), name


@pytest.mark.parametrize("unique_key", ["id; DROP TABLE orders", 'id" DESC --', "id\0", "id\ud800", "1", "id "])
def test_what_is_no_column_is_no_unique_key(hostile: sa.Engine, exported: Exports, unique_key: str) -> None:
    """The unique key is the name of a column, or is refused by name and value."""
    with pytest.raises(InvalidArgument) as caught:
        exported("SELECT id FROM orders", unique_key=unique_key)
    assert (caught.value.argument, caught.value.value) == ("unique_key", unique_key)


def test_names_of_what_is_loaded_are_names(
    schema: str, execute: Execute, engine: sa.Engine, exported: Exports, client: Any, bucket: str
) -> None:
    """Schema, table and columns of any name are made, replaced and put in by a window's key, under that name."""
    first, *others = map(as_identifier, HOSTILE_NAMES)
    query = f"SELECT i AS {first}, {', '.join(f'i AS {name}' for name in others)} FROM generate_series(1, 3) AS i"
    window = ("2026-11-01T00:00:00+00:00", "2026-11-02T00:00:00+00:00")
    urls = []
    for key, of in (("all.csv", None), ("day.csv", window)):
        result, _ = exported(query.replace(":", "\\:"), unique_key=HOSTILE_NAMES[0], key=key, window=of)
        urls.append(str(result.manifest_url))
    for name in HOSTILE_NAMES:
        target = f"{schema} {name}"[-60:]
        for url in urls:
            places: dict[str, Any] = {"engine": engine, "client": client, "bucket": bucket}
            assert ingest(url, **places, schema=target, table=name).rows == 3
        with engine.connect().execution_options(no_parameters=True) as connection:
            table = f"{as_identifier(target)}.{as_identifier(name)}"
            found = connection.exec_driver_sql(f"SELECT {as_identifier(name)} FROM {table} ORDER BY 1")
            assert found.scalars().all() == [1, 2, 3]
        execute(f"DROP SCHEMA {as_identifier(target)} CASCADE")


@pytest.mark.parametrize("argument", ["table", "schema"])
@pytest.mark.parametrize("value", ["", "a\0b", "\ud800", "x" * 64, "ä" * 32])
def test_what_is_no_name_is_refused(engine: sa.Engine, client: Any, bucket: str, argument: str, value: str) -> None:
    """What Postgres has no name for, or would cut off, is refused by name and value before anything is read."""
    places: dict[str, Any] = {"engine": engine, "client": client, "bucket": bucket, "table": "t", "schema": "s"}
    with pytest.raises(InvalidArgument) as caught:
        ingest(f"s3://{bucket}/not-there.json", **{**places, argument: value})
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
    schema: str, engine: sa.Engine, exported: Exports, client: Any, bucket: str, change: Any
) -> None:
    """What somebody has written into a manifest that no export writes is refused, and nothing is loaded."""
    result, _ = exported("SELECT 1 AS a")
    key = f"{result.key}.manifest.json"
    document = json.loads(content(client, bucket, key))
    change(document, f"s3://{bucket}")
    client.put_object(Bucket=bucket, Key=key, Body=json.dumps(document).encode())
    with pytest.raises(ManifestInvalid, match="Nothing was loaded"):
        ingest(str(result.manifest_url), engine=engine, client=client, bucket=bucket, table="t", schema=schema)


def test_the_run_may_be_called_anything(exporter: sa.Engine, client: Any, bucket: str) -> None:
    """What the manifest tells of the run is data as well, even what UTF-8 can't hold."""
    names = {"run": "\ud800", "dag": '\0 " \\ \u2028', "try": 1}
    export("SELECT 1 AS a", engine=exporter, client=client, bucket=bucket, key="a.csv", run=names)
    assert json.loads(content(client, bucket, "a.csv.manifest.json"))["run"] == names


def test_the_table_is_still_there(hostile: sa.Engine, exported: Exports) -> None:
    """Text that somebody has put together with a value is refused by Postgres: one statement, and it only reads."""
    for value in HOSTILE_VALUES:
        try:
            exported(f"SELECT id FROM orders WHERE status = '{value}'".replace(":", "\\:"))
        except ExportError:
            continue
    with hostile.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM orders").scalar() == len(HOSTILE_VALUES)
