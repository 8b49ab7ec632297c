"""What is in the file in place of values: named columns alone, masks, and text that no spreadsheet runs."""

from __future__ import annotations

import csv
import hmac
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import sqlalchemy as sa

from demo.embedded_postgres import postgres
from streaming_export import DatabaseError, InvalidArgument
from tests.conftest import content
from tests.streaming_export.exporting import export, read
from tests.streaming_export.postgres.statements import another, watched

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
def exported(exporter: sa.Engine) -> Exports:
    """Reads a query; returns the rows of the file, the header's first."""

    def run(query: Any = "SELECT * FROM people", **options: Any) -> list[list[str]]:
        data = read(query, **{"engine": exporter, **options})
        return list(csv.reader(io.StringIO(data.decode(), newline="")))

    return run


def hashed(text: str, key: str = KEY) -> str:
    """What anybody with the key computes."""
    return hmac.digest(key.encode(), text.encode(), "sha256").hex()


# Columns


@pytest.mark.parametrize("method", METHODS)
def test_only_the_columns_that_are_named(people: None, exported: Exports, method: Any) -> None:
    """The file has these columns in this order."""
    rows = exported(columns=["age", "id"], unique_key="id", method=method)
    assert rows == [["age", "id"], ["41", "1"], ["42", "2"], ["43", "3"], ["", "4"], ["45", "5"]]


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
        ({"mask": {"id": "drop", "email": "drop", "age": "drop"}}, r"^mask=.*one column that is not dropped"),
        ({"mask": {"id": "drop"}, "unique_key": "id"}, r"^unique_key='id' .*orders the rows"),
        ({"mask": {"id": "redact"}, "unique_key": "id"}, r"^unique_key='id' .*not redacted"),
        ({"mask": {"email": "hash"}}, r"^mask_key=None .*at least 16 bytes"),
        ({"mask": {"email": "hash"}, "mask_key": "short-secret"}, r"^mask_key='12 bytes' .*at least 16 bytes"),
        ({"spreadsheet_safe": "yes"}, r"^spreadsheet_safe='yes' .*true or false"),
    ],
)
def test_what_can_not_be_is_refused(people: None, exported: Exports, options: dict[str, Any], told: str) -> None:
    """By name and value, but never the key's."""
    with pytest.raises(InvalidArgument, match=told) as caught:
        exported(**options)
    assert "secret" not in str(caught.value)


# Masks


@pytest.mark.parametrize("method", METHODS)
def test_masks(people: None, exported: Exports, method: Any) -> None:
    """A hash is the keyed one of the value, the same for the same value; NULL stays NULL, '' does not."""
    rows = exported(mask={"email": "hash", "age": "redact"}, mask_key=KEY, unique_key="id", method=method)
    ann, empty, jürgen = hashed("ann@example.com"), hashed(""), hashed("jürgen@example.com")
    assert rows == [
        ["id", "email", "age"],
        ["1", ann, "***"],
        ["2", "", "***"],
        ["3", empty, "***"],
        ["4", jürgen, ""],
        ["5", ann, "***"],
    ]


def test_the_manifest_says_what_is_masked(people: None, exporter: sa.Engine, client: Any, bucket: str) -> None:
    """It lists the columns that are masked or dropped, those of the file with their types there, and never the key."""
    mask = {"id": "hash", "email": "redact", "age": "drop"}
    places: dict[str, Any] = {"engine": exporter, "client": client, "bucket": bucket, "key": "a.csv"}
    export("SELECT * FROM people", unique_key="id", mask=mask, mask_key=KEY, spreadsheet_safe=True, **places)
    text = content(client, bucket, "a.csv.manifest.json").decode()
    found = json.loads(text)
    assert found["masked"] == mask
    assert [(column["name"], column["type"]) for column in found["columns"]] == [("id", "text"), ("email", "text")]
    assert found["csv"]["spreadsheet_safe"] is True
    assert KEY not in text
    export("SELECT * FROM people", **places)
    plain = json.loads(content(client, bucket, "a.csv.manifest.json"))
    assert (plain["masked"], plain["csv"]["spreadsheet_safe"]) == ({}, False)


def test_the_key_decides_the_hash(people: None, exported: Exports) -> None:
    """Keys of any length are HMAC's; another key gives another hash."""
    for key in (KEY, "ü" * 8, "x" * 64, "x" * 65, "a longer key " * 50):
        assert exported(mask={"email": "hash"}, mask_key=key)[1][1] == hashed("ann@example.com", key)


def test_the_hash_of_a_value_is_that_of_its_text_in_the_file(exported: Exports) -> None:
    """Values of any type are hashed as they would stand in the file."""
    values = [
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
    ]
    columns = [f"{value} AS {name}{number}" for number, value in enumerate(values) for name in ("plain", "hashed")]
    query = sa.text(f"SELECT {', '.join(columns)}".replace(":", "\\:"))
    mask = {f"hashed{number}": "hash" for number in range(len(values))}
    [_, row] = exported(query, mask=mask, mask_key=KEY)
    assert row[1::2] == [hashed(plain) for plain in row[::2]]


@pytest.mark.parametrize("readers", [1, 2])
def test_a_hashed_key(people: None, exported: Exports, ranges: None, readers: int) -> None:
    """The rows are in the order of the key that the query gives, in ranges too; its values are not in the file."""
    rows = exported(mask={"id": "hash"}, mask_key=KEY, unique_key="id", yield_per=2, readers=readers)
    assert [row[0] for row in rows[1:]] == [hashed(str(number)) for number in range(1, 6)]


def test_no_other_function_gets_the_values(people: None, engine: sa.Engine, schema: str, exporter: sa.Engine) -> None:
    """A function that would fit better, in a schema on the search path, is not called in place of Postgres's own."""
    query = "SELECT email, ARRAY[email] AS emails FROM people WHERE id = 1"
    functions = {
        "concat(text)": "text",
        "convert_to(text, text)": "bytea",
        "to_json(text[])": "json",
        "sha256(bytea)": "bytea",
        "encode(bytea, text)": "text",
        "decode(text, text)": "bytea",
        "regexp_replace(text, text, text)": "text",
    }
    with engine.begin() as connection:
        for function, returns in functions.items():
            connection.execution_options(no_parameters=True).exec_driver_sql(
                f"CREATE FUNCTION {function} RETURNS {returns} LANGUAGE plpgsql AS 'BEGIN RAISE $$called$$; END'"
            )
    url = exporter.url.update_query_dict({"options": f"-c search_path={schema},pg_catalog"})
    ahead = sa.create_engine(url, poolclass=sa.NullPool)
    data = read(query, engine=ahead, mask={"email": "hash"}, mask_key=KEY, spreadsheet_safe=True)
    assert hashed("ann@example.com").encode() in data


# The key


@pytest.fixture(scope="module")
def logging_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[sa.Engine, Path]]:
    """A server that logs all that it may, and its log."""
    verbose = {"log_statement": "all", "log_connections": "all", "log_min_messages": "debug5", "log_duration": "on"}
    folder = tmp_path_factory.mktemp("logging")
    with postgres(folder, verbose) as uri:
        url = uri.replace("postgresql://", "postgresql+psycopg2://")
        yield sa.create_engine(url, poolclass=sa.NullPool), folder / "log"


@pytest.mark.parametrize("method", METHODS)
def test_the_key_is_in_no_statement_and_in_no_log(
    logging_server: tuple[sa.Engine, Path], exported: Exports, caplog: pytest.LogCaptureFixture, method: Any
) -> None:
    """Neither the server's log, at its most talkative, nor pg_stat_activity, nor a statement, nor our log shows it."""
    server, log = logging_server
    statements: list[str] = []
    query = (
        "SELECT i AS id, 'ann' AS name, (SELECT string_agg(query, ' ') FROM pg_stat_activity) AS seen"
        " FROM generate_series(1, 3) AS i"
    )
    caplog.set_level("DEBUG")
    rows = exported(
        query,
        engine=watched(another(server), statements.append),
        unique_key="id",
        method=method,
        mask_key=KEY,
        mask={"name": "hash"},
    )
    assert rows[1][1] == hashed("ann")
    padded = bytes(byte ^ 0x36 for byte in KEY.encode()).hex()
    places = [rows[1][2], *statements, log.read_text(errors="replace"), caplog.text]
    assert len(statements) > 5
    assert "generate_series" in places[0]
    assert "generate_series" in places[-2]
    for secret in (KEY, padded, bytes(byte ^ 0x5C for byte in KEY.encode()).hex()):
        assert not [place for place in places if secret in place]


def test_the_key_comes_beside_other_options(people: None, exporter: sa.Engine, schema: str, engine: sa.Engine) -> None:
    """What libpq's options set otherwise, in the URL or in PGOPTIONS, is still set; others of the engine get no key."""
    query = "SELECT current_setting('work_mem') AS a, email FROM people WHERE id = 1"
    other = exporter.url.update_query_dict({"options": f"-c work_mem=123kB -c search_path={schema}"})
    for url, expected in ((other, "123kB"), (exporter.url, "4MB")):
        users = sa.create_engine(url, poolclass=sa.NullPool)
        data = read(query, engine=users, mask={"email": "hash"}, mask_key=KEY)
        assert data.decode() == f"a,email\n{expected},{hashed('ann@example.com')}\n"
        with users.connect() as connection:
            setting = "current_setting('streaming_export.mask_inner', true)"
            assert connection.exec_driver_sql(f"SELECT {setting}").scalar_one() is None


def test_a_key_that_does_not_arrive_ends_the_export(people: None, exporter: sa.Engine) -> None:
    """An engine, or a pooler, that drops libpq's options: nothing is read, rather than hashed with another key."""

    def connect() -> Any:
        return psycopg2.connect(**exporter.dialect.create_connect_args(exporter.url)[1])

    statements: list[str] = []
    own = sa.create_engine("postgresql+psycopg2://", creator=connect, poolclass=sa.NullPool)
    for engine in (own, dropping(exporter)):
        with pytest.raises(DatabaseError, match="key of the mask 'hash' has not reached") as caught:
            read(
                "SELECT * FROM people", engine=watched(engine, statements.append), mask={"email": "hash"}, mask_key=KEY
            )
        assert caught.value.transient is False
        assert "pooler" in str(caught.value)
        assert not [statement for statement in statements if "people" in statement]


def dropping(engine: sa.Engine) -> sa.Engine:
    """An engine as one behind a pooler that ignores the options it does not know."""
    behind = another(engine)

    @sa.event.listens_for(behind, "do_connect")
    def connect(dialect: Any, record: Any, arguments: list[Any], parameters: dict[str, Any]) -> Any:
        kept = {name: value for name, value in parameters.items() if name != "options"}
        return dialect.connect(*arguments, **kept)

    return behind


# Spreadsheets


FORMULAS = [
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
]


@pytest.mark.parametrize("method", METHODS)
def test_text_that_is_no_formula(exported: Exports, method: Any) -> None:
    """Text that a spreadsheet would take for a formula gets a quote before it; numbers and all else stay."""
    columns = ", ".join(f"{value} AS c{number}" for number, (value, _) in enumerate(FORMULAS))
    query = sa.text(f"SELECT {columns}".replace(":", "\\:"))
    assert exported(query, spreadsheet_safe=True, method=method)[1] == [field for _, field in FORMULAS]


def test_text_is_as_it_is_unless_asked(exported: Exports) -> None:
    """By default nothing is changed."""
    assert exported("SELECT '=1' AS value") == [["value"], ["=1"]]
