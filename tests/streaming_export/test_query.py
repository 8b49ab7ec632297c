"""What a query may be, what is learned of it, and how it is refused."""

from __future__ import annotations

import enum
import io
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from demo import services
from orders.models import Order
from streaming_export import ExportError, InvalidArgument, Options, QueryError, export
from streaming_export.query import describe
from tests.conftest import keys

HOSTILE_VALUES = [
    "it's",
    'say "hi"',
    "a\\b",
    "\\'; DROP TABLE orders; --",
    "100%",
    "%s %(x)s %%",
    ":x and \\:x",
    "line\nbreak\r",
    "$$ $1 {c}",
    "$q$; DROP TABLE orders; $q$ || $1::text",
    "'; COMMIT; DROP TABLE orders; --",
    "') TO PROGRAM 'true'; --",
    "\u2018it\u2019s\u201d \uff07 \u02bc",
    "/* */ \\x41 \\",
    "ü😀",
    " ",
    "",
]

HOSTILE_NAMES = [
    'quo"ted',
    "per%cent",
    "%(x)s",
    "Upper",
    "select",
    "two words",
    "com,ma",
    "line\nbreak",
    "{c}",
    "co:lon",
    "back\\slash",
    "it's",
    '"; DROP TABLE orders; --',
    "$1 $$ $q$",
    "\u2019 \uff02 \uff07",
    "ünï😀",
    "=1+1",
]


class Mood(enum.Enum):
    """Written into the database by name, not by value."""

    GOOD = "fine, thanks"
    BAD = "so-so"


@pytest.fixture
def connection(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection to describe queries on."""
    with engine.connect() as connection:
        yield connection


@pytest.fixture
def secrets(engine: sa.Engine, schema: str) -> None:
    """A table `secrets` of two rows whose text must never be seen in a message, and a function that shows it."""
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE secrets (id int PRIMARY KEY, secret text)")
        connection.exec_driver_sql("INSERT INTO secrets VALUES (1, 'hunter2'), (2, 'hunter2')")
        connection.execution_options(no_parameters=True).exec_driver_sql(
            "CREATE FUNCTION refuse(value text) RETURNS int LANGUAGE plpgsql AS"
            " 'BEGIN RAISE EXCEPTION $$cannot use %$$, value; END'"
        )


def csv_of(connection: sa.Connection, source: Any, parameters: dict[str, Any] | None = None) -> str:
    """The whole file of a query."""
    query = describe(connection, source, parameters)
    rows = io.BytesIO()
    connection.connection.cursor().copy_expert(query.copy(), rows)
    return (query.header + rows.getvalue()).decode()


def rows_of(connection: sa.Connection, source: Any, parameters: dict[str, Any] | None = None) -> list[Any]:
    """The rows of a query as the driver gives them."""
    query = describe(connection, source, parameters)
    return list(connection.execution_options(no_parameters=True).exec_driver_sql(query.select()).all())


def described_names(connection: sa.Connection, source: Any) -> list[str]:
    return [column.name for column in describe(connection, source).columns]


def as_identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# Columns


def test_columns_and_types(connection: sa.Connection) -> None:
    """A query's columns are known by name and Postgres type, in order; a domain is its base type."""
    connection.exec_driver_sql("CREATE DOMAIN pg_temp.flag AS boolean")
    sql = "SELECT 1 AS a, 'x'::varchar(3) AS b, now() AS c, '{1}'::int[] AS d, true::pg_temp.flag AS e, NULL AS f"
    assert [(column.name, column.type) for column in describe(connection, sql).columns] == [
        ("a", "integer"),
        ("b", "character varying"),
        ("c", "timestamp with time zone"),
        ("d", "integer[]"),
        ("e", "boolean"),
        ("f", "text"),
    ]


def test_describing_reads_no_row(connection: sa.Connection) -> None:
    """A query that fails on its first row is described nevertheless: no row is computed."""
    assert described_names(connection, "SELECT 1 / (g - g) AS a FROM generate_series(1, 10) AS g") == ["a"]


def test_describing_leaves_the_connection_as_it_was(connection: sa.Connection) -> None:
    """What is executed on the connection afterwards is executed as it is."""
    describe(connection, "SELECT 1 AS a")
    assert connection.execute(sa.text("SELECT :x"), {"x": "100%"}).all() == [("100%",)]


@pytest.mark.parametrize(
    "sql", ["SELECT 1 AS a, 2 AS b, 3 AS a", "SELECT a.*, b.* FROM (SELECT 1 AS a) a, (SELECT 1 AS a) b"]
)
def test_columns_of_one_name_are_refused(connection: sa.Connection, sql: str) -> None:
    """Two columns of one name are refused, by that name."""
    with pytest.raises(InvalidArgument, match=r"not \['a'\] twice") as caught:
        describe(connection, sql)
    assert caught.value.argument == "query"


def test_names_that_differ_in_case_are_two_names(connection: sa.Connection) -> None:
    """Names are compared as Postgres compares quoted names."""
    assert csv_of(connection, 'SELECT 1 AS "id", 2 AS "ID"') == "id,ID\n1,2\n"


@pytest.mark.parametrize("unique_key", ["b", "A", "", "a ", '"a"', "1"])
def test_a_unique_key_that_is_no_column_is_refused(connection: sa.Connection, unique_key: str) -> None:
    """The unique key is the exact name of a column; the message says which there are."""
    with pytest.raises(InvalidArgument, match=r"one of the query's columns \['a', 'Id'\]") as caught:
        describe(connection, 'SELECT 1 AS a, 2 AS "Id"', unique_key=unique_key)
    assert (caught.value.argument, caught.value.value) == ("unique_key", unique_key)


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, "\\."])
def test_header_of_one_column(connection: sa.Connection, name: str) -> None:
    """A header of one name is, byte for byte, what Postgres writes for it."""
    sql = f"SELECT 1 AS {as_identifier(name)}"
    expected = io.BytesIO()
    connection.connection.cursor().copy_expert(f"COPY ({sql}) TO STDOUT (FORMAT csv, HEADER)", expected)
    assert describe(connection, sa.text(sql.replace(":", "\\:"))).header + b"1\n" == expected.getvalue()


def test_header_of_many_columns(connection: sa.Connection) -> None:
    """A header of any names is, byte for byte, what Postgres writes for them, and so are the rows under it."""
    sql = "SELECT " + ", ".join(f"{n} AS {as_identifier(name)}" for n, name in enumerate(HOSTILE_NAMES))
    expected = io.BytesIO()
    connection.connection.cursor().copy_expert(f"COPY ({sql}) TO STDOUT (FORMAT csv, HEADER)", expected)
    source = sql.replace(":", "\\:")
    assert csv_of(connection, source).encode() == expected.getvalue()
    assert described_names(connection, source) == HOSTILE_NAMES


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_any_name_can_be_the_unique_key(connection: sa.Connection, name: str) -> None:
    """Ranges of keys can be read along a column of any name."""
    sql = f"SELECT g AS {as_identifier(name)} FROM generate_series(1, 5) AS g".replace(":", "\\:")
    query = describe(connection, sql, unique_key=name)
    rows = io.BytesIO()
    where, private = query.key_range("2", "4")
    assert private == {}
    connection.connection.cursor().copy_expert(query.copy(where), rows)
    assert rows.getvalue() == b"3\n4\n"


# SQL text


@pytest.mark.parametrize(
    ("sql", "parameters", "expected"),
    [
        ("SELECT :x::int AS a", {"x": "7"}, "a\n7\n"),
        ("SELECT :x::int + :y ::int - :x::int AS a", {"x": "7", "y": "1"}, "a\n1\n"),
        ("SELECT CAST(:x AS int) AS a", {"x": 7}, "a\n7\n"),
        ("SELECT 1 AS a WHERE 'x' = :x OR :x::text IS NULL", {"x": None}, "a\n1\n"),
        ("SELECT g AS a FROM generate_series(1, 9) g WHERE g = ANY(:some)", {"some": [2, 3]}, "a\n2\n3\n"),
        ("SELECT g AS a FROM generate_series(1, 9) g WHERE g IN :some", {"some": (2, 3)}, "a\n2\n3\n"),
        ("SELECT '12:30' AS a, '2026-01-01 12:30:59'::timestamp AS b", {}, "a,b\n12:30,2026-01-01T12:30:59\n"),
        ("SELECT 'at \\:noon' AS a, '{\"b\"\\:1}'::json AS b", {}, 'a,b\nat :noon,"{""b"":1}"\n'),
        ("SELECT (ARRAY[1,2,3])[1:2] AS a", {}, 'a\n"[1,2]"\n'),
        ("SELECT '100%' AS a, '%%' AS b, '%s %(x)s' AS c", {}, "a,b,c\n100%,%%,%s %(x)s\n"),
        ("SELECT :x AS a, 7 % 4 AS b WHERE '100%' LIKE '100%'", {"x": "%s"}, "a,b\n%s,3\n"),
        ("SELECT 1 AS a;", {}, "a\n1\n"),
        ("SELECT 1 AS a ; ;\n", {}, "a\n1\n"),
        ("SELECT 1 AS a -- the end", {}, "a\n1\n"),
        ("SELECT 1 AS a; -- the end\n/* of\nit */ ;", {}, "a\n1\n"),
        ("SELECT '; -- no comment' AS a", {}, "a\n; -- no comment\n"),
        ("SELECT '; /* no comment */' AS a", {}, "a\n; /* no comment */\n"),
        ("-- the start\nSELECT 1 AS a /* the end */", {}, "a\n1\n"),
        ("WITH w AS (SELECT 1 AS a) SELECT a FROM w", {}, "a\n1\n"),
        ("SELECT 1 AS a UNION ALL SELECT 2", {}, "a\n1\n2\n"),
        ("VALUES (1, 'x')", {}, "column1,column2\n1,x\n"),
    ],
)
def test_sql_text(connection: sa.Connection, sql: str, parameters: dict[str, Any], expected: str) -> None:
    """SQL text means what it means to Postgres, but for ``:name``, a parameter, and ``\\:``, a colon."""
    assert csv_of(connection, sql, parameters) == expected


def test_comments_of_any_length(engine: sa.Engine) -> None:
    """A long line of dashes in a comment costs nothing, whatever is before it."""
    sql = "-- orders; all of them; " + "-" * 100 + "\nSELECT 1 AS a"
    code = (
        "import sys, sqlalchemy; from streaming_export.query import describe\n"
        "with sqlalchemy.create_engine(sys.argv[1]).connect() as connection:\n"
        "    print([column.name for column in describe(connection, sys.argv[2]).columns])"
    )
    # In a process of its own: a regular expression that never ends can't be interrupted.
    command = [sys.executable, "-c", code, engine.url.render_as_string(hide_password=False), sql]
    environment = {**os.environ, "PYTHONPATH": str(services.PROJECT / "plugins")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout == "['a']\n"


def test_a_text_clause_keeps_its_bound_values(connection: sa.Connection) -> None:
    """A ``text()`` brings values of its own, which parameters replace."""
    source = sa.text("SELECT :x AS a, :y AS b").bindparams(x="own", y="own")
    assert csv_of(connection, source, {"y": "given"}) == "a,b\nown,given\n"


@pytest.mark.parametrize("value", HOSTILE_VALUES)
def test_a_bind_value_is_never_sql(connection: sa.Connection, value: str) -> None:
    """A bind value arrives as it was given, whatever is in it."""
    rows = rows_of(connection, "SELECT :x AS a, octet_length(:x) AS b", {"x": value})
    assert rows == [(value, len(value.encode()))]


def test_bind_values_of_many_types(connection: sa.Connection) -> None:
    """Python's usual values can be bound, and stay exact."""
    parameters = {
        "i": 2**62,
        "d": Decimal("0.10"),
        "b": True,
        "t": datetime(2026, 11, 1, 0, 0, 0, 400_000, tzinfo=UTC),
        "y": date(2026, 11, 1),
        "u": UUID(int=1),
        "x": b"\x00\xff",
        "n": None,
    }
    sql = "SELECT :i AS i, :d AS d, :b AS b, :t AS t, :y AS y, :u AS u, :x AS x, :n AS n"
    assert csv_of(connection, sql, parameters) == (
        "i,d,b,t,y,u,x,n\n4611686018427387904,0.10,true,2026-11-01T00:00:00.400000+00:00,2026-11-01,"
        "00000000-0000-0000-0000-000000000001,\\x00ff,\n"
    )


# Parameters


@pytest.mark.parametrize(
    ("source", "parameters"),
    [
        ("SELECT :a, :b, :c", {"b": "hunter2"}),
        (sa.text("SELECT :a, :b, :c").bindparams(b=1), {}),
        (sa.select(sa.bindparam("a"), sa.bindparam("b", 1), sa.bindparam("c")), None),
    ],
)
def test_missing_parameters_are_refused_by_name(
    connection: sa.Connection, source: Any, parameters: dict[str, Any] | None
) -> None:
    """Each parameter needs a value; the message names those without one, and no value."""
    with pytest.raises(InvalidArgument, match="also needs a value for a, c ") as caught:
        describe(connection, source, parameters)
    assert caught.value.argument == "parameters"
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("source", ["SELECT :a AS a", sa.select(sa.bindparam("a"))])
def test_unknown_parameters_are_refused_by_name(connection: sa.Connection, source: Any) -> None:
    """A value for which the query has no parameter is refused by name; no value is shown."""
    with pytest.raises(InvalidArgument, match=r"parameters=\['aa', 'b'\] .*parameters are \['a'\]") as caught:
        describe(connection, source, {"a": 1, "b": "hunter2", "aa": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_a_colon_that_is_no_parameter(connection: sa.Connection) -> None:
    """A colon before a word is taken for a parameter, even in a string; the message says how to write it."""
    with pytest.raises(InvalidArgument, match=r"a value for noon \(write \\: for a colon"):
        describe(connection, "SELECT 'at :noon' AS a")


# SQLAlchemy's selects


def test_select_of_a_model(orders: int, connection: sa.Connection) -> None:
    """An ORM entity stands for its columns."""
    names = ["id", "customer_email", "total_cents", "status", "created_at"]
    assert described_names(connection, sa.select(Order)) == names
    assert csv_of(connection, sa.select(Order).where(Order.id < 1)) == ",".join(names) + "\n"


@pytest.mark.parametrize(("wanted", "expected"), [([3, 1], "id\n1\n3\n"), ([], "id\n")])
def test_select_with_a_list(orders: int, connection: sa.Connection, wanted: list[int], expected: str) -> None:
    """An IN list is one parameter, given in the query or with the parameters; it may be empty."""
    ids = sa.select(Order.id).order_by(Order.id)
    assert csv_of(connection, ids.where(Order.id.in_(wanted))) == expected
    later = ids.where(Order.id.in_(sa.bindparam("wanted", expanding=True)))
    assert csv_of(connection, later, {"wanted": wanted}) == expected


def test_select_with_typed_values(connection: sa.Connection) -> None:
    """Values are bound as SQLAlchemy's types write them: enums by name, JSON as text."""
    source = sa.select(
        sa.literal(Mood.GOOD, sa.Enum(Mood)).label("own"),
        sa.bindparam("mood", type_=sa.Enum(Mood)).label("given"),
        sa.cast(sa.cast(sa.bindparam("facts", type_=sa.JSON), sa.JSON), sa.Text).label("facts"),
    )
    facts = {"quote": "it's 100% \\ :x", "none": None}
    [(own, given, text)] = rows_of(connection, source, {"mood": Mood.BAD, "facts": facts})
    assert (own, given) == ("GOOD", "BAD")
    assert json.loads(text) == facts


@pytest.mark.parametrize("value", HOSTILE_VALUES)
def test_select_with_hostile_values(connection: sa.Connection, value: str) -> None:
    """A literal of a Select arrives as it was given, whatever is in it."""
    assert rows_of(connection, sa.select(sa.literal(value).label("per%cent"))) == [(value,)]


def test_union_of_selects(connection: sa.Connection) -> None:
    """Whatever SQLAlchemy calls a select can be exported."""
    union = sa.union_all(sa.select(sa.literal(1).label("a")), sa.select(sa.literal(2)))
    assert csv_of(connection, union) == "a\n1\n2\n"


# What is no query


@pytest.mark.parametrize("source", ["SELECT 1 AS a\0", "SELECT '\ud800' AS a"])
def test_text_that_postgres_cannot_have_is_refused(connection: sa.Connection, source: str) -> None:
    """A NUL, which would end the statement, and half of a surrogate pair are refused; the text is not shown."""
    with pytest.raises(InvalidArgument, match="NUL or half a surrogate pair") as caught:
        describe(connection, source)
    assert caught.value.argument == "query"
    assert "SELECT" not in str(caught.value)


@pytest.mark.parametrize("source", ["", " \n", ";", " ;\n; ", None, 7, b"SELECT 1", ["SELECT 1"], sa.insert(Order)])
def test_what_is_no_query_is_refused(connection: sa.Connection, source: Any) -> None:
    """Empty text and objects of other kinds are refused with what is allowed."""
    with pytest.raises(InvalidArgument, match="a SQLAlchemy Select, or the text of one SELECT statement") as caught:
        describe(connection, source)
    assert caught.value.argument == "query"


@pytest.mark.parametrize(
    ("sql", "sqlstate", "message"),
    [
        ("SELECT 1; SELECT 2", "42601", 'syntax error at or near ";"'),
        ("SELECT id FROM secrets; DELETE FROM secrets", "42601", 'syntax error at or near ";"'),
        ("INSERT INTO secrets VALUES (3, 'x')", "42601", 'syntax error at or near "INTO"'),
        ("UPDATE secrets SET id = 3", "42601", 'syntax error at or near "SET"'),
        ("DELETE FROM secrets RETURNING id", "42601", 'syntax error at or near "FROM"'),
        (
            "WITH gone AS (DELETE FROM secrets RETURNING id) SELECT id FROM gone",
            "0A000",
            "WITH clause containing a data-modifying statement must be at the top level",
        ),
        ("SELECT id INTO others FROM secrets", "42601", "SELECT ... INTO is not allowed here"),
        ("SELECT id FROM secrets FOR UPDATE", "25006", "cannot execute SELECT FOR UPDATE in a read-only transaction"),
        ("SELECT nextval('counter') AS a", "25006", "cannot execute nextval() in a read-only transaction"),
        ("SELECT empty_secrets() AS a", "25006", "cannot execute DELETE in a read-only transaction"),
        (
            "SELECT 1 AS a) AS q; DELETE FROM secrets; SELECT 1 FROM (SELECT 1 AS a",
            "25006",
            "cannot execute DELETE in a read-only transaction",
        ),
        ("DROP TABLE secrets", "42601", 'syntax error at or near "TABLE"'),
        ("EXPLAIN SELECT 1", "42601", 'syntax error at or near "SELECT"'),
        ("SELECT 1 AS a FROM FROM", "42601", 'syntax error at or near "FROM"'),
        ("SELECT id FROM nowhere", "42P01", 'relation "nowhere" does not exist'),
        ("SELECT nothing FROM secrets", "42703", 'column "nothing" does not exist'),
    ],
)
def test_what_is_no_single_select_is_refused(
    engine: sa.Engine, secrets: None, client: Any, bucket: str, sql: str, sqlstate: str, message: str
) -> None:
    """Statements that modify, several statements and mistakes are refused by Postgres, in its own words.

    Nothing is changed and nothing is published, though the role is a superuser: it is the export that only reads.
    """
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SEQUENCE counter")
        connection.exec_driver_sql(
            "CREATE FUNCTION empty_secrets() RETURNS int LANGUAGE sql AS 'DELETE FROM secrets RETURNING id'"
        )
    with pytest.raises(QueryError) as caught:
        export(sql, engine=engine, client=client, bucket=bucket, key="a.csv")
    assert message in str(caught.value)
    assert caught.value.sqlstate == sqlstate
    assert keys(client, bucket) == []
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT id FROM secrets ORDER BY id").all() == [(1,), (2,)]
        assert connection.exec_driver_sql("SELECT is_called FROM counter").scalar_one() is False


def test_a_query_cannot_end_the_read_only_transaction(
    engine: sa.Engine, secrets: None, client: Any, bucket: str
) -> None:
    """A query whose text commits the transaction, and then modifies, is refused, even to a superuser."""
    sql = "SELECT 1 AS a) AS q; COMMIT; DELETE FROM secrets; SELECT 1 FROM (SELECT 1 AS a"
    with pytest.raises(ExportError):
        export(sql, engine=engine, client=client, bucket=bucket, key="a.csv")
    assert keys(client, bucket) == []
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT id FROM secrets ORDER BY id").all() == [(1,), (2,)]


@pytest.mark.parametrize("method", ["copy", "rows"])
@pytest.mark.parametrize(
    ("sql", "sqlstate"),
    [
        ("SELECT :secret::int AS a", "22P02"),
        ("SELECT :secret::regclass AS a", "42P01"),
        ("SELECT id FROM secrets WHERE secret = :secret AND nothing", "42703"),
        ("SELECT 1 / (id - 1) AS a FROM secrets WHERE secret = :secret", "22012"),
        ("SELECT secret::int AS a, :secret AS b FROM secrets", "22P02"),
        ("SELECT secret::timestamptz AS a, :secret AS b FROM secrets", "22007"),
        ("SELECT ('{' || secret)::int[] AS a, :secret AS b FROM secrets", "22P02"),
        ("SELECT secret::json AS a, :secret AS b FROM secrets", "22P02"),
        ("SELECT secret::regclass AS a, :secret AS b FROM secrets", "42P01"),
        ("SELECT current_setting(secret) AS a, :secret AS b FROM secrets", "42704"),
        ("SELECT decode(secret, secret) AS a, :secret AS b FROM secrets", "22023"),
        ("SELECT refuse(secret) AS a, :secret AS b FROM secrets", "P0001"),
    ],
)
def test_errors_hold_no_values(
    exporter: sa.Engine,
    secrets: None,
    client: Any,
    bucket: str,
    caplog: pytest.LogCaptureFixture,
    sql: str,
    sqlstate: str,
    method: Any,
) -> None:
    """Neither the error, nor its traceback, nor the log holds a value of a row or a bind value."""
    with pytest.raises(QueryError) as caught:
        export(
            sql,
            parameters={"secret": "hunter2"},
            method=method,
            engine=exporter,
            client=client,
            bucket=bucket,
            key="a.csv",
        )
    assert caught.value.sqlstate == sqlstate
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in caplog.text
    assert keys(client, bucket) == []


# Options


def test_good_options_are_accepted() -> None:
    """The limits themselves are allowed, and `yield_per` may be left to the method."""
    for method in ("copy", "rows"):
        for on_empty in ("header", "skip", "fail"):
            for yield_per, readers in ((None, 1), (1, 1), (10_000_000, 16)):
                accepted = Options(method=method, yield_per=yield_per, readers=readers, on_empty=on_empty)
                assert (accepted.yield_per, accepted.readers) == (yield_per, readers)


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        *[("method", value, "one of copy, rows") for value in ("COPY", "", "pandas", None, ["copy"])],
        *[("on_empty", value, "one of header, skip, fail") for value in ("Skip", "", None, True)],
        *[
            ("yield_per", value, "a whole number from 1 to 10,000,000")
            for value in (0, -1, 10_000_001, 1.0, "5", True, float("nan"))
        ],
        *[("readers", value, "a whole number from 1 to 16") for value in (0, -1, 17, 1.0, "2", True, None)],
    ],
)
def test_bad_options_are_refused(option: str, value: Any, allowed: str) -> None:
    """A bad option is refused with its name, its value and what is allowed, as a ValueError."""
    options: dict[str, Any] = {"method": "copy", "yield_per": 1, "readers": 1, "on_empty": "header", option: value}
    with pytest.raises(ValueError, match=f"^{option}=") as caught:
        Options(**options)
    assert isinstance(caught.value, InvalidArgument)
    assert (caught.value.argument, caught.value.value) == (option, value)
    assert f"{value!r} is not allowed: {allowed}." in str(caught.value)
