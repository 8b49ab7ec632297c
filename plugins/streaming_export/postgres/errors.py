"""Errors of the driver and the server → errors that may be logged: SQLSTATE, transient or not, what to do."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import psycopg2
from sqlalchemy.exc import DBAPIError

from streaming_export.errors import DatabaseError, LoginRefused

# Transient failures, by SQLSTATE or its class (PostgreSQL manual, appendix A): connection, resources, deadlock and
# conflict with recovery, lock, cancelled statement, shutdown, I/O.
TRANSIENT = ("08", "53", "40", "55P03", "57014", "57P01", "57P02", "57P03", "57P05", "58")

# What to do, by SQLSTATE, where the server's own message does not say it. A standby cancels a query with 40001, and
# ends a session with 57P01, if it has to remove rows that are being read (PostgreSQL manual, 26.4.2 "Handling Query
# Conflicts"). A transaction that only reads gets 40001 nowhere else.
_CONFLICT = (
    "a standby had to remove rows that were being read. Retry. If it happens again, set max_standby_streaming_delay to"
    " more than an export takes or hot_standby_feedback to on, or read from the primary"
)
_CORRECT = "Correct the query, or restore what it names, and export again"
REMEDIES = {
    "40001": f"The cause: {_CONFLICT}",
    "57P01": f"The server is stopping, an administrator ended the session, or {_CONFLICT}",
    "57014": (
        "The statement_timeout of the server or the role, or an administrator, ended it: raise the time-out. It keeps"
        " running while the export waits for a slow store"
    ),
    "53100": "The server's disk is full, perhaps because of a sort: an index on unique_key avoids it",
    "53400": "A sort needs more disk than temp_file_limit allows: raise it, or create an index on unique_key",
    "53300": "Retry when other sessions have ended, or raise max_connections or the role's limit",
    "55P03": (
        "Another session holds a lock on a table of the query, such as a reload or an ALTER, or waits for one (pg_locks"
        " and pg_blocking_pids() show which): retry when it is released"
    ),
    "42501": "Grant the role of the connection the privilege that it lacks",
    "42P01": _CORRECT,
    "42703": _CORRECT,
}
_TRANSIENT_REMEDY = "It may be temporary: retry"

# What psycopg2 says when a connection ends in the middle of COPY.
_LOST_IN_COPY = "no message from the libpq"
_LOST = "the connection was lost in the middle of COPY"
_LOST_REMEDY = (
    "Retry. The network ended it, or the connection's tcp_user_timeout did, which keeps running while the export waits"
    " for a slow store: raise it"
)

# libpq gives no SQLSTATE while it connects. In every language, the server's answer follows a severity, a colon and two
# spaces (fe-protocol3.c, pqBuildErrorMessage3); an error of the network does not.
_NOT_CONNECTED = re.compile(r"connection to server (?:at|on) (?P<server>.+?) failed: (?P<why>.*)")
_ANSWER = re.compile(r"[^\s:]+:  (.*)")

# Answers that a retry does not change, as the server (postmaster.c, auth.c, postinit.c) and PgBouncer write them in
# English. In another language (lc_messages) they look like a server that is starting or full, and are retried.
_LOGIN_REFUSED = re.compile(
    r"\w+ authentication failed|no pg_hba\.conf entry|pg_hba\.conf rejects|is not permitted to log in"
    r"|(?:role|database) \".*\" does not exist|permission denied for database|no such (?:user|database)"
)
_NO_PASSWORD = "no password supplied"  # libpq's own  # noqa: S105

# What libpq says, before it connects, of an option that it does not know, or that has a wrong value.
_BAD_OPTION = re.compile(r"invalid (?:dsn|\w+ value|port number)")

# Classes of SQLSTATE whose messages name objects, settings and limits (PostgreSQL manual, appendix A). Those of others
# may quote values of rows or parameters, as in: invalid input syntax for type integer: "jane@example.com".
_NAMING_CLASSES = ("08", "0A", "25", "26", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58", "72", "XX")

# The function of the server that sends what RAISE in PL/pgSQL says, under any SQLSTATE (pl_exec.c).
_RAISE = "exec_stmt_raise"


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raise `DatabaseError` instead of the errors of the driver and SQLAlchemy.

    :param doing: what is being done, as in "running the query".
    """
    try:
        yield
    except (DBAPIError, psycopg2.Error) as exc:
        # Not `from exc`: its text holds SQL, and may hold values of rows.
        raise database_error(doing, exc) from None


def database_error(doing: str, exc: BaseException) -> DatabaseError:
    """Translate an error of the driver into one that may be logged.

    :param doing: what was being done, as in "running the query".
    """
    message, sqlstate = _loggable_message(exc), sqlstate_of(exc)
    if sqlstate is None and (found := _NOT_CONNECTED.match(message)):
        return _not_connected(found["server"], found["why"])
    if sqlstate is None and _BAD_OPTION.match(message):
        return DatabaseError(f"Cannot connect to the database: {message}.", "Correct the extra of the connection.")
    transient = sqlstate is None or sqlstate.startswith(TRANSIENT)
    remedy = REMEDIES.get(sqlstate or "", _TRANSIENT_REMEDY if transient else "Correct the query, and export again")
    if sqlstate is None and _LOST_IN_COPY in message:
        message, remedy = _LOST, _LOST_REMEDY
    return DatabaseError(
        f"Postgres failed while {doing}: {message.rstrip('.')}.", f"{remedy}.", sqlstate=sqlstate, transient=transient
    )


def _not_connected(server: str, why: str) -> DatabaseError:
    """The error of a connection that failed: a refused login, or a transient failure."""
    answer = _ANSWER.match(why)
    reason = (answer[1] if answer else why).rstrip(". ")
    if _NO_PASSWORD in why or (answer and _LOGIN_REFUSED.search(reason)):
        return LoginRefused(f"The login was refused: {reason} (server {server}).", "Correct the login.")
    who = "The server takes no connection" if answer else "Cannot connect to the database"
    remedy = "Retry. If it happens again, check that the server is up and that host, port and firewall are right."
    return DatabaseError(f"{who}: {reason} (server {server}).", remedy, transient=True)


def sqlstate_of(exc: BaseException) -> str | None:
    """The SQLSTATE of an error of the driver or of SQLAlchemy; None if the server sent none."""
    state: str | None = getattr(getattr(_of_driver(exc), "diag", None), "sqlstate", None)
    return state


def _of_driver(exc: BaseException) -> BaseException:
    """The driver's error, which SQLAlchemy may have wrapped."""
    return exc.orig if isinstance(exc, DBAPIError) and exc.orig is not None else exc


def _loggable_message(exc: BaseException) -> str:
    """The message of an error, as it may be logged.

    Only the server's primary message and SQLSTATE are kept: DETAIL, CONTEXT and the line of SQL that libpq appends may
    contain values of rows and parameters.
    """
    cause, sqlstate = _of_driver(exc), sqlstate_of(exc)
    diag = getattr(cause, "diag", None)
    message: str | None = getattr(diag, "message_primary", None)
    if not message:
        # From the driver or the network, not from the server; the first line says what failed.
        message = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    elif sqlstate and (not sqlstate.startswith(_NAMING_CLASSES) or getattr(diag, "source_function", None) == _RAISE):
        message = f"{type(cause).__name__} (the message is left out, since it may quote a value)"
    elif not _points_at_a_name(exc, diag):
        message = re.sub('".*"', '"…"', message, flags=re.DOTALL)
    return f"{message} (SQLSTATE {sqlstate})" if sqlstate else message


def _points_at_a_name(exc: BaseException, diag: Any) -> bool:
    """Whether the error points at a name in the query, not at a literal, which may be a parameter's value."""
    statement = exc.statement if isinstance(exc, DBAPIError) else None
    position = getattr(diag, "statement_position", None)
    if not statement or not position:
        return False
    return not re.match(r"[eE]?'|[-+.\d]", statement[int(position) - 1 :])
