"""A query to export: its columns, the text of every value, the statements that read it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.sql.expression import SelectBase, TextClause

from streaming_export.errors import InvalidArgument

#: A SELECT of SQLAlchemy, or SQL text with ``:name`` parameters.
Source = SelectBase | TextClause | str

#: Settings that change the text of a value, pinned in every session that reads (PostgreSQL manual,
#: 20.11.2 "Locale and Formatting" and 20.11.1 "Statement Behavior").
TEXT_SETTINGS = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "iso_8601",
    "extra_float_digits": "1",
    "bytea_output": "hex",
}

# datetime.isoformat() leaves out a fraction of zero and otherwise writes six digits. It knows neither
# infinity nor years before 1: those stay as Postgres prints them. to_char() takes twice as long as the
# type's own text, which leaves out zeros at the end of a fraction: it is used only where there are some.
_ISO_TIMESTAMP = (
    "CASE WHEN {{c}} < '0001-01-01' OR {{c}} = 'infinity' THEN {{c}}::text"
    " WHEN {{c}} <> {{c}}::{type}(5) OR {{c}} = {{c}}::{type}(0) THEN replace({{c}}::text, ' ', 'T'){minutes}"
    " ELSE to_char({{c}}, 'YYYY-MM-DD\"T\"HH24:MI:SS.US{offset}') END"
)

#: Expression that gives a column's text, by the type's name as ``format_type()`` writes it. What is not
#: listed is written by the type's own output function, under ``TEXT_SETTINGS``.
TEXT_RULES = {
    "boolean": "{c}::text",
    "timestamp with time zone": _ISO_TIMESTAMP.format(type="timestamptz", minutes=" || ':00'", offset='"+00:00"'),
    "timestamp without time zone": _ISO_TIMESTAMP.format(type="timestamp", minutes="", offset=""),
}
_ARRAY_RULE = "to_json({c})::text"

# Strings, names and comments, in which a semicolon ends nothing; white space; any other character (PostgreSQL
# manual, 4.1 "Lexical Structure").
_TOKEN = re.compile(
    r"""(?<!\w)[eE]'(?:[^'\\]|\\.)*'|'[^']*'|"[^"]*"|(?<!\w)\$((?:[^\W\d]\w*)?)\$.*?\$\1\$|--[^\n]*|/\*.*?\*/|\s+|.""",
    re.DOTALL,
)

# Steps of a plan that hand on a table's rows as they are.
_PLAIN_NODES = {
    *("Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Heap Scan", "Bitmap Index Scan"),
    *("Sort", "Incremental Sort", "Limit", "Gather", "Gather Merge"),
}

# A field is quoted where COPY quotes it (PostgreSQL manual, COPY, "CSV Format").
_NEEDS_QUOTES = re.compile('[",\r\n]')


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the file.

    :param name: its name in the query and in the header.
    :param type: its Postgres type, as ``format_type()`` writes it.
    :param oid: the type's OID.
    :param nullable: whether it can be NULL; None where that is not known.
    :param expression: SQL that gives the text of its values.
    """

    name: str
    type: str
    oid: int
    nullable: bool | None
    expression: str


@dataclass(frozen=True, slots=True)
class Query:
    """A query that Postgres has accepted, ready to be read in whole or in key ranges.

    :param sql: the query, its parameters filled in by the driver.
    :param columns: its columns, in order.
    :param unique_key: name of the column that orders the file; None leaves the query's own order.
    :param text: the query with the names of its parameters in place of their values.
    """

    sql: str
    columns: tuple[Column, ...]
    unique_key: str | None
    text: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the query's text without the values of its parameters, in hex."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def header(self) -> bytes:
        """The header row of the file."""
        alone = len(self.columns) == 1
        return (",".join(csv_field(column.name, alone) for column in self.columns) + "\n").encode()

    def select(self, where: str = "") -> str:
        """The SELECT of the file's text, with an optional WHERE clause (see `key_range`)."""
        fields = ", ".join(f"{column.expression} AS {_quoted(column.name)}" for column in self.columns)
        order = f" ORDER BY {self._key}" if self.unique_key else ""
        return f"SELECT {fields} FROM {self._source}{where}{order}"

    def copy(self, where: str = "") -> str:
        """The COPY statement that has the server write the same rows as CSV."""
        return f"COPY ({self.select(where)}) TO STDOUT (FORMAT csv)"

    def count(self) -> str:
        """The statement that counts the query's rows."""
        return f"SELECT count(*) FROM {self._source}"

    def keys(self) -> str:
        """The statement that gives the key of every row, in order; NULL comes last."""
        return f"SELECT {self._key} FROM {self._source} ORDER BY {self._key}"

    def key_bound(self, *, last: bool) -> str:
        """The statement that finds the first or the last value of the unique key."""
        (text,) = (column.expression for column in self.columns if column.name == self.unique_key)
        return f"SELECT ({text})::text FROM {self._source} ORDER BY {self._key} {'DESC' if last else 'ASC'} LIMIT 1"

    def key_range(self, after: str | None, upto: str | None) -> str:
        """The WHERE clause of the keys in (after, upto], given as SQL literals; None is no bound."""
        bounds = [(after, ">"), (upto, "<=")]
        terms = [f"{self._key} {operator} {literal}" for literal, operator in bounds if literal is not None]
        return f" WHERE {' AND '.join(terms)}" if terms else ""

    @property
    def _source(self) -> str:
        # The line breaks end a trailing comment of the query.
        return f"(\n{self.sql}\n) AS q"

    @property
    def _key(self) -> str:
        assert self.unique_key is not None
        return f"q.{_quoted(self.unique_key)}"


def describe(
    connection: sa.Connection,
    source: Source,
    parameters: Mapping[str, Any] | None = None,
    unique_key: str | None = None,
) -> Query:
    """Have Postgres check a query, and learn its columns; no row is read.

    :param source: SQLAlchemy ``Select``, or SQL text with ``:name`` parameters.
    :param parameters: a value for each parameter.
    :param unique_key: name of a column that is unique and not null.
    :raises InvalidArgument: if a parameter is missing or unknown, two columns share a name, or the
        unique key is not a column.
    :raises sqlalchemy.exc.DBAPIError: if Postgres refuses the query.
    """
    statement = _statement(source)
    values = dict(parameters or {})
    _check_parameters(statement, values, connection.dialect)
    sql, text, description = _prepare(connection, statement, values)
    _check_columns([column.name for column in description], unique_key)
    types = _types(connection, {column.type_code for column in description})
    not_null = _not_null_columns(connection, sql, {column.table_oid for column in description})
    columns = []
    for column in description:
        type_name, category = types[column.type_code]
        nullable = None if not_null is None else (column.table_oid, column.table_column) not in not_null
        expression = _expression(column.name, type_name, category)
        columns.append(Column(column.name, type_name, column.type_code, nullable, expression))
    return Query(sql, tuple(columns), unique_key, text)


def csv_field(text: str | None, alone: bool = False) -> str:
    """A field as COPY writes it in CSV: NULL is nothing, the empty string is ``""``.

    :param alone: whether it is the only field of its row; COPY then quotes ``\\.``, which on a line of
        its own once ended the data.
    """
    if text is None:
        return ""
    if text == "" or _NEEDS_QUOTES.search(text) or (alone and text == "\\."):
        return '"' + text.replace('"', '""') + '"'
    return text


def _statement(source: Source) -> SelectBase | TextClause:
    if isinstance(source, SelectBase | TextClause):
        return source
    if not isinstance(source, str) or not source.strip(" \n\t\r;"):
        kind = source if isinstance(source, str) else type(source).__name__
        raise InvalidArgument("query", kind, "a SQLAlchemy Select, or the text of one SELECT statement")
    # text() overlooks the parameter in `:name::type`, but not in `(:name)::type`.
    return sa.text(re.sub(r"(?<![:\w\\])(:\w+)(?=::)", r"(\1)", _without_end(source)))


def _without_end(sql: str) -> str:
    """A statement without the semicolon that ends it, and what may follow that: comments."""
    end = None
    for token in _TOKEN.finditer(sql):
        if token[0] == ";":
            end = token.start() if end is None else end
        elif not token[0].isspace() and not token[0].startswith(("--", "/*")):
            end = None
    return sql[:end]


def _check_parameters(statement: SelectBase | TextClause, values: Mapping[str, Any], dialect: sa.Dialect) -> None:
    binds = statement.compile(dialect=dialect).binds.values()
    if missing := sorted(bind.key for bind in binds if bind.required and bind.key not in values):
        raise InvalidArgument(
            "parameters",
            sorted(values),
            f"the query also needs a value for {', '.join(missing)} (write \\: for a colon that starts no parameter)",
        )
    known = {bind.key for bind in binds}
    if unknown := sorted(values.keys() - known):
        raise InvalidArgument("parameters", unknown, f"the query's parameters are {sorted(known) or 'none'}")


def _check_columns(names: list[str], unique_key: str | None) -> None:
    if not names:
        raise InvalidArgument("query", "no columns", "at least one column")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidArgument("query", ", ".join(names), f"each column has a name of its own, not {repeated} twice")
    if unique_key is not None and unique_key not in names:
        raise InvalidArgument("unique_key", unique_key, f"one of the query's columns {names}")


def _prepare(
    connection: sa.Connection, statement: SelectBase | TextClause, values: dict[str, Any]
) -> tuple[str, str, Any]:
    """The SQL with its parameters filled in, and with their names; the driver's description of its columns.

    COPY takes no parameters, so the driver fills them in. SQLAlchemy hands them over processed by their
    types (enums, JSON, the user's own) at one public place, just before it would execute the statement.
    """
    prepared: list[str] = []

    def fill_in(
        conn: object, cursor: Any, text: str, parameters: Any, context: object, executemany: bool
    ) -> tuple[str, tuple[()]]:
        prepared.extend([cursor.mogrify(text, parameters).decode(), text])
        return f"SELECT * FROM (\n{prepared[0]}\n) AS q LIMIT 0", ()

    sa.event.listen(connection, "before_cursor_execute", fill_in, retval=True)
    try:
        result = connection.execute(cast(sa.Executable, statement), values, execution_options={"no_parameters": True})
    except sa.exc.DBAPIError:
        raise
    except (sa.exc.StatementError, ValueError) as exc:
        # Not `from exc`: its text holds the value.
        cause = getattr(exc, "orig", None) or exc
        raise InvalidArgument(
            "parameters", sorted(values), f"values that fit their types and the driver ({type(cause).__name__})"
        ) from None
    finally:
        sa.event.remove(connection, "before_cursor_execute", fill_in)
    description = result.cursor.description
    result.close()
    return prepared[0], prepared[1], description


def _types(connection: sa.Connection, oids: set[int]) -> dict[int, tuple[str, str]]:
    """Name and category of each type (PostgreSQL manual, 52.64 "pg_type")."""
    rows = connection.execute(
        sa.text("SELECT oid, format_type(oid, NULL), typcategory::text FROM pg_type WHERE oid = ANY(:oids)"),
        {"oids": list(oids)},
    )
    return {oid: (name, category) for oid, name, category in rows}


def _not_null_columns(connection: sa.Connection, sql: str, tables: set[int]) -> set[tuple[int, int]] | None:
    """Table and number of the columns that are never NULL; None where a plan is not plain enough to know.

    An outer join, for one, makes columns NULL that their tables declare NOT NULL.
    """
    plan = connection.execution_options(no_parameters=True).exec_driver_sql(f"EXPLAIN (FORMAT JSON) {sql}")
    if set(re.findall(r"'Node Type': '([^']+)'", str(plan.scalar_one()))) - _PLAIN_NODES:
        return None
    rows = connection.execute(
        sa.text("SELECT attrelid, attnum FROM pg_attribute WHERE attnotnull AND attrelid = ANY(:tables)"),
        {"tables": [table for table in tables if table]},
    )
    return {(table, number) for table, number in rows}


def _expression(name: str, type_name: str, category: str) -> str:
    rule = _ARRAY_RULE if category == "A" else TEXT_RULES.get(type_name, "{c}")
    return rule.replace("{c}", f"q.{_quoted(name)}")


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'
