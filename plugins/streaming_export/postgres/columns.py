"""The columns of a query: their types, the text of their values, and which of them are in the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from streaming_export.errors import InvalidArgument
from streaming_export.options import Options, repeated
from streaming_export.postgres.masks import holds_text, masked, spreadsheet_safe

#: Settings that change the text of a value, pinned in every session that reads (PostgreSQL manual,
#: 20.11.2 "Locale and Formatting" and 20.11.1 "Statement Behavior").
TEXT_SETTINGS = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "iso_8601",
    "extra_float_digits": "1",
    "bytea_output": "hex",
}

# isoformat() writes no fraction if it is zero, and otherwise six digits; the type's own text leaves out zeros at the
# end of a fraction, so they are appended. isoformat() has neither infinity nor years before 1: those stay as Postgres
# prints them. to_char() would take twice as long, and a timestamp with time zone prints more slowly than one without.
_ISO_TIMESTAMP = (
    "CASE WHEN {{c}} >= '0001-01-01' AND {{c}} < 'infinity' THEN"
    " pg_catalog.replace({plain}::text, ' ', 'T') ||"
    " CASE WHEN {{c}} <> {{c}}::{type}(5) OR {{c}} = {{c}}::{type}(0) THEN '{offset}'"
    " WHEN {{c}} = {{c}}::{type}(3) THEN"
    " CASE WHEN {{c}} <> {{c}}::{type}(2) THEN '000{offset}'"
    " WHEN {{c}} <> {{c}}::{type}(1) THEN '0000{offset}' ELSE '00000{offset}' END"
    " WHEN {{c}} <> {{c}}::{type}(4) THEN '0{offset}' ELSE '00{offset}' END"
    " ELSE {{c}}::text END"
)

#: SQL of a column's text, by the type's name as ``format_type()`` writes it. Types that are not listed are written by
#: their own output functions, under ``TEXT_SETTINGS``.
TEXT_RULES = {
    "boolean": "{c}::text",
    "timestamp with time zone": _ISO_TIMESTAMP.format(
        type="pg_catalog.timestamptz", plain="({c} AT TIME ZONE INTERVAL '0')", offset="+00:00"
    ),
    "timestamp without time zone": _ISO_TIMESTAMP.format(type="pg_catalog.timestamp", plain="{c}", offset=""),
}
_ARRAY_RULE = "pg_catalog.to_json({c})::text"

_TEXT_OID = 25  # pg_type.dat: OIDs of built-in types never change


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the file.

    :param name: its name in the query and in the header.
    :param type: its Postgres type, as ``format_type()`` writes it.
    :param oid: the type's OID.
    :param expression: SQL that gives the text of its values.
    """

    name: str
    type: str
    oid: int
    expression: str


@dataclass(frozen=True, slots=True)
class Key:
    """The column of the query that orders the file.

    :param name: its name.
    :param oid: OID of its type.
    :param origin: OID of the table and number of the column that it is, 0 if it is none.
    :param comparable: whether `>` compares it with a text as ORDER BY does.
    """

    name: str
    oid: int
    origin: tuple[int, int]
    comparable: bool

    @property
    def column(self) -> str:
        """SQL of the column."""
        return f"q.{quoted(self.name)}"


def file_columns(
    connection: sa.Connection, description: Any, unique_key: str | None, options: Options
) -> tuple[tuple[Column, ...], Key | None]:
    """The columns of the file, in order, and the key that orders it; reads no row.

    :param description: the driver's description of the query's columns.
    :param options: which columns, and how they are masked.
    :raises InvalidArgument: if two columns share a name, or an argument names a column that does not exist.
    """
    names = [column.name for column in description]
    in_file = _names_in_file(names, unique_key, options)
    types = _types(connection, {column.type_code for column in description})
    described = {column.name: column for column in description}
    columns = tuple(_in_file(described[name], types, options) for name in in_file)
    if unique_key is None:
        return columns, None
    key = described[unique_key]
    origin = (key.table_oid or 0, key.table_column or 0)
    return columns, Key(key.name, key.type_code, origin, types[key.type_code].comparable)


def quoted(identifier: str) -> str:
    """An identifier as it may stand in SQL."""
    return '"' + identifier.replace('"', '""') + '"'


def _names_in_file(names: list[str], unique_key: str | None, options: Options) -> list[str]:
    """Names of the columns in the file, in order.

    :param names: of the query's columns.
    """
    if not names:
        raise InvalidArgument("query", "no columns", "at least one column")
    if twice := repeated(names):
        raise InvalidArgument("query", ", ".join(names), f"each column needs a name of its own, not {twice} twice")
    if unique_key is not None and unique_key not in names:
        raise InvalidArgument("unique_key", unique_key, f"one of the query's columns {names}")
    wanted = list(options.columns or names)
    if unknown := [name for name in wanted if name not in names]:
        raise InvalidArgument("columns", unknown, f"names of the query's columns {names}")
    if unknown := [name for name in options.mask if name not in wanted]:
        raise InvalidArgument("mask", unknown, f"names of the columns {wanted}")
    in_file = [name for name in wanted if options.mask.get(name) != "drop"]
    if not in_file:
        raise InvalidArgument("mask", dict(options.mask), "at least one column that is not dropped")
    if unique_key is not None and (unique_key not in in_file or options.mask.get(unique_key) == "redact"):
        raise InvalidArgument(
            "unique_key", unique_key, f"one of the columns in the file {in_file}, and not redacted: it orders the rows"
        )
    return in_file


def _types(connection: sa.Connection, oids: set[int]) -> dict[int, sa.Row[Any]]:
    """Name and category of each type, by its OID (PostgreSQL manual, "pg_type"), and whether `>` compares it as such.

    A type of an extension, such as citext, can be in a schema that is not on the search path, where its operators are:
    then it is compared as text, or not at all. Nor is a composite type, whose operators are those of any record.
    """
    rows = connection.execute(
        sa.text(
            "SELECT oid, name, typcategory::text AS category, oid < 16384 OR typtype NOT IN ('b', 'c')"
            " OR typcategory = 'A' OR to_regoperator(format('>(%1$s,%1$s)', name)) IS NOT NULL AS comparable"
            " FROM pg_catalog.pg_type, pg_catalog.format_type(oid, NULL) AS name WHERE oid = ANY(:oids)"
        ),
        {"oids": list(oids)},
    )
    return {row.oid: row for row in rows}


def _in_file(described: Any, types: Mapping[int, sa.Row[Any]], options: Options) -> Column:
    """A column of the query as it is in the file, with its mask applied."""
    name, oid = described.name, described.type_code
    type_, mask = types[oid], options.mask.get(name)
    rule = _ARRAY_RULE if type_.category == "A" else TEXT_RULES.get(type_.name, "{c}")
    text = rule.replace("{c}", f"q.{quoted(name)}")
    if mask:
        return Column(name, "text", _TEXT_OID, masked(text, mask))
    if options.spreadsheet_safe and holds_text(type_.name, type_.category):
        return Column(name, "text", _TEXT_OID, spreadsheet_safe(text))
    return Column(name, type_.name, oid, text)
