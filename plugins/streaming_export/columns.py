"""The columns of a query: what Postgres tells of them, and what of them is in the file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import sqlalchemy as sa

from streaming_export.errors import InvalidArgument
from streaming_export.masking import Mask, holds_text, masked, private_key, spreadsheet_safe

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
    " WHEN {{c}} <> {{c}}::{type}(5) OR {{c}} = {{c}}::{type}(0)"
    " THEN pg_catalog.replace({{c}}::text, ' ', 'T'){minutes}"
    " ELSE pg_catalog.to_char({{c}}, 'YYYY-MM-DD\"T\"HH24:MI:SS.US{offset}') END"
)

#: Expression that gives a column's text, by the type's name as ``format_type()`` writes it. What is not
#: listed is written by the type's own output function, under ``TEXT_SETTINGS``.
TEXT_RULES = {
    "boolean": "{c}::text",
    "timestamp with time zone": _ISO_TIMESTAMP.format(type="timestamptz", minutes=" || ':00'", offset='"+00:00"'),
    "timestamp without time zone": _ISO_TIMESTAMP.format(type="timestamp", minutes="", offset=""),
}
_ARRAY_RULE = "pg_catalog.to_json({c})::text"

# Of built-in types, which never change (pg_type.dat).
_TEXT_OID = 25
# smallint, integer, bigint, uuid, date, timestamp, timestamp with time zone: keys of these may be told.
_IMPERSONAL_KEY_OIDS = {21, 23, 20, 2950, 1082, 1114, 1184}

# Steps of a plan that hand on a table's rows as they are.
_PLAIN_NODES = {
    *("Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Heap Scan", "Bitmap Index Scan"),
    *("Sort", "Incremental Sort", "Limit", "Gather", "Gather Merge"),
}


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
class Key:
    """The column that orders the file, as the query gives it.

    :param name: its name.
    :param oid: OID of its type.
    :param type: its type, as it may stand in a cast.
    :param impersonal: whether its values may be seen.
    """

    name: str
    oid: int
    type: str
    impersonal: bool

    @property
    def column(self) -> str:
        """SQL of the column."""
        return f"q.{quoted(self.name)}"


@dataclass(frozen=True, slots=True)
class Content:
    """What of a query is in the file, and how.

    :param columns: names of the only columns, in the file's order; None for all that the query has.
    :param mask: by column, what stands in the place of its values (see `Mask`).
    :param mask_key: of the mask "hash": the same value has the same hash as long as the key stays.
    :param spreadsheet_safe: put ' before text that a spreadsheet would take for a formula.
    :raises InvalidArgument: naming the argument, its value and what is allowed.
    """

    columns: Sequence[str] | None = None
    mask: Mapping[str, Mask] = field(default_factory=dict)
    mask_key: str | None = field(default=None, repr=False)
    spreadsheet_safe: bool = False

    def private_values(self) -> dict[str, str]:
        """What its masks need.

        :raises InvalidArgument: if the key is missing or short; without the key.
        """
        return private_key(self.mask_key) if "hash" in self.mask.values() else {}

    def __post_init__(self) -> None:
        if self.columns is not None:
            names = self.columns
            if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
                raise InvalidArgument("columns", names, "a list of names, or None for all columns")
            if repeated := _repeated(names):
                raise InvalidArgument("columns", list(names), f"each name once, not {repeated} twice")
        if not isinstance(self.mask, Mapping) or not all(mask in get_args(Mask) for mask in self.mask.values()):
            raise InvalidArgument("mask", self.mask, f"a mapping of columns to one of {', '.join(get_args(Mask))}")
        if not isinstance(self.spreadsheet_safe, bool):
            raise InvalidArgument("spreadsheet_safe", self.spreadsheet_safe, "true or false")


def describe_columns(
    connection: sa.Connection, sql: str, unique_key: str | None, content: Content
) -> tuple[tuple[Column, ...], Key | None]:
    """The columns of the file, in order, and the key that orders it; no row is read.

    :raises InvalidArgument: if two columns share a name, or what is named is not a column.
    :raises sqlalchemy.exc.DBAPIError: if Postgres refuses the query.
    """
    description = _description(connection, sql)
    names = [column.name for column in description]
    _check_columns(names, unique_key)
    _check_content(names, unique_key, content)
    types = _types(connection, {column.type_code for column in description})
    columns = {column.name: column for column in _columns(connection, sql, description, types)}
    in_file = tuple(
        _in_file(columns[name], types, content) for name in content.columns or names if content.mask.get(name) != "drop"
    )
    return in_file, _key(columns[unique_key], types, content) if unique_key is not None else None


def explain(connection: sa.Connection, sql: str) -> dict[str, Any]:
    """The top node of the planner's plan (PostgreSQL manual, EXPLAIN)."""
    explained = connection.execution_options(no_parameters=True).exec_driver_sql(f"EXPLAIN (FORMAT JSON) {sql}")
    plans = explained.scalar_one()
    node: dict[str, Any] = (json.loads(plans) if isinstance(plans, str) else plans)[0]["Plan"]
    return node


def quoted(identifier: str) -> str:
    """An identifier as it may stand in SQL."""
    return '"' + identifier.replace('"', '""') + '"'


def _check_columns(names: list[str], unique_key: str | None) -> None:
    if not names:
        raise InvalidArgument("query", "no columns", "at least one column")
    if repeated := _repeated(names):
        raise InvalidArgument("query", ", ".join(names), f"each column has a name of its own, not {repeated} twice")
    if unique_key is not None and unique_key not in names:
        raise InvalidArgument("unique_key", unique_key, f"one of the query's columns {names}")


def _check_content(names: list[str], unique_key: str | None, content: Content) -> None:
    wanted = list(content.columns or names)
    if unknown := [name for name in wanted if name not in names]:
        raise InvalidArgument("columns", unknown, f"names out of the query's columns {names}")
    if unknown := [name for name in content.mask if name not in wanted]:
        raise InvalidArgument("mask", unknown, f"names out of the columns {wanted}")
    in_file = [name for name in wanted if content.mask.get(name) != "drop"]
    if not in_file:
        raise InvalidArgument("mask", dict(content.mask), "a column that is not dropped")
    if unique_key is not None and (unique_key not in in_file or content.mask.get(unique_key) == "redact"):
        raise InvalidArgument(
            "unique_key", unique_key, f"one of the columns in the file {in_file}, and not redacted: it orders the rows"
        )


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _description(connection: sa.Connection, sql: str) -> Any:
    """The driver's description of a query's columns."""
    result = connection.execution_options(no_parameters=True).exec_driver_sql(f"SELECT * FROM (\n{sql}\n) AS q LIMIT 0")
    description = result.cursor.description
    result.close()
    return description


@dataclass(frozen=True, slots=True)
class _Type:
    """A type: its name as ``format_type()`` writes it, its category, and its name as it may stand in a cast.

    The first is no name for a cast: ``character`` would be of one character.
    """

    oid: int
    name: str
    category: str
    cast: str


def _types(connection: sa.Connection, oids: set[int]) -> dict[int, _Type]:
    """The types of columns (PostgreSQL manual, "pg_type")."""
    rows = connection.execute(
        sa.text(
            "SELECT t.oid, pg_catalog.format_type(t.oid, NULL), typcategory::text,"
            " pg_catalog.format('%I.%I', nspname, typname) FROM pg_catalog.pg_type AS t"
            " JOIN pg_catalog.pg_namespace AS n ON n.oid = typnamespace WHERE t.oid = ANY(:oids)"
        ),
        {"oids": list(oids)},
    )
    return {row[0]: _Type(*row) for row in rows}


def _columns(connection: sa.Connection, sql: str, description: Any, types: Mapping[int, _Type]) -> Iterator[Column]:
    """The columns of a query."""
    not_null = _not_null_columns(connection, sql, {column.table_oid for column in description})
    for column in description:
        type_ = types[column.type_code]
        nullable = None if not_null is None else (column.table_oid, column.table_column) not in not_null
        rule = _ARRAY_RULE if type_.category == "A" else TEXT_RULES.get(type_.name, "{c}")
        expression = rule.replace("{c}", f"q.{quoted(column.name)}")
        yield Column(column.name, type_.name, column.type_code, nullable, expression)


def _in_file(column: Column, types: Mapping[int, _Type], content: Content) -> Column:
    """A column as it is in the file."""
    type_ = types[column.oid]
    mask = content.mask.get(column.name)
    if mask:
        expression = masked(column.expression, mask)
    elif content.spreadsheet_safe and holds_text(type_.name, type_.category):
        expression = spreadsheet_safe(column.expression)
    else:
        return column
    return replace(column, type="text", oid=_TEXT_OID, expression=expression)


def _key(column: Column, types: Mapping[int, _Type], content: Content) -> Key:
    type_ = types[column.oid]
    impersonal = type_.oid in _IMPERSONAL_KEY_OIDS and column.name not in content.mask
    return Key(column.name, type_.oid, type_.cast, impersonal)


def _not_null_columns(connection: sa.Connection, sql: str, tables: set[int]) -> set[tuple[int, int]] | None:
    """Table and number of the columns that are never NULL; None where a plan is not plain enough to know.

    An outer join, for one, makes columns NULL that their tables declare NOT NULL.
    """
    if set(_nodes(explain(connection, sql))) - _PLAIN_NODES:
        return None
    rows = connection.execute(
        sa.text("SELECT attrelid, attnum FROM pg_catalog.pg_attribute WHERE attnotnull AND attrelid = ANY(:tables)"),
        {"tables": [table for table in tables if table]},
    )
    return {(table, number) for table, number in rows}


def _nodes(plan: Mapping[str, Any]) -> Iterator[str]:
    """The types of a plan's steps, but for those that find a value before it starts."""
    yield plan["Node Type"]
    for step in plan.get("Plans", ()):
        if step["Parent Relationship"] != "InitPlan":
            yield from _nodes(step)
