"""The exports in the bucket, by their manifests: listed at most once a minute, read only when they are shown."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import PurePosixPath

from exports_page.access import named
from exports_page.series import Listed, by_series, listed
from streaming_export import (
    Bucket,
    ExportError,
    ManifestError,
    ManifestMissing,
    ObjectChanged,
    StoreError,
    manifest_reader,
)
from streaming_export.manifest_reader import Manifest

log = logging.getLogger(__name__)

#: Seconds after which the bucket is listed again, in the background.
FRESH_SECONDS = 60.0

#: Maximum number of objects that are listed: 100 requests. The page says so if there are more.
MOST_OBJECTS = 100_000

#: Maximum bytes of a manifest, enough for 4,000 files. No more of one is read.
MOST_BYTES = 2 * 1024 * 1024

_CACHED = 10_000  # entries of about a kilobyte each
_MOST = 2**63  # rows, or bytes
_THREADS = 10  # the size of botocore's connection pool


@dataclass(frozen=True, slots=True)
class Listing:
    """The manifests in the bucket at one time.

    :param at: when the bucket was listed.
    :param series: the manifests of each series, the newest first.
    :param truncated: whether there are more objects than `MOST_OBJECTS`.
    """

    at: datetime
    series: dict[str, tuple[Listed, ...]]
    truncated: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """An export as the table shows it.

    :param url: of the manifest.
    :param etag: of the manifest, without quotes.
    :param file: name of its file, or of the manifest if that can't be read.
    :param at: when it was published.
    :param moment: the date in its key, with its time.
    :param problem: why the manifest can't be read; the fields below are then None or empty.
    :param seconds: from the start of the export to its manifest.
    :param verified: whether the database counted the same rows.
    :param window: length of the period that its rows cover; None for all rows.
    :param run: DAG, task and run, by name.
    """

    url: str
    etag: str
    file: str
    at: datetime
    moment: datetime | None
    problem: str | None = None
    rows: int | None = None
    bytes: int | None = None
    seconds: float | None = None
    verified: bool | None = None
    window: timedelta | None = None
    files: int = 0
    dag: str | None = None
    task: str | None = None
    run: str | None = None


class Catalogue:
    """The exports in the bucket; safe from any thread.

    The first callers wait for one listing. Later callers get the last listing at once; if it
    is older than `FRESH_SECONDS`, the bucket is listed again in the background.

    :param bucket: returns the bucket; called again after `FRESH_SECONDS`, so that a changed connection takes effect.
    """

    def __init__(self, bucket: Callable[[], Bucket]) -> None:
        self._make_bucket = bucket
        self._listing: Listing | None = None
        self._until = 0.0
        self._bucket: tuple[Bucket, float] | None = None
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[str, str], Entry] = OrderedDict()
        self._pool = ThreadPoolExecutor(_THREADS, "exports-page")
        #: Why the last listing failed; None if it succeeded. After a failure, `listing` returns the one before.
        self.problem: str | None = None

    def listing(self, newer_than: float = 0.0) -> Listing:
        """The manifests of the bucket.

        :param newer_than: a time of `time.monotonic`; if the last listing is older, the bucket is listed again.
        :raises StoreError: if there is no listing yet, and the store failed.
        """
        known = self._listing
        if known is None or self._until - FRESH_SECONDS < newer_than:
            with self._lock:
                if self._listing is None or self._until - FRESH_SECONDS < newer_than:
                    self._list()
                assert self._listing is not None
                return self._listing
        if time.monotonic() > self._until and self._lock.acquire(blocking=False):
            self._pool.submit(self._list_behind)
        return known

    def bucket(self) -> Bucket:
        """The bucket, by the connection as it was at most `FRESH_SECONDS` ago."""
        made = self._bucket
        if made is None or time.monotonic() - made[1] > FRESH_SECONDS:
            bucket = self._make_bucket()
            bucket.patience = 3.0  # a person is waiting
            made = self._bucket = bucket, time.monotonic()
        return made[0]

    def entries(self, found: Sequence[Listed]) -> list[Entry]:
        """The entries of the manifests, in the same order; one that can't be read says so."""
        missing = [one for one in dict.fromkeys(found) if (one.key, one.etag) not in self._entries]
        if missing:
            bucket = self.bucket()
            for one, entry in zip(missing, self._pool.map(lambda one: _entry(bucket, one), missing), strict=True):
                if entry is not None:
                    self._entries[one.key, one.etag] = entry
        while len(self._entries) > _CACHED:
            self._entries.popitem(last=False)
        return [self._entries.get((one.key, one.etag)) or _unread(one, _PASSING) for one in found]

    def _list_behind(self) -> None:
        try:
            self._list()
        except Exception as exc:
            self.problem = exc.failed if isinstance(exc, ExportError) else type(exc).__name__
            log.warning("The exports could not be listed, so the page shows the previous list. %s", self.problem)
        finally:
            self._lock.release()

    def _list(self) -> None:
        self._until = time.monotonic() + FRESH_SECONDS
        bucket = self.bucket()
        objects = bucket.list("")
        found = [one for item in islice(objects, MOST_OBJECTS) if (one := listed(item, bucket.url(item.key)))]
        more = next(objects, None) is not None
        self._listing, self.problem = Listing(datetime.now(UTC), by_series(found), more), None


_PASSING = "It was replaced since the list was made, or the store failed. Reload the page in a minute."


def read(bucket: Bucket, key: str, etag: str | None = None) -> Manifest:
    """Read a manifest of less than `MOST_BYTES`.

    :param key: of the manifest.
    :param etag: ETag that it must have, without quotes; None for any.
    :raises ManifestError: if it can't be used; `ObjectChanged` if its ETag is another.
    :raises StoreError: if the store failed.
    """
    try:
        found = manifest_reader.read(bucket, bucket.url(key), MOST_BYTES)
    except ManifestMissing as exc:
        exc.remedy = "Open the page without a link to see what there is."
        raise
    if etag not in (None, found.etag):
        raise ObjectChanged(f"{bucket.url(key)} was replaced.", "Reload the page in a minute.")
    return found


def _entry(bucket: Bucket, one: Listed) -> Entry | None:
    """The entry of a manifest; None if the store failed transiently."""
    try:
        return _describe(read(bucket, one.key, one.etag), one)
    except (ArithmeticError, ValueError) as exc:
        return _unread(one, f"The manifest {one.url} has impossible values ({type(exc).__name__}).")
    except (ManifestError, StoreError) as exc:
        if exc.transient or isinstance(exc, ObjectChanged | ManifestMissing):
            return None
        return _unread(one, exc.failed)


def _describe(manifest: Manifest, one: Listed) -> Entry:
    if max(manifest.rows, manifest.bytes) > _MOST:
        raise ValueError
    return Entry(
        url=one.url,
        etag=one.etag,
        file=PurePosixPath(manifest.files[0].key).name,
        at=manifest.finished_at,
        moment=one.moment,
        rows=manifest.rows,
        bytes=manifest.bytes,
        seconds=max((manifest.finished_at - manifest.started_at).total_seconds(), 0.0),
        verified=manifest.rows_verified,
        window=manifest.window[1] - manifest.window[0] if manifest.window else None,
        files=len(manifest.files),
        dag=named(manifest.run, "dag"),
        task=named(manifest.run, "task"),
        run=named(manifest.run, "run"),
    )


def _unread(one: Listed, problem: str) -> Entry:
    return Entry(one.url, one.etag, PurePosixPath(one.key).name, one.modified, one.moment, problem)
