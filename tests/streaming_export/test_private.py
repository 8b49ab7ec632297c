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

from streaming_export import InvalidArgument, QueryError, retry_helps
from streaming_export.columns import explain
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


@pytest.fixture
def encoded(engine: sa.Engine, request: pytest.FixtureRequest) -> Iterator[sa.Connection]:
    """A connection to a database of another encoding."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as admin:
        admin.exec_driver_sql(
            f"CREATE DATABASE encoded TEMPLATE template0 ENCODING '{request.param}' LOCALE_PROVIDER libc LOCALE 'C'"
        )
        there = sa.create_engine(engine.url.set(database="encoded"), poolclass=sa.NullPool)
        with there.connect() as connection:
            connection.connection.driver_connection.set_client_encoding("UTF8")
            yield connection
        admin.exec_driver_sql("DROP DATABASE encoded WITH (FORCE)")


@pytest.mark.parametrize("encoded", ["LATIN1"], indirect=True)
def test_a_character_that_the_database_lacks(encoded: sa.Connection) -> None:
    """A value that the database can't hold is refused, and not tried again."""
    set_private(encoded, {"p1": "ü"})
    assert encoded.exec_driver_sql(f"SELECT {private('p1', 'text')}").scalar_one() == "ü"
    with pytest.raises(QueryError, match=r"SQLSTATE 22P05.*Nothing was published\. Correct the value") as caught:
        set_private(encoded, {"p1": "😀 secret"})
    assert "secret" not in str(caught.value)
    assert retry_helps(caught.value) is False


@pytest.mark.parametrize("encoded", ["EUC_JP"], indirect=True)
def test_a_value_that_comes_back_longer(encoded: sa.Connection) -> None:
    """EUC_JP gives U+00A6, of two bytes in UTF-8, back as U+FFE4, of three."""
    set_private(encoded, {"p1": "\u00a6" * 100_000})
    length = f"SELECT octet_length(convert_to({private('p1', 'text')}, 'UTF8'))"
    assert encoded.exec_driver_sql(length).scalar_one() == 300_000


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
        ("SELECT (1, 'x') = :pair AS a", {"pair": (1, "x")}, "true\n"),
        ("SELECT :n AS a, pg_typeof(:n) AS b", {"n": -(2**31)}, f"{-(2**31)},integer\n"),
        ("SELECT '$1' AS a, $$ $2 $$ AS b, :x AS c", {"x": "$1 $$"}, "$1, $2 ,$1 $$\n"),
    ],
)  # fmt: skip
def test_a_private_value_has_the_type_of_a_literal(
    mood: None, connection: sa.Connection, sql: str, parameters: dict[str, Any], expected: str
) -> None:
    """A parameter means what it would mean if it stood in the query."""
    assert csv_of(connection, sql, parameters) == expected


@pytest.mark.parametrize(
    ("sql", "given", "expected"),
    [
        ("SELECT 1 AS a WHERE :s IS NULL OR 'paid'::mood = :s", "sad", ""),
        ("SELECT 1 AS a WHERE :s IS NULL OR 'sad'::mood = :s", "sad", "1\n"),
        ("SELECT 1 AS a WHERE :s = 'all' OR 'sad'::mood = :s", "sad", "1\n"),
        ("SELECT 1 AS a WHERE :s = '' OR 5 = :s", "5", "1\n"),
        ("SELECT :s AS given FROM generate_series(5, 6) AS i WHERE i = :s", "5", "5\n"),
        ("SELECT concat(:s, '-') AS a, :s AS b, 'x' = :s AS c", "x", "x-,x,true\n"),
        ("SELECT format('%s', :s) AS a WHERE 'x'::text = :s", "x", "x\n"),
        # As a date, it has no time.
        ("SELECT 1 AS a WHERE DATE '2026-11-01' >= :s AND TIMESTAMP '2026-11-01 10:00' >= :s", "Nov 1 2026 15:00", ""),
        ("SELECT 1 AS a WHERE 'ab '::char(4) = :s AND 'ab '::text = :s", "ab ", "1\n"),
        ("SELECT num_nulls('sad'::mood = :s, :s IS NULL, :s, :s) AS a", "sad", "0\n"),
    ],
)
def test_each_use_has_the_type_that_is_meant_there(
    mood: None, connection: sa.Connection, sql: str, given: str, expected: str
) -> None:
    """A parameter that is used twice may be of two types, as two literals would."""
    sql = sql.replace("'paid'::mood", "'so-so'::mood")
    assert csv_of(connection, sql, {"s": given}) == expected


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT g AS a FROM generate_series(1, 9) AS g ORDER BY g OFFSET :n ROWS FETCH FIRST :n ROWS ONLY",
        "SELECT g AS a FROM generate_series(1, 9) AS g ORDER BY g OFFSET :n ROWS FETCH NEXT :n ROWS WITH TIES",
        "SELECT g AS a FROM generate_series(1, 9) AS g ORDER BY g LIMIT :n OFFSET (:n)",
    ],
)
def test_numbers_of_rows(connection: sa.Connection, sql: str) -> None:
    """Private numbers stand wherever numbers of rows may."""
    assert csv_of(connection, sql, {"n": 2}) == "3\n4\n"


@pytest.mark.parametrize(
    ("sql", "parameters", "name"),
    [
        ("SELECT INTERVAL :since AS a", {"since": "1 day"}, "since"),
        ("SELECT extract(:part FROM now()) AS a", {"part": "year"}, "part"),
        ("SELECT 1 AS a WHERE 'x' = ANY(:some :more)", {"some": ["x"], "more": "y"}, "more"),
    ],
)
def test_where_no_value_can_stand(connection: sa.Connection, sql: str, parameters: dict[str, Any], name: str) -> None:
    """A parameter that Postgres can't take there is refused by its own name, with a way out."""
    with pytest.raises(InvalidArgument, match=rf"parameters=\['{name}'\].* at or near \":{name}\".*CAST\(:{name} AS"):
        describe(connection, sql, parameters)


@pytest.mark.parametrize("size", [1, 3, 5_000])
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) AS a FROM generate_series(1, 9000) AS g WHERE g::text = ANY(:some)",
        "SELECT count(*) AS a FROM generate_series(1, 9000) AS g WHERE g::text = ANY( :some ) AND g < 9001",
        "SELECT count(*) AS a FROM generate_series(1, 9000) AS g WHERE g::text IN :tuple",
        "SELECT 9000 - count(*) AS a FROM generate_series(1, 9000) AS g WHERE g::text NOT IN :tuple",
        "SELECT count(*) AS a FROM generate_series(1, 9000) AS g WHERE g::text = ANY(:some || ARRAY['x'])",
        "SELECT cardinality(:some) AS a",
        "SELECT count(*) AS a FROM unnest(:some) AS u",
    ],
)
def test_lists(connection: sa.Connection, sql: str, size: int) -> None:
    """A list of any length is one private value, unless it is short and stands after IN."""
    words = [str(number) for number in range(1, size + 1)]
    parameters = {"some": words} if ":some" in sql else {"tuple": tuple(words)}
    assert csv_of(connection, sql, parameters) == f"{size}\n"
    short = ":tuple" in sql and size < 5_000
    assert len(describe(connection, sql, parameters).private) == (size if short else 1)


@pytest.mark.parametrize("value", ["", "a,b", 'say "hi"', "back\\slash", "{}", "NULL", "it's", "ü😀"])
def test_elements_of_lists(connection: sa.Connection, value: str) -> None:
    """An element arrives as it was given, whatever is in it; NULL is not the word."""
    given = {"some": ["x", value, None]}
    count = "SELECT count(*) AS a FROM unnest(:some) AS u WHERE"
    assert csv_of(connection, f"{count} u = :one", {**given, "one": value}) == "1\n"
    assert csv_of(connection, f"{count} u IS NULL", given) == "1\n"


def test_lists_of_a_select(connection: sa.Connection) -> None:
    """SQLAlchemy makes several parameters of a list: all are private; literals of the query stay in it."""
    some = sa.bindparam("some", expanding=True)
    source = sa.select(sa.literal("own").label("a")).where(sa.func.lower("Secret2").in_(some))
    query = describe(connection, source, {"some": ["secret1", "secret2"]})
    assert list(query.private.values()) == ["secret1", "secret2"]
    assert "'own'" in query.sql
    assert "secret2" not in query.sql
    many = [f"secret{number}" for number in range(1, 101)]
    assert len(describe(connection, source, {"some": many}).private) == 1
    assert csv_of(connection, source, {"some": many}) == "own\n"
    assert csv_of(connection, source, {"some": ["secret1", "secret2"]}) == "own\n"
    assert csv_of(connection, source, {"some": ["secret1"]}) == ""


@pytest.mark.parametrize(
    "condition", ["status = ANY(:some)", "status IN :some", ":some IS NULL OR status = ANY(:some)"]
)
def test_a_short_list_keeps_the_order_of_an_index(orders: int, exporter: sa.Engine, condition: str) -> None:
    """A selection by a few values is still read along its key, in batches, without a sort."""
    some: Any = ["paid", "shipped"] if "ANY" in condition else ("paid", "shipped")
    with exporter.connect() as connection:
        query = describe(connection, f"SELECT * FROM orders WHERE {condition}", {"some": some}, "id")
        steps = explain(connection, f"{query.keys()} LIMIT 100")["Plans"]
        assert [step["Node Type"] for step in steps if step["Parent Relationship"] == "Outer"] == ["Index Scan"]
        assert {column.nullable for column in query.columns} == {False}


def test_pairs_of_a_select(connection: sa.Connection) -> None:
    """Tuples in a list are private as well."""
    pairs = sa.bindparam("pairs", expanding=True)
    source = sa.select(sa.literal("own").label("a")).where(sa.tuple_(sa.literal("k"), sa.literal(2)).in_(pairs))
    query = describe(connection, source, {"pairs": [("secret1", 1), ("k", 2)]})
    assert "secret1" in query.private.values()
    assert "secret1" not in query.sql
    assert csv_of(connection, source, {"pairs": [("secret1", 1), ("k", 2)]}) == "own\n"


@pytest.mark.parametrize("name", ["person.email", "person email", "a%b", "x(1)", "some_1"])
@pytest.mark.parametrize("expanding", [False, True])
def test_parameters_of_any_name_are_private(connection: sa.Connection, name: str, expanding: bool) -> None:
    """SQLAlchemy renames what the driver could not name: it stays a parameter."""
    bind = sa.bindparam(name, expanding=expanding, type_=sa.Text)
    source = sa.select(sa.literal("own").label("a")).where(sa.literal(SECRET).in_(bind) if expanding else bind != "")
    query = describe(connection, source, {name: [SECRET, "other"] if expanding else SECRET})
    assert query.private
    where = query.sql.partition("WHERE")[2]
    assert "other" not in where
    assert expanding or SECRET not in where


def test_a_parameter_that_sqlalchemy_would_write_into_the_text_is_refused(connection: sa.Connection) -> None:
    """literal_execute has SQLAlchemy write the value itself."""
    source = sa.select(sa.bindparam("email", literal_execute=True, type_=sa.Text))
    with pytest.raises(InvalidArgument, match=r"parameters=\['email'\].*without literal_execute") as caught:
        describe(connection, source, {"email": SECRET})
    assert SECRET not in str(caught.value)


def test_an_error_of_a_type_holds_no_value(connection: sa.Connection) -> None:
    """Neither the error nor any that it has come from."""
    for source in (
        sa.select(sa.bindparam("x", type_=sa.Enum("a", "b", name="e", validate_strings=True)).label("x")),
        sa.select(sa.bindparam("x", type_=sa.LargeBinary).label("x")),
        "SELECT :x AS x",
    ):
        value = SECRET if not isinstance(source, str) else f"{SECRET}\0"
        with pytest.raises(InvalidArgument) as caught:
            describe(connection, source, {"x": value})
        chain: BaseException | None = caught.value
        while chain is not None:
            assert SECRET not in repr(chain)
            chain = chain.__context__ or chain.__cause__


def test_dates_stay_in_the_query(connection: sa.Connection) -> None:
    """The planner knows dates, times and NULL as before, as the choice of partitions and indexes needs them."""
    sql = "SELECT 1 AS a WHERE now() > :since AND CAST(:none AS text) IS NULL"
    query = describe(connection, sql, {"since": datetime(2026, 1, 1, tzinfo=UTC), "none": None})
    assert query.private == {}
    assert "'2026-01-01" in query.sql


def test_a_key_whose_type_has_a_telling_name(engine: sa.Engine, schema: str, exporter: sa.Engine) -> None:
    """A type of somebody's that is called after a date is none."""
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TYPE date_kind AS ENUM ('it''s', 'b'' OR true --')")
    with exporter.connect() as connection:
        query = describe(connection, "SELECT unnest(enum_range(NULL::date_kind)) AS kind", unique_key="kind")
        where, values = query.key_range("it's", "b' OR true --")
        assert set(values.values()) == {"it's", "b' OR true --"}
        set_private(connection, values)
        rows = io.BytesIO()
        connection.connection.cursor().copy_expert(query.copy(where), rows)
    assert rows.getvalue() == b"b' OR true --\n"


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
