"""What can go wrong in an export, and in what reads one.

ExportError                    base of everything that this project raises on purpose
├── InvalidArgument            an argument was refused before any row was read (also a ValueError)
├── DatabaseError              Postgres refused a statement, failed, or is out of reach
│   └── LoginRefused           the server does not let the role in
├── SnapshotGone               the snapshot that was to be read on is no longer held
├── TransactionsRunning        transactions that began before the window's end do not end
├── EmptyResult                the query returned no rows and on_empty is "fail"
├── StoreError                 the object store refused a request, failed, or is out of reach
├── AlreadyExists              an object is there already and overwrite is False
├── VerificationError          what was read, sent and stored do not agree
│   └── Superseded             another export to the same key replaced this one's files
├── ExportCancelled            the export was stopped from outside
└── ManifestError              a manifest can't be used
    ├── ManifestMissing        it does not exist
    ├── ManifestInvalid        it is truncated, contradicts its schema or itself, or is no manifest at all
    ├── ManifestTooNew         its version is newer than this program
    ├── ForeignBucket          it is in another bucket than the one that is allowed, or names an object of another
    └── ObjectChanged          an object is no longer the one that the manifest describes

An error says what failed and what to do. Only the export knows what is visible by then: it says so in one place, by
`ExportError.during`. No message holds a value of a row, the value of a parameter or a credential.
"""

from __future__ import annotations


class ExportError(Exception):
    """Base of all errors; its text is three lines: what failed, what is visible, what to do. A fourth may say where.

    :param failed: what failed, in a sentence.
    :param remedy: what to do, in sentences.
    :param transient: whether the same may succeed when it is tried again; None if unknown.
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
        #: What is visible, in a sentence; empty until whoever knows has said it.
        self.state = ""
        #: Which connection it is about, in a few words; empty until whoever has opened it says so.
        self.connection = ""

    def during(self, state: str, published: bool | None = False) -> None:
        """Say what is visible, unless the error says so itself."""
        if not self.state:
            self.state, self.published = state, published

    def __str__(self) -> str:
        connection = f"Connection: {self.connection}." if self.connection else ""
        return "\n".join(line for line in (self.failed, self.state, self.remedy, connection) if line)


class InvalidArgument(ExportError, ValueError):
    """An argument was refused; nothing was read and nothing was written.

    :param argument: name of the argument.
    :param value: what was given.
    :param allowed: what would be accepted, in words.
    """

    def __init__(self, argument: str, value: object, allowed: str) -> None:
        super().__init__(f"{argument}={value!r} is not allowed: {allowed}.")
        self.during("Nothing was read or written.")
        self.argument = argument
        self.value = value
        self.allowed = allowed


class DatabaseError(ExportError):
    """Postgres refused a statement, failed, or is out of reach.

    :param sqlstate: the error's SQLSTATE (PostgreSQL manual, appendix A); None if the server sent none.
    """

    def __init__(self, failed: str, remedy: str, *, sqlstate: str | None = None, transient: bool = False) -> None:
        super().__init__(failed, remedy, transient=transient)
        self.sqlstate = sqlstate


class LoginRefused(DatabaseError):
    """The server does not let the role in: the login, or the database's name, is wrong."""


class SnapshotGone(ExportError):
    """The snapshot that was to be read on is no longer held: a new one has to be taken, and everything read anew."""


class TransactionsRunning(ExportError):
    """Transactions that began before the window's end were still running after the wait."""

    transient = True


class EmptyResult(ExportError):
    """The query returned no rows and the caller asked for this to be an error."""


class StoreError(ExportError):
    """The object store refused a request, failed, or is out of reach.

    :param code: the store's error code (``AccessDenied``, ``NoSuchBucket``, …), or the name of botocore's exception.
    """

    def __init__(self, failed: str, remedy: str, *, code: str, transient: bool = False) -> None:
        super().__init__(failed, remedy, transient=transient)
        self.code = code


class AlreadyExists(ExportError):
    """An object is there already, and `Options.overwrite` is False.

    :param url: of the object.
    :param what: is there, or when it came.
    """

    def __init__(self, url: str, what: str) -> None:
        super().__init__(
            f"{url} is there already ({what}), and overwrite is False.",
            "Leave it, or remove it, or export to another key, or allow overwrite.",
        )


class VerificationError(ExportError):
    """What was read, sent and stored do not agree."""


class Superseded(VerificationError):
    """Another export to the same key replaced this one's files."""


class ExportCancelled(ExportError):
    """The export was stopped from outside before its object was complete."""

    transient = None  # A worker that is shut down stops an export in the same way as a person.


class ManifestError(ExportError):
    """A manifest can't be used."""


class ManifestMissing(ManifestError):
    """There is no manifest at the URL."""


class ManifestInvalid(ManifestError):
    """The manifest is truncated, contradicts its schema or itself, or is no manifest at all."""


class ManifestTooNew(ManifestError):
    """The manifest is of a version that this program does not know."""


class ForeignBucket(ManifestError):
    """The manifest is in another bucket than the one that is allowed, or names an object of another."""


class ObjectChanged(ManifestError):
    """An object is no longer the one that the manifest describes."""

    transient = True
