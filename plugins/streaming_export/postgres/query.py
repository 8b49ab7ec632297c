"""A query to export: its parameters filled in, its columns, and the statements that read it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, cast

import psycopg2
import sqlalchemy as sa
from sqlalchemy.sql.expression import SelectBase, TextClause

from streaming_export.errors import InvalidArgument
from streaming_export.options import Options
from streaming_export.postgres.columns import Column, Key, file_columns, quoted

#: A SELECT of SQLAlchemy, or SQL text with ``:name`` parameters.
Source = SelectBase | TextClause | str

# Characters that Postgres can't store; libpq would end the statement at a NUL.
_UNREADABLE = re.compile("[\0\ud800-\udfff]")

# A field is quoted where COPY quotes it (PostgreSQL manual, COPY, "CSV Format").
_NEEDS_QUOTES = re.compile('[",\r\n]')


@dataclass(frozen=True, slots=True)
class Query:
    """A query that Postgres has accepted, ready to be read in whole or in key ranges.

    :param sql: the query, its parameters filled in by the driver.
    :param columns: the columns of the file, in order.
    :param key: the column that orders the file; None leaves the query's own order.
    :param text: the query with the names of its parameters instead of their values.
    """

    sql: str
    columns: tuple[Column, ...]
    key: Key | None
    text: str

    @property
    def unique_key(self) -> str | None:
        """Name of the column that orders the file."""
        return self.key.name if self.key else None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the query's text without the values of its parameters, in hex."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def header(self) -> bytes:
        """The header row of the file."""
        alone = len(self.columns) == 1
        return (",".join(csv_field(column.name, alone) for column in self.columns) + "\n").encode()

    def select(self) -> str:
        """The SELECT of the file's text."""
        fields = ", ".join(f"{column.expression} AS {quoted(column.name)}" for column in self.columns)
        order = f" ORDER BY {self.key.column}" if self.key else ""
        return f"SELECT {fields} FROM {self._source}{order}"

    def copy(self) -> str:
        """The COPY statement that makes the server write the same rows as CSV."""
        return f"COPY ({self.select()}) TO STDOUT (FORMAT csv)"

    def count(self) -> str:
        """The statement that counts the query's rows."""
        return f"SELECT count(*) FROM {self._source}"

    def count_keys(self) -> str:
        """The statement that counts the query's rows, the keys that are not NULL, and the distinct keys."""
        key = self._key.column
        return f"SELECT count(*), count({key}), count(DISTINCT {key}) FROM {self._source}"

    def count_from(self, key: str, literal: Callable[[str], str]) -> str:
        """The statement that counts the rows after a key, including those whose key is NULL, and the rows of the key.

        :param key: text of a key.
        :param literal: writes a text as SQL.
        """
        column, bound = self._key.column, literal(key)
        same = f"count(*) FILTER (WHERE {column} = {bound})"
        return f"SELECT count(*) - {same}, {same} FROM {self._source} WHERE {column} >= {bound} OR {column} IS NULL"

    def nothing(self) -> str:
        """The statement that reads no row, but makes Postgres plan the query and lock all tables that it reads."""
        return f"SELECT * FROM {self._source} LIMIT 0"

    def keys(self) -> str:
        """The statement that gives the key of every row, in order; NULL comes last."""
        return f"SELECT {self._key.column} FROM {self._source} ORDER BY {self._key.column}"

    def within(self, after: str | None, upto: str | None, literal: Callable[[str], str]) -> Query:
        """The query restricted to the keys in (after, upto].

        :param after: text of a key; None for no bound.
        :param upto: likewise.
        :param literal: writes a text as SQL.
        """
        bounds = ((">", after), ("<=", upto))
        terms = [f"{self._key.column} {operator} {literal(bound)}" for operator, bound in bounds if bound is not None]
        return replace(self, sql=f"SELECT * FROM {self._source} WHERE {' AND '.join(terms)}") if terms else self

    @property
    def _source(self) -> str:
        return _subquery(self.sql)

    @property
    def _key(self) -> Key:
        assert self.key is not None
        return self.key


def describe(
    connection: sa.Connection,
    source: Source,
    parameters: Mapping[str, Any] | None = None,
    unique_key: str | None = None,
    options: Options | None = None,
) -> Query:
    """Have Postgres check a query, and learn its columns; reads no row, but locks the tables of the query.

    The driver fills in the parameters' values as literals, because COPY takes no parameters.

    :param source: SQLAlchemy ``Select``, or SQL text with ``:name`` parameters.
    :param parameters: a value for each parameter.
    :param unique_key: name of a column that is unique and not null.
    :param options: those of the columns and their masks are used.
    :raises InvalidArgument: if a parameter is missing or unknown, two columns share a name, or an argument names a
        column that does not exist.
    :raises sqlalchemy.exc.DBAPIError: if Postgres refuses the query.
    """
    statement, values = _statement(source), parameters or {}
    _check_parameters(statement, values, connection.dialect)
    filled: list[str] = []

    def fill_in(
        conn: object, cursor: Any, text: str, parameters: Any, context: object, executemany: bool
    ) -> tuple[str, tuple[()]]:
        filled[:] = [text, _mogrify(cursor, text, parameters or {})]
        return f"SELECT * FROM {_subquery(filled[1])} LIMIT 0", ()

    # This event has the final text and values, just before SQLAlchemy executes the statement.
    sa.event.listen(connection, "before_cursor_execute", fill_in, retval=True)
    unfit: BaseException | None = None
    try:
        plain = {"no_parameters": True}
        result = connection.execute(cast(sa.Executable, statement), dict(values), execution_options=plain)
        description = result.cursor.description
        result.close()
    except sa.exc.DBAPIError:
        raise
    except (sa.exc.StatementError, TypeError, ValueError) as exc:
        unfit = exc
    finally:
        sa.event.remove(connection, "before_cursor_execute", fill_in)
    if unfit:  # outside of `except`: the error's context would contain the value
        kind = type(getattr(unfit, "orig", None) or unfit).__name__
        raise InvalidArgument("parameters", sorted(values), f"values that fit their types and the driver ({kind})")
    text, sql = filled
    columns, key = file_columns(connection, description, unique_key, options or Options())
    return Query(sql, columns, key, text)


def csv_field(text: str | None, alone: bool = False) -> str:
    """A field as COPY writes it in CSV: NULL is nothing, the empty string is ``""``.

    :param alone: whether it is the only field of its row; COPY then quotes ``\\.``, which on a line of its own used to
        end the data.
    """
    if text is None:
        return ""
    if text == "" or _NEEDS_QUOTES.search(text) or (alone and text == "\\."):
        return '"' + text.replace('"', '""') + '"'
    return text


def _mogrify(cursor: Any, text: str, values: Mapping[str, Any]) -> str:
    if any(isinstance(value, Decimal) and value.is_infinite() for value in values.values()):
        raise ValueError  # the driver would write NaN
    try:
        return str(cursor.mogrify(text, values).decode())
    except psycopg2.Error:  # SQLAlchemy would take it for the server's
        raise TypeError from None


def _subquery(sql: str) -> str:
    # The line breaks end a trailing comment of the query.
    return f"(\n{sql}\n) AS q"


def _statement(source: Source) -> SelectBase | TextClause:
    if isinstance(source, SelectBase | TextClause):
        return source
    text = source.strip(" \n\t\r;\ufeff") if isinstance(source, str) else ""
    if not text:
        kind = source if isinstance(source, str) else type(source).__name__
        raise InvalidArgument("query", kind, "a SQLAlchemy Select, or the text of one SELECT statement")
    if _UNREADABLE.search(text):
        raise InvalidArgument("query", "text with NUL or half a surrogate pair", "text that Postgres can read")
    # text() does not see the parameter in `:name::type`, but does in `(:name)::type`.
    return sa.text(re.sub(r"(?<![:\w\\])(:\w+)(?=::)", r"(\1)", text))


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
