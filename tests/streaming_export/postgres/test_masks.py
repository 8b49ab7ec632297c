"""What is in the file in place of values: named columns alone, masks, and text that no spreadsheet runs."""

from __future__ import annotations

import csv
import hmac
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from streaming_export import ExportResult, InvalidArgument, export
from tests.conftest import content, keys

KEY = "0123456789abcdef-a-secret"
METHODS = ["copy", "rows"]

Exports = Callable[..., list[list[str]]]


@pytest.fixture
def people(engine: sa.Engine, schema: str) -> None:
    """A table of five people, one of whom has no address, and one an empty one."""
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE people (id int PRIMARY KEY, email text, age int);"
            "INSERT INTO people VALUES (1, 'ann@example.com', 41), (2, NULL, 42), (3, '', 43),"
            " (4, 'jürgen@example.com', NULL), (5, 'ann@example.com', 45)"
        )


@pytest.fixture
def exported(exporter: sa.Engine, schema: str, client: Any, bucket: str) -> Exports:
    """Exports a query; returns the rows of the file, the header's first."""

    def run(query: str = "SELECT * FROM people", **options: Any) -> list[list[str]]:
        run_export(exporter, client, bucket, query, **options)
        return list(csv.reader(io.StringIO(content(client, bucket, "a.csv").decode(), newline="")))

    return run


def run_export(exporter: sa.Engine, client: Any, bucket: str, query: str, **options: Any) -> ExportResult:
    return export(query, engine=exporter, client=client, bucket=bucket, key="a.csv", **options)


def manifest(client: Any, bucket: str) -> Any:
    return json.loads(content(client, bucket, "a.csv.manifest.json"))


def hashed(text: str, key: str = KEY) -> str:
    """What anybody with the key computes."""
    return hmac.digest(key.encode(), text.encode(), "sha256").hex()


# Columns


@pytest.mark.parametrize("method", METHODS)
def test_only_the_columns_that_are_named(
    people: None, exported: Exports, client: Any, bucket: str, method: Any
) -> None:
    """The file has these columns in this order, and so has the manifest."""
    rows = exported(columns=["age", "id"], unique_key="id", method=method)
    assert rows == [["age", "id"], ["41", "1"], ["42", "2"], ["43", "3"], ["", "4"], ["45", "5"]]
    assert [column["name"] for column in manifest(client, bucket)["columns"]] == ["age", "id"]


def test_a_column_that_is_added_later_is_not_exported(people: None, exported: Exports, engine: sa.Engine) -> None:
    """`SELECT *` gives a new column of the table; the file does not have it."""
    before = exported(columns=["id", "email", "age"], unique_key="id")
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE people ADD secret text DEFAULT 'secret'")
    assert exported(columns=["id", "email", "age"], unique_key="id") == before
    assert exported(unique_key="id")[0] == ["id", "email", "age", "secret"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"columns": []}, r"^columns=\[\] .*a list of names"),
        ({"columns": "id"}, r"^columns='id' .*a list of names"),
        ({"columns": {"id": 1}}, r"^columns=.*a list of names"),
        ({"mask": {"email": ["hash"]}}, r"^mask=.*hash, redact, drop"),
        ({"mask": {"email": "hash"}, "mask_key": "\ud800"}, r"^mask_key='3 bytes' .*at least 16 bytes"),
        ({"columns": ["id", 7]}, r"^columns=\['id', 7\] .*a list of names"),
        ({"columns": ["id", "age", "id"]}, r"^columns=.*not \['id'\] twice"),
        ({"columns": ["id", "ID"]}, r"^columns=\['ID'\] .*columns \['id', 'email', 'age'\]"),
        ({"columns": ["age"], "unique_key": "id"}, r"^unique_key='id' .*in the file \['age'\]"),
        ({"mask": {"mail": "drop"}}, r"^mask=\['mail'\] .*\['id', 'email', 'age'\]"),
        ({"mask": {"email": "drop"}, "columns": ["id"]}, r"^mask=\['email'\] .*\['id'\]"),
        ({"mask": {"email": "md5"}}, r"^mask=\{'email': 'md5'\} .*hash, redact, drop"),
        ({"mask": ["email"]}, r"^mask=\['email'\] .*hash, redact, drop"),
        ({"mask": {"id": "drop", "email": "drop", "age": "drop"}}, r"^mask=.*a column that is not dropped"),
        ({"mask": {"id": "drop"}, "unique_key": "id"}, r"^unique_key='id' .*orders the rows"),
        ({"mask": {"id": "redact"}, "unique_key": "id"}, r"^unique_key='id' .*not redacted"),
        ({"mask": {"email": "hash"}}, r"^mask_key=None .*at least 16 bytes"),
        ({"mask": {"email": "hash"}, "mask_key": "short-secret"}, r"^mask_key='12 bytes' .*at least 16 bytes"),
        ({"spreadsheet_safe": "yes"}, r"^spreadsheet_safe='yes' .*true or false"),
    ],
)
def test_what_can_not_be_is_refused(
    people: None, exported: Exports, client: Any, bucket: str, options: dict[str, Any], told: str
) -> None:
    """By name and value, but never the key's; nothing is written."""
    with pytest.raises(InvalidArgument, match=told) as caught:
        exported(**options)
    assert "secret" not in str(caught.value)
    assert keys(client, bucket) == []


# Masks


@pytest.mark.parametrize("method", METHODS)
def test_masks(people: None, exported: Exports, client: Any, bucket: str, method: Any) -> None:
    """A hash is the keyed one of the value, the same for the same value; NULL stays NULL, '' does not."""
    mask = {"email": "hash", "age": "redact"}
    rows = exported(mask=mask, mask_key=KEY, unique_key="id", method=method)
    ann, empty, jürgen = hashed("ann@example.com"), hashed(""), hashed("jürgen@example.com")
    assert rows == [
        ["id", "email", "age"],
        ["1", ann, "***"],
        ["2", "", "***"],
        ["3", empty, "***"],
        ["4", jürgen, ""],
        ["5", ann, "***"],
    ]
    found = manifest(client, bucket)
    assert found["masked"] == mask
    assert [column["type"] for column in found["columns"]] == ["integer", "text", "text"]
    assert KEY not in json.dumps(found)


def test_a_dropped_column(people: None, exported: Exports, client: Any, bucket: str) -> None:
    """It is not in the file, and the manifest says that there is one."""
    assert exported(mask={"email": "drop"}, unique_key="id")[0] == ["id", "age"]
    found = manifest(client, bucket)
    assert found["masked"] == {"email": "drop"}
    assert [column["name"] for column in found["columns"]] == ["id", "age"]


def test_the_key_decides_the_hash(people: None, exported: Exports) -> None:
    """Keys of any length are HMAC's; another key gives another hash."""
    for key in (KEY, "ü" * 8, "x" * 64, "x" * 65, "a longer key " * 50):
        assert exported(mask={"email": "hash"}, mask_key=key)[1][1] == hashed("ann@example.com", key)


@pytest.mark.parametrize(
    "value",
    [
        "12345678901234567890.10::numeric",
        "0.1::float8",
        "true",
        "'ab'::char(4)",
        "'10.0.0.1'::inet",
        "'2026-11-01 12:00+02'::timestamptz",
        "'2026-11-01'::date",
        "'1 day'::interval",
        "'{\"a\": 1}'::jsonb",
        "ARRAY['a', NULL]",
        "'\\x00ff'::bytea",
        "ROW(1, NULL)",
        "'x'::\"char\"",
    ],
)
def test_the_hash_of_a_value_is_that_of_its_text_in_the_file(exported: Exports, value: str) -> None:
    """Values of any type are hashed as they would stand in the file."""
    query = sa.text(f"SELECT {value} AS a, {value} AS b".replace(": 1", "\\: 1").replace("::", "\\:\\:"))
    [_, (plain, hash_)] = exported(query, mask={"b": "hash"}, mask_key=KEY)
    assert hash_ == hashed(plain)


def test_a_hashed_key(people: None, exported: Exports, client: Any, bucket: str) -> None:
    """The rows are in the order of the key, whose values are neither in the file nor in the manifest."""
    rows = exported(mask={"id": "hash"}, mask_key=KEY, unique_key="id")
    assert [row[0] for row in rows[1:]] == [hashed(str(number)) for number in range(1, 6)]
    assert manifest(client, bucket)["unique_key"] == {"name": "id", "first": None, "last": None}


def test_a_hashed_key_in_batches(people: None, exported: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are cut along the key that the query gives, whatever is in the file."""
    from streaming_export.reading import Reading

    monkeypatch.setattr(Reading, "_can_be_cut", lambda self, cost: True)
    rows = exported(mask={"id": "hash"}, mask_key=KEY, unique_key="id", yield_per=2)
    assert [row[0] for row in rows[1:]] == [hashed(str(number)) for number in range(1, 6)]


@pytest.mark.parametrize("function", ["concat(text)", "convert_to(text, text)", "to_json(text[])", "sha256(bytea)"])
def test_no_other_function_gets_the_values(
    people: None, exported: Exports, engine: sa.Engine, schema: str, function: str
) -> None:
    """A function that would fit better, in a schema on the search path, is not called in place of Postgres's own."""
    returns = "bytea" if function.startswith(("convert", "sha")) else "json" if "json" in function else "text"
    query = "SELECT email, ARRAY[email] AS emails FROM people WHERE id = 1"
    before = exported(query, mask={"email": "hash"}, mask_key=KEY)
    with engine.begin() as connection:
        connection.execution_options(no_parameters=True).exec_driver_sql(
            f"CREATE FUNCTION {function} RETURNS {returns} LANGUAGE plpgsql AS 'BEGIN RAISE $$called$$; END'"
        )
        connection.exec_driver_sql(f"ALTER ROLE orders_exporter SET search_path = {schema}, pg_catalog")
    assert exported(query, mask={"email": "hash"}, mask_key=KEY) == before


# Spreadsheets


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("'=1+1'", "'=1+1"),
        ("'+1'", "'+1"),
        ("'-1'", "'-1"),
        ("'@SUM(A1)'", "'@SUM(A1)"),
        ("E'\\t=1'", "'\t=1"),
        ("E'\\r=1'", "'\r=1"),
        ("E'\\n=1'", "'\n=1"),
        ("'＝1'", "'＝1"),  # noqa: RUF001
        ("'a=1'", "a=1"),
        ("E'a\\n=1'", "a\n=1"),
        ("' =1'", " =1"),
        ("''", ""),
        ("NULL::text", ""),
        ("'\\1'", "\\1"),
        ("'=1'::varchar(5)", "'=1"),
        ("'=1'::char(4)", "'=1  "),
        ("'=1'::name", "'=1"),
        ("-1", "-1"),
        ("-1.5::numeric", "-1.5"),
        ("'-5'::jsonb", "-5"),
        ("'-1 day'::interval", "P-1D"),
        ("ARRAY['=1']", '["=1"]'),
    ],
)
def test_text_that_is_no_formula(exported: Exports, value: str, field: str, method: Any) -> None:
    """Text that a spreadsheet would take for a formula gets a quote before it; numbers and all else stay."""
    query = sa.text(f"SELECT 1 AS id, {value} AS value".replace("::", "\\:\\:"))
    assert exported(query, spreadsheet_safe=True, method=method)[1] == ["1", field]


def test_text_is_as_it_is_unless_asked(exported: Exports, client: Any, bucket: str) -> None:
    """By default nothing is changed; the manifest says whether it was."""
    assert exported("SELECT '=1' AS value") == [["value"], ["=1"]]
    assert manifest(client, bucket)["csv"]["spreadsheet_safe"] is False
    assert exported("SELECT '=1' AS value", spreadsheet_safe=True) == [["value"], ["'=1"]]
    assert manifest(client, bucket)["csv"]["spreadsheet_safe"] is True
