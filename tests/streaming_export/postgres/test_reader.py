"""How a query is read: key ranges or one stream, in order, every row, counted."""

from __future__ import annotations

import csv
import io
import time
from typing import Any

import psycopg2
import pytest
import sqlalchemy as sa

from orders.models import select_orders
from streaming_export import VerificationError, open_csv
from streaming_export.postgres.query import describe
from streaming_export.postgres.reader import walk
from tests.conftest import new_schema
from tests.streaming_export.conftest import LENGTH, Execute, lines
from tests.streaming_export.exporting import read, take_options
from tests.streaming_export.postgres.statements import another, watched

METHODS = ["copy", "rows"]


def batches(engine: sa.Engine, query: str, unique_key: str | None, **options: Any) -> tuple[list[int], bool]:
    """Rows of each batch in which a query is read, and whether they were verified."""
    with open_csv(query, engine=engine, unique_key=unique_key, options=take_options(options)) as csv:
        return [rows for _, rows in csv.batches() if rows], csv.verified


def places(data: bytes) -> list[int]:
    """The numbers in the first column of a file."""
    _, *rows = csv.reader(io.StringIO(data.decode(), newline=""))
    return [int(row[0]) for row in rows]


def collation(engine: sa.Engine) -> str:
    """A collation that orders words as people do, if the server has one, and else the plainest."""
    for name in ("en-x-icu", "und-x-icu", "unicode"):
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql(f"SELECT 'a' < 'B' COLLATE \"{name}\"")
        except sa.exc.DBAPIError:
            continue
        return name
    return "C"


# Order

KEYS = {
    "bigint": ["-9223372036854775808", "-10", "-9", "0", "9", "10", "9223372036854775807"],
    "smallint": ["-2", "-1", "0", "1"],
    "numeric": ["-1e30", "-0.5", "0", "0.0000000001", "9", "10", "1e30", "Infinity", "NaN"],
    "float8": ["-Infinity", "-1e300", "0.1", "0.30000000000000004", "1e300", "NaN"],
    "text": ["", " ", '"', "%s", "'", ",", "10", "9", "\\", "a\nb", "a\\'b", "ü", "😀"],
    "varchar(5)": ["10", "9", "a"],
    "char(4)": ["", "a", "a b", "ab"],
    "name": ["A", "a", "b"],
    "uuid": ["0" * 32, "0f" + "0" * 30, "f" * 32],
    "date": ["-infinity", "0044-03-15 BC", "1999-12-31", "2026-11-01", "12026-11-01", "infinity"],
    "timestamptz": [
        "-infinity",
        "0044-03-15 BC",
        "2026-11-01 00:00+02",
        "2026-11-01 00:00:00.000001+02",
        "infinity",
    ],
    "timestamp": ["0044-03-15 12:00 BC", "2026-11-01 00:00", "2026-11-01 00:00:00.000001", "infinity"],
    "interval": ["-1 day", "0", "1 hour", "1 mon -1 day", "1 year"],
    "boolean": ["false", "true"],
    "bytea": ["\\x", "\\x00", "\\x5c", "\\xff"],
    "inet": ["10.0.0.9", "10.0.0.10", "::1"],
    "rank": ["low", "it's", "b' OR true --", "high"],
    "integer[]": ["{}", "{1}", "{1,2}", "{NULL}"],
    "int4range": ["empty", "[1,3)", "[2,3)"],
    "small": ["1", "2", "10"],
}


def test_keys_of_any_type_order_the_file(
    engine: sa.Engine, execute: Execute, exporter: sa.Engine, ranges: None
) -> None:
    """Rows come in the order that the key has in Postgres, in ranges of one row as in one stream."""
    execute("CREATE TYPE rank AS ENUM ('low', 'it''s', 'b'' OR true --', 'high'); CREATE DOMAIN small AS smallint")
    for number, (type_, ordered) in enumerate(KEYS.items()):
        table = f"keyed_{number}"
        execute(f"CREATE TABLE {table} (key {type_} PRIMARY KEY, place int)")
        insert = sa.text(f"INSERT INTO {table} VALUES (CAST(:key AS {type_}), :place)")
        with engine.begin() as connection:
            connection.execute(insert, [{"key": key, "place": place} for place, key in enumerate(ordered)][::-1])
        data = read(f"SELECT place, key FROM {table}", engine=exporter, unique_key="key", yield_per=1)
        assert places(data) == list(range(len(ordered))), type_
        assert data == read(f"SELECT place, key FROM {table} ORDER BY key", engine=exporter), type_


def test_text_keys_have_their_own_collation(
    engine: sa.Engine, execute: Execute, exporter: sa.Engine, ranges: None
) -> None:
    """Text is ordered, and put into ranges, by the collation of the column, not by its bytes."""
    execute(f'CREATE TABLE keyed (key text COLLATE "{collation(engine)}" PRIMARY KEY, place int)')
    words = ["a", "B", "ä", "Z", "z", "aa", "a-b", "ab", "", " ", "É"]
    values = ", ".join(f"('{word}')" for word in words)
    execute(f"INSERT INTO keyed SELECT * FROM (VALUES {values}) AS v(key)")
    ranks = "SELECT key AS k, row_number() OVER (ORDER BY key) - 1 AS rank FROM keyed"
    execute(f"UPDATE keyed SET place = rank FROM ({ranks}) AS ranks WHERE key = k")
    data = read("SELECT place, key FROM keyed", engine=exporter, unique_key="key", yield_per=1)
    assert places(data) == list(range(len(words)))


# A type that ignores case, as citext does, and takes part in comparisons of text, which do not.
WORD = """
CREATE TYPE word;
CREATE FUNCTION read(cstring) RETURNS word LANGUAGE internal IMMUTABLE STRICT AS 'textin';
CREATE FUNCTION write(word) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
CREATE TYPE word (INPUT = read, OUTPUT = write, LIKE = text);
CREATE CAST (word AS text) WITHOUT FUNCTION AS IMPLICIT;
CREATE FUNCTION low(word) RETURNS text IMMUTABLE LANGUAGE sql RETURN lower($1::text);
CREATE FUNCTION compare(word, word) RETURNS int IMMUTABLE LANGUAGE sql
    RETURN (low($1) > low($2))::int - (low($1) < low($2))::int;
"""
for number, sign in enumerate(["<", "<=", "=", ">=", ">"], 1):
    WORD += f"""
CREATE FUNCTION is{number}(word, word) RETURNS boolean IMMUTABLE LANGUAGE sql RETURN low($1) {sign} low($2);
CREATE OPERATOR {sign} (LEFTARG = word, RIGHTARG = word, FUNCTION = is{number});"""
WORD += """
CREATE OPERATOR CLASS words DEFAULT FOR TYPE word USING btree AS
    OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 compare(word, word)"""


def test_a_key_whose_operators_are_not_on_the_search_path(
    engine: sa.Engine, execute: Execute, exporter: sa.Engine, ranges: None
) -> None:
    """Compared as text, each row would be in one of the ranges, and counted, but the file would be in another order."""
    with new_schema(engine) as elsewhere:
        execute(f"SET LOCAL search_path = {elsewhere}; {WORD}")
        execute(f"CREATE TABLE words AS SELECT word::{elsewhere}.word FROM (VALUES ('m_'), ('mM'), ('Z')) AS v (word)")
        data = read("SELECT * FROM words", engine=exporter, unique_key="word", yield_per=2)
        execute("DROP TABLE words")
    assert data == b"word\nm_\nmM\nZ\n"


def test_a_composite_key(execute: Execute, exporter: sa.Engine, ranges: None) -> None:
    """Postgres orders it, but does not compare it with its text."""
    execute("CREATE TYPE place AS (shelf int, book int); CREATE TABLE places (place place PRIMARY KEY)")
    execute("INSERT INTO places SELECT (i, -i)::place FROM generate_series(9, 10) AS i")
    data = read("SELECT * FROM places", engine=exporter, unique_key="place", yield_per=1)
    assert data == b'place\n"(9,-9)"\n"(10,-10)"\n'


@pytest.mark.parametrize("method", METHODS)
def test_without_unique_key_the_query_orders(numbers: None, exporter: sa.Engine, method: Any) -> None:
    """Without a unique key the rows come in the query's own order."""
    data = read("SELECT id FROM numbers ORDER BY id % 2, id DESC", engine=exporter, method=method, yield_per=2)
    assert places(data) == sorted(range(1, LENGTH + 1), key=lambda number: (number % 2, -number))


@pytest.mark.parametrize("method", METHODS)
def test_the_unique_key_orders_whatever_the_query_says(
    numbers: None, exporter: sa.Engine, ranges: None, method: Any
) -> None:
    """With a unique key the rows come in its order; the query's ORDER BY still decides what its LIMIT leaves."""
    query = "SELECT * FROM numbers ORDER BY id DESC LIMIT 10"
    assert read(query, engine=exporter, unique_key="id", method=method, yield_per=3) == lines(14, LENGTH)


@pytest.mark.parametrize("readers", [1, 3])
def test_both_methods_give_the_same_file(orders: int, exporter: sa.Engine, readers: int) -> None:
    """The orders are the same file by either method, of as many rows as the table has."""
    arguments: dict[str, Any] = {"engine": exporter, "unique_key": "id", "yield_per": 1_000, "readers": readers}
    data = read(select_orders(), method="copy", **arguments)
    assert data == read(select_orders(), method="rows", **arguments)
    assert orders == len(places(data))


# Key ranges


def test_a_database_that_is_far_away_gets_a_reader_more(numbers: None, exporter: sa.Engine, ranges: None) -> None:
    """Each range begins with a wait for the network: another reader reads meanwhile."""
    connected: list[object] = []
    far = watched(another(exporter), lambda statement: time.sleep(0.03))
    sa.event.listen(far, "connect", lambda connection, record: connected.append(connection))
    assert read("SELECT * FROM numbers", engine=far, unique_key="id", yield_per=3) == lines(1, LENGTH)
    assert len(connected) == 4  # three readers, and the snapshot's owner


def test_the_reader_more_is_not_needed(
    numbers: None, exporter: sa.Engine, ranges: None, caplog: pytest.LogCaptureFixture
) -> None:
    """If the server has no connection for it, two read; the log says so."""
    asked: list[object] = []

    def refuse(*_: object) -> None:
        asked.append(None)
        if len(asked) == 4:
            raise psycopg2.OperationalError("too many connections (injected by a test)")

    far = watched(another(exporter), lambda statement: time.sleep(0.03))
    sa.event.listen(far, "do_connect", refuse)
    assert read("SELECT * FROM numbers", engine=far, unique_key="id", yield_per=3) == lines(1, LENGTH)
    assert "Reading with one connection fewer: " in caplog.text


@pytest.mark.parametrize("readers", [2, 3])
@pytest.mark.parametrize("yield_per", [1, 2, 7, LENGTH - 1, LENGTH, LENGTH + 1])
def test_ranges_hold_exactly_yield_per_rows(
    numbers: None, exporter: sa.Engine, ranges: None, yield_per: int, readers: int
) -> None:
    """All ranges have `yield_per` rows but for a shorter last one, and the file is that of one stream."""
    rest = LENGTH % yield_per
    expected = [yield_per] * (LENGTH // yield_per) + ([rest] if rest else [])
    options = {"yield_per": yield_per, "readers": readers}
    assert batches(exporter, "SELECT * FROM numbers", "id", **options) == (expected, True)
    assert read("SELECT * FROM numbers", engine=exporter, unique_key="id", **options) == lines(1, LENGTH)


@pytest.mark.parametrize(
    ("yield_per", "keys"), [(7, ["7", "14", "21"]), (LENGTH - 1, ["22"]), (LENGTH, ["23"]), (LENGTH + 1, [])]
)
def test_a_walk_ends_at_the_last_keys_of_whole_ranges(
    engine: sa.Engine, numbers: None, yield_per: int, keys: list[str]
) -> None:
    """It gives the key of each range's last row, as text, and counts all rows on the way."""
    with engine.connect() as connection:
        query = describe(connection, "SELECT * FROM numbers", unique_key="id")
        walked = list(walk(connection, query, yield_per))
    assert [key for _, key in walked if key is not None] == keys
    assert sum(rows for rows, _ in walked) == LENGTH


@pytest.mark.parametrize(("yield_per", "keys"), [(1, 5), (2, 2), (3, 1), (4, 1), (5, 1), (6, 0), (10, 0)])
def test_a_walk_counts_rows_without_a_key(engine: sa.Engine, execute: Execute, yield_per: int, keys: int) -> None:
    """Rows whose key is NULL come last and bound no range, but the count has them, wherever ranges end."""
    nullable_keys(execute)
    execute("INSERT INTO nullable VALUES (NULL, 'another')")
    with engine.connect() as connection:
        query = describe(connection, "SELECT * FROM nullable", unique_key="id")
        walked = list(walk(connection, query, yield_per))
    assert len([key for _, key in walked if key is not None]) == keys
    assert sum(rows for rows, _ in walked) == 7


def test_a_primary_key_is_read_in_ranges(exporter: sa.Engine, orders: int) -> None:
    """A query of a table, along its primary key: the planner has an index to jump along."""
    query = "SELECT * FROM orders WHERE status <> ''"
    assert batches(exporter, query, "id", yield_per=1_000) == ([1_000] * 12 + [345], True)


def test_a_key_without_index_is_read_in_one_stream(
    numbers: None, execute: Execute, exporter: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no index gives the key's order, one ordered stream is read, and the log says so; the file is the same."""
    execute("ALTER TABLE numbers DROP CONSTRAINT numbers_pkey")
    caplog.set_level("INFO", "streaming_export")
    assert batches(exporter, "SELECT * FROM numbers", "id", yield_per=7) == ([LENGTH], True)
    assert "unique_key='id'" in caplog.text
    assert "reading one ordered stream with one reader instead" in caplog.text
    assert read("SELECT * FROM numbers", engine=exporter, unique_key="id", yield_per=7) == lines(1, LENGTH)


def test_a_key_that_repeats_loses_no_row(execute: Execute, exporter: sa.Engine, ranges: None) -> None:
    """Rows that share a key stay in one range, so that a key that is not unique costs order, never rows."""
    execute("CREATE TABLE pairs AS SELECT i / 3 AS key, i FROM generate_series(0, 9) AS i")
    data = read("SELECT i, key FROM pairs", engine=exporter, unique_key="key", yield_per=2)
    assert sorted(places(data)) == list(range(10))


# Few rows


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("unique_key", ["id", None])
@pytest.mark.parametrize("readers", [1, 2])
def test_few_rows(
    numbers: None, exporter: sa.Engine, ranges: None, method: Any, unique_key: str | None, readers: int
) -> None:
    """No row is a header, and one row is a header and a line."""
    arguments: dict[str, Any] = {
        "engine": exporter,
        "unique_key": unique_key,
        "method": method,
        "yield_per": 1,
        "readers": readers,
    }
    assert read("SELECT * FROM numbers WHERE id < 0", **arguments) == b"id,name\n"
    assert read("SELECT * FROM numbers WHERE id = 7", **arguments) == lines(7, 7)


# Counting


def nullable_keys(execute: Execute) -> None:
    execute("CREATE TABLE nullable (id int UNIQUE, name text)")
    execute("INSERT INTO nullable SELECT nullif(i, 6), 'row ' || i FROM generate_series(1, 6) AS i")


@pytest.mark.parametrize("verify_rows", [True, False])
@pytest.mark.parametrize("yield_per", [1, 2, 5])
def test_rows_that_no_range_holds_are_missed(
    execute: Execute, exporter: sa.Engine, ranges: None, yield_per: int, verify_rows: bool
) -> None:
    """The walk has counted rows whose key is NULL: they are missed even if nobody asked for a count."""
    nullable_keys(execute)
    with pytest.raises(VerificationError, match=r"5 rows were read, but the database counts 6 .*\n.*unique_key='id'"):
        read("SELECT * FROM nullable", engine=exporter, unique_key="id", yield_per=yield_per, verify_rows=verify_rows)


@pytest.mark.parametrize("yield_per", [1, 2, 5])
def test_a_repeated_key_does_not_hide_rows_that_no_range_holds(
    execute: Execute, exporter: sa.Engine, ranges: None, yield_per: int
) -> None:
    """The last key of a range may have more rows: they were not counted, and made up for a row that was not read."""
    nullable_keys(execute)
    execute("ALTER TABLE nullable DROP CONSTRAINT nullable_id_key; INSERT INTO nullable VALUES (5, 'again')")
    with pytest.raises(VerificationError, match="6 rows were read, but the database counts 7"):
        read("SELECT * FROM nullable", engine=exporter, unique_key="id", yield_per=yield_per)


@pytest.mark.parametrize("yield_per", [1, 2, 5])
def test_a_repeated_last_key_is_no_error(execute: Execute, exporter: sa.Engine, ranges: None, yield_per: int) -> None:
    """All its rows are read, and counted, wherever the ranges end."""
    execute("CREATE TABLE ending AS SELECT least(i, 5) AS id FROM generate_series(1, 7) AS i")
    data = read("SELECT id FROM ending", engine=exporter, unique_key="id", yield_per=yield_per)
    assert data == b"id\n1\n2\n3\n4\n5\n5\n5\n"


@pytest.mark.parametrize("yield_per", [6, 7])
def test_rows_without_a_key_in_the_only_range(
    execute: Execute, exporter: sa.Engine, ranges: None, yield_per: int
) -> None:
    """A range without bounds has all rows, those without a key as well."""
    nullable_keys(execute)
    data = read("SELECT * FROM nullable", engine=exporter, unique_key="id", yield_per=yield_per)
    assert data.endswith(b"\n5,row 5\n,row 6\n")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("unique_key", ["id", None])
def test_a_stream_is_counted_unless_told_otherwise(
    numbers: None, exporter: sa.Engine, method: Any, unique_key: str | None
) -> None:
    """The database counts the rows of one stream in the same snapshot; without, nothing claims that it did."""
    for verify_rows, counts in ((True, 1), (False, 0)):
        statements: list[str] = []
        watching = watched(another(exporter), statements.append)
        found = batches(
            watching, "SELECT * FROM numbers", unique_key, method=method, readers=1, verify_rows=verify_rows
        )
        assert (sum(found[0]), found[1]) == (LENGTH, verify_rows)
        assert len([one for one in statements if one.startswith("SELECT count(*)")]) == counts


def test_a_count_that_differs_is_an_error(numbers: None, exporter: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream whose rows are not those that the database counts is not taken for whole."""
    from streaming_export.postgres.query import Query

    monkeypatch.setattr(Query, "count", lambda query: "SELECT 24")
    with pytest.raises(VerificationError, match="23 rows were read, but the database counts 24"):
        read("SELECT * FROM numbers", engine=exporter)


# Values in statements


@pytest.mark.parametrize("method", METHODS)
def test_one_reader_puts_no_value_into_a_statement(execute: Execute, exporter: sa.Engine, method: Any) -> None:
    """With readers=1 the query is one ordered stream: addresses, as keys, stand in no statement; with two they do."""
    execute("CREATE TABLE people (email text PRIMARY KEY)")
    execute(
        "INSERT INTO people SELECT 'person' || i || '@example.com' FROM generate_series(1, 5000) AS i; ANALYZE people"
    )
    for readers in (1, 2):
        statements: list[str] = []
        watching = watched(another(exporter), statements.append)
        data = read(
            "SELECT * FROM people", engine=watching, unique_key="email", method=method, readers=readers, yield_per=1000
        )
        assert data.count(b"@") == 5000
        assert len(statements) > 5
        telling = [one for one in statements if "@example.com" in one]
        assert bool(telling) is (readers == 2 and method == "copy")
