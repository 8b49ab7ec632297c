"""One consistent view of what a query reads, shared by read-only connections."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import wait
from dataclasses import dataclass, replace
from datetime import datetime
from types import TracebackType

import sqlalchemy as sa

from streaming_export.cancellation import in_thread
from streaming_export.errors import InvalidArgument, SnapshotGone
from streaming_export.postgres.errors import sqlstate_of, translated
from streaming_export.postgres.query import Query
from streaming_export.postgres.sessions import Sessions, driver_connection, joining, run_sql

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
    :param describe: describes the query on a connection.
    :param application_name: what ``pg_stat_activity`` shows; Postgres keeps 63 bytes of it.
    :param secrets: settings of each session that no statement may show (see `Sessions`).
    :param imported: id of a snapshot that another transaction of the same database holds; None to take one.
    """

    def __init__(
        self,
        engine: sa.Engine,
        describe: Callable[[sa.Connection], Query],
        application_name: str,
        secrets: Mapping[str, str],
        imported: str | None = None,
    ) -> None:
        if imported is not None and not _ID.fullmatch(str(imported)):
            raise InvalidArgument("snapshot", imported, "what pg_export_snapshot() has returned")
        self._imported = imported
        self._describe_query = describe
        self._sessions = Sessions(engine, application_name, secrets)
        self._spare: list[sa.Connection] = []
        #: Has the server cancel what the connections run; safe from any thread.
        self.cancel = self._sessions.cancel

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
            self._close()
            raise
        return self

    def connect(self) -> sa.Connection:
        """A further connection that sees the same rows, and has locked the query's tables; for one thread."""
        with contextlib.suppress(IndexError):
            return self._spare.pop()  # in one step: readers connect at the same time
        connection = self._sessions.open(_SECOND_LOCK_SECONDS)
        self._lock(connection, joining(self.id))
        return connection

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _start(self, lock_seconds: float, again: bool) -> bool:
        """Lock, take the snapshot, and lock with the connections that use it.

        :param again: whether to release everything and return False if another session got in between.
        """
        first = self._sessions.connect()
        opening = in_thread("owner", lambda: self._sessions.open(_SECOND_LOCK_SECONDS))
        try:
            first = self._sessions.open(lock_seconds, unless_set=True, connection=first)
            self.query = self._describe_query(first)
        finally:
            wait([opening])
        self.owner = opening.result()
        try:
            self._export()
            reader = "COMMIT", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", joining(self.id)
            self._lock(first, *reader, f"SET lock_timeout = '{_SECOND_LOCK_SECONDS:.0f}s'")
        except sa.exc.DBAPIError as exc:
            if sqlstate_of(exc) != LOCK_NOT_AVAILABLE or not again:
                raise
            self._sessions.close()
            return False
        self._spare.append(first)
        self._look()
        return True

    def _import(self, snapshot: str) -> None:
        """Lock on a connection that has imported the snapshot, then check that its holder was there until then."""
        try:
            first = self._sessions.open(_SECOND_LOCK_SECONDS)
            run_sql(first, joining(snapshot))
            self.query = self._describe_query(first)
            self.owner = self._sessions.open(_SECOND_LOCK_SECONDS)
            run_sql(self.owner, joining(snapshot))
        except sa.exc.DBAPIError as exc:
            if sqlstate_of(exc) not in _GONE or "SET TRANSACTION SNAPSHOT" not in str(exc.statement):
                raise
            raise SnapshotGone(
                f"The snapshot {snapshot} is no longer held: the transaction that exported it has ended.",
                "Take a new snapshot, and read everything again.",
            ) from None
        self._export()
        self._spare.append(first)
        self._look()

    def _export(self) -> None:
        """Lock and export on the owner."""
        about = "now(), pg_is_in_recovery(), current_setting('server_version')"
        exported = run_sql(self.owner, self.query.nothing(), f"SELECT pg_export_snapshot(), {about}")
        #: Of the snapshot, for others to import while this one is open.
        self.id: str
        self.id, taken_at, standby, version = exported.one()
        self.info = SnapshotInfo(taken_at, None, standby, version)

    def _lock(self, connection: sa.Connection, *before: str) -> None:
        run_sql(connection, *before, self.query.nothing()).close()

    def _look(self) -> None:
        """Look where the write-ahead log is."""
        position = "pg_last_wal_replay_lsn" if self.info.standby else "pg_current_wal_lsn"
        try:
            found = run_sql(self.owner, "SAVEPOINT position", f"SELECT {position}()::text").scalar_one()
            self.info = replace(self.info, wal_position=found)
        except sa.exc.DBAPIError:
            # Some hosted servers do not have the function, or restrict it.
            run_sql(self.owner, "ROLLBACK TO SAVEPOINT position")

    def server(self) -> str:
        """Where the rows come from, for the log."""
        info = driver_connection(self.owner).info
        kind = "standby" if self.info.standby else "primary"
        return (
            f"database {info.dbname} on {info.host}:{info.port} ({kind}, snapshot of {self.info.taken_at.isoformat()})"
        )

    def _close(self) -> None:
        self._sessions.end()
