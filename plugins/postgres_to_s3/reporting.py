"""Formats errors for Airflow's log view, which does not wrap lines and shows the traceback first."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException

from postgres_to_s3.arguments import named
from streaming_export import (
    AlreadyExists,
    DatabaseError,
    ExportError,
    InvalidArgument,
    LoginRefused,
    StoreError,
    TransactionsRunning,
    VerificationError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Characters per line that the log view shows without scrolling.
LINE = 100


def report(log: Any, exc: ExportError, *, postgres_conn_id: str | None, aws_conn_id: str | None) -> ExportError:
    """Log an error in short lines: the cause, what is published, what to do, which connection.

    :returns: the error to raise, without a traceback or a cause, since there is nothing to debug.
    """
    if isinstance(exc, InvalidArgument):
        exc = named(exc)
    if isinstance(exc, DatabaseError | TransactionsRunning):
        exc.connection = f"postgres_conn_id={postgres_conn_id!r}"
    elif isinstance(exc, StoreError | VerificationError | AlreadyExists):
        exc.connection = f"aws_conn_id={aws_conn_id!r}"
    if isinstance(exc, LoginRefused):
        exc.remedy = f"Correct the login of {postgres_conn_id}."
    for line in lines(exc):
        log.error("%s", line)
    log.debug("Where it was raised:", exc_info=exc)
    exc.__cause__, exc.__suppress_context__ = None, True
    return exc.with_traceback(None)


class Readable:
    """A block whose errors are logged as `report` does, and raised without a traceback.

    This applies to `ExportError` and `AirflowFailException`; other errors are raised unchanged.

    :param before: gets an `ExportError` before it is logged.
    """

    def __init__(
        self,
        log: Any,
        before: Callable[[ExportError], None] | None = None,
        *,
        postgres_conn_id: str | None = None,
        aws_conn_id: str | None = None,
    ) -> None:
        self._log = log
        self._before = before
        self._connections = {"postgres_conn_id": postgres_conn_id, "aws_conn_id": aws_conn_id}

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if isinstance(exc, ExportError):
            if self._before:
                self._before(exc)
            raise report(self._log, exc, **self._connections) from None
        if isinstance(exc, AirflowFailException):
            for line in lines(exc):
                self._log.error("%s", line)
            raise exc.with_traceback(None) from None


def lines(exc: Exception) -> Iterator[str]:
    """The text of an error, in lines of at most `LINE` characters."""
    for line in str(exc).splitlines():
        yield from textwrap.wrap(line, LINE, break_long_words=False, break_on_hyphens=False)
