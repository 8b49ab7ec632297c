"""What a query may be, what is learned of it, and how it is refused."""

from __future__ import annotations

import csv
import enum
import io
import json
import traceback
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from orders.models import Order, select_orders_by
from streaming_export import DatabaseError, ExportError, InvalidArgument
from streaming_export.postgres.query import describe
from streaming_export.postgres.sessions import driver_connection
from tests.streaming_export.conftest import Execute
from tests.streaming_export.exporting import read

SECRET = "jane@example.com"
HIDDEN = "hunter2"  # also a text of rows

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
    driver_connection(connection).cursor().copy_expert(query.copy(), rows)
    return (query.header + rows.getvalue()).decode()


def rows_of(connection: sa.Connection, source: Any, parameters: dict[str, Any] | None = None) -> list[Any]:
    """The rows of a query as the driver gives them."""
    query = describe(connection, source, parameters)
    return list(connection.execution_options(no_parameters=True).exec_driver_sql(query.select()).all())


def file_of(data: bytes) -> list[list[str]]:
    """The rows of a file without its header."""
    return list(csv.reader(io.StringIO(data.decode(), newline="")))[1:]


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


@pytest.mark.parametrize(
    "unique_key", ["b", "A", "", "a ", '"a"', "1", "a; DROP TABLE orders", 'a" DESC --', "a\0", "a\ud800"]
)
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
    driver_connection(connection).cursor().copy_expert(f"COPY ({sql}) TO STDOUT (FORMAT csv, HEADER)", expected)
    assert describe(connection, sa.text(sql.replace(":", "\\:"))).header + b"1\n" == expected.getvalue()


def test_header_of_many_columns(connection: sa.Connection) -> None:
    """A header of any names is, byte for byte, what Postgres writes for them, and so are the rows under it."""
    sql = "SELECT " + ", ".join(f"{n} AS {as_identifier(name)}" for n, name in enumerate(HOSTILE_NAMES))
    expected = io.BytesIO()
    driver_connection(connection).cursor().copy_expert(f"COPY ({sql}) TO STDOUT (FORMAT csv, HEADER)", expected)
    source = sql.replace(":", "\\:")
    assert csv_of(connection, source).encode() == expected.getvalue()
    assert described_names(connection, source) == HOSTILE_NAMES


def test_a_column_of_any_name_can_be_the_unique_key(exporter: sa.Engine, ranges: None) -> None:
    """Key ranges are found along it, counted and read, as along any other."""
    for name in HOSTILE_NAMES:
        query = f"SELECT i AS {as_identifier(name)} FROM generate_series(1, 5) AS i".replace(":", "\\:")
        data = read(query, engine=exporter, unique_key=name, yield_per=2)
        assert data.endswith(b"\n1\n2\n3\n4\n5\n"), name


# SQL text


@pytest.mark.parametrize(
    ("sql", "parameters", "expected"),
    [
        ("SELECT :x::int AS a", {"x": "7"}, "a\n7\n"),
        ("SELECT :x::int + :y ::int - :x::int AS a", {"x": "7", "y": "1"}, "a\n1\n"),
        ("SELECT '12:30' AS a, '2026-01-01 12:30:59'::timestamp AS b", {}, "a,b\n12:30,2026-01-01T12:30:59\n"),
        ("SELECT 'at \\:noon' AS a, '{\"b\"\\:1}'::json AS b", {}, 'a,b\nat :noon,"{""b"":1}"\n'),
        ("SELECT (ARRAY[1,2,3])[1:2] AS a", {}, 'a\n"[1,2]"\n'),
        ("SELECT '100%' AS a, '%%' AS b, '%s %(x)s' AS c", {}, "a,b,c\n100%,%%,%s %(x)s\n"),
        ("SELECT :x AS a, 7 % 4 AS b WHERE '100%' LIKE '100%'", {"x": "%s"}, "a,b\n%s,3\n"),
        ("SELECT 1 AS a;", {}, "a\n1\n"),
        ("SELECT 1 AS a ; ;\n", {}, "a\n1\n"),
        ("SELECT 1 AS a -- the end", {}, "a\n1\n"),
        ("\ufeffSELECT 1 AS a", {}, "a\n1\n"),
        ("\n \ufeff -- the start\nSELECT 1 AS a;\r\n\t;", {}, "a\n1\n"),
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


def test_a_text_clause_keeps_its_bound_values(connection: sa.Connection) -> None:
    """A ``text()`` brings values of its own, which parameters replace."""
    source = sa.text("SELECT :x AS a, :y AS b").bindparams(x="own", y="own")
    assert csv_of(connection, source, {"y": "given"}) == "a,b\nown,given\n"


# Values of parameters


@pytest.fixture
def mood(engine: sa.Engine, schema: str) -> None:
    """An enum, that has to be there before a connection is made."""
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TYPE mood AS ENUM ('sad', 'so-so')")


@pytest.mark.parametrize(
    ("sql", "parameters", "expected"),
    [
        ("SELECT :x AS a, :x AS b", {"x": SECRET}, f"{SECRET},{SECRET}\n"),
        ("SELECT upper(:x) || :y AS a", {"x": "q", "y": "'"}, "Q'\n"),
        ("SELECT CAST(:x AS int) + 1 AS a", {"x": "41"}, "42\n"),
        ("SELECT :x - 1 AS a, 1 -:x AS b, 7 % :x AS c", {"x": -5}, "-6,6,2\n"),
        ("SELECT :x * 2 AS a, pg_typeof(:x) AS b", {"x": 123456}, "246912,integer\n"),
        ("SELECT pg_typeof(:x) AS a, pg_typeof(:y) AS b", {"x": 2**40 + 1, "y": -(2**31)}, "bigint,integer\n"),
        ("SELECT pg_typeof(:x) AS a, :x AS b", {"x": 2**70}, f"numeric,{2**70}\n"),
        ("SELECT :x AS a, :y AS b", {"x": -12345.25, "y": Decimal("123.4500")}, "-12345.25,123.4500\n"),
        ("SELECT :x AS a, :y AS b, :z::float8 AS c",
         {"x": Decimal("NaN"), "y": float("inf"), "z": 0.1}, "NaN,Infinity,0.1\n"),
        ("SELECT :x IS NULL AS a, num_nulls(:x, :y) AS b, :y::text AS c", {"x": SECRET, "y": None}, "false,1,\n"),
        ("SELECT 1 AS a WHERE 'x' = :x OR :x::text IS NULL", {"x": None}, "1\n"),
        # Where a literal may stand, and nothing else
        ("SELECT INTERVAL :since AS a, DATE :day AS b, TIMESTAMP :day AS c",
         {"since": "1 day", "day": "2026-11-01"}, "1 day,2026-11-01,2026-11-01T00:00:00\n"),
        ("SELECT extract(:part FROM DATE '2026-11-01') AS a", {"part": "year"}, "2026\n"),
        ("SELECT date_trunc(:unit, g) AS a, count(*) AS b FROM"
         " generate_series('2026-11-01'::timestamp, '2026-11-02', '12 hours') AS g GROUP BY date_trunc(:unit, g)"
         " ORDER BY 1", {"unit": "day"}, "2026-11-01T00:00:00,2\n2026-11-02T00:00:00,1\n"),
        ("SELECT g AS a FROM generate_series(1, 9) AS g LIMIT :n OFFSET :m", {"n": 2, "m": 3}, "4\n5\n"),
        ("SELECT g AS a FROM generate_series(1, 9) AS g OFFSET :n ROWS FETCH FIRST :n ROWS ONLY", {"n": 2}, "3\n4\n"),
        # As the type that is meant there
        ("SELECT :x::mood AS a WHERE 'sad' < :x", {"x": "so-so"}, "so-so\n"),
        ("SELECT m AS a FROM unnest(enum_range(NULL::mood)) AS m WHERE m = :x", {"x": "so-so"}, "so-so\n"),
        ("SELECT 1 AS a WHERE 'sad'::mood = :x AND :x = 'sad'", {"x": "sad"}, "1\n"),
        ("SELECT a FROM (VALUES ('ab'::char(4))) AS v(a) WHERE a = :x", {"x": "ab"}, "ab  \n"),
        ("SELECT :x::bpchar AS a, CAST(:x AS varchar(3)) AS b", {"x": "abcd"}, "abcd,abc\n"),
        ("SELECT B'101' = :x AS a", {"x": "101"}, "true\n"),
        ("SELECT '{\"b\"\\:{\"c\"\\:1}}'::jsonb @> :x AS a", {"x": '{"b":{}}'}, "true\n"),
        # Lists and tuples
        ("SELECT 'x' IN :some AS a, 'y' NOT IN :some AS b", {"some": ("secret", "x")}, "true,true\n"),
        ("SELECT g AS a FROM generate_series(1, 9) g WHERE g = ANY(:some)", {"some": [2, 3]}, "2\n3\n"),
        ("SELECT count(*) AS a FROM generate_series(1, 9) g WHERE g = ANY(:some)", {"some": []}, "0\n"),
        ("SELECT count(*) AS a, cardinality(:some) AS b FROM unnest(:some) AS u WHERE u = ANY(:some || ARRAY['x'])",
         {"some": [str(number) for number in range(5_000)]}, "5000,5000\n"),
        ("SELECT :some AS a, :none::text[] AS b", {"some": ["it's", None], "none": []}, '"[""it\'s"",null]",[]\n'),
        ("SELECT (1, 'x') = :pair AS a", {"pair": (1, "x")}, "true\n"),
        # Text that means something elsewhere: to Postgres, to the driver, to Jinja
        ("SELECT '$1' AS a, $$ $2 $$ AS b, :x AS c", {"x": "$1 $$"}, "$1, $2 ,$1 $$\n"),
        ("SELECT :x AS a", {"x": "{{ ds }} {% raw %} %(x)s %% :x"}, "{{ ds }} {% raw %} %(x)s %% :x\n"),
    ],
)  # fmt: skip
def test_a_parameter_means_what_a_literal_means(
    mood: None, connection: sa.Connection, sql: str, parameters: dict[str, Any], expected: str
) -> None:
    """A value may stand wherever a literal may, and has its type there."""
    assert csv_of(connection, sql, parameters).split("\n", 1)[1] == expected


def test_values_of_many_types(connection: sa.Connection) -> None:
    """Python's usual values can be given, and stay exact."""
    parameters = {
        "i": 2**62,
        "d": Decimal("0.10"),
        "b": True,
        "t": datetime(2026, 11, 1, 0, 0, 0, 400_000, tzinfo=UTC),
        "y": date(2026, 11, 1),
        "v": timedelta(days=1, seconds=1),
        "u": UUID(int=1),
        "x": b"\x00\xff\\'",
        "n": None,
    }
    sql = f"SELECT {', '.join(f':{name} AS {name}' for name in parameters)}"
    assert csv_of(connection, sql, parameters) == (
        "i,d,b,t,y,v,u,x,n\n4611686018427387904,0.10,true,2026-11-01T00:00:00.400000+00:00,2026-11-01,"
        "1 day 00:00:01,00000000-0000-0000-0000-000000000001,\\x00ff5c27,\n"
    )


def test_a_value_is_never_sql(connection: sa.Connection) -> None:
    """A value arrives as it was given, alone, in a list, in a tuple, and as a literal of a Select."""
    for value in [*HOSTILE_VALUES, "x" * 2_000_000]:
        parameters = {"x": value, "some": ["", value, None], "pair": (value, "y")}
        sql = "SELECT :x AS a, octet_length(:x) AS b, (:some)[2] AS c, :x IN :pair AS d"
        assert rows_of(connection, sql, parameters) == [(value, len(value.encode()), value, "true")]
        assert rows_of(connection, sa.select(sa.literal(value).label("per%cent"))) == [(value,)]


@pytest.fixture
def hostile(engine: sa.Engine, execute: Execute) -> None:
    """A table `orders` with a row for each hostile value, as its address and its status."""
    execute(
        "CREATE TABLE orders (id bigint PRIMARY KEY, customer_email text, total_cents bigint, status text,"
        " created_at timestamptz DEFAULT now())"
    )
    with engine.begin() as connection:
        insert = sa.text("INSERT INTO orders VALUES (:id, :value, 1, :value)")
        connection.execute(insert, [{"id": number, "value": value} for number, value in enumerate(HOSTILE_VALUES)])


@pytest.mark.parametrize("method", ["copy", "rows"])
def test_a_value_finds_the_row_that_holds_it(hostile: None, exporter: sa.Engine, method: Any) -> None:
    """Each finds its row and comes into the file as it is, by the whole way that an export reads."""
    one = "id = {0} AND customer_email = :v{0} AND status = ANY(:values)"
    terms = " OR ".join(one.format(number) for number in range(len(HOSTILE_VALUES)))
    given = " ".join(f"WHEN {number} THEN :v{number}" for number in range(len(HOSTILE_VALUES)))
    parameters: dict[str, Any] = {f"v{number}": value for number, value in enumerate(HOSTILE_VALUES)}
    parameters["values"] = HOSTILE_VALUES
    query = f"SELECT id, status, CASE id {given} END AS given FROM orders WHERE {terms}"
    data = read(query, parameters, engine=exporter, unique_key="id", method=method)
    assert file_of(data) == [[str(number), value, value] for number, value in enumerate(HOSTILE_VALUES)]


def test_keys_are_never_sql(hostile: None, exporter: sa.Engine, ranges: None) -> None:
    """Values of a key that bound a range are quoted as parameters are: every row is there once."""
    data = read("SELECT status FROM orders", engine=exporter, unique_key="status", yield_per=1)
    assert sorted(row[0] for row in file_of(data)) == sorted(HOSTILE_VALUES)


def test_a_status_is_data(hostile: None, exporter: sa.Engine) -> None:
    """What the trigger form's query is given as statuses is compared, whatever it is."""
    values: dict[str, Any] = dict.fromkeys(("created_from", "created_to"))
    data = read(select_orders_by(), {**values, "statuses": HOSTILE_VALUES[3:7]}, engine=exporter, unique_key="id")
    assert [row[3] for row in file_of(data)] == HOSTILE_VALUES[3:7]
    assert file_of(read(select_orders_by(), {**values, "statuses": ["' OR true --"]}, engine=exporter)) == []


def test_text_that_is_put_together_only_reads(hostile: None, exporter: sa.Engine, engine: sa.Engine) -> None:
    """What somebody has put together with a value is refused by Postgres, or reads: it is one statement."""
    for value in HOSTILE_VALUES:
        try:
            read(f"SELECT id FROM orders WHERE status = '{value}'".replace(":", "\\:"), engine=exporter)
        except ExportError:
            continue
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM orders").scalar() == len(HOSTILE_VALUES)


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("SELECT :who AS a", f"{SECRET}\0"),
        ("SELECT :who AS a", f"{SECRET}\ud800"),
        ("SELECT 1 AS a WHERE '' = ANY(:who)", [f"{SECRET}\0"]),
        ("SELECT 1 AS a WHERE '' = ANY(:who)", [f"{SECRET}\ud800"]),
        ("SELECT :who AS a", {SECRET: object()}),
        (sa.select(sa.bindparam("who", type_=sa.Enum("a", "b", name="e", validate_strings=True)).label("x")), SECRET),
        (sa.select(sa.bindparam("who", type_=sa.LargeBinary).label("x")), SECRET),
        ("SELECT 1 AS a WHERE 1 > :who", Decimal("-Infinity")),  # the driver would write NaN
    ],
    ids=[
        *("NUL", "surrogate", "NUL in a list", "surrogate in a list", "dict", "no member of an enum", "no bytes"),
        "infinite",
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(connection: sa.Connection, source: Any, value: Any) -> None:
    """Neither the error nor what it is raised from shows the value."""
    with pytest.raises(InvalidArgument, match=r"^parameters=\['who'\] is not allowed: values that fit") as caught:
        describe(connection, source, {"who": value})
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    chain: BaseException | None = caught.value
    while chain is not None:
        assert SECRET not in repr(chain)
        chain = chain.__context__ or chain.__cause__


@pytest.mark.parametrize("name", ["person.email", "person email", "a%b", "x(1)", "some_1"])
def test_parameters_of_a_select_have_any_name(connection: sa.Connection, name: str) -> None:
    """SQLAlchemy renames what the driver could not name, alone and as a list."""
    alone = sa.select(sa.literal("own").label("a")).where(sa.bindparam(name, type_=sa.Text) == SECRET)
    assert csv_of(connection, alone, {name: SECRET}) == "a\nown\n"
    listed = sa.bindparam(name, expanding=True, type_=sa.Text)
    source = sa.select(sa.literal("own").label("a")).where(sa.literal(SECRET).in_(listed))
    assert csv_of(connection, source, {name: [SECRET, "other"]}) == "a\nown\n"
    assert csv_of(connection, source, {name: ["other"]}) == "a\n"


def test_pairs_of_a_select(connection: sa.Connection) -> None:
    """A list may have tuples."""
    pairs = sa.bindparam("pairs", expanding=True)
    source = sa.select(sa.literal("own").label("a")).where(sa.tuple_(sa.literal("k"), sa.literal(2)).in_(pairs))
    assert csv_of(connection, source, {"pairs": [("x", 1), ("k", 2)]}) == "a\nown\n"
    assert csv_of(connection, source, {"pairs": [("x", 2)]}) == "a\n"


def test_the_planner_sees_the_values(orders: int, connection: sa.Connection) -> None:
    """A selection by values of parameters is still read along the key's index, and estimated as with literals."""
    sql = "SELECT id FROM orders WHERE status = ANY(:some) AND id < :most"
    query = describe(connection, sql, {"some": ["paid", "shipped"], "most": 10}, "id")
    plan = connection.execution_options(no_parameters=True).exec_driver_sql(f"EXPLAIN {query.keys()}")
    text = "\n".join(plan.scalars())
    assert "Index" in text
    assert "(id < 10)" in text


def test_the_text_has_no_values(connection: sa.Connection) -> None:
    """What is logged and fingerprinted is the text with names: the same for each value."""
    one, other = (describe(connection, "SELECT :x AS a", {"x": value}) for value in (SECRET, "other"))
    assert one.fingerprint == other.fingerprint
    assert SECRET in one.sql
    assert SECRET not in one.text


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
    engine: sa.Engine, secrets: None, sql: str, sqlstate: str, message: str
) -> None:
    """Statements that modify, several statements and mistakes are refused by Postgres, in its own words.

    Nothing is changed, though the role is a superuser: it is the export that only reads.
    """
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SEQUENCE counter")
        connection.exec_driver_sql(
            "CREATE FUNCTION empty_secrets() RETURNS int LANGUAGE sql AS 'DELETE FROM secrets RETURNING id'"
        )
    with pytest.raises(DatabaseError) as caught:
        read(sql, engine=engine)
    assert message in str(caught.value)
    assert (caught.value.sqlstate, caught.value.transient) == (sqlstate, False)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT id FROM secrets ORDER BY id").all() == [(1,), (2,)]
        assert connection.exec_driver_sql("SELECT is_called FROM counter").scalar_one() is False


def test_a_query_cannot_end_the_read_only_transaction(engine: sa.Engine, secrets: None) -> None:
    """A query whose text commits the transaction, and then modifies, is refused, even to a superuser."""
    sql = "SELECT 1 AS a) AS q; COMMIT; DELETE FROM secrets; SELECT 1 FROM (SELECT 1 AS a"
    with pytest.raises(ExportError):
        read(sql, engine=engine)
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
    exporter: sa.Engine, secrets: None, caplog: pytest.LogCaptureFixture, sql: str, sqlstate: str, method: Any
) -> None:
    """Neither the error, nor its traceback, nor the log holds a value of a row or of a parameter."""
    with pytest.raises(DatabaseError) as caught:
        read(sql, {"secret": HIDDEN}, method=method, engine=exporter)
    assert caught.value.sqlstate == sqlstate
    assert HIDDEN not in "".join(traceback.format_exception(caught.value))
    assert HIDDEN not in caplog.text
