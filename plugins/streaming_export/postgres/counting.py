"""Counts a query's rows, and the faults of its unique key, in the exported snapshot."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from streaming_export.cancellation import Stop
from streaming_export.errors import DatabaseError
from streaming_export.postgres.errors import translated
from streaming_export.postgres.query import Query
from streaming_export.postgres.sessions import run_sql

_QUERY_CANCELED = "57014"


@dataclass(frozen=True, slots=True)
class KeyFaults:
    """How often a unique key is NULL or repeated.

    :param nulls: rows whose key is NULL.
    :param repeated: rows that repeat the key of another row; the first row of each value does not count.
    """

    nulls: int
    repeated: int

    def __bool__(self) -> bool:
        return bool(self.nulls or self.repeated)

    def __str__(self) -> str:
        nulls = f"{self.nulls:,} row{' has' if self.nulls == 1 else 's have'} NULL" if self.nulls else ""
        repeated = f"{self.repeated:,} row{' repeats' if self.repeated == 1 else 's repeat'} a value of another"
        return " and ".join(filter(None, (nulls, repeated if self.repeated else "")))


def count_rows(connection: sa.Connection, query: Query, keys: bool = False) -> tuple[int, KeyFaults | None]:
    """The number of rows, and with `keys` the faults of the key: one pass, which sorts the keys if no index does."""
    # The numbers are text if the connection reads the key's type as text.
    rows, *of_keys = map(int, run_sql(connection, query.count_keys() if keys else query.count()).one())
    if not keys:
        return rows, None
    not_null, different = of_keys
    return rows, KeyFaults(rows - not_null, not_null - different)


def count_within(
    connection: sa.Connection, query: Query, seconds: float, stop: Stop, keys: bool = False
) -> tuple[int, KeyFaults | None] | tuple[None, None]:
    """The same as `count_rows`; None if it takes longer than `seconds`.

    :raises DatabaseError: if Postgres fails.
    :raises Stopped: if the stop is set.
    """
    try:
        with translated("counting the rows"), connection.begin_nested():
            run_sql(connection, f"SET LOCAL statement_timeout = '{seconds:.0f}s'")
            return count_rows(connection, query, keys)
    except DatabaseError as exc:
        stop.check()
        if exc.sqlstate != _QUERY_CANCELED:
            raise
        return None, None
