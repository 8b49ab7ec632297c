"""Fills the parameters of a query in: COPY takes none, and what somebody's values are must not stand in its text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import psycopg2.extensions
import sqlalchemy as sa
from sqlalchemy.sql.expression import SelectBase, TextClause

from streaming_export.errors import InvalidArgument
from streaming_export.private import impersonal, private

# What psycopg2 writes of a value, in parts: a string, a number, any other character.
_LITERAL = re.compile(
    r"""(?P<string>[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*')|(?P<number>(?<!\w)-?\d[\d.]*(?:[eE][+-]?\d+)?)|.""",
    re.DOTALL,
)


def fill_in(
    connection: sa.Connection, statement: SelectBase | TextClause, values: Mapping[str, Any]
) -> tuple[str, str, dict[str, str]]:
    """The SQL of a query without parameters, its text with their names, and the private values that the SQL needs.

    The driver fills in dates, times, booleans and NULL, and the literals that are part of the query. All other values
    become private ones.

    :raises InvalidArgument: if a parameter is missing, unknown, or does not fit its type.
    :raises sqlalchemy.exc.DBAPIError: if Postgres refuses the query.
    """
    _check(statement, values, connection.dialect)
    text, bound = _bound(connection, statement, values)
    secret = [name for name, value in bound.items() if _is_given(name, values) and not impersonal(value)]
    holes = _Holes()
    try:
        mogrify = connection.connection.cursor().mogrify
        templates = {name: holes.make(mogrify("%s", (bound[name],)).decode()) for name in secret}
        sql = mogrify(text, {**bound, **_as_they_are(templates)}).decode()
        if secret:
            types = _types(connection, sql, holes.types)
            filled = {name: holes.fill(template, types) for name, template in templates.items()}
            sql = mogrify(text, {**bound, **_as_they_are(filled)}).decode()
    except (ValueError, psycopg2.ProgrammingError) as exc:
        raise _unfit(values, exc) from None
    return sql, text, {f"p{number}": value for number, value in enumerate(holes.values, 1)}


def _check(statement: SelectBase | TextClause, values: Mapping[str, Any], dialect: sa.Dialect) -> None:
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


def _bound(
    connection: sa.Connection, statement: SelectBase | TextClause, values: Mapping[str, Any]
) -> tuple[str, Mapping[str, Any]]:
    """What the driver would get: the statement's text, and its values as their types write them.

    SQLAlchemy hands them over at one public place, just before it would execute the statement.
    """
    handed_over: list[Any] = []

    def take(
        conn: object, cursor: object, text: str, parameters: Any, context: object, executemany: bool
    ) -> tuple[str, tuple[()]]:
        handed_over.extend([text, parameters])
        return "SELECT", ()

    sa.event.listen(connection, "before_cursor_execute", take, retval=True)
    try:
        connection.execute(
            cast(sa.Executable, statement), dict(values), execution_options={"no_parameters": True}
        ).close()
    except sa.exc.DBAPIError:
        raise
    except sa.exc.StatementError as exc:
        raise _unfit(values, exc) from None
    finally:
        sa.event.remove(connection, "before_cursor_execute", take)
    text, parameters = handed_over
    return text, parameters or {}


def _is_given(name: str, values: Mapping[str, Any]) -> bool:
    """Whether a value is one of the parameters, or of one's list; others are literals in the query."""
    return any(name == given or name.startswith(f"{given}_") for given in values)


def _as_they_are(texts: Mapping[str, str]) -> dict[str, Any]:
    return {name: psycopg2.extensions.AsIs(text) for name, text in texts.items()}


class _Holes:
    """Takes literals out of what the driver writes of a value, and leaves ``$1``, ``$2``, … in their places."""

    def __init__(self) -> None:
        #: Their texts.
        self.values: list[str] = []
        #: The types that they have by themselves, "unknown" for strings (PostgreSQL manual, "Constants").
        self.types: list[str] = []

    def make(self, literals: str) -> str:
        """A template: the literals of one value with holes."""
        return _LITERAL.sub(self._hole, literals)

    def fill(self, template: str, types: Sequence[str]) -> str:
        """A template with private values of these types in its holes."""
        return re.sub(r"\$(\d+)", lambda hole: private(f"p{hole[1]}", types[int(hole[1]) - 1]), template)

    def _hole(self, literal: re.Match[str]) -> str:
        if literal["string"]:
            self.values.append(_unquoted(literal["string"]))
            self.types.append("unknown")
        elif literal["number"]:
            self.values.append(literal["number"])
            self.types.append(_number_type(literal["number"]))
        else:
            return literal[0]
        return f"${len(self.values)}"


def _unquoted(string: str) -> str:
    if string[0] in "eE":
        return re.sub(r"\\(.)|''", lambda escaped: escaped[1] or "'", string[2:-1], flags=re.DOTALL)
    return string[1:-1].replace("''", "'")


def _number_type(number: str) -> str:
    """The type of a number in SQL (PostgreSQL manual, "Numeric Constants")."""
    if not number.lstrip("-").isdigit():
        return "numeric"
    size = int(number).bit_length()
    return "integer" if size < 32 else "bigint" if size < 64 else "numeric"


def _types(connection: sa.Connection, sql: str, declared: Sequence[str]) -> list[str]:
    """The types that Postgres finds for ``$1``, ``$2``, …, as they may stand in casts."""
    execute = connection.execution_options(no_parameters=True).exec_driver_sql
    found, types = None, list(declared)
    while found is None:
        try:
            with connection.begin_nested():
                execute(f"PREPARE streaming_export ({', '.join(types)}) AS SELECT * FROM (\n{sql}\n) AS q LIMIT 0")
            found = execute(
                "SELECT format('%I.%I', nspname, typname) FROM pg_prepared_statements AS p,"
                " unnest(parameter_types) WITH ORDINALITY AS u(type, number) JOIN pg_type AS t ON t.oid = u.type"
                " JOIN pg_namespace AS n ON n.oid = typnamespace WHERE p.name = 'streaming_export' ORDER BY number"
            )
        except sa.exc.DBAPIError as exc:
            undetermined = _undetermined(exc)
            if undetermined is None or types[undetermined] != "unknown":
                raise
            types[undetermined] = "text"  # as a string of which nothing tells what it is
    names = [str(name) for name in found.scalars()]
    execute("DEALLOCATE streaming_export")
    return names


def _undetermined(exc: sa.exc.DBAPIError) -> int | None:
    """Which of the types Postgres could not determine; None for another error."""
    diag = getattr(exc.orig, "diag", None)
    number = re.search(r"\$(\d+)", str(getattr(diag, "message_primary", "")))
    if number is None or getattr(diag, "sqlstate", None) != "42P18":  # indeterminate_datatype
        return None
    return int(number[1]) - 1


def _unfit(values: Mapping[str, Any], exc: BaseException) -> InvalidArgument:
    # Not `from exc`: its text holds the value.
    cause = getattr(exc, "orig", None) or exc
    return InvalidArgument(
        "parameters", sorted(values), f"values that fit their types and the driver ({type(cause).__name__})"
    )
