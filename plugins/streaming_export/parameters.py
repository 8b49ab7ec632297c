"""Fills the parameters of a query in: COPY takes none, and what somebody's values are must not stand in its text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import psycopg2
import sqlalchemy as sa
from sqlalchemy.sql.expression import SelectBase, TextClause

from streaming_export.errors import InvalidArgument
from streaming_export.private import impersonal, private, private_list

# What psycopg2 writes of a value, in parts: a string, a number, any other character.
_LITERAL = re.compile(
    r"""(?P<string>[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*')|(?P<number>(?<!\w)-?\d[\d.]*(?:[eE][+-]?\d+)?)|.""",
    re.DOTALL,
)

# In the text that SQLAlchemy makes for psycopg2: a percent sign, parameters one after the other.
_PLACE = re.compile(r"%%|%\([^()]+\)s(?:, %\([^()]+\)s)*")

# Where nothing tells Postgres of what type a parameter is.
_NULL_TEST = re.compile(r"\s+IS\s+(NOT\s+)?NULL\b", re.IGNORECASE)

# Around a list that a subquery can stand for: a tuple, the elements of an expanding parameter, an array.
_IN = re.compile(r"\bIN\s*\Z", re.IGNORECASE)
_IN_PARENTHESIS = re.compile(r"\bIN\s*\(\s*\Z", re.IGNORECASE)
_ANY = re.compile(r"=\s*ANY\s*\(\s*\Z", re.IGNORECASE)
_END = re.compile(r"\s*\)")
_LOOK_AHEAD = 100  # characters in which these words are found

# As rows, Postgres finds something in a list by a hash; but it then joins, and can lose the order of an index. That is
# worth it for a list of more elements than these.
_ROWS = "SELECT pg_catalog.unnest({})"
_FEW = 20

# Two uses of a parameter must be one for these: "must appear in GROUP BY" and "must appear in select list".
_GROUPING_ERRORS = ("42803", "42P10")

# What tells of a parameter by its number: syntax_error, ambiguous_parameter, indeterminate_datatype.
_INDETERMINATE = "42P18"
_PARAMETER_ERRORS = ("42601", "42P08", _INDETERMINATE)


def fill_in(
    connection: sa.Connection, statement: SelectBase | TextClause, values: Mapping[str, Any]
) -> tuple[str, str, dict[str, str]]:
    """The SQL of a query without parameters, its text with their names, and the private values that the SQL needs.

    The driver fills in dates, times, booleans and NULL, and the literals that are part of the query. All other values
    become private ones.

    :raises InvalidArgument: if a parameter is missing, unknown, does not fit its type, or stands where no value can.
    :raises sqlalchemy.exc.DBAPIError: if Postgres refuses the query.
    """
    _check(statement, values, connection.dialect)
    bound = _bound(connection, statement, values)
    unfit = None
    try:
        pieces = list(_pieces(bound, connection.connection.cursor().mogrify))
    except (psycopg2.Error, TypeError, ValueError) as exc:
        unfit = _unfit(values, exc)
    if unfit:
        raise unfit  # not inside of `except`: the error's context would hold the value
    types = _find_types(connection, pieces)
    names: dict[str, str] = {}
    sql = "".join(piece.sql(types, names) if isinstance(piece, _Private) else piece for piece in pieces)
    return sql, bound.text, {name: value for value, name in names.items()}


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
    if literal := sorted(bind.key for bind in binds if bind.literal_execute and bind.key in values):
        raise InvalidArgument("parameters", literal, "parameters without literal_execute, which writes values into SQL")


@dataclass(frozen=True, slots=True)
class _Bound:
    """What SQLAlchemy would give the driver.

    :param text: of the statement, with ``%(name)s`` for parameters.
    :param values: as their types (enums, JSON, the user's own) write them.
    :param given: the names of those that are the caller's; the others are literals of the query.
    :param lists: the names of those that are elements of a list of the caller's.
    """

    text: str
    values: Mapping[str, Any]
    given: set[str]
    lists: set[str]


def _bound(connection: sa.Connection, statement: SelectBase | TextClause, values: Mapping[str, Any]) -> _Bound:
    """Let SQLAlchemy prepare the statement; it shows it at one public place, just before it would execute it."""
    shown: list[Any] = []

    def take(
        conn: object, cursor: object, text: str, parameters: Any, context: Any, executemany: bool
    ) -> tuple[str, tuple[()]]:
        shown.extend([text, parameters or {}, context.compiled])
        return "SELECT", ()

    sa.event.listen(connection, "before_cursor_execute", take, retval=True)
    unfit = None
    try:
        options = {"no_parameters": True}
        connection.execute(cast(sa.Executable, statement), dict(values), execution_options=options).close()
    except sa.exc.DBAPIError:
        raise
    except (sa.exc.StatementError, TypeError, ValueError) as exc:
        unfit = _unfit(values, exc)
    finally:
        sa.event.remove(connection, "before_cursor_execute", take)
    if unfit:
        raise unfit
    text, parameters, compiled = shown
    given, lists = set(), set()
    for bind, name in compiled.bind_names.items():
        if bind.key not in values:
            continue
        name = compiled.escaped_bind_names.get(name, name)
        given.add(name)
        if bind.expanding:
            element = re.compile(rf"{re.escape(name)}_\d+(_\d+)?")
            lists |= {each for each in parameters if element.fullmatch(each)}
    return _Bound(text, parameters, given | lists, lists)


def _pieces(bound: _Bound, mogrify: Callable[..., bytes]) -> Iterator[str | _Private]:
    """The text with values in the places of parameters, but for private ones, which are still to be found."""
    numbers = itertools.count(1)
    end = 0
    for place in _PLACE.finditer(bound.text):
        before, end = bound.text[end : place.start()], place.end()
        yield before
        if place[0] == "%%":
            yield "%"
            continue
        names = re.findall(r"%\(([^()]+)\)s", place[0])
        values = [bound.values[name] for name in names]
        if bound.lists.issuperset(names) and len(names) > _FEW and _IN_PARENTHESIS.search(before):
            written = mogrify("%s", (tuple(values),)).decode()[1:-1]
            yield _Private(names[0], _parts(written, numbers), _elements(values), _ROWS)
            continue
        for number, (name, value) in enumerate(zip(names, values, strict=True), 1):
            written = mogrify("%s", (value,)).decode()
            after = bound.text[end : end + _LOOK_AHEAD] if number == len(names) else ", "
            if name in bound.given and not impersonal(value):
                yield _private(name, value, written, numbers, before, after)
            else:
                yield written
            before = ", "
            yield before if number < len(names) else ""
    yield bound.text[end:]


@dataclass(frozen=True, slots=True)
class _Literal:
    """A string or a number in what the driver writes of a value.

    :param number: as ``$1``, ``$2``, … it stands in its place while Postgres looks for its type.
    :param text: what it means.
    :param type: what it is by itself: "unknown", if it is a string (PostgreSQL manual, "Constants").
    """

    number: int
    text: str
    type: str


@dataclass(frozen=True, slots=True)
class _Private:
    """A private value at one place of a text.

    :param parameter: its name.
    :param parts: what the driver writes, its literals apart.
    :param elements: of a list that can be handed over as one value: their texts, None for NULL.
    :param frame: what stands around that value.
    """

    parameter: str
    parts: tuple[str | _Literal, ...]
    elements: tuple[str | None, ...] | None = None
    frame: str = "{}"

    @property
    def literals(self) -> list[_Literal]:
        """Those of its parts."""
        return [part for part in self.parts if isinstance(part, _Literal)]

    def sql(self, types: Mapping[_Literal, str], names: dict[str, str]) -> str:
        """SQL that gives the value.

        :param names: the settings in which the session has them, by value; gets those that are missing.
        """

        def name(value: str) -> str:
            # The same for the same value: so Postgres sees where two expressions are the same.
            return names.setdefault(value, f"p{len(names) + 1}")

        found = {types[literal] for literal in self.literals}
        if self.elements is not None and len(found) == 1:
            return self.frame.format(private_list(name(_array_text(self.elements)), found.pop()))
        return "".join(
            private(name(part.text), types[part]) if isinstance(part, _Literal) else part for part in self.parts
        )


def _private(name: str, value: Any, written: str, numbers: Iterator[int], before: str, after: str) -> _Private:
    """A private value; a list as one value, since Postgres would make a list of many values for each row."""
    parts = _parts(written, numbers, "text" if _NULL_TEST.match(after) else "unknown")
    elements = _elements(value) if isinstance(value, list | tuple) else None
    many = elements is not None and len(elements) > _FEW
    if elements and isinstance(value, list):
        return _Private(name, parts, elements, _ROWS if many and _ANY.search(before) and _END.match(after) else "{}")
    if many and _IN.search(before):
        return _Private(name, parts, elements, f"({_ROWS})")
    return _Private(name, parts)


def _elements(value: Sequence[Any]) -> tuple[str | None, ...] | None:
    """The texts of a list of strings or of whole numbers, NULL among them; None for any other."""
    kinds = {type(element) for element in value if element is not None}
    if kinds not in ({str}, {int}):
        return None
    return tuple(None if element is None else str(element) for element in value)


def _parts(written: str, numbers: Iterator[int], string: str = "unknown") -> tuple[str | _Literal, ...]:
    """What the driver writes of a value, its literals apart; `string` is what strings are declared as."""
    parts: list[str | _Literal] = []
    for token in _LITERAL.finditer(written):
        if token["string"]:
            parts.append(_Literal(next(numbers), _unquoted(token["string"]), string))
        elif token["number"]:
            parts.append(_Literal(next(numbers), token["number"], _number_type(token["number"])))
        else:
            parts.append(token[0])
    return tuple(parts)


def _array_text(elements: Sequence[str | None]) -> str:
    """An array as Postgres reads it (PostgreSQL manual, "Array Input and Output Syntax")."""
    quoted = (
        "NULL" if text is None else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in elements
    )
    return "{" + ",".join(quoted) + "}"


def _unquoted(string: str) -> str:
    if string[0] in "eE":
        return re.sub(r"\\(.)|''", lambda escaped: escaped[1] or "'", string[2:-1], flags=re.DOTALL)
    return string[1:-1].replace("''", "'")


def _number_type(number: str) -> str:
    """The type of a number in SQL (PostgreSQL manual, "Numeric Constants")."""
    if not number.lstrip("-").isdigit():
        return "numeric"
    if -(2**31) <= int(number) < 2**31:
        return "integer"
    return "bigint" if -(2**63) <= int(number) < 2**63 else "numeric"


def _find_types(connection: sa.Connection, pieces: Sequence[str | _Private]) -> dict[_Literal, str]:
    """The types that Postgres finds for the literals of private values, as they may stand in casts."""
    literals = [literal for piece in pieces if isinstance(piece, _Private) for literal in piece.literals]
    if not literals:
        return {}
    try:
        return _prepare(connection, pieces, {literal: literal.number for literal in literals})
    except sa.exc.DBAPIError as exc:
        if _diagnosis(exc)[0] not in _GROUPING_ERRORS:
            raise
    # Each use of a value has the type that is meant there, unless Postgres has to see that two are the same.
    alike: dict[tuple[str, str], int] = {}
    shared = {each: alike.setdefault((each.text, each.type), len(alike) + 1) for each in literals}
    return _prepare(connection, pieces, shared)


def _prepare(
    connection: sa.Connection, pieces: Sequence[str | _Private], numbers: Mapping[_Literal, int]
) -> dict[_Literal, str]:
    parts = itertools.chain.from_iterable([piece] if isinstance(piece, str) else piece.parts for piece in pieces)
    sql = "".join(f"${numbers[part]}" if isinstance(part, _Literal) else part for part in parts)
    declared = {number: literal.type for literal, number in numbers.items()}
    execute = connection.execution_options(no_parameters=True).exec_driver_sql
    while True:
        types = ", ".join(declared[number] for number in sorted(declared))
        try:
            with connection.begin_nested():
                execute(f"PREPARE streaming_export ({types}) AS SELECT * FROM (\n{sql}\n) AS q LIMIT 0")
            break
        except sa.exc.DBAPIError as exc:
            sqlstate, message = _diagnosis(exc)
            told = re.search(r"\$(\d+)", message)
            number = int(told[1]) if told and sqlstate in _PARAMETER_ERRORS else 0
            if number not in declared:
                raise
            if sqlstate != _INDETERMINATE or declared[number] != "unknown":
                raise _misplaced(pieces, numbers, number, message) from None
            declared[number] = "text"  # as a string of which nothing tells what it is
    found = execute(
        "SELECT pg_catalog.format('%I.%I', nspname, typname) FROM pg_catalog.pg_prepared_statements AS p,"
        " pg_catalog.unnest(parameter_types) WITH ORDINALITY AS u(type, number)"
        " JOIN pg_catalog.pg_type AS t ON t.oid = u.type JOIN pg_catalog.pg_namespace AS n ON n.oid = typnamespace"
        " WHERE p.name = 'streaming_export' ORDER BY number"
    )
    names = [str(name) for name in found.scalars()]
    execute("DEALLOCATE streaming_export")
    return {literal: names[number - 1] for literal, number in numbers.items()}


def _diagnosis(exc: sa.exc.DBAPIError) -> tuple[str | None, str]:
    """The SQLSTATE and the message of an error of the server's."""
    diag = getattr(exc.orig, "diag", None)
    return getattr(diag, "sqlstate", None), getattr(diag, "message_primary", None) or ""


def _misplaced(
    pieces: Sequence[str | _Private], numbers: Mapping[_Literal, int], number: int, message: str
) -> InvalidArgument:
    """The error about a parameter that stands where Postgres takes none, or can't tell what it is."""
    private_pieces = (piece for piece in pieces if isinstance(piece, _Private))
    name = next(each.parameter for each in private_pieces if number in {numbers[part] for part in each.literals})
    told = message.replace(f"${number}", f":{name}")
    allowed = f"values where Postgres takes one ({told}); CAST(:{name} AS …) tells it of what type one is"
    return InvalidArgument("parameters", [name], allowed)


def _unfit(values: Mapping[str, Any], exc: BaseException) -> InvalidArgument:
    cause = getattr(exc, "orig", None) or exc
    return InvalidArgument(
        "parameters", sorted(values), f"values that fit their types and the driver ({type(cause).__name__})"
    )
