"""The table that exports are loaded into, and the history of its loads: SQL only, independent of S3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg2 import sql

from streaming_export.errors import ExportError
from streaming_export.manifest_reader import Manifest
from streaming_ingest.history import HISTORY, SUPERSEDED

# Types that every Postgres has, and that can read the text in the file. Only these names get into a statement unquoted.
# Arrays are JSON in the file and become jsonb. All other types become text: enums, composites, types of extensions,
# money, whose text depends on the server's locale, and xml, which some servers are built without. (A column of a domain
# is exported with its base type.)
_SAME_TYPES = {
    *("smallint", "integer", "bigint", "numeric", "real", "double precision", "oid"),
    *("boolean", "text", "character varying", "name", "uuid", "json", "jsonb", "bytea", "bit varying"),
    *("date", "interval", "timestamp with time zone", "timestamp without time zone"),
    *("time with time zone", "time without time zone"),
    *("inet", "cidr", "macaddr", "macaddr8", "pg_lsn", "tsvector", "tsquery"),
    *("point", "line", "lseg", "box", "path", "polygon", "circle"),
    *("int4range", "int8range", "numrange", "tsrange", "tstzrange", "daterange"),
    *("int4multirange", "int8multirange", "nummultirange", "tsmultirange", "tstzmultirange", "datemultirange"),
}

# The manifest has no length, and without one these names mean the length 1.
_TYPES_WITHOUT_LENGTH = {"character": "bpchar", "bit": "bit varying"}

_STAGING = sql.Identifier("pg_temp", "export_staging")


class ColumnsChanged(ExportError):
    """The columns of the table and of the export differ."""


def loaded_type(exported: str) -> str:
    """The type of the table's column for an exported type, as ``format_type()`` writes it."""
    if exported.endswith("[]"):
        return "jsonb"
    exported = _TYPES_WITHOUT_LENGTH.get(exported, exported)
    return exported if exported in _SAME_TYPES or exported == "bpchar" else "text"


@dataclass(frozen=True, slots=True)
class Table:
    """The target table of one manifest; every method runs in the caller's transaction.

    :param cursor: a psycopg2 cursor.
    """

    cursor: Any
    schema: str
    table: str
    manifest: Manifest

    def lock(self) -> None:
        """Wait for any other load into this table; the end of the transaction releases the lock."""
        self._run("SELECT pg_advisory_xact_lock(hashtextextended({name}, 0))", name=sql.Literal(self._name))

    def create_history(self) -> None:
        """Create the schema and the history unless they exist."""
        # CREATE … IF NOT EXISTS needs the privilege to create, even if there is nothing to create.
        complete = (
            "SELECT EXISTS (SELECT FROM pg_attribute"
            " WHERE attrelid = to_regclass({history}::text) AND attname = 'manifest_etag')"
        )
        if self._ask(complete, history=self._text(self._history)):
            return
        # One session at a time: IF NOT EXISTS fails if two create the same at once.
        self._run("SELECT pg_advisory_xact_lock(hashtextextended({schema}, 1))", schema=sql.Literal(self.schema))
        if not self._ask("SELECT to_regnamespace(quote_ident({schema}))", schema=sql.Literal(self.schema)):
            self._run("CREATE SCHEMA {schema}", schema=sql.Identifier(self.schema))
        self._run(
            """
            CREATE TABLE IF NOT EXISTS {history} (
                table_name text NOT NULL,
                manifest_sha256 text NOT NULL,
                manifest_url text NOT NULL,
                mode text NOT NULL,
                rows bigint NOT NULL,
                window_from timestamptz,
                window_to timestamptz,
                snapshot_taken_at timestamptz NOT NULL,
                loaded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
                PRIMARY KEY (table_name, manifest_sha256)
            )
            """,
            history=self._history,
        )
        self._run("ALTER TABLE {history} ADD COLUMN IF NOT EXISTS manifest_etag text", history=self._history)

    def was_loaded(self) -> bool:
        """Whether this very manifest was loaded before."""
        return self._in_history("manifest_sha256 = {sha256}", sha256=sql.Literal(self.manifest.sha256))

    def is_outdated(self) -> bool:
        """Whether a later snapshot of all rows, or of a window that has those of this one, was loaded before."""
        window = self.manifest.window or (None, None)
        return self._in_history(
            "snapshot_taken_at > {taken_at} AND (window_from IS NULL"
            " OR window_from <= {begin}::timestamptz AND window_to >= {end}::timestamptz)",
            taken_at=sql.Literal(self.manifest.taken_at),
            begin=sql.Literal(window[0]),
            end=sql.Literal(window[1]),
        )

    def create_table(self) -> None:
        """Create the table from the export's columns unless it exists."""
        if self._table_oid() is not None:
            return
        definitions = self._definitions(self._wanted())
        if self.manifest.unique_key is not None:
            key = sql.Identifier(self.manifest.unique_key)
            definitions = sql.SQL("{}, PRIMARY KEY ({})").format(definitions, key)
        self._run("CREATE TABLE {table} ({definitions})", table=self._table, definitions=definitions)
        # The history of a dropped table no longer applies: everything has to be loaded again.
        self._run(
            "DELETE FROM {history} WHERE table_name = {table}", history=self._history, table=sql.Literal(self.table)
        )

    def match_columns(self, add_columns: bool) -> None:
        """Check that the columns of the table are those of the export; add new ones if allowed.

        :raises ColumnsChanged: if they differ otherwise.
        """
        found, wanted = self._columns(), self._wanted()
        added = [name for name in wanted if name not in found]
        removed = [name for name in found if name not in wanted]
        changed = [name for name in wanted if name in found and found[name] != wanted[name]]
        if removed or changed or (added and not add_columns):
            raise self._difference(added, removed, changed, found, wanted)
        for name in added:
            column = self._definition(name, wanted[name])
            self._run("ALTER TABLE {table} ADD COLUMN {column}", table=self._table, column=column)

    def create_staging(self) -> None:
        """Create the temporary table that the files are copied into, until the end of the transaction."""
        self._run(
            "CREATE TEMPORARY TABLE export_staging ({columns}) ON COMMIT DROP",
            columns=self._definitions(self._wanted()),
        )

    def copy(self, file: Any) -> int:
        """Copy a CSV file into staging; returns the number of its rows."""
        statement = sql.SQL("COPY {staging} FROM STDIN (FORMAT csv, HEADER match, ENCODING 'UTF8')")
        self.cursor.copy_expert(statement.format(staging=_STAGING), file, 2**16)
        return int(self.cursor.rowcount)

    def replace(self) -> int:
        """Replace all rows by those of staging; returns their number."""
        # Not TRUNCATE: readers would wait for it, and those with an older snapshot would see an empty table.
        self._run("DELETE FROM {table}", table=self._table)
        return self._insert()

    def upsert(self) -> int:
        """Upsert the rows of staging by their unique key; returns their number."""
        key = self.manifest.unique_key
        assert key is not None
        # If the key is the only column, set the key: DO NOTHING would not count the row.
        others = [name for name, _ in self.manifest.columns if name != key] or [key]
        settings = [sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in others]
        return self._insert(
            sql.SQL(" ON CONFLICT ({key}) DO UPDATE SET {settings}").format(
                key=sql.Identifier(key), settings=sql.SQL(", ").join(settings)
            )
        )

    def record(self, mode: str) -> None:
        """Add the manifest to the history."""
        manifest, window = self.manifest, self.manifest.window or (None, None)
        values = [self.table, manifest.sha256, manifest.url, mode, manifest.rows, *window, manifest.taken_at]
        self._run(
            "INSERT INTO {history} (table_name, manifest_sha256, manifest_url, mode, rows, window_from, window_to,"
            " snapshot_taken_at, manifest_etag) VALUES ({values}) ON CONFLICT (table_name, manifest_sha256) DO UPDATE"
            " SET mode = excluded.mode, loaded_at = excluded.loaded_at, manifest_etag = excluded.manifest_etag",
            history=self._history,
            values=sql.SQL(", ").join(map(sql.Literal, [*values, manifest.etag])),
        )

    def found_again(self) -> None:
        """Record the new URL and ETag of a manifest that was loaded before, so that it is not read again."""
        self._run(
            "UPDATE {history} SET manifest_url = {url}, manifest_etag = {etag}"
            " WHERE table_name = {table} AND manifest_sha256 = {sha256}",
            history=self._history,
            url=sql.Literal(self.manifest.url),
            etag=sql.Literal(self.manifest.etag),
            table=sql.Literal(self.table),
            sha256=sql.Literal(self.manifest.sha256),
        )

    def is_late(self) -> bool:
        """Whether windows with later snapshots were loaded, and may have rows that this window is about to change."""
        if not self._in_history("snapshot_taken_at > {taken_at}", taken_at=sql.Literal(self.manifest.taken_at)):
            return False
        key = sql.Identifier(str(self.manifest.unique_key))
        query = "SELECT EXISTS (SELECT FROM {table} JOIN {staging} USING ({key}))"
        return bool(self._ask(query, table=self._table, staging=_STAGING, key=key))

    def supersede_windows(self) -> None:
        """Record that this export removed or changed rows of windows with later snapshots."""
        self._run(
            "UPDATE {history} SET mode = 'superseded'"
            " WHERE table_name = {table} AND mode = 'upserted' AND snapshot_taken_at > {taken_at}",
            history=self._history,
            table=sql.Literal(self.table),
            taken_at=sql.Literal(self.manifest.taken_at),
        )

    def superseded_windows(self) -> list[str]:
        """Manifests of the windows to load again for that reason, in the order of their snapshots."""
        return list(self._ask(SUPERSEDED, history=self._history, table=sql.Literal(self.table)))

    @property
    def _name(self) -> str:
        return f"{self.schema}.{self.table}"

    @property
    def _table(self) -> Any:
        return sql.Identifier(self.schema, self.table)

    @property
    def _history(self) -> Any:
        return sql.Identifier(self.schema, HISTORY)

    def _wanted(self) -> dict[str, str]:
        return {name: loaded_type(exported) for name, exported in self.manifest.columns}

    def _table_oid(self) -> int | None:
        oid: int | None = self._ask("SELECT to_regclass({table}::text)::oid", table=self._text(self._table))
        return oid

    def _columns(self) -> dict[str, str]:
        """Name and type of the table's columns."""
        self._run(
            "SELECT attname::text, CASE atttypid WHEN 'bpchar'::regtype THEN 'bpchar'"
            " ELSE format_type(atttypid, NULL) END FROM pg_attribute"
            " WHERE attrelid = {oid} AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            oid=sql.Literal(self._table_oid()),
        )
        return dict(self.cursor.fetchall())

    def _difference(
        self, added: list[str], removed: list[str], changed: list[str], found: dict[str, str], wanted: dict[str, str]
    ) -> ColumnsChanged:
        parts = []
        if added:
            parts.append(f"new in the export: {', '.join(f'{name} ({wanted[name]})' for name in added)}")
        if removed:
            parts.append(f"no longer in the export: {', '.join(removed)}")
        parts += [f"{name} is {found[name]} in the table and {wanted[name]} in the export" for name in changed]
        advice = "Load with add_columns to add the new ones" if not removed and not changed else "Alter the table"
        return ColumnsChanged(
            f"The columns of {self._name} and of the export {self.manifest.url} differ: {'; '.join(parts)}.",
            f"{advice}, or drop it: the next load creates it again.",
        )

    def _insert(self, on_conflict: Any = sql.SQL("")) -> int:  # noqa: B008 - it never changes
        names = sql.SQL(", ").join(sql.Identifier(name) for name, _ in self.manifest.columns)
        self._run(
            "INSERT INTO {table} ({names}) SELECT {names} FROM {staging}{on_conflict}",
            table=self._table,
            names=names,
            staging=_STAGING,
            on_conflict=on_conflict,
        )
        return int(self.cursor.rowcount)

    def _in_history(self, condition: str, **values: Any) -> bool:
        found = self._ask(
            "SELECT EXISTS (SELECT FROM {history}"
            " WHERE table_name = {table} AND mode IN ('replaced', 'upserted') AND {condition})",
            history=self._history,
            table=sql.Literal(self.table),
            condition=sql.SQL(condition).format(**values),
        )
        return bool(found)

    def _definitions(self, columns: dict[str, str]) -> Any:
        return sql.SQL(", ").join(self._definition(name, type_name) for name, type_name in columns.items())

    def _definition(self, name: str, type_name: str) -> Any:
        return sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(type_name))

    def _text(self, identifier: Any) -> Any:
        return sql.Literal(identifier.as_string(self.cursor))

    def _ask(self, statement: str, **parts: Any) -> Any:
        self._run(statement, **parts)
        return self.cursor.fetchone()[0]

    def _run(self, statement: str, **parts: Any) -> None:
        # Composed, not bound: psycopg2 would take a % in a quoted name for a parameter.
        self.cursor.execute(sql.SQL(statement).format(**parts))
