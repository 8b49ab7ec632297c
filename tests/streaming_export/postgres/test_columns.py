"""The bytes of the file: every type, every value, by both methods, and as others read them."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import psycopg2.extras
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from streaming_export.postgres.query import Source, describe
from streaming_export.postgres.reader import write_rows
from streaming_export.postgres.sessions import Sessions, begun_by_driver, driver_connection
from tests.streaming_export.exporting import read

Readers = tuple[sa.Connection, sa.Connection]
Row = tuple[str | None, ...]


def examples(number: int) -> settings:
    """The same examples each time: a failure is a change of the code, or of a dependency."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=number, deadline=None, derandomize=True, database=None, suppress_health_check=slow)


#: What a role of the database may have set, each against what the file needs.
HOSTILE_SETTINGS = {
    "TimeZone": "Asia/Kathmandu",
    "DateStyle": "German, DMY",
    "IntervalStyle": "sql_standard",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "client_encoding": "LATIN1",
}

TYPES = """
CREATE TYPE mood AS ENUM ('ok', 'so, so', '');
CREATE TYPE pair AS (a integer, b text);
CREATE DOMAIN positive AS integer CHECK (value > 0);
CREATE DOMAIN flag AS boolean;
CREATE DOMAIN moment AS timestamptz;
CREATE DOMAIN numbers AS integer[];
CREATE DOMAIN remark AS text;
"""

#: A value, as SQL, and the field that stands for it.
CASES = [
    # Booleans and integers
    ("true", "true"),
    ("false", "false"),
    ("(-32768)::smallint", "-32768"),
    ("32767::smallint", "32767"),
    ("(-2147483648)::integer", "-2147483648"),
    ("2147483647", "2147483647"),
    ("(-9223372036854775808)::bigint", "-9223372036854775808"),
    ("9223372036854775807", "9223372036854775807"),
    ("4294967295::oid", "4294967295"),
    # Numerics are exact, with the digits they have
    ("0::numeric", "0"),
    ("1.10::numeric(5,2)", "1.10"),
    ("-0.10", "-0.10"),
    ("1e20::numeric", "100000000000000000000"),
    (
        "123456789012345678901234567890.123456789012345678901234567890",
        "123456789012345678901234567890.123456789012345678901234567890",
    ),
    ("1e-200::numeric", "0." + "0" * 199 + "1"),
    ("1e1000::numeric", "1" + "0" * 1000),
    ("'NaN'::numeric", "NaN"),
    ("'Infinity'::numeric", "Infinity"),
    ("'-Infinity'::numeric", "-Infinity"),
    # Floats: the shortest text that reads back as the same number
    ("0.1::real", "0.1"),
    ("(1::real / 3::real)", "0.33333334"),
    ("3.4028235e38::real", "3.4028235e+38"),
    ("'NaN'::real", "NaN"),
    ("'-Infinity'::real", "-Infinity"),
    ("'-0'::real", "-0"),
    ("0.1::float8", "0.1"),
    ("0.1::float8 + 0.2::float8", "0.30000000000000004"),
    ("1::float8 / 3", "0.3333333333333333"),
    ("100::float8", "100"),
    ("123456789012345::float8", "123456789012345"),
    ("1e300::float8", "1e+300"),
    ("5e-324::float8", "5e-324"),
    ("1.7976931348623157e308::float8", "1.7976931348623157e+308"),
    ("'-0'::float8", "-0"),
    ("'NaN'::float8", "NaN"),
    ("'Infinity'::float8", "Infinity"),
    ("'-Infinity'::float8", "-Infinity"),
    # Text, quoted where it must be and nowhere else
    ("'plain'::text", "plain"),
    ("''::text", '""'),
    ("' '::text", " "),
    ("' both ends '::text", " both ends "),
    ("'a,b'::text", '"a,b"'),
    ("','::text", '","'),
    ("'say \"hi\"'::text", '"say ""hi"""'),
    ("'\"'::text", '""""'),
    ("E'\\n'::text", '"\n"'),
    ("E'\\r'::text", '"\r"'),
    ("E'one\\r\\ntwo'::text", '"one\r\ntwo"'),
    ("E'\\t'::text", "\t"),
    ("E'\\x01\\x1c\\x7f'::text", "\x01\x1c\x7f"),
    ("E'\\\\'::text", "\\"),
    ("E'\\\\N'::text", "\\N"),
    ("E'\\\\n'::text", "\\n"),
    ("'it''s'::text", "it's"),
    ("'NULL'::text", "NULL"),
    ("'=1+1'::text", "=1+1"),
    ("'Grüße, 世界 😀'::text", '"Grüße, 世界 😀"'),
    ("U&'\\FEFF\\200B\\2028\\0085'::text", "\ufeff\u200b\u2028\x85"),
    ("U&'e\\0301'::text", "e\u0301"),
    ("repeat('x', 100000)", "x" * 100_000),
    ("'a,b'::varchar(3)", '"a,b"'),
    ("'ab'::char(4)", "ab  "),
    ("''::char(2)", "  "),
    ("'x'::\"char\"", "x"),
    ("''::\"char\"", '""'),
    ("'a name'::name", "a name"),
    ("'a'::text COLLATE \"C\"", "a"),
    ("'untyped'", "untyped"),
    # Dates and times
    ("'2026-11-01'::date", "2026-11-01"),
    ("'0001-01-01'::date", "0001-01-01"),
    ("'0044-03-15 BC'::date", "0044-03-15 BC"),
    ("'10000-01-01'::date", "10000-01-01"),
    ("'infinity'::date", "infinity"),
    ("'-infinity'::date", "-infinity"),
    ("'00:00'::time", "00:00:00"),
    ("'23:59:59.999999'::time", "23:59:59.999999"),
    ("'12:30:00.4'::time", "12:30:00.4"),
    ("'24:00'::time", "24:00:00"),
    ("'12:30:00.4+05:45'::timetz", "12:30:00.4+05:45"),
    ("'12:30-08'::timetz", "12:30:00-08"),
    # Timestamps with time zone: in UTC, as datetime.isoformat() writes them
    ("'2026-11-01 00:00:02+00'::timestamptz", "2026-11-01T00:00:02+00:00"),
    ("'2026-11-01 00:00:00.4+00'::timestamptz", "2026-11-01T00:00:00.400000+00:00"),
    ("'2026-11-01 00:00:00.000001+00'::timestamptz", "2026-11-01T00:00:00.000001+00:00"),
    ("'2026-11-01 00:00:00.100000+00'::timestamptz", "2026-11-01T00:00:00.100000+00:00"),
    ("'2026-11-01 02:00:00+05:45'::timestamptz", "2026-10-31T20:15:00+00:00"),
    ("'0001-01-01 00:00:00+00'::timestamptz", "0001-01-01T00:00:00+00:00"),
    ("'9999-12-31 23:59:59.999999+00'::timestamptz", "9999-12-31T23:59:59.999999+00:00"),
    ("'10000-01-01 00:00:00.5+00'::timestamptz", "10000-01-01T00:00:00.500000+00:00"),
    ("'294276-12-31 23:59:59.999999+00'::timestamptz", "294276-12-31T23:59:59.999999+00:00"),
    ("'0001-12-31 23:59:59.999999+00 BC'::timestamptz", "0001-12-31 23:59:59.999999+00 BC"),
    ("'4714-11-24 00:00:00+00 BC'::timestamptz", "4714-11-24 00:00:00+00 BC"),
    ("'infinity'::timestamptz", "infinity"),
    ("'-infinity'::timestamptz", "-infinity"),
    # Timestamps without: the same without an offset
    ("'2026-11-01 00:00:02'::timestamp", "2026-11-01T00:00:02"),
    ("'2026-11-01 00:00:00.4'::timestamp", "2026-11-01T00:00:00.400000"),
    ("'0001-01-01'::timestamp", "0001-01-01T00:00:00"),
    ("'10000-01-01'::timestamp", "10000-01-01T00:00:00"),
    ("'0044-03-15 12:00 BC'::timestamp", "0044-03-15 12:00:00 BC"),
    ("'infinity'::timestamp", "infinity"),
    ("'-infinity'::timestamp", "-infinity"),
    # Intervals in ISO 8601
    ("'1 year 2 mons 3 days 04:05:06.7'::interval", "P1Y2M3DT4H5M6.7S"),
    ("'-1 day +02:00'::interval", "P-1DT2H"),
    ("'-00:00:00.000001'::interval", "PT-0.000001S"),
    ("'0'::interval", "PT0S"),
    ("'infinity'::interval", "infinity"),
    # JSON: json as it was written, jsonb as Postgres keeps it
    ('\'{"b":  1, "a": [null, "x"]}\'::json', '"{""b"":  1, ""a"": [null, ""x""]}"'),
    ("E'{\\n}'::json", '"{\n}"'),
    ('\'{"b":  1, "a": [null, "x"]}\'::jsonb', '"{""a"": [null, ""x""], ""b"": 1}"'),
    ("'null'::json", "null"),
    ("'null'::jsonb", "null"),
    ("'\"\"'::jsonb", '""""""'),
    ("'1.10'::jsonb", "1.10"),
    # Arrays are JSON
    ("'{}'::integer[]", "[]"),
    ("ARRAY[1]", "[1]"),
    ("ARRAY[1, NULL, -3]", '"[1,null,-3]"'),
    ("ARRAY[[1, 2], [3, NULL]]", '"[[1,2],[3,null]]"'),
    ("ARRAY[true, false]", '"[true,false]"'),
    ("ARRAY[1.10, 'NaN'::numeric]", '"[1.10,""NaN""]"'),
    ("ARRAY[0.1::float8, '-Infinity'::float8]", '"[0.1,""-Infinity""]"'),
    (
        "ARRAY['a,b', 'say \"hi\"', E'\\n\\\\', '', NULL, 'NULL', '😀']",
        r'"[""a,b"",""say \""hi\"""",""\n\\"","""",null,""NULL"",""😀""]"',
    ),
    ("ARRAY['2026-11-01 02:00+02'::timestamptz, 'infinity']", '"[""2026-11-01T00:00:00+00:00"",""infinity""]"'),
    ("ARRAY['2026-11-01 02:00:02'::timestamp]", '"[""2026-11-01T02:00:02""]"'),
    ("ARRAY['2026-11-01'::date]", '"[""2026-11-01""]"'),
    ("ARRAY['1 day'::interval]", '"[""P1D""]"'),
    ("ARRAY['{\"a\": 1}'::jsonb, 'null']", '"[{""a"": 1},null]"'),
    ("ARRAY[decode('00ff', 'hex')]", '"[""\\\\x00ff""]"'),
    ("ARRAY['so, so'::mood]", '"[""so, so""]"'),
    ("ARRAY[row(1, 'x')::pair]", '"[{""a"":1,""b"":""x""}]"'),
    ("'{1,2}'::numbers", '"[1,2]"'),
    ("ARRAY[1::positive]", "[1]"),
    # The rest as Postgres prints it
    ("decode('', 'hex')", "\\x"),
    ("decode('00ff2c22', 'hex')", "\\x00ff2c22"),
    ("'00000000-0000-0000-0000-0000000000AB'::uuid", "00000000-0000-0000-0000-0000000000ab"),
    ("'10.0.0.1/8'::inet", "10.0.0.1/8"),
    ("'::1'::inet", "::1"),
    ("'10.0.0.0/8'::cidr", "10.0.0.0/8"),
    ("'08002B010203'::macaddr", "08:00:2b:01:02:03"),
    ("'08002B0102030405'::macaddr8", "08:00:2b:01:02:03:04:05"),
    ("'ok'::mood", "ok"),
    ("'so, so'::mood", '"so, so"'),
    ("''::mood", '""'),
    ("int4range(1, 5)", '"[1,5)"'),
    ("int4range(5, 5)", "empty"),
    ("tstzrange('2026-11-01 02:00:00.4+02', NULL)", '"[""2026-11-01 00:00:00.4+00"",)"'),
    ("daterange('2026-11-01', 'infinity')", '"[2026-11-01,infinity)"'),
    ("'{[1,3),[5,7)}'::int4multirange", '"{[1,3),[5,7)}"'),
    ("'{}'::int4multirange", "{}"),
    ("row(1, 'say \"hi\"')::pair", '"(1,""say """"hi"""""")"'),
    ("row(NULL, '')::pair", '"(,"""")"'),
    ("B'101'", "101"),
    ("point(0.1, 1e300)", '"(0.1,1e+300)"'),
    ("'a & b'::tsquery", "'a' & 'b'"),
    # Domains are written as what they are made of
    ("5::positive", "5"),
    ("true::flag", "true"),
    ("'2026-11-01 02:00+02'::moment", "2026-11-01T00:00:00+00:00"),
    ("''::remark", '""'),
]

#: Types whose text others read back as the same value; arrays are JSON, and so no longer arrays to Postgres.
COLUMNS = {
    "a_boolean": "boolean",
    "a_smallint": "smallint",
    "an_integer": "integer",
    "a_bigint": "bigint",
    "a_numeric": "numeric",
    "a_real": "real",
    "a_float": "float8",
    "a_text": "text",
    "a_varchar": "varchar(20)",
    "a_char": "char(5)",
    "a_byte": '"char"',
    "a_name": "name",
    "a_uuid": "uuid",
    "a_date": "date",
    "a_time": "time",
    "a_timetz": "timetz",
    "a_timestamp": "timestamp",
    "a_timestamptz": "timestamptz",
    "an_interval": "interval",
    "a_json": "json",
    "a_jsonb": "jsonb",
    "a_bytea": "bytea",
    "an_inet": "inet",
    "an_enum": "mood",
    "a_range": "int4range",
    "a_composite": "pair",
    "a_domain": "positive",
    "a_flag": "flag",
    "some_texts": "text[]",
    "some_floats": "float8[]",
    "some_moments": "timestamptz[]",
}

CHARACTERS = st.one_of(
    st.sampled_from("\",'\r\n\\ ;\t=.N"), st.characters(exclude_categories=["Cs"], exclude_characters="\0")
)
WORDS = st.sampled_from(
    ["", "\\.", "\\N", "NULL", "=1+1", '"', '""', ",", "\r\n", " ", "\ufeff", "\x1c", "\u2028", "😀"]
)
TEXTS = WORDS | st.text(CHARACTERS, max_size=12)

MICROSECONDS = st.sampled_from([0, 1, 400_000, 999_999]) | st.integers(0, 999_999)


@st.composite
def datetimes(draw: st.DrawFn) -> datetime:
    """Any moment of Python's in UTC, more often than not with an interesting fraction."""
    return draw(st.datetimes(timezones=st.just(UTC))).replace(microsecond=draw(MICROSECONDS))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=4,
).map(lambda value: json.dumps(value, ensure_ascii=False))

#: A value of each column, as the driver binds it.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "boolean": st.booleans(),
    "smallint": st.integers(-(2**15), 2**15 - 1),
    "integer": st.integers(-(2**31), 2**31 - 1),
    "bigint": st.integers(-(2**63), 2**63 - 1),
    "numeric": st.decimals(-(10**30), 10**30, places=9).map(str) | st.sampled_from(["NaN", "Infinity", "-Infinity"]),
    "real": st.floats(width=32).map(repr),
    "float8": st.floats().map(repr),
    "text": TEXTS,
    "varchar(20)": TEXTS,
    "char(5)": st.text(CHARACTERS, max_size=5),
    '"char"': st.characters(min_codepoint=1, max_codepoint=127),
    "name": st.text(CHARACTERS, max_size=15),
    "uuid": st.uuids().map(str),
    "date": st.dates() | st.sampled_from(["infinity", "0044-03-15 BC", "99999-01-01"]),
    "time": st.times(),
    "timetz": st.times(timezones=st.just(timezone(timedelta(hours=5, minutes=45)))),
    "timestamp": st.datetimes() | st.sampled_from(["-infinity", "0044-03-15 01:02:03.4 BC", "99999-01-01"]),
    "timestamptz": datetimes() | st.sampled_from(["infinity", "0044-03-15 01:02:03.4 BC", "99999-01-01"]),
    "interval": st.timedeltas(timedelta(-(10**6)), timedelta(10**6)) | st.sampled_from(["1 mon -1 day", "infinity"]),
    "json": JSON,
    "jsonb": JSON,
    "bytea": st.binary(max_size=8),
    "inet": st.ip_addresses().map(str),
    "mood": st.sampled_from(["ok", "so, so", ""]),
    "int4range": st.sampled_from(["empty", "[1,5)", "(,5)", "(,)", "[-7,]"]),
    "pair": st.tuples(st.integers(0, 9) | st.none(), TEXTS | st.none()),
    "positive": st.integers(1, 2**31 - 1),
    "flag": st.booleans(),
    "text[]": st.lists(TEXTS | st.none(), max_size=3),
    "float8[]": st.lists(st.floats() | st.none(), max_size=3),
    "timestamptz[]": st.lists(datetimes() | st.none(), max_size=2),
}
ROWS = st.lists(st.tuples(*[VALUES[type_] | st.none() for type_ in COLUMNS.values()]), max_size=4)


#: A field as it stands in the file, with its quotes.
FIELD = re.compile(r'(?:[^",\n]|"(?:[^"]|"")*")*')

#: Each case in a column of its own.
ALL_CASES = ", ".join(f"{sql} AS c{number}" for number, (sql, _) in enumerate(CASES))


@pytest.fixture(scope="module")
def owner(engine: sa.Engine) -> Iterator[sa.Engine]:
    """An engine of a role with the types of these tests, and with hostile settings."""
    name = f"columns_{uuid.uuid4().hex}"
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {name} LOGIN")
        connection.exec_driver_sql(f"CREATE SCHEMA {name} AUTHORIZATION {name}")
        connection.exec_driver_sql(f"SET LOCAL search_path = {name}")
        connection.exec_driver_sql(TYPES)
        for setting, value in HOSTILE_SETTINGS.items():
            connection.exec_driver_sql(f"ALTER ROLE {name} SET {setting} = '{value}'")
    url = engine.url.set(username=name).update_query_dict({"options": f"-c search_path={name}"})
    yield sa.create_engine(url, poolclass=sa.NullPool, hide_parameters=True)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {name} CASCADE")
        connection.exec_driver_sql(f"DROP ROLE {name}")


@pytest.fixture(scope="module")
def readers(owner: sa.Engine) -> Iterator[Readers]:
    """Two sessions as an export opens them, one for each method."""
    sessions = Sessions(owner, "test_columns", {})
    yield begun_by_driver(sessions.open(5.0), "REPEATABLE READ"), begun_by_driver(sessions.open(5.0), "REPEATABLE READ")
    sessions.end()


@pytest.fixture(scope="module")
def connection(owner: sa.Engine) -> Iterator[Any]:
    """A connection of psycopg2, with the tables `everything`, a column of each type, and `loaded`, for its file."""
    columns = ", ".join(f"{name} {type_}" for name, type_ in COLUMNS.items())
    # The file holds arrays as JSON.
    loaded = ", ".join(f"{name} {'jsonb' if type_.endswith('[]') else type_}" for name, type_ in COLUMNS.items())
    pooled = owner.raw_connection()
    connection: Any = pooled.driver_connection
    connection.set_client_encoding("UTF8")
    with connection, connection.cursor() as cursor:
        cursor.execute("SET IntervalStyle = iso_8601")
        cursor.execute("SET DateStyle = ISO")
        cursor.execute("SET TimeZone = UTC")
        cursor.execute("SET extra_float_digits = 1")
        cursor.execute("SET bytea_output = hex")
        cursor.execute(f"CREATE TABLE everything (id bigint PRIMARY KEY, {columns})")
        cursor.execute(f"CREATE TABLE loaded (id bigint PRIMARY KEY, {loaded})")
    yield connection
    pooled.close()


def as_text(sql: str) -> sa.TextClause:
    """SQL without parameters."""
    return sa.text(sql.replace(":", "\\:"))


def rows_of(
    readers: Readers, source: Source, parameters: dict[str, Any] | None = None, unique_key: str | None = None
) -> bytes:
    """The rows of the file, without its header, which are the same by each method."""
    copying, reading = readers
    for session in readers:
        session.commit()  # for a new snapshot
    query = describe(copying, source, parameters, unique_key)
    copied, written = io.BytesIO(), io.BytesIO()
    driver_connection(copying).cursor().copy_expert(query.copy(), copied)
    write_rows(reading, query, 3, written)
    assert written.getvalue() == copied.getvalue()
    return copied.getvalue()


# One text for each value


@pytest.mark.parametrize("method", ["copy", "rows"])
def test_every_value_has_one_text(owner: sa.Engine, method: Any) -> None:
    """A value is written in one way, by either method, and whatever its role has set for the text of values."""
    with owner.connect() as connection:
        assert connection.exec_driver_sql("SHOW TimeZone").scalar_one() == HOSTILE_SETTINGS["TimeZone"]
    data = read(as_text(f"SELECT {ALL_CASES}"), engine=owner, method=method).decode()
    _, line = data.split("\n", 1)
    fields: list[str] = []
    while len(fields) < len(CASES):
        match = FIELD.match(line)
        assert match
        fields.append(match[0])
        line = line[match.end() + 1 :]
    assert line == ""
    assert dict(zip([sql for sql, _ in CASES], fields, strict=True)) == dict(CASES)


def test_null_of_every_type_is_nothing(readers: Readers) -> None:
    """NULL is an empty field, whatever its type."""
    source = as_text(f"SELECT v.* FROM (SELECT) AS one LEFT JOIN (SELECT {ALL_CASES}) AS v ON false")
    assert rows_of(readers, source) == b"," * (len(CASES) - 1) + b"\n"


def test_postgres_reads_every_value_back(connection: Any) -> None:
    """COPY FROM makes of a field the value that it stands for; arrays are JSON, and make a jsonb."""
    columns = [f"c{number}" for number in range(len(CASES))]
    with connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TEMP TABLE own ON COMMIT DROP AS SELECT {ALL_CASES}")
        types = ", ".join(f"jsonb_typeof(to_jsonb({column}))" for column in columns)
        cursor.execute(f"SELECT {types} FROM own")
        arrays = [type_ == "array" for type_ in cursor.fetchone()]
        expected = [f"to_jsonb({c}) AS {c}" if array else c for c, array in zip(columns, arrays, strict=True)]
        cursor.execute(f"CREATE TEMP TABLE written ON COMMIT DROP AS SELECT {', '.join(expected)} FROM own")
        cursor.execute("CREATE TEMP TABLE read ON COMMIT DROP AS SELECT * FROM written WITH NO DATA")
        line = ",".join(field for _, field in CASES) + "\n"
        cursor.copy_expert("COPY read FROM STDIN (FORMAT csv)", io.BytesIO(line.encode()))
        texts = [
            f"SELECT ARRAY[{', '.join(f'{c}::text' for c in columns)}] FROM {table}" for table in ("read", "written")
        ]
        cursor.execute(" UNION ALL ".join(texts))
        [[read_back], [written]] = cursor.fetchall()
    assert dict(zip(columns, read_back, strict=True)) == dict(zip(columns, written, strict=True))


# NULL and the empty string


def test_null_and_empty_stay_apart_in_every_position(readers: Readers) -> None:
    """NULL is nothing and the empty string is two quotes: first, in the middle, last, and all together."""
    fields = {"NULL::text": "", "''": '""', "'x'": "x", "','": '","', "'\\.'": "\\."}
    rows = list(itertools.product(fields, repeat=3))
    sql = " UNION ALL ".join(f"SELECT {a} AS a, {b} AS b, {c} AS c" for a, b, c in rows)
    expected = "".join(",".join(fields[value] for value in row) + "\n" for row in rows)
    assert rows_of(readers, sql) == expected.encode()


def test_null_and_empty_stay_apart_alone(readers: Readers) -> None:
    """In a file of one column NULL is an empty line; what once ended the data of a COPY is quoted."""
    fields = {"NULL": "", "''": '""', "'\\.'": '"\\."', "'\\N'": "\\N", "' '": " ", "'x'": "x"}
    sql = " UNION ALL ".join(f"SELECT {value} AS a" for value in fields)
    assert rows_of(readers, sql) == "".join(field + "\n" for field in fields.values()).encode()
    for value, field in fields.items():
        assert rows_of(readers, f"SELECT {value} AS a") == f"{field}\n".encode()


# Any value


@examples(15)
@given(st.lists(datetimes(), min_size=1, max_size=60))
@example([datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
def test_timestamps_are_isoformat(readers: Readers, moments: list[datetime]) -> None:
    """A timestamp is written as Python's datetime.isoformat() writes it, in UTC or without an offset."""
    sql = "SELECT t AS a, t AT TIME ZONE 'UTC' AS b FROM unnest(:moments::timestamptz[]) AS t"
    lines = [f"{moment.isoformat()},{moment.replace(tzinfo=None).isoformat()}\n" for moment in moments]
    assert rows_of(readers, sql, {"moments": moments}) == "".join(lines).encode()


@examples(15)
@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=200))
def test_floats_are_exact(readers: Readers, numbers: list[float]) -> None:
    """The text of a float8 reads back as the same number."""
    data = rows_of(readers, "SELECT x FROM unnest(:numbers::float8[]) AS x", {"numbers": numbers})
    assert [float(text) for text in data.split()] == numbers


@examples(40)
@given(ROWS)
def test_both_methods_give_the_same_bytes_and_postgres_reads_them(
    connection: Any, readers: Readers, rows: list[tuple[Any, ...]]
) -> None:
    """Rows of all types are the same bytes by both methods, and COPY FROM makes the same rows of them."""
    template = "(%s, " + ", ".join(f"CAST(%s AS {type_})" for type_ in COLUMNS.values()) + ")"
    differences = ", ".join(
        f"CASE WHEN {f'to_jsonb(e.{name})' if type_.endswith('[]') else f'e.{name}'}::text"
        f" IS DISTINCT FROM l.{name}::text THEN '{name}' END"
        for name, type_ in COLUMNS.items()
    )
    with connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM everything; DELETE FROM loaded")
        numbered = [(number, *row) for number, row in enumerate(rows)]
        if numbered:
            psycopg2.extras.execute_values(cursor, "INSERT INTO everything VALUES %s", numbered, template)
    data = rows_of(readers, "SELECT * FROM everything", unique_key="id")
    with connection, connection.cursor() as cursor:
        cursor.copy_expert("COPY loaded FROM STDIN (FORMAT csv)", io.BytesIO(data))
        cursor.execute(f"SELECT id, concat_ws(', ', {differences}) FROM everything e FULL JOIN loaded l USING (id)")
        assert sorted(cursor.fetchall()) == [(number, "") for number in range(len(rows))]


# Others that read the file


def by_python(data: bytes, path: Path, connection: Any) -> list[Row]:
    """Python's csv; a row of one NULL is an empty list to it."""
    lines = csv.reader(io.StringIO(data.decode(), newline=""), strict=True)
    return [tuple(line) or ("",) for line in lines][1:]


def by_pandas(data: bytes, path: Path, connection: Any) -> list[Row]:
    """Pandas, told that text is text; without `keep_default_na=False` it takes "NULL" and "NaN" for nothing."""
    frame = pd.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False, skip_blank_lines=False)
    return list(frame.itertuples(index=False, name=None))


def by_polars(data: bytes, path: Path, connection: Any) -> list[Row]:
    """Polars, told that text is text."""
    return pl.read_csv(data, infer_schema=False, truncate_ragged_lines=False).rows()


def by_duckdb(data: bytes, path: Path, connection: Any) -> list[Row]:
    """DuckDB, told what the file is instead of guessing."""
    path.write_bytes(data)
    columns = dict.fromkeys(data.split(b"\n", 1)[0].decode().split(","), "VARCHAR")
    options = f"auto_detect=false, header=true, columns={columns}, delim=',', quote='\"', escape='\"', new_line='\\n'"
    options += ", nullstr='', allow_quoted_nulls=false, parallel=false"
    with duckdb.connect() as database:
        return database.execute(f"SELECT * FROM read_csv('{path}', {options})").fetchall()


def by_postgres(data: bytes, path: Path, connection: Any) -> list[Row]:
    """COPY FROM, which also compares the header with the table's columns."""
    names = data.split(b"\n", 1)[0].decode()
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TEMP TABLE texts (n serial, {names.replace(',', ' text, ')} text)")
        cursor.copy_expert(f"COPY texts ({names}) FROM STDIN (FORMAT csv, HEADER match)", io.BytesIO(data))
        cursor.execute(f"SELECT {names} FROM texts ORDER BY n")
        rows: list[Row] = cursor.fetchall()
    connection.rollback()
    return rows


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to overwrite."""
    return tmp_path_factory.mktemp("csv") / "texts.csv"


#: By reader, whether it tells NULL from the empty string.
READERS: dict[Callable[[bytes, Path, Any], list[Row]], bool] = {
    by_python: False,
    by_pandas: False,
    by_polars: True,
    by_duckdb: True,
    by_postgres: True,
}


@examples(40)
@given(st.integers(1, 3).flatmap(lambda width: st.lists(st.tuples(*[TEXTS | st.none()] * width), max_size=25)))
@example([(word,) for word in ["", None, "\\.", "\\N", "\r", "\n", "NULL"]])
def test_others_read_what_was_written(readers: Readers, connection: Any, path: Path, rows: list[Row]) -> None:
    """Any text reads back unchanged; those that can tell NULL from the empty string, do."""
    names = "abc"[: len(rows[0]) if rows else 1]
    parameters = {name: [row[number] for row in rows] for number, name in enumerate(names)}
    arrays = ", ".join(f":{name}::text[]" for name in names)
    data = rows_of(readers, f"SELECT * FROM unnest({arrays}) AS t({','.join(names)})", parameters)
    file = (",".join(names) + "\n").encode() + data
    for reader, tells_null in READERS.items():
        expected = rows if tells_null else [tuple(value or "" for value in row) for row in rows]
        assert reader(file, path, connection) == expected, reader
