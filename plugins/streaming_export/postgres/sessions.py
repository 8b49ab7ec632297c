"""Opens, cancels and closes the database connections of one export."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from typing import Any

import psycopg2
import psycopg2.extensions
import sqlalchemy as sa
from sqlalchemy.engine.interfaces import IsolationLevel
from sqlalchemy.pool import NullPool

from streaming_export.cancellation import in_thread
from streaming_export.errors import DatabaseError
from streaming_export.postgres.columns import TEXT_SETTINGS
from streaming_export.postgres.errors import translated
from streaming_export.postgres.query import Query

# The snapshot's owner idles in its transaction while the others read. A query whose text ends the transaction begins
# none that could modify.
_SAFETY_SETTINGS = {"idle_in_transaction_session_timeout": "0", "default_transaction_read_only": "on"}

#: The statement that begins the transaction of a connection which does not leave that to the driver: sent together with
#: the first statements, it costs no round trip of its own.
BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

_CANCEL_SECONDS = 1.0
_CANCEL_PATIENCE = 2.0
_CLOSE_SECONDS = 3.0

# What starting a thread raises if the system has no memory for it, or allows no further one.
_NO_THREAD = (OSError, RuntimeError, MemoryError)


class Sessions:
    """The read-only connections of one export: none comes from a pool, or goes back to one.

    :param engine: an engine of the psycopg2 dialect; its connect arguments and events are used, not its pool.
    :param application_name: what ``pg_stat_activity`` shows; Postgres keeps 63 bytes of it.
    :param secrets: settings that each session has from its start, through libpq's ``options``: these appear
        in no statement and no log. Values need no escaping.
    """

    def __init__(self, engine: sa.Engine, application_name: str, secrets: Mapping[str, str]) -> None:
        self._pool = engine.pool
        self._secrets = secrets
        self._settings = {**TEXT_SETTINGS, **_SAFETY_SETTINGS, "application_name": application_name}
        self._users_engine = engine
        if secrets:
            sa.event.listen(engine, "do_connect", self._add_secrets)
        self._engine = unpooled(engine, self._connect)
        self._ours = threading.local()
        self._connections: list[sa.Connection] = []
        self._pids: list[int] = []
        #: Seconds that the database takes to answer, at best.
        self.round_trip = math.inf
        self._cancelled_at: float | None = None

    def open(self, lock_timeout: float, *, unless_set: bool = False) -> sa.Connection:
        """A connection that begins no transaction by itself, see `BEGIN`; to be used by one thread.

        :param lock_timeout: seconds that a statement may wait for a lock.
        :param unless_set: whether a setting of the role, the database or the connection takes precedence.
        :raises DatabaseError: if the secrets have not arrived.
        """
        with translated("connecting to the database"):
            connection = self._engine.connect()
        self._connections.append(connection)
        driver_connection(connection).set_client_encoding("UTF8")
        calls = [sa.func.set_config(name, value, False) for name, value in self._settings.items()]
        timeout: Any = f"{lock_timeout:.0f}s"
        if unless_set:
            timeout = sa.func.coalesce(sa.func.nullif(sa.func.current_setting("lock_timeout"), "0"), timeout)
        calls.append(sa.func.set_config("lock_timeout", timeout, False))
        arrived = [sa.func.current_setting(name, True) for name in self._secrets]
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        asked = time.monotonic()
        pid, *found = connection.execute(sa.select(sa.func.pg_backend_pid(), *arrived, *calls)).one()
        self.round_trip = min(self.round_trip, time.monotonic() - asked)
        if list(found[: len(arrived)]) != list(self._secrets.values()):
            raise DatabaseError(
                "The key of the mask 'hash' has not reached the database's session.",
                "It is sent in libpq's `options`. A pooler may drop them, and so may an engine that opens its"
                " connections with its own function. Connect to the server itself, and export again.",
            )
        self._pids.append(pid)
        return connection

    def cancel(self) -> None:
        """Have the server cancel what the connections are running; safe from any thread.

        Idle and closed connections are not affected. Returns after a second at
        most. If it is called again after two seconds, the server can't be reached: the sockets are shut down.
        """
        self._cancelled_at = self._cancelled_at or time.monotonic()
        if time.monotonic() - self._cancelled_at > _CANCEL_PATIENCE:
            self._cut()
            return
        # On a connection of its own, because psycopg2's cancel() blocks all threads until the server answers.
        with contextlib.suppress(*_NO_THREAD):  # without one, the sockets are shut down later
            wait([in_thread("connection", self._cancel_backends)], _CANCEL_SECONDS)

    def end(self) -> None:
        """End all connections; no further ones can be opened."""
        self.close()
        if self._secrets:
            sa.event.remove(self._users_engine, "do_connect", self._add_secrets)

    def close(self) -> None:
        """End all connections, within three seconds."""
        connections, self._connections = self._connections, []
        self._pids.clear()
        _within(_CLOSE_SECONDS, [connection.invalidate for connection in connections])
        _within(_CLOSE_SECONDS, [connection.close for connection in connections])

    def _connect(self) -> Any:
        self._ours.connecting = True
        try:
            return _new_connection(self._pool)
        finally:
            self._ours.connecting = False

    def _add_secrets(
        self, dialect: sa.Dialect, record: object, arguments: list[Any], parameters: dict[str, Any]
    ) -> None:
        if getattr(self._ours, "connecting", False):  # not for other users of the engine
            # libpq reads PGOPTIONS only if it gets no options.
            given = parameters.get("options") or os.environ.get("PGOPTIONS")
            options = [given, *(f"-c {name}={value}" for name, value in self._secrets.items())]
            parameters["options"] = " ".join(filter(None, options))

    def _cut(self) -> None:
        # Not closed, since a thread may be waiting in libpq: after a shutdown of the socket, libpq returns at once.
        for connection in list(self._connections):
            with (
                contextlib.suppress(sa.exc.SQLAlchemyError, psycopg2.Error, OSError, AttributeError),
                socket.socket(fileno=os.dup(driver_connection(connection).fileno())) as wire,
            ):
                wire.shutdown(socket.SHUT_RDWR)

    def _cancel_backends(self) -> None:
        ours = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = ANY(%s) AND usename = current_user"
        with contextlib.closing(self._connect()) as connection:
            connection.cursor().execute(ours, (self._pids,))


def unpooled(engine: sa.Engine, connect: Callable[[], Any] | None = None) -> sa.Engine:
    """An engine that connects as another one does, but does not use its pool.

    :param connect: makes a connection of the driver.
    """
    pool = NullPool(connect or (lambda: _new_connection(engine.pool)), dialect=engine.dialect)
    return sa.Engine(pool, engine.dialect, engine.url, hide_parameters=True)


def run_sql(connection: sa.Connection, *statements: str) -> Any:
    """Have the server run statements without parameters, in one round trip; gives the result of the last."""
    return connection.execution_options(no_parameters=True).exec_driver_sql(";\n".join(statements))


def begun_by_driver(connection: sa.Connection, isolation: IsolationLevel) -> sa.Connection:
    """The connection, whose next statement the driver begins a transaction for: SQLAlchemy's cursors need that."""
    connection.commit()
    # In this order: psycopg2 takes back a default_transaction_read_only that it has set without a transaction.
    connection = connection.execution_options(isolation_level=isolation)
    return connection.execution_options(postgresql_readonly=True)


def joining(snapshot: str) -> str:
    """The statement that has a transaction see an exported snapshot; it comes first in it."""
    return f"SET TRANSACTION SNAPSHOT '{snapshot}'"


def driver_connection(connection: sa.Connection) -> Any:
    """The psycopg2 connection beneath one of SQLAlchemy's."""
    return connection.connection.driver_connection


def text_literal(connection: sa.Connection) -> Callable[[str], str]:
    """A function that writes a text as an SQL literal, by the driver's rules for this connection."""
    cursor = driver_connection(connection).cursor()
    return lambda text: str(cursor.mogrify("%s", (text,)).decode())


def fetch_as_text(connection: sa.Connection, query: Query) -> None:
    """Have the driver return the server's text for the query's types, instead of Python values."""
    key = {query.key.oid} if query.key else set()
    oids = tuple(key | {column.oid for column in query.columns})
    as_text = psycopg2.extensions.new_type(oids, "SERVER_TEXT", psycopg2.extensions.UNICODE)
    psycopg2.extensions.register_type(as_text, driver_connection(connection))


def _new_connection(pool: sa.Pool) -> Any:
    """A new connection of the driver, made as the pool makes them."""
    new = pool.recreate()
    # First SQLAlchemy asks the server about itself: without transactions, that takes four round trips fewer.
    sa.event.listen(new, "connect", _commit_by_itself, insert=True)
    made = new.connect()
    connection = made.driver_connection
    made.detach()
    return connection


def _commit_by_itself(connection: Any, record: object) -> None:
    connection.autocommit = True


def _within(seconds: float, actions: list[Callable[[], None]]) -> None:
    """Run actions in threads: one that waits for the network must not delay the others.

    What they raise is ignored: a broken connection has nothing left to close.
    """
    running: list[Future[None]] = []
    for action in actions:
        try:
            running.append(in_thread("connection", action))
        except _NO_THREAD:
            with contextlib.suppress(Exception):
                action()
    wait(running, seconds)
