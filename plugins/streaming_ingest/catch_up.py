"""Loads whatever is published and not loaded yet: what was lost of the events, a look at the store finds."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from datetime import timedelta

import psycopg2
import sqlalchemy as sa

from streaming_export import manifest
from streaming_export.errors import ExportError, ManifestError, ManifestInvalid, ManifestMissing
from streaming_export.postgres.errors import database_error
from streaming_export.s3.bucket import Bucket
from streaming_export.s3.objects import Listed
from streaming_ingest.history import known
from streaming_ingest.ingest import IngestResult, check_target, ingest

log = logging.getLogger(__name__)

# An export of 100,000 files has one of 60 MB; what is larger is not read into memory.
_MAX_MANIFEST_BYTES = 100 * 2**20

# By which the clocks of database and store may differ. A snapshot of the future would outdate all exports to come.
_CLOCKS_DIFFER = timedelta(hours=1)

_NAMED = 20  # failures by name in an error; the log has all


class NotAllLoaded(ExportError):
    """Some exports could not be loaded; all others were."""


def catch_up(
    prefixes: Sequence[str],
    *,
    engine: sa.Engine,
    bucket: Bucket,
    table: str,
    schema: str,
    add_columns: bool = False,
) -> list[IngestResult]:
    """Load every published export below some prefixes that the table's history does not know.

    Of exports of all rows, the newest comes first: those before it are outdated then. Exports of windows follow, oldest
    snapshot first. It looks again until there is nothing new, so that what is published meanwhile is loaded, too. What
    can't be loaded holds up nothing else. A look lists the prefixes, and reads the manifests that are not known.

    :param prefixes: of keys; every manifest below them is taken for one of the table's.
    :param bucket: likewise, see `ingest` for it and all others.
    :returns: what became of each export that was not known.
    :raises NotAllLoaded: at the end, naming the exports that could not be loaded.
    :raises StoreError: if the store failed, and may work again: what was loaded stays.
    :raises DatabaseError: likewise.
    """
    check_target(engine, table, schema)
    results: list[IngestResult] = []
    look = _Look(bucket, prefixes)
    while pending := look.pending(_known(engine, schema, table)):
        log.info("%s manifests are new.", f"{len(pending):,}")
        for url in pending:
            with look.failures(url):
                result = ingest(url, engine=engine, bucket=bucket, table=table, schema=schema, add_columns=add_columns)
                results.append(result)
                look.again(result.load_again)
    look.complain(len(results))
    return results


class _Look:
    """Looks for manifests, and keeps what it has seen of them.

    :param prefixes: of keys.
    """

    def __init__(self, bucket: Bucket, prefixes: Sequence[str]) -> None:
        self._bucket = bucket
        self._prefixes = prefixes
        self._seen: dict[str, str] = {}
        self._failed: dict[str, ExportError] = {}

    def pending(self, done: set[tuple[str, str]]) -> list[str]:
        """URLs of the manifests to load, in the order to load them in.

        :param done: URL and ETag of those that need no look.
        """
        found: list[tuple[bool, float, str]] = []
        for listed in self._listed():
            url = self._bucket.url(listed.key)
            if (url, listed.etag) in done or self._seen.get(url) == listed.etag:
                continue
            self._seen[url] = listed.etag
            with self.failures(url):
                read = _read(self._bucket, url, listed)
                seconds = read.taken_at.timestamp()
                found.append((read.window is not None, seconds if read.window else -seconds, url))
        return [url for *_, url in sorted(found)]

    def again(self, urls: Sequence[str]) -> None:
        """Take windows for new whose rows an export of all rows has taken away."""
        for url in urls:
            self._seen.pop(url, None)

    @contextlib.contextmanager
    def failures(self, url: str) -> Iterator[None]:
        """Keep the error of one manifest for the end; raise what would be the error of all."""
        self._failed.pop(url, None)
        try:
            yield
        except ManifestMissing:  # removed since it was listed: it is not published
            log.info("%s is gone.", url)
        except ExportError as exc:
            if exc.transient and not isinstance(exc, ManifestError):
                raise
            log.error("%s was not loaded. %s", url, exc)
            self._failed[url] = exc

    def complain(self, loaded: int) -> None:
        """Raise the error of those that failed, if any did."""
        if not self._failed:
            return
        named = [f"{url}: {exc.failed}" for url, exc in self._failed.items()]
        more = [f"and {len(named) - _NAMED} more"] if len(named) > _NAMED else []
        error = NotAllLoaded(
            "\n".join([f"{len(named)} exports could not be loaded.", *named[:_NAMED], *more]),
            "The log says of each what to do. Export again what is broken, or remove its manifest; the next run loads"
            " what is left.",
            transient=any(exc.transient for exc in self._failed.values()),
        )
        error.during(f"All other exports are loaded, {loaded} of them by this run.", True)
        raise error

    def _listed(self) -> Iterator[Listed]:
        suffix = manifest.manifest_key("")
        for prefix in self._prefixes:
            yield from (listed for listed in self._bucket.list(prefix) if listed.key.endswith(suffix))


def _read(bucket: Bucket, url: str, listed: Listed) -> manifest.Manifest:
    if listed.size > _MAX_MANIFEST_BYTES:
        raise _unusable(url, f"it has {listed.size:,} bytes, and none has more than {_MAX_MANIFEST_BYTES:,}")
    read = manifest.read(bucket, url)
    if read.taken_at > listed.modified + _CLOCKS_DIFFER:
        raise _unusable(url, f"its snapshot, of {read.taken_at}, is later than itself, of {listed.modified}")
    return read


def _unusable(url: str, why: str) -> ManifestInvalid:
    return ManifestInvalid(f"The manifest {url} can't be used: {why}.", "Export again, which replaces it.")


def _known(engine: sa.Engine, schema: str, table: str) -> set[tuple[str, str]]:
    try:
        return known(engine, schema, table)
    except (sa.exc.DBAPIError, psycopg2.Error) as exc:
        error = database_error(f"reading what was loaded into {schema}.{table}", exc)
        error.during("Nothing was loaded.")
        raise error from None
