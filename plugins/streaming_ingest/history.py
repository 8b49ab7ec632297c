"""What the history of loads says about a table, without a manifest."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from psycopg2 import sql

#: The history of loads, a table in the same schema.
HISTORY = "load_history"

#: Manifests of the windows whose rows are missing or older, since an older export has removed or changed them.
SUPERSEDED = """
    SELECT coalesce(array_agg(manifest_url ORDER BY snapshot_taken_at), ARRAY[]::text[]) FROM {history} AS h
    WHERE table_name = {table} AND mode = 'superseded' AND NOT EXISTS (SELECT FROM {history} AS later
        WHERE later.table_name = h.table_name AND later.snapshot_taken_at > h.snapshot_taken_at
        AND (later.window_from IS NULL OR later.window_from <= h.window_from AND later.window_to >= h.window_to))
"""

# If the table was dropped, everything has to be loaded again. A history without the ETag column can't be used either.
_USABLE = """
    SELECT to_regclass({table}::text) IS NOT NULL AND EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = to_regclass({history}::text) AND attname = 'manifest_etag')
"""

# The rows of a superseded window are missing or older.
_KNOWN = """
    SELECT manifest_url, manifest_etag FROM {history}
    WHERE table_name = {table} AND mode <> 'superseded' AND manifest_etag IS NOT NULL
"""


def known(engine: sa.Engine, schema: str, table: str) -> set[tuple[str, str]]:
    """URL and ETag of each manifest that was loaded or outdated.

    :param engine: of the psycopg2 dialect, for the analytics database.
    :raises sqlalchemy.exc.DBAPIError: if the database refuses or fails.
    """
    return set(_rows(engine, schema, table, _KNOWN))


def missing(engine: sa.Engine, schema: str, table: str) -> list[str]:
    """URL of the manifest of each window whose rows an older export has removed or changed.

    :param engine: of the psycopg2 dialect, for the analytics database.
    :raises sqlalchemy.exc.DBAPIError: if the database refuses or fails.
    """
    return [url for (urls,) in _rows(engine, schema, table, SUPERSEDED) for url in urls]


def _rows(engine: sa.Engine, schema: str, table: str, query: str) -> list[Any]:
    history = sql.Identifier(schema, HISTORY)
    with engine.begin() as connection, connection.connection.cursor() as cursor:
        names = {"history": history, "table": sql.Identifier(schema, table)}
        texts = {name: sql.Literal(identifier.as_string(cursor)) for name, identifier in names.items()}
        cursor.execute(sql.SQL(_USABLE).format(**texts))
        if not cursor.fetchone()[0]:
            return []
        cursor.execute(sql.SQL(query).format(history=history, table=sql.Literal(table)))
        return list(cursor.fetchall())
