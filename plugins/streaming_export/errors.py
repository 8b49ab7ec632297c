"""What can go wrong in an export.

ExportError                    base of everything that this package raises on purpose
├── InvalidArgument            an argument was refused before any row was read (also a ValueError)
├── QueryError                 Postgres refused the query, or failed while it was read
├── EmptyResult                the query returned no rows and on_empty is "fail"
├── UploadError                the object store refused the object, or failed while it was written
├── VerificationError          what was read, sent and stored do not agree
└── ExportCancelled            the export was stopped from outside

The message of each says what happened, what was published and what to do. It never holds a value of a
row, a bind value or a credential.
"""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError


class ExportError(Exception):
    """Base of all errors of an export."""


class InvalidArgument(ExportError, ValueError):
    """An argument was refused; nothing was read and nothing was written.

    :param argument: name of the argument.
    :param value: what was given.
    :param allowed: what would be accepted, in words.
    """

    def __init__(self, argument: str, value: object, allowed: str) -> None:
        super().__init__(f"{argument}={value!r} is not allowed: {allowed}. Nothing was read or written.")
        self.argument = argument
        self.value = value
        self.allowed = allowed


class QueryError(ExportError):
    """Postgres refused the query, or failed while its rows were read; nothing was published.

    :param message: what happened and what to do.
    :param sqlstate: the error's SQLSTATE (PostgreSQL manual, appendix A), if the server sent one.
    """

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class EmptyResult(ExportError):
    """The query returned no rows and the caller asked for this to be an error; nothing was published."""


class UploadError(ExportError):
    """The object store refused the object or failed.

    :param message: what happened, whether the object is visible, and what to do.
    :param code: the store's error code (``AccessDenied``, ``NoSuchBucket``, …), if it sent one.
    """

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class VerificationError(ExportError):
    """What was read, sent and stored do not agree."""


class ExportCancelled(ExportError):
    """The export was stopped from outside before its object was complete; nothing was published."""


# Classes of SQLSTATE whose messages quote values of rows or parameters, as in: invalid input syntax for type
# integer: "jane@example.com" (PostgreSQL manual, appendix A: data exception, integrity violation, PL/pgSQL).
_TELLING_CLASSES = ("22", "23", "P0")


def query_error(doing: str, exc: BaseException) -> QueryError:
    """Translate a driver's error into one that may be logged.

    Only the server's primary message and SQLSTATE are kept: DETAIL, CONTEXT and the line of SQL that
    libpq appends can hold row values and bind values.

    :param doing: what was being done, as in "running the query".
    """
    cause = exc.orig if isinstance(exc, DBAPIError) and exc.orig is not None else exc
    diag = getattr(cause, "diag", None)
    message = getattr(diag, "message_primary", None)
    sqlstate = getattr(diag, "sqlstate", None)
    if not message:
        # Not from the server, but from the driver or the network; libpq's first line says it.
        message = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    elif sqlstate and sqlstate.startswith(_TELLING_CLASSES):
        message = f"{type(cause).__name__} (the message is left out, since it may quote a value)"
    state = f" (SQLSTATE {sqlstate})" if sqlstate else ""
    return QueryError(f"Postgres failed while {doing}: {message}{state}. Nothing was published.", sqlstate)
