"""Values of parameters and keys: they reach the query, and no text of SQL."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg2
import pytest
import sqlalchemy as sa

from streaming_export.private import impersonal, private, set_private
from streaming_export.query import describe

SECRET = "jane@example.com"


@pytest.fixture
def connection(exporter: sa.Engine) -> Iterator[sa.Connection]:
    """A connection to describe queries on."""
    with exporter.connect() as connection:
        yield connection


@pytest.fixture
def mood(engine: sa.Engine, schema: str) -> None:
    """An enum, that has to be there before a connection is made."""
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TYPE mood AS ENUM ('sad', 'so-so')")


def csv_of(connection: sa.Connection, source: Any, parameters: dict[str, Any]) -> str:
    """The rows of a query's file; none of the private values is seen in the SQL, unless it is a letter or two."""
    query = describe(connection, source, parameters)
    assert query.private
    assert not [value for value in query.private.values() if len(value) > 3 and value in repr(query)]
    rows = io.BytesIO()
    connection.connection.cursor().copy_expert(query.copy(), rows)
    return rows.getvalue().decode()


def test_a_private_value_is_what_was_given(connection: sa.Connection) -> None:
    """Text of any kind and of any length arrives as it was given."""
    for value in ("", "it's", "a\\b", '"', "100%", "line\nbreak", "ü😀", "x" * 2_000_000):
        set_private(connection, {"p1": value})
        assert connection.exec_driver_sql(f"SELECT {private('p1', 'text')}").scalar_one() == value


def test_a_private_value_is_of_one_session(exporter: sa.Engine) -> None:
    """No other session sees it."""
    with exporter.connect() as one, exporter.connect() as other:
        set_private(one, {"p1": SECRET})
        found = other.exec_driver_sql("SELECT current_setting('streaming_export.p1', true)").scalar_one()
        assert found in (None, "")


def test_a_connection_that_is_lost(connection: sa.Connection, engine: sa.Engine) -> None:
    """A session that has ended gets no value: that is an error of the driver's, without the value."""
    pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    with engine.connect() as other:
        other.execute(sa.text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})
    with pytest.raises(psycopg2.OperationalError) as caught:
        set_private(connection, {"p1": SECRET})
    assert SECRET not in str(caught.value)
    connection.invalidate()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, True),
        (False, True),
        (date(2026, 11, 1), True),
        (datetime(2026, 11, 1, tzinfo=UTC), True),
        ("2026-11-01", True),
        ("2026-11-01T00:00:00+00:00", True),
        ("20261101", False),  # may be a number of somebody's
        ("2026-11-01 x", False),
        (SECRET, False),
        (4915112345678, False),
        (["2026-11-01"], False),
    ],
)
def test_what_may_be_seen(value: object, expected: bool) -> None:
    """Dates, times, booleans and NULL are of nobody's person; anything else may be."""
    assert impersonal(value) is expected


@pytest.mark.parametrize(
    ("sql", "parameters", "expected"),
    [
        ("SELECT :x AS a, :x AS b", {"x": SECRET}, f"{SECRET},{SECRET}\n"),
        ("SELECT upper(:x) || :y AS a", {"x": "q", "y": "'"}, "Q'\n"),
        ("SELECT CAST(:x AS int) + 1 AS a", {"x": "41"}, "42\n"),
        ("SELECT :x * 2 AS a, pg_typeof(:x) AS b", {"x": 123456}, "246912,integer\n"),
        ("SELECT pg_typeof(:x) AS a", {"x": 2**40 + 1}, "bigint\n"),
        ("SELECT pg_typeof(:x) AS a, :x AS b", {"x": 2**70}, f"numeric,{2**70}\n"),
        ("SELECT pg_typeof(:x) AS a, :x AS b", {"x": -12345.25}, "numeric,-12345.25\n"),
        ("SELECT :x AS a", {"x": Decimal("123.4500")}, "123.4500\n"),
        ("SELECT :x AS a", {"x": Decimal("NaN")}, "NaN\n"),
        ("SELECT 'x' = :x AS a", {"x": "x"}, "true\n"),
        ("SELECT :x IS NULL AS a", {"x": SECRET}, "false\n"),
        ("SELECT num_nulls(:x, NULL) AS a", {"x": SECRET}, "1\n"),
        ("SELECT g AS a FROM generate_series(1, 9) AS g LIMIT :n OFFSET :m", {"n": 2, "m": 3}, "4\n5\n"),
        ("SELECT :x::mood AS a WHERE 'sad' < :x", {"x": "so-so"}, "so-so\n"),
        ("SELECT m AS a FROM unnest(enum_range(NULL::mood)) AS m WHERE m = :x", {"x": "so-so"}, "so-so\n"),
        ("SELECT a FROM (VALUES ('ab'::char(4))) AS v(a) WHERE a = :x", {"x": "ab"}, "ab  \n"),
        ("SELECT :x::bpchar AS a, CAST(:x AS varchar(3)) AS b", {"x": "abcd"}, "abcd,abc\n"),
        ("SELECT B'101' = :x AS a", {"x": "101"}, "true\n"),
        ("SELECT '{\"b\"\\:{\"c\"\\:1}}'::jsonb @> :x AS a", {"x": '{"b":{}}'}, "true\n"),
        ("SELECT 'x' IN :some AS a", {"some": ("secret", "x")}, "true\n"),
        ("SELECT 'x' = ANY(:some) AS a", {"some": ["secret", "x"]}, "true\n"),
        ("SELECT :some AS a, :none::text[] AS b", {"some": ["it's", None], "none": []}, '"[""it\'s"",null]",[]\n'),
        ("SELECT :x AS a, :y AS b", {"x": UUID(int=1), "y": b"\x00\\'"}, f"{UUID(int=1)},\\x005c27\n"),
        ("SELECT date_trunc(:unit, g) AS a, count(*) AS b FROM"
         " generate_series('2026-11-01'::timestamp, '2026-11-02', '12 hours') AS g GROUP BY date_trunc(:unit, g)"
         " ORDER BY 1", {"unit": "day"}, "2026-11-01T00:00:00,2\n2026-11-02T00:00:00,1\n"),
        ("SELECT '$1' AS a, $$ $2 $$ AS b, :x AS c", {"x": "$1 $$"}, "$1, $2 ,$1 $$\n"),
    ],
)  # fmt: skip
def test_a_private_value_has_the_type_of_a_literal(
    mood: None, connection: sa.Connection, sql: str, parameters: dict[str, Any], expected: str
) -> None:
    """A parameter means what it would mean if it stood in the query."""
    assert csv_of(connection, sql, parameters) == expected


def test_lists_of_a_select(connection: sa.Connection) -> None:
    """SQLAlchemy makes several parameters of a list: all are private; literals of the query stay in it."""
    some = sa.bindparam("some", expanding=True)
    source = sa.select(sa.literal("own").label("a")).where(sa.func.lower("Secret2").in_(some))
    query = describe(connection, source, {"some": ["secret1", "secret2"]})
    assert sorted(query.private.values()) == ["secret1", "secret2"]
    assert "'own'" in query.sql
    assert "secret1" not in query.sql
    assert csv_of(connection, source, {"some": ["secret1", "secret2"]}) == "own\n"


def test_dates_stay_in_the_query(connection: sa.Connection) -> None:
    """The planner knows dates, times and NULL as before, as the choice of partitions and indexes needs them."""
    sql = "SELECT 1 AS a WHERE now() > :since AND CAST(:none AS text) IS NULL"
    query = describe(connection, sql, {"since": datetime(2026, 1, 1, tzinfo=UTC), "none": None})
    assert query.private == {}
    assert "'2026-01-01" in query.sql


@pytest.mark.parametrize("unique_key", ["email", "id", "day"])
def test_a_range_of_keys_that_may_be_personal(connection: sa.Connection, unique_key: str) -> None:
    """Ranges of text keys are private; those of numbers and dates stand in the SQL, for whoever watches an export."""
    sql = "SELECT * FROM (VALUES (1, 'a@b.c', DATE '2026-11-01'), (2, 'b@b.c', '2026-11-02')) AS v(id, email, day)"
    after, upto = {"email": ("a@b.c", "b@b.c"), "id": ("1", "2"), "day": ("2026-11-01", "2026-11-02")}[unique_key]
    query = describe(connection, sql, unique_key=unique_key)
    where, values = query.key_range(after, upto)
    assert (values == {}) is (unique_key != "email")
    assert (after in where) is (unique_key != "email")
    set_private(connection, values)
    rows = io.BytesIO()
    connection.connection.cursor().copy_expert(query.copy(where), rows)
    assert rows.getvalue() == b"2,b@b.c,2026-11-02\n"
