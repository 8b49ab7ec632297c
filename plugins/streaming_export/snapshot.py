"""One consistent view of the database, shared by read-only connections."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any

import psycopg2.extensions
import sqlalchemy as sa

from streaming_export.columns import TEXT_SETTINGS
from streaming_export.query import Query

# The holder of the snapshot idles in its transaction while the others read.
_IDLE_SETTINGS = {"idle_in_transaction_session_timeout": "0"}

# The holder has locked what is read before a reader comes. A reader that has to wait is behind somebody (ALTER, DROP)
# who waits for the holder, who waits for the reader: a deadlock that Postgres can't see.
_READER_LOCK_TIMEOUT = "5s"

_CANCEL_SECONDS = 1.0
_CANCEL_PATIENCE = 2.0
_CLOSE_SECONDS = 3.0

# A query whose text ends the transaction begins none that could modify.
_SAFETY_SETTINGS = {"default_transaction_read_only": "on"}


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """What the rows of a snapshot are the rows of.

    :param taken_at: when it was taken, by the server's clock.
    :param wal_position: where the write-ahead log was; on a standby, how far it was replayed. None where the
        server does not tell.
    :param standby: whether the server was a standby.
    :param server_version: of Postgres.
    """

    taken_at: datetime
    wal_position: str | None
    standby: bool
    server_version: str


class Snapshot:
    """Read-only connections that all see the database as it was when the snapshot was entered.

    The first connection exports its snapshot and keeps it alive, the others import it (PostgreSQL manual,
    9.28.5 "Snapshot Synchronization Functions"). All are closed, never returned to a pool, on exit.

    :param engine: an engine of the psycopg2 dialect.
    :param application_name: what ``pg_stat_activity`` shows; Postgres keeps 63 bytes of it.
    """

    def __init__(self, engine: sa.Engine, application_name: str) -> None:
        self._engine = engine
        self._settings = {**TEXT_SETTINGS, **_IDLE_SETTINGS, **_SAFETY_SETTINGS, "application_name": application_name}
        self._connections: list[sa.Connection] = []
        self._pids: list[int] = []
        self._cancelled_at: float | None = None

    def __enter__(self) -> Snapshot:
        try:
            self.holder = self._open()
            self._id: str = self.holder.exec_driver_sql("SELECT pg_export_snapshot()").scalar_one()
            self.info = self._describe()
        except BaseException:
            self._close()
            raise
        return self

    def connect(self) -> sa.Connection:
        """A further connection that sees the same rows; to be used by one thread."""
        connection = self._open(f"SET TRANSACTION SNAPSHOT '{self._id}'")
        connection.exec_driver_sql(f"SET lock_timeout = '{_READER_LOCK_TIMEOUT}'")
        return connection

    def cancel(self) -> None:
        """Have the server cancel whatever the connections are running; safe from any thread.

        A connection that runs nothing, or is closed already, is left as it is. Returns after a second at
        most. If it is called again after two seconds, the server is out of reach: the connections are cut.
        """
        self._cancelled_at = self._cancelled_at or time.monotonic()
        if time.monotonic() - self._cancelled_at > _CANCEL_PATIENCE:
            self._cut()
            return
        # A connection of its own, since psycopg2's cancel() holds up all threads until the server answers.
        _within(_CANCEL_SECONDS, [self._cancel_backends])

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _cut(self) -> None:
        # Not closed: libpq must not lose a connection that a thread is waiting in. Cut, it returns at once.
        for connection in self._connections:
            with (
                contextlib.suppress(sa.exc.SQLAlchemyError, psycopg2.Error, OSError, AttributeError),
                socket.socket(fileno=os.dup(driver_connection(connection).fileno())) as wire,
            ):
                wire.shutdown(socket.SHUT_RDWR)

    def _cancel_backends(self) -> None:
        ours = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = ANY(%s) AND usename = current_user"
        # A pool of its own: the engine's may have no connection left.
        pool = self._engine.pool.recreate()
        with contextlib.closing(pool.connect()) as connection:
            connection.cursor().execute(ours, (self._pids,))
            connection.invalidate()

    def _open(self, first_statement: str | None = None) -> sa.Connection:
        connection = self._engine.connect()
        self._connections.append(connection)
        driver_connection(connection).set_client_encoding("UTF8")
        connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        if first_statement:
            connection.exec_driver_sql(first_statement)
        settings = [sa.func.set_config(name, value, False) for name, value in self._settings.items()]
        self._pids.append(connection.execute(sa.select(sa.func.pg_backend_pid(), *settings)).one()[0])
        return connection

    def _describe(self) -> SnapshotInfo:
        taken_at, standby, version = self.holder.exec_driver_sql(
            "SELECT now(), pg_is_in_recovery(), current_setting('server_version')"
        ).one()
        position = "pg_last_wal_replay_lsn" if standby else "pg_current_wal_lsn"
        try:
            with self.holder.begin_nested():
                wal = self.holder.exec_driver_sql(f"SELECT {position}()::text").scalar_one()
        except sa.exc.DBAPIError:
            # Some hosted servers do not have the function, or do not let everybody call it.
            wal = None
        return SnapshotInfo(taken_at, wal, standby, version)

    def _close(self) -> None:
        self._pids.clear()
        # Not returned to a pool: its settings and its text types must not come back.
        _within(_CLOSE_SECONDS, [connection.invalidate for connection in self._connections])
        _within(_CLOSE_SECONDS, [connection.close for connection in self._connections])


def _within(seconds: float, actions: list[Callable[[], None]]) -> None:
    """Do things in threads: one that waits for the network must not hold up the rest."""

    def run(action: Callable[[], None]) -> None:
        # A connection that broke has nothing left to cancel or close.
        with contextlib.suppress(sa.exc.SQLAlchemyError, psycopg2.Error):
            action()

    threads = [threading.Thread(target=run, args=(action,), daemon=True) for action in actions]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def driver_connection(connection: sa.Connection) -> Any:
    """The psycopg2 connection beneath one of SQLAlchemy's."""
    return connection.connection.driver_connection


def fetch_as_text(connection: sa.Connection, query: Query) -> None:
    """Have the driver hand over the server's own text of the query's types, instead of Python values."""
    key = {query.key.oid} if query.key else set()
    oids = tuple(key | {column.oid for column in query.columns})
    as_text = psycopg2.extensions.new_type(oids, "SERVER_TEXT", psycopg2.extensions.UNICODE)
    psycopg2.extensions.register_type(as_text, driver_connection(connection))
