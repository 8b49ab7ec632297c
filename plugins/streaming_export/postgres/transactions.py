"""Waits until no transaction that began before a point in time is still running.

now() is the time at which a transaction began, but others see its rows only after the commit: a row of yesterday can
appear today. The rows of a window are complete once all transactions that began before its end have ended.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from streaming_export.cancellation import Stop
from streaming_export.errors import TransactionsRunning
from streaming_export.postgres.errors import translated
from streaming_export.postgres.sessions import unpooled

log = logging.getLogger(__name__)

_LOG_SECONDS = 30.0
_PAUSE_SECONDS = 0.5

# Without pg_read_all_stats, a role sees only that other sessions exist; with track_activities off, nobody sees more
# (PostgreSQL manual, 27.2.3 "pg_stat_activity"). The excluded backend types never write rows of tables. The interval of
# one second is for a transaction that has its time already, but is not shown yet.
_RUNNING = sa.text(
    """
    SELECT pg_is_in_recovery() AS standby,
           clock_timestamp() AS now,
           clock_timestamp() < :end + interval '1 second' AS early,
           count(*) FILTER (WHERE xact_start < :end) AS running,
           array_agg(pid ORDER BY xact_start) FILTER (WHERE xact_start < :end) AS pids,
           min(xact_start) AS oldest,
           count(*) FILTER (WHERE state = 'disabled' OR query = '<insufficient privilege>') AS hidden,
           (SELECT count(*) FROM pg_prepared_xacts
            WHERE database = current_database() AND prepared <= cast(:settled AS timestamptz)) AS prepared
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
      AND coalesce(backend_type, '') NOT IN ('autovacuum worker', 'walsender', 'parallel worker')
    """
)


class Wait(NamedTuple):
    """How a wait for older transactions ended.

    :param seconds: how long it took.
    :param unseen: describes the transactions that could not be seen, and may still be running; None if there are none.
    """

    seconds: float
    unseen: str | None


def wait_for_older(
    engine: sa.Engine, window: tuple[str, str] | None, timeout: float | None, application_name: str, stop: Stop
) -> Wait | None:
    """Return when the server's clock is past the window's end and no transaction that began before it is running.

    :param window: begin and end, in ISO 8601; None: there is nothing to wait for.
    :param timeout: seconds; 0 only looks, None does not even look.
    :returns: None if it did not look.
    :param application_name: what ``pg_stat_activity`` shows.
    :param stop: ends the wait when it is set.
    :raises TransactionsRunning: if some are still running after `timeout`.
    :raises DatabaseError: if Postgres fails.
    """
    if window is None or timeout is None:
        return None
    started, end = time.monotonic(), datetime.fromisoformat(window[1])
    reported = None
    # The server reports when a transaction was prepared, not when it began, so every prepared one may be older. Once no
    # session runs an older transaction, those that are prepared later are not.
    settled: datetime | str = "infinity"
    # AUTOCOMMIT, because within one transaction the answer would stay the same.
    own = unpooled(engine).execution_options(isolation_level="AUTOCOMMIT")
    with translated("looking for transactions"), own.connect() as connection:
        connection.execute(sa.select(sa.func.set_config("application_name", application_name, False)))
        while True:
            found = connection.execute(_RUNNING, {"end": end, "settled": settled}).one()
            seconds = time.monotonic() - started
            if not found.early and (found.standby or not (found.running or found.prepared)):
                return _ended(found, end, seconds)
            if settled == "infinity" and not (found.early or found.running):
                settled = found.now
            told = _told(found, end)
            if seconds >= timeout:
                raise TransactionsRunning(
                    f"{told} Waited {seconds:.0f} s. The rows that they commit later would be missing for good.",
                    "Retry later, or wait longer. pg_stat_activity and pg_prepared_xacts show them: end those that are"
                    " stuck.",
                )
            if reported is None or time.monotonic() - reported > _LOG_SECONDS:
                reported = time.monotonic()
                log.info("%s Waiting for at most %.0f s.", told, timeout - seconds)
            stop.sleep(_PAUSE_SECONDS)


def _told(found: sa.Row[Any], end: datetime) -> str:
    if found.running:
        pids = ", ".join(map(str, found.pids[:5])) + (", …" if found.running > 5 else "")
        since = found.oldest.isoformat(timespec="seconds")
        return (
            f"{found.running} transactions that began before {end.isoformat()} are still running (pid {pids}; the"
            f" oldest since {since})."
        )
    if found.early:
        return f"The server's clock has not reached {end.isoformat()} yet."
    return f"{found.prepared} prepared transactions are neither committed nor rolled back yet."


def _ended(found: sa.Row[Any], end: datetime, seconds: float) -> Wait:
    unseen = None
    if found.standby:
        unseen = "all: a standby does not show the transactions of its primary"
    elif found.hidden:
        unseen = f"those of {found.hidden} sessions of other roles: the role lacks pg_read_all_stats"
    if unseen:
        log.warning(
            "Can't see every transaction that began before %s (%s). Rows that they commit later will be missing.",
            end.isoformat(),
            unseen,
        )
    else:
        log.info("No transaction that began before %s is running (waited %.1f s).", end.isoformat(), seconds)
    return Wait(round(seconds, 3), unseen)
