"""Tables to export, and exports that read them in ranges."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa

from streaming_export.postgres import plan

LENGTH = 23

Execute = Callable[[str], None]


@pytest.fixture
def execute(pooled: sa.Engine, schema: str) -> Execute:
    """Executes SQL, and commits."""

    def run(sql: str) -> None:
        with pooled.begin() as connection:
            connection.execution_options(no_parameters=True).exec_driver_sql(sql)

    return run


@pytest.fixture
def numbers(execute: Execute) -> None:
    """A table `numbers` of 23 rows with the key `id` from 1, stored in another order."""
    execute(
        "CREATE TABLE numbers (id bigint PRIMARY KEY, name text);"
        f"INSERT INTO numbers SELECT i, 'row ' || i FROM generate_series({LENGTH}, 1, -1) AS i; ANALYZE numbers"
    )


@pytest.fixture
def ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the planner's costs, which speak against ranges of few rows, count for nothing."""
    monkeypatch.setattr(plan, "cost_of_range", lambda connection, query, rows: 0.0)


def lines(first: int, last: int) -> bytes:
    """The file of the rows of `numbers` from one key to another."""
    return ("id,name\n" + "".join(f"{i},row {i}\n" for i in range(first, last + 1))).encode()
