"""Loads everything that is published and not loaded yet. It looks at the store, since events can be lost."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from datetime import timedelta

import psycopg2
import sqlalchemy as sa

from streaming_export import manifest, manifest_reader
from streaming_export.errors import ExportError, ManifestError, ManifestInvalid, ManifestMissing
from streaming_export.postgres.errors import database_error
from streaming_export.s3.bucket import Bucket
from streaming_export.s3.objects import ObjectInfo
from streaming_ingest.history import known, missing
from streaming_ingest.ingest import IngestResult, check_target, ingest

log = logging.getLogger(__name__)

# How far the clocks of database and store may differ. A snapshot from the future would make all later exports outdated.
_CLOCKS_DIFFER = timedelta(hours=1)

_NAMED = 20  # failures that an error names; the log has all


class NotAllLoaded(ExportError):
    """Some exports could not be loaded; all others were."""


class RowsGone(ExportError):
    """Rows that were loaded were removed or replaced by older ones, and can't be loaded again."""


def catch_up(
    prefixes: Sequence[str],
    *,
    engine: sa.Engine,
    bucket: Bucket,
    table: str,
    schema: str,
    add_columns: bool = False,
) -> list[IngestResult]:
    """Load every published export below the prefixes that is not in the table's history.

    The newest export of all rows comes first, which makes older ones outdated. Exports of windows follow, oldest
    snapshot first. An export that can't be loaded does not keep the others from being loaded. Each round lists the
    prefixes, and reads the manifests that are not in the history; rounds repeat until there is nothing new, so that
    exports published meanwhile are loaded too.

    The other parameters are those of `ingest`.

    :param prefixes: prefixes of keys; every manifest below them must be of an export for this table.
    :returns: the outcome of each export that was not in the history.
    :raises NotAllLoaded: at the end, naming the exports that could not be loaded.
    :raises StoreError: if the store failed transiently; what was loaded stays.
    :raises DatabaseError: if the database failed transiently; what was loaded stays.
    """
    check_target(engine, table, schema)
    results: list[IngestResult] = []
    search = _Search(bucket, prefixes)
    while pending := search.pending(_known(engine, schema, table)):
        log.info("%s manifests are new.", f"{len(pending):,}")
        for url in pending:
            with search.failures(url):
                result = ingest(url, engine=engine, bucket=bucket, table=table, schema=schema, add_columns=add_columns)
                results.append(result)
                search.again(result.load_again)
    with _reading(schema, table, "What this run could load is loaded."):
        gone = missing(engine, schema, table)
    search.raise_failures(len(results), gone)
    return results


class _Search:
    """Finds manifests; remembers which it has seen, and which could not be loaded.

    :param prefixes: prefixes of keys.
    """

    def __init__(self, bucket: Bucket, prefixes: Sequence[str]) -> None:
        self._bucket = bucket
        self._prefixes = prefixes
        self._seen: dict[str, str] = {}
        self._failed: dict[str, ExportError] = {}

    def pending(self, done: set[tuple[str, str]]) -> list[str]:
        """URLs of the manifests to load, in the order in which to load them.

        :param done: URL and ETag of those that need not be read.
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
        """Load these windows again: an older export has removed or changed their rows."""
        for url in urls:
            self._seen.pop(url, None)

    @contextlib.contextmanager
    def failures(self, url: str) -> Iterator[None]:
        """Keep an error of one manifest for the end; raise an error that all would meet."""
        self._failed.pop(url, None)
        try:
            yield
        except ManifestMissing:  # removed since it was listed: it is not published
            log.info("%s is gone.", url)
            self._seen.pop(url, None)
        except ExportError as exc:
            if exc.transient and not isinstance(exc, ManifestError):
                raise
            log.error("%s was not loaded. %s", url, exc)
            self._failed[url] = exc

    def raise_failures(self, loaded: int, gone: Sequence[str]) -> None:
        """Raise an error that names the manifests that failed, if any did.

        :param loaded: number of exports that were loaded.
        :param gone: manifests of windows whose rows are missing or older.
        """
        for url in (url for url in gone if url not in self._seen):
            with self.failures(url):
                raise RowsGone(
                    f"{url} is gone or replaced, and an older export, which came later, has removed or changed its"
                    " rows.",
                    "Export all rows again.",
                )
        if not self._failed:
            return
        named = [f"{url}: {exc.failed}" for url, exc in self._failed.items()]
        more = [f"and {len(named) - _NAMED} more"] if len(named) > _NAMED else []
        error = NotAllLoaded(
            "\n".join([f"{len(named)} exports could not be loaded.", *named[:_NAMED], *more]),
            "The log says what to do about each. Export it again, or remove its manifest; the next run loads the rest.",
            transient=any(exc.transient for exc in self._failed.values()),
        )
        error.during(f"All other exports are loaded, {loaded} of them by this run.", True)
        raise error

    def _listed(self) -> Iterator[ObjectInfo]:
        suffix = manifest.manifest_key("")
        for prefix in self._prefixes:
            yield from (listed for listed in self._bucket.list(prefix) if listed.key.endswith(suffix))


def _read(bucket: Bucket, url: str, listed: ObjectInfo) -> manifest_reader.Manifest:
    read = manifest_reader.read(bucket, url)
    if read.taken_at > listed.modified + _CLOCKS_DIFFER:
        later = f"its snapshot ({read.taken_at}) is later than the manifest itself ({listed.modified})"
        raise ManifestInvalid(f"The manifest {url} can't be used: {later}.", "Export again to replace it.")
    return read


def _known(engine: sa.Engine, schema: str, table: str) -> set[tuple[str, str]]:
    with _reading(schema, table):
        return known(engine, schema, table)


@contextlib.contextmanager
def _reading(schema: str, table: str, state: str = "Nothing was loaded.") -> Iterator[None]:
    try:
        yield
    except (sa.exc.DBAPIError, psycopg2.Error) as exc:
        error = database_error(f"reading what was loaded into {schema}.{table}", exc)
        error.during(state)
        raise error from None
