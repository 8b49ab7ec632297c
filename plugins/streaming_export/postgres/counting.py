"""Counts a query's rows, and the faults of its unique key, in the exported snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from streaming_export.cancellation import Stop
from streaming_export.errors import DatabaseError
from streaming_export.postgres.errors import translated
from streaming_export.postgres.query import Query

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


def count_rows(connection: sa.Connection, query: Query) -> int:
    """The number of rows."""
    return int(_only(connection, query.count())[0])


def count_keys(connection: sa.Connection, query: Query) -> tuple[int, KeyFaults]:
    """The number of rows, and the faults of the key; one pass, which sorts the keys if no index does."""
    return _faults(_only(connection, query.count_keys()))


def keys_within(
    connection: sa.Connection, query: Query, seconds: float, stop: Stop
) -> tuple[int, KeyFaults] | tuple[None, None]:
    """The same as `count_keys`; None if it takes longer than `seconds`.

    :raises DatabaseError: if Postgres fails.
    :raises Stopped: if the stop is set.
    """
    row = _within(connection, query.count_keys(), seconds, stop)
    return _faults(row) if row else (None, None)


def rows_within(connection: sa.Connection, query: Query, seconds: float, stop: Stop) -> int | None:
    """The same as `count_rows`; None if it takes longer than `seconds`."""
    row = _within(connection, query.count(), seconds, stop)
    return int(row[0]) if row else None


def _within(connection: sa.Connection, sql: str, seconds: float, stop: Stop) -> Any:
    try:
        with translated("counting the rows"), connection.begin_nested():
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{seconds:.0f}s'")
            return _only(connection, sql)
    except DatabaseError as exc:
        stop.check()
        if exc.sqlstate != _QUERY_CANCELED:
            raise
        return None


def _only(connection: sa.Connection, sql: str) -> Any:
    return connection.execution_options(no_parameters=True).exec_driver_sql(sql).one()


def _faults(row: Any) -> tuple[int, KeyFaults]:
    rows, keys, different = map(int, row)  # text if the connection reads the key's type as text
    return rows, KeyFaults(rows - keys, keys - different)
