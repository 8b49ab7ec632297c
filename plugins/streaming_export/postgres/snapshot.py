"""One consistent view of what a query reads, shared by read-only connections."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import wait
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from streaming_export.cancellation import in_thread
from streaming_export.errors import InvalidArgument, SnapshotGone
from streaming_export.postgres.errors import sqlstate_of, translated
from streaming_export.postgres.plan import Plan
from streaming_export.postgres.query import Query
from streaming_export.postgres.sessions import BEGIN, Sessions, begun_by_driver, driver_connection, joining, run_sql

log = logging.getLogger(__name__)

#: Seconds that an export waits for a lock on a table that it reads: as long as a reload of a large table may take.
LOCK_SECONDS = 300.0

# Seconds to wait for a lock while another connection of the same export holds one: a session that queues in between
# waits for the export, and the export for that session. Postgres can't see this deadlock.
_SECOND_LOCK_SECONDS = 1.0

#: SQLSTATE.
LOCK_NOT_AVAILABLE = "55P03"

# SQLSTATEs of SET TRANSACTION SNAPSHOT, by version, for a snapshot that is no longer held.
_GONE = ("22023", "42704", "55000")

# SQLSTATEs of a function that is missing, not allowed, or not supported.
_NO_FUNCTION = ("42883", "42501", "0A000")

# Functions of the PostgreSQL manual, 9.28.3 "Backup Control Functions" and 9.28.4 "Recovery Control Functions".
_WAL_POSITION = """
    CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text"""

_ID = re.compile(r"[0-9A-F]+(-[0-9A-F]+)*-[0-9]+")


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """When and where a snapshot was taken.

    :param taken_at: when it was taken, by the server's clock; of an imported one, when it was imported.
    :param wal_position: position in the write-ahead log; on a standby, how far it was replayed. None if the
        server does not say.
    :param standby: whether the server was a standby.
    :param server_version: of Postgres.
    """

    taken_at: datetime
    wal_position: str | None
    standby: bool
    server_version: str


class Snapshot:
    """A query, and read-only connections that all see the same snapshot of its tables.

    The query's tables are locked before the snapshot is taken: TRUNCATE, and an ALTER that rewrites a table, are not
    MVCC-safe, and a snapshot that is older than such a change would see an empty table (PostgreSQL manual, 13.6
    "Caveats"). So one connection describes the query, which locks all that it reads (LOCK TABLE would not lock the
    tables of views), and keeps its locks until the owner has taken the snapshot and has the same locks.

    The owner exports the snapshot and keeps it alive, the others import it (PostgreSQL manual, 9.28.5 "Snapshot
    Synchronization Functions"). On exit, all are closed.

    A snapshot that another transaction holds can be imported. That transaction must have locked the tables before
    it took the snapshot, as above. The first connection imports the snapshot and locks. If the owner can import it
    after that, the holder was still there, and so the tables have been locked all the time. From then on, the
    owner holds the snapshot for the others, and the holder may go.

    :param engine: an engine of the psycopg2 dialect.
    :param prepare: describes and plans the query on a connection.
    :param application_name: what ``pg_stat_activity`` shows; Postgres keeps 63 bytes of it.
    :param secrets: settings of each session that no statement may show (see `Sessions`).
    :param imported: id of a snapshot that another transaction of the same database holds; None to take one.
    :param compiled: whether SQLAlchemy compiles the query, which depends on what it knows of the server.
    """

    def __init__(
        self,
        engine: sa.Engine,
        prepare: Callable[[sa.Connection], tuple[Query, Plan]],
        application_name: str,
        secrets: Mapping[str, str],
        imported: str | None = None,
        compiled: bool = True,
    ) -> None:
        if imported is not None and not _ID.fullmatch(str(imported)):
            raise InvalidArgument("snapshot", imported, "what pg_export_snapshot() has returned")
        self._imported = imported
        self._prepare = prepare
        self._compiled = compiled
        #: Its connections.
        self.sessions = Sessions(engine, application_name, secrets)
        self._spare: list[sa.Connection] = []

    def __enter__(self) -> Snapshot:
        deadline = time.monotonic() + LOCK_SECONDS
        try:
            with translated("describing the query"):
                if self._imported is not None:
                    self._import(self._imported)
                    return self
                while not self._start(max(1.0, deadline - time.monotonic()), time.monotonic() < deadline):
                    log.info("Another session is changing a table of the query. Waiting until it has finished.")
        except BaseException:
            self.sessions.end()
            raise
        return self

    def connect(self) -> sa.Connection:
        """A further connection that sees the same rows, and has locked the query's tables; for one thread."""
        with contextlib.suppress(IndexError):
            return self._spare.pop()  # in one step: readers connect at the same time
        connection = self.sessions.open(_SECOND_LOCK_SECONDS)
        run_sql(connection, BEGIN, joining(self.id), self.query.nothing()).close()
        return connection

    def __exit__(self, *raised: object) -> None:
        self.sessions.end()

    def _start(self, lock_seconds: float, again: bool) -> bool:
        """Lock, take the snapshot, and lock with the connections that use it.

        :param again: whether to release everything and return False if another session got in between.
        """
        # If SQLAlchemy has not seen this server yet, it asks five questions on the connection that is there first: most
        # often the owner's, while the query is described here.
        opening = in_thread("owner", lambda: self.sessions.open(_SECOND_LOCK_SECONDS))
        try:
            # Each statement of READ COMMITTED has a snapshot of its own: those after the first, which waits for the
            # locks, see the catalog as it is then.
            first = begun_by_driver(self.sessions.open(lock_seconds, unless_set=True), "READ COMMITTED")
            if self._compiled:
                wait([opening])
            self.query, self.plan = self._prepare(first)
        finally:
            wait([opening])
        self.owner = opening.result()
        try:
            self._export(BEGIN)
            timeout = f"SET lock_timeout = '{_SECOND_LOCK_SECONDS:.0f}s'"
            run_sql(first, "COMMIT", BEGIN, joining(self.id), timeout, self.query.nothing()).close()
        except sa.exc.DBAPIError as exc:
            if sqlstate_of(exc) != LOCK_NOT_AVAILABLE or not again:
                raise
            self.sessions.close()
            return False
        self._spare.append(first)
        return True

    def _import(self, snapshot: str) -> None:
        """Lock on a connection that has imported the snapshot, then check that its holder was there until then."""
        try:
            first = begun_by_driver(self.sessions.open(_SECOND_LOCK_SECONDS), "REPEATABLE READ")
            run_sql(first, joining(snapshot))
            self.query, self.plan = self._prepare(first)
            self.owner = self.sessions.open(_SECOND_LOCK_SECONDS)
            self._export(BEGIN, joining(snapshot))
        except sa.exc.DBAPIError as exc:
            if sqlstate_of(exc) not in _GONE or "SET TRANSACTION SNAPSHOT" not in str(exc.statement):
                raise
            raise SnapshotGone(
                f"The snapshot {snapshot} is no longer held: the transaction that exported it has ended.",
                "Take a new snapshot, and read everything again.",
            ) from None
        self._spare.append(first)

    def _export(self, *begin: str) -> None:
        """Begin a transaction of the owner, lock and export.

        :param begin: the statements that begin it.
        """

        def export(position: str) -> Any:
            about = f"now(), {position}, pg_is_in_recovery(), current_setting('server_version')"
            select = f"SELECT pg_export_snapshot(), {about}"
            return run_sql(self.owner, *begin, self.query.nothing(), select).one()

        try:
            exported = export(_WAL_POSITION)
        except sa.exc.DBAPIError as exc:
            # Some hosted servers do not have a function, or restrict it.
            if sqlstate_of(exc) not in _NO_FUNCTION:
                raise
            run_sql(self.owner, "ROLLBACK")
            exported = export("NULL")
        #: Of the snapshot, for others to import while this one is open.
        self.id = str(exported[0])
        self.info = SnapshotInfo(*exported[1:])

    def server(self) -> str:
        """Where the rows come from, for the log."""
        info = driver_connection(self.owner).info
        kind = "standby" if self.info.standby else "primary"
        return (
            f"database {info.dbname} on {info.host}:{info.port} ({kind}, snapshot of {self.info.taken_at.isoformat()})"
        )
