"""A query to export: its columns, the text of every value, the statements that read it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.expression import SelectBase, TextClause

from streaming_export.columns import Column, Content, Key, describe_columns, quoted
from streaming_export.errors import InvalidArgument
from streaming_export.parameters import fill_in
from streaming_export.private import private, set_private

#: A SELECT of SQLAlchemy, or SQL text with ``:name`` parameters.
Source = SelectBase | TextClause | str

# Strings, names and comments, in which a semicolon ends nothing; white space; any other character (PostgreSQL
# manual, 4.1 "Lexical Structure").
_TOKEN = re.compile(
    r"""(?<!\w)[eE]'(?:[^'\\]|\\.)*'|'[^']*'|"[^"]*"|(?<!\w)\$((?:[^\W\d]\w*)?)\$.*?\$\1\$|--[^\n]*|/\*.*?\*/|\s+|.""",
    re.DOTALL,
)

# What Postgres has no text for; libpq would end the statement at a NUL.
_UNREADABLE = re.compile("[\0\ud800-\udfff]")

# A field is quoted where COPY quotes it (PostgreSQL manual, COPY, "CSV Format").
_NEEDS_QUOTES = re.compile('[",\r\n]')


@dataclass(frozen=True, slots=True)
class Query:
    """A query that Postgres has accepted, ready to be read in whole or in key ranges.

    :param sql: the query, its parameters filled in by the driver, or private values of the session.
    :param columns: the columns of the file, in order.
    :param key: the column that orders the file; None leaves the query's own order.
    :param text: the query with the names of its parameters in place of their values.
    :param private: private values that a session needs to run it (see `set_private`).
    """

    sql: str
    columns: tuple[Column, ...]
    key: Key | None
    text: str
    private: Mapping[str, str] = field(repr=False)

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

    def select(self, where: str = "") -> str:
        """The SELECT of the file's text, with an optional WHERE clause (see `key_range`)."""
        fields = ", ".join(f"{column.expression} AS {quoted(column.name)}" for column in self.columns)
        order = f" ORDER BY {self.key.column}" if self.key else ""
        return f"SELECT {fields} FROM {self._source}{where}{order}"

    def copy(self, where: str = "") -> str:
        """The COPY statement that has the server write the same rows as CSV."""
        return f"COPY ({self.select(where)}) TO STDOUT (FORMAT csv)"

    def count(self) -> str:
        """The statement that counts the query's rows."""
        return f"SELECT count(*) FROM {self._source}"

    def keys(self) -> str:
        """The statement that gives the key of every row, in order; NULL comes last."""
        return f"SELECT {self._key.column} FROM {self._source} ORDER BY {self._key.column}"

    def key_bound(self, *, last: bool) -> str:
        """The statement that finds the first or the last value of the unique key, as it is in the file."""
        (text,) = (column.expression for column in self.columns if column.name == self._key.name)
        order = f"{self._key.column} {'DESC' if last else 'ASC'}"
        return f"SELECT ({text})::text FROM {self._source} ORDER BY {order} LIMIT 1"

    def key_range(self, after: str | None, upto: str | None) -> tuple[str, dict[str, str]]:
        """The WHERE clause of the keys in (after, upto], and the private values that it needs.

        :param after: text of a key; None for no bound.
        :param upto: likewise.
        """
        terms, values = [], {}
        for name, operator, bound in (("after", ">", after), ("upto", "<=", upto)):
            if bound is None:
                continue
            if self._key.impersonal:
                terms.append(f"{self._key.column} {operator} '{bound}'")
            else:
                terms.append(f"{self._key.column} {operator} {private(name, self._key.type)}")
                values[name] = bound
        return f" WHERE {' AND '.join(terms)}" if terms else "", values

    @property
    def _source(self) -> str:
        # The line breaks end a trailing comment of the query.
        return f"(\n{self.sql}\n) AS q"

    @property
    def _key(self) -> Key:
        assert self.key is not None
        return self.key


def describe(
    connection: sa.Connection,
    source: Source,
    parameters: Mapping[str, Any] | None = None,
    unique_key: str | None = None,
    content: Content | None = None,
) -> Query:
    """Have Postgres check a query, and learn its columns; no row is read.

    :param connection: it gets the query's private values.
    :param source: SQLAlchemy ``Select``, or SQL text with ``:name`` parameters.
    :param parameters: a value for each parameter. Those that may be of somebody's person become private values.
    :param unique_key: name of a column that is unique and not null.
    :param content: what of the query is in the file; by default all of it, as it is.
    :raises InvalidArgument: if a parameter is missing or unknown, two columns share a name, what is named
        as unique key or for the content is not a column, or the mask's key is missing.
    :raises sqlalchemy.exc.DBAPIError: if Postgres refuses the query.
    """
    content = content or Content()
    sql, text, secrets = fill_in(connection, _statement(source), parameters or {})
    set_private(connection, secrets := secrets | content.private_values())
    columns, key = describe_columns(connection, sql, unique_key, content)
    return Query(sql, columns, key, text, secrets)


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
    if _UNREADABLE.search(source):
        raise InvalidArgument("query", "text with NUL or half a surrogate pair", "text that Postgres can read")
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
