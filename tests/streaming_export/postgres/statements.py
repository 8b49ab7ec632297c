"""Engines that tell which statements the driver executes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg2.extensions
import sqlalchemy as sa


def watched(engine: sa.Engine, before: Callable[[str], object]) -> sa.Engine:
    """Have an engine call `before` with the text of each statement, as it goes to the server; returns the engine."""

    class Cursor(psycopg2.extensions.cursor):
        def execute(self, query: Any, vars: Any = None) -> None:
            before(self.mogrify(query, vars).decode())
            super().execute(query, vars)

        def copy_expert(self, sql: Any, file: Any, size: int = 8192) -> None:
            before(str(sql))
            super().copy_expert(sql, file, size)

    def watch(connection: Any, record: object) -> None:
        connection.cursor_factory = Cursor

    sa.event.listen(engine, "connect", watch)
    return engine


def another(engine: sa.Engine, **parameters: Any) -> sa.Engine:
    """An engine of the test's own, to the same database."""
    return sa.create_engine(engine.url, poolclass=sa.NullPool, hide_parameters=True, **parameters)
