"""The portable reader: SQLAlchemy, a server-side cursor, `yield_per` rows at a time."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import cast

import sqlalchemy as sa

from streaming_export.query import Query, csv_field
from streaming_export.snapshot import fetch_as_text


def read_rows(connection: sa.Connection, query: Query, yield_per: int) -> Iterator[tuple[bytes, int]]:
    """Read a query row by row, as CSV.

    At most `yield_per` rows are in memory; for wide rows, lower it.

    :param connection: used by nobody else meanwhile.
    :returns: the CSV of each batch of `yield_per` rows (the last one shorter), and its number of rows.
    :raises sqlalchemy.exc.DBAPIError: if the query fails.
    """
    fetch_as_text(connection, query)
    result = connection.execution_options(stream_results=True, yield_per=yield_per, no_parameters=True).exec_driver_sql(
        query.select()
    )
    buffer = io.BytesIO()
    with result:
        for batch in result.partitions(yield_per):
            buffer.seek(0)
            buffer.truncate()
            buffer.writelines(csv_line(row).encode() for row in batch)
            yield buffer.getvalue(), len(batch)


def csv_line(row: Sequence[str | None]) -> str:
    """A row of texts as COPY would write it."""
    # Most rows need no quotes: two searches of the whole line tell, instead of one of each field.
    if None not in row and "" not in row:
        line = ",".join(cast(Sequence[str], row))
        if line.count(",") == len(row) - 1 and '"' not in line and line.isprintable() and line != "\\.":
            return line + "\n"
    alone = len(row) == 1
    return ",".join([csv_field(field, alone) for field in row]) + "\n"
