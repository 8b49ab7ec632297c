"""SQLSTATE → error. A stub, until the Postgres half is there."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError

from streaming_export.errors import DatabaseError


def database_error(doing: str, exc: BaseException) -> DatabaseError:
    """Translate a driver's error into one that may be logged.

    :param doing: what was being done, as in "loading s3://…".
    """
    cause = exc.orig if isinstance(exc, DBAPIError) and exc.orig is not None else exc
    sqlstate = getattr(getattr(cause, "diag", None), "sqlstate", None)
    transient = sqlstate is None or sqlstate.startswith(("08", "53", "40", "55P03", "57014", "57P0", "58"))
    return DatabaseError(f"Postgres failed while {doing}: {type(cause).__name__}.", "", sqlstate=sqlstate, transient=transient)
