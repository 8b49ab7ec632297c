"""What can go wrong in an export, and in loading one.

ExportError                    base of everything that this package raises on purpose
├── InvalidArgument            an argument was refused before any row was read (also a ValueError)
├── QueryError                 Postgres refused the query, or failed while it was read
├── TransactionsRunning        transactions that began before the window's end do not end
├── EmptyResult                the query returned no rows and on_empty is "fail"
├── UploadError                the object store refused the object, or failed while it was written
│   └── UploadAborted          the upload was aborted from outside (raised as ExportCancelled by export())
├── VerificationError          what was read, sent and stored do not agree
└── ExportCancelled            the export was stopped from outside

IngestError                    base of everything that loading an export raises on purpose
├── ManifestError              what the manifest says can't be used
│   ├── ManifestMissing        it does not exist
│   ├── ManifestInvalid        it is truncated, or contradicts its schema or itself
│   ├── ManifestTooNew         it is of a version that this program does not know
│   └── ForeignBucket          it is in, or names an object of, another bucket than the one that was told
├── ObjectChanged              an object is no longer the one that the manifest describes
├── ColumnsChanged             the columns of the table and of the export differ
├── StoreError                 the object store failed while it was read
└── LoadError                  the analytics database refused the rows, or failed

The message of each says what happened, what was published and what to do. It never holds a value of a
row, a bind value or a credential.
"""

from __future__ import annotations

import re
from typing import Any

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


class TransactionsRunning(ExportError):
    """Transactions that began before the window's end were still running after the wait; nothing was published."""


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


class UploadAborted(UploadError):
    """The upload was aborted from outside before it was complete; nothing was published."""


class VerificationError(ExportError):
    """What was read, sent and stored do not agree."""


class ExportCancelled(ExportError):
    """The export was stopped from outside before its object was complete; nothing was published."""


class IngestError(Exception):
    """Base of all errors of loading an export; nothing was loaded."""


class ManifestError(IngestError):
    """What the manifest says can't be used."""


class ManifestMissing(ManifestError):
    """There is no manifest at the URL."""


class ManifestInvalid(ManifestError):
    """The manifest is truncated, or contradicts its schema or itself."""


class ManifestTooNew(ManifestError):
    """The manifest is of a version that this program does not know."""


class ForeignBucket(ManifestError):
    """The manifest is in another bucket than the one that was told, or names an object of another."""


class ObjectChanged(IngestError):
    """An object is no longer the one that the manifest describes."""


class ColumnsChanged(IngestError):
    """The columns of the table and of the export differ."""


class StoreError(IngestError):
    """The object store failed while it was read.

    :param message: what happened and what to do.
    :param code: the store's error code (``AccessDenied``, …), if it sent one.
    """

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class LoadError(IngestError):
    """The analytics database refused the rows, or failed.

    :param message: what happened and what to do.
    :param sqlstate: the error's SQLSTATE, if the server sent one.
    """

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


# Classes of SQLSTATE whose messages quote values of rows or parameters, as in: invalid input syntax for type
# integer: "jane@example.com" (PostgreSQL manual, appendix A: data exception, integrity violation, PL/pgSQL).
_TELLING_CLASSES = ("22", "23", "P0")

# What to do about an error that the server's own message does not explain, by SQLSTATE. A standby cancels a query
# with 40001, and ends a session with 57P01, when it has to remove what is read (PostgreSQL manual, 26.4.2
# "Handling Query Conflicts"); a transaction that only reads meets 40001 nowhere else.
_CONFLICT = (
    "a standby that must remove what is being read: retry, and if it comes again, set max_standby_streaming_delay to"
    " more than an export takes or hot_standby_feedback to on, or read from the primary"
)
_REMEDIES = {
    "40001": f"This is {_CONFLICT}",
    "57P01": f"The server is stopping, an administrator ended the session, or it is {_CONFLICT}",
    "57014": "statement_timeout of the server or the role, or an administrator, ended it: raise the time-out",
    "53100": "The server's disk is full, of a sort perhaps: an index on unique_key spares it",
    "53400": "A sort needs more disk than temp_file_limit allows: raise it, or spare it by an index on unique_key",
    "53300": "Retry when others have ended theirs, or raise max_connections, or the role's limit",
    "55P03": "Somebody holds a lock on what is read, or waits for one (pg_locks shows who): retry when it is released",
    "42501": "Grant the role of the connection what it lacks",
    "42P01": "Correct the query, or restore what it names, and export again",
    "42703": "Correct the query, or restore what it names, and export again",
}
_PASSING_REMEDY = "It may pass by itself: retry"

# The same of an object store, by its code (Amazon S3 API Reference, "Error responses") or botocore's exception.
_GRANT = (
    "Grant the role of the connection s3:PutObject, s3:GetObject and s3:AbortMultipartUpload on the key, and"
    " s3:ListBucket on the bucket, and kms:GenerateDataKey and kms:Decrypt where it is encrypted by KMS"
)
_CREDENTIALS = "Correct the credentials of the connection"
_STORE_REMEDIES = {
    "NoSuchBucket": "Create the bucket, or correct its name",
    "AccessDenied": _GRANT,
    "403": _GRANT,
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "NoCredentialsError": _CREDENTIALS,
    "ExpiredToken": "Retry with new credentials (renew them if somebody has to), and have them outlive an export",
    "NoSuchUpload": "See whether two runs write to this key, or a lifecycle rule ends uploads early, and export again",
    "EntityTooLarge": "Export fewer rows or columns, or split the file by max_file_bytes",
    "SlowDown": "The store is busy: retry, or have fewer exports run at a time",
    "EndpointConnectionError": "See whether the store is up, and the connection's endpoint is right: then retry",
}


# Failures that may pass by themselves, by SQLSTATE or its class (PostgreSQL manual, appendix A): connection,
# resources, deadlock and conflict with recovery, lock, cancelled statement, shutdown, I/O.
_PASSING_SQLSTATES = ("08", "53", "40", "55P03", "57014", "57P01", "57P02", "57P03", "57P05", "58")

# The same of object stores (Amazon S3 API Reference, "Error responses"), beside their statuses 5xx and what botocore
# raises itself. A token that has expired is a new one in the next try.
_PASSING_CODES = {
    *("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "429"),
    *("InternalError", "ServiceUnavailable", "OperationAborted", "RequestTimeout", "BadDigest", "ExpiredToken"),
    *("500", "502"),
    *("503", "504", "IncompleteReadError", "ConnectTimeoutError", "ReadTimeoutError", "EndpointConnectionError"),
    *("ConnectionClosedError", "ConnectionError", "HTTPClientError", "ResponseStreamingError", "SSLError"),
    *("ProxyConnectionError", "CredentialRetrievalError", "MetadataRetrievalError"),
}


def retry_helps(exc: BaseException) -> bool | None:
    """Whether the same export, or load, may succeed if it is tried again; None if that is not for us to say.

    Errors without a code come from the network: libpq gives none for a connection that fails or is lost. It gives
    none for a login that is refused either, and words that in the server's language; so that counts as passing.
    """
    if isinstance(exc, QueryError | LoadError):
        return exc.sqlstate is None or exc.sqlstate.startswith(_PASSING_SQLSTATES)
    if isinstance(exc, UploadError | StoreError):
        return exc.code is None or exc.code in _PASSING_CODES
    if isinstance(exc, TransactionsRunning | ObjectChanged):
        return True
    if isinstance(exc, ExportCancelled):
        return None  # A worker that is shut down stops an export in the same way as a person.
    return False if isinstance(exc, ExportError | IngestError) else None


def query_error(doing: str, exc: BaseException) -> QueryError:
    """Translate a driver's error into one that may be logged.

    :param doing: what was being done, as in "running the query".
    """
    message, sqlstate = _server_message(exc)
    error = QueryError(f"Postgres failed while {doing}: {message}. Nothing was published.", sqlstate)
    default = _PASSING_REMEDY if retry_helps(error) else "Correct the query, and export again"
    return QueryError(f"{error} {_REMEDIES.get(sqlstate or '', default)}.", sqlstate)


def upload_error(doing: str, code: str, reason: str, state: str) -> UploadError:
    """An error of the object store, with what to do about it.

    :param doing: what was being done, and to what, as in "completing s3://…".
    :param code: the store's code, or the name of botocore's exception.
    :param reason: the code, with the store's message.
    :param state: what is published.
    """
    passing = code in _PASSING_CODES
    default = _PASSING_REMEDY if passing else "It will come again until somebody mends its cause: then export again"
    remedy = _STORE_REMEDIES.get(code, default)
    # The store's message may be a sentence with an end of its own.
    return UploadError(f"The object store failed while {doing}: {reason.rstrip('.')}. {state}. {remedy}.", code)


def load_error(doing: str, exc: BaseException) -> LoadError:
    """Translate a driver's error while an export is loaded into one that may be logged.

    :param doing: what was being done, as in "loading s3://…".
    """
    message, sqlstate = _server_message(exc)
    return LoadError(f"Postgres failed while {doing}: {message}. Nothing was loaded; retrying is safe.", sqlstate)


def _server_message(exc: BaseException) -> tuple[str, str | None]:
    """What an error may be logged as, and its SQLSTATE.

    Only the server's primary message and SQLSTATE are kept: DETAIL, CONTEXT and the line of SQL that
    libpq appends can hold row values and bind values.
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
    elif not _points_at_a_name(exc, diag):
        message = re.sub('".*"', '"…"', message, flags=re.DOTALL)
    return f"{message} (SQLSTATE {sqlstate})" if sqlstate else message, sqlstate


def _points_at_a_name(exc: BaseException, diag: Any) -> bool:
    """Whether the error is about a word of the query's text other than a literal: a filled-in parameter is one."""
    statement = exc.statement if isinstance(exc, DBAPIError) else None
    position = getattr(diag, "statement_position", None)
    if not statement or not position:
        return False
    return not re.match(r"[eE]?'|[-+.\d]", statement[int(position) - 1 :])
