"""The errors of an export, and of reading one.

ExportError                    base of all errors that this project raises
├── InvalidArgument            an argument was refused before any row was read (also a ValueError)
├── DatabaseError              Postgres refused a statement, failed, or can't be reached
│   └── LoginRefused           the server refused the login
├── SnapshotGone               the snapshot to read on is no longer held
├── TransactionsRunning        transactions that began before the window's end are still running after the wait
├── EmptyResult                the query returned no rows and on_empty is "fail"
├── StoreError                 the object store refused a request, failed, or can't be reached
├── AlreadyExists              an object or the manifest exists and overwrite is False
├── VerificationError          rows or bytes read, sent and stored do not match
│   └── Superseded             another export to the same key replaced this one's files
├── ExportCancelled            the export was stopped from outside
└── ManifestError              a manifest can't be used
    ├── ManifestMissing        it does not exist
    ├── ManifestInvalid        it is truncated, contradicts its schema or itself, or is no manifest
    ├── ManifestTooNew         its version is newer than this program
    ├── ForeignBucket          it is in a bucket that is not allowed, or names an object in another bucket
    └── ObjectChanged          an object is no longer the one that the manifest describes

An error says what failed and what to do; `ExportError.during` adds what is visible. No message holds a value of a row,
the value of a parameter, or a credential.
"""

from __future__ import annotations


class ExportError(Exception):
    """Base of all errors. Its text has a line each for what failed, what is visible, what to do, and the connection.

    :param failed: what failed, in a sentence.
    :param remedy: what to do, in sentences.
    :param transient: whether a retry may succeed; None if unknown.
    """

    transient: bool | None = False

    def __init__(self, failed: str, remedy: str = "", *, transient: bool | None = None) -> None:
        super().__init__(failed)
        self.failed = failed
        self.remedy = remedy
        if transient is not None:
            self.transient = transient
        #: Whether anything new is visible: True, False, or None if unknown.
        self.published: bool | None = False
        #: What is visible, in a sentence; empty until `during` is called.
        self.state = ""
        #: The connection that failed, such as "postgres_conn_id='orders_db'"; empty if unknown.
        self.connection = ""

    def during(self, state: str, published: bool | None = False) -> None:
        """Say what is visible, unless the error says so already."""
        if not self.state:
            self.state, self.published = state, published

    def __str__(self) -> str:
        connection = f"Connection: {self.connection}." if self.connection else ""
        return "\n".join(line for line in (self.failed, self.state, self.remedy, connection) if line)


class InvalidArgument(ExportError, ValueError):
    """An argument was refused; nothing was read and nothing was written.

    :param argument: name of the argument.
    :param value: what was given.
    :param allowed: a description of what is allowed.
    """

    def __init__(self, argument: str, value: object, allowed: str) -> None:
        super().__init__(f"{argument}={value!r} is not allowed: {allowed}.")
        self.during("Nothing was read or written.")
        self.argument = argument
        self.value = value
        self.allowed = allowed


class DatabaseError(ExportError):
    """Postgres refused a statement, failed, or can't be reached.

    :param sqlstate: the error's SQLSTATE (PostgreSQL manual, appendix A); None if the server sent none.
    """

    def __init__(self, failed: str, remedy: str, *, sqlstate: str | None = None, transient: bool = False) -> None:
        super().__init__(failed, remedy, transient=transient)
        self.sqlstate = sqlstate


class LoginRefused(DatabaseError):
    """The server refused the login: user, password or database name is wrong, or the user may not connect."""


class SnapshotGone(ExportError):
    """The snapshot to read on is no longer held: take a new one, and read everything again."""


class TransactionsRunning(ExportError):
    """Transactions that began before the window's end were still running after the wait."""

    transient = True


class EmptyResult(ExportError):
    """The query returned no rows and the caller asked for this to be an error."""


class StoreError(ExportError):
    """The object store refused a request, failed, or can't be reached.

    :param code: the store's error code (``AccessDenied``, ``NoSuchBucket``, …), or the name of botocore's exception.
    """

    def __init__(self, failed: str, remedy: str, *, code: str, transient: bool = False) -> None:
        super().__init__(failed, remedy, transient=transient)
        self.code = code


class AlreadyExists(ExportError):
    """An object exists, and `Options.overwrite` is False.

    :param url: URL of the object.
    :param what: its size and time, or when it appeared.
    """

    def __init__(self, url: str, what: str) -> None:
        super().__init__(
            f"{url} already exists ({what}), and overwrite is False.",
            "Remove it, export to another key, or set overwrite to True.",
        )


class VerificationError(ExportError):
    """Rows or bytes read, sent and stored do not match."""


class Superseded(VerificationError):
    """Another export to the same key replaced this one's files.

    :param failed: what was replaced, and when.
    """

    transient = True

    def __init__(self, failed: str) -> None:
        super().__init__(failed, "Check whether two runs write to this key; a retry replaces it.")


class ExportCancelled(ExportError):
    """The export was stopped from outside before its object was complete."""

    transient = None  # unknown: a person and a worker that shuts down stop an export in the same way


class ManifestError(ExportError):
    """A manifest can't be used."""


class ManifestMissing(ManifestError):
    """There is no manifest at the URL."""


class ManifestInvalid(ManifestError):
    """The manifest is truncated, contradicts its schema or itself, or is no manifest."""


class ManifestTooNew(ManifestError):
    """The manifest has a version that is newer than this program."""


class ForeignBucket(ManifestError):
    """The manifest is in a bucket that is not allowed, or names an object in another bucket."""


class ObjectChanged(ManifestError):
    """An object is no longer the one that the manifest describes."""

    transient = True
