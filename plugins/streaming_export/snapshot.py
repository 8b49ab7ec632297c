"""One consistent view of the database, shared by read-only connections."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any

import psycopg2.extensions
import sqlalchemy as sa

from streaming_export.query import TEXT_SETTINGS, Query

# The holder of the snapshot idles in its transaction while the others read.
_IDLE_SETTINGS = {"idle_in_transaction_session_timeout": "0"}


class Snapshot:
    """Read-only connections that all see the database as it was when the snapshot was entered.

    The first connection exports its snapshot and keeps it alive, the others import it (PostgreSQL manual,
    9.28.5 "Snapshot Synchronization Functions"). All are closed, never returned to a pool, on exit.

    :param engine: an engine of the psycopg2 dialect.
    :param application_name: what ``pg_stat_activity`` shows; Postgres keeps 63 bytes of it.
    """

    def __init__(self, engine: sa.Engine, application_name: str) -> None:
        self._engine = engine
        self._settings = {**TEXT_SETTINGS, **_IDLE_SETTINGS, "application_name": application_name}
        self._connections: list[sa.Connection] = []

    def __enter__(self) -> Snapshot:
        try:
            self.holder = self._open()
            self._id: str = self.holder.exec_driver_sql("SELECT pg_export_snapshot()").scalar_one()
        except BaseException:
            self._close()
            raise
        return self

    def connect(self) -> sa.Connection:
        """A further connection that sees the same rows; to be used by one thread."""
        return self._open(f"SET TRANSACTION SNAPSHOT '{self._id}'")

    def cancel(self) -> None:
        """Have the server cancel whatever the connections are running; safe from any thread.

        A connection that runs nothing, or is closed already, is left as it is.
        """
        for connection in list(self._connections):
            with contextlib.suppress(sa.exc.SQLAlchemyError, psycopg2.Error):
                driver_connection(connection).cancel()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _open(self, first_statement: str | None = None) -> sa.Connection:
        connection = self._engine.connect()
        self._connections.append(connection)
        driver_connection(connection).set_client_encoding("UTF8")
        connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        if first_statement:
            connection.exec_driver_sql(first_statement)
        for name, value in self._settings.items():
            connection.execute(sa.text("SELECT set_config(:name, :value, false)"), {"name": name, "value": value})
        return connection

    def _close(self) -> None:
        for connection in self._connections:
            # A connection that broke has nothing left to close.
            with contextlib.suppress(sa.exc.SQLAlchemyError, psycopg2.Error):
                # Its settings and its text types must not come back through a pool.
                connection.invalidate()
                connection.close()


def driver_connection(connection: sa.Connection) -> Any:
    """The psycopg2 connection beneath one of SQLAlchemy's."""
    return connection.connection.driver_connection


def fetch_as_text(connection: sa.Connection, query: Query) -> None:
    """Have the driver hand over the server's own text of the query's types, instead of Python values."""
    oids = tuple({column.oid for column in query.columns})
    as_text = psycopg2.extensions.new_type(oids, "SERVER_TEXT", psycopg2.extensions.UNICODE)
    psycopg2.extensions.register_type(as_text, driver_connection(connection))
