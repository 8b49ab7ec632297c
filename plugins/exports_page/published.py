"""A published file: sent as it is stored, if it is still the one that its manifest describes."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from botocore.exceptions import BotoCoreError
from urllib3.exceptions import HTTPError

from exports_page.download import headers
from streaming_export import Bucket, ExportCancelled, ExportedFile, ObjectChanged, StoreError
from streaming_export.manifest_reader import Manifest
from streaming_export.s3.codes import GONE

# The code of a store whose object has none of the bytes that are asked for.
_OUT_OF_RANGE = "InvalidRange"

_CHUNK_BYTES = 512 * 1024

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_TYPES = {None: "text/csv; charset=utf-8", "gzip": "application/gzip", "zstd": "application/zstd"}


@dataclass(frozen=True, slots=True)
class Part:
    """Which bytes of an object are asked for.

    :param first: the first of them.
    :param last: the last of them.
    :param whole: whether that is the whole object.
    """

    first: int
    last: int
    whole: bool


class OutOfRange(ValueError):
    """No byte of the object is in the range (status 416)."""


def part_of(file: ExportedFile, asked: str | None, if_range: str | None) -> Part:
    """The range that a request asks for; the whole file, unless it asks for one range of this file.

    Without the ETag, the part that a client has may be of another file, and the two together would look whole.

    :param asked: the header ``Range``.
    :param if_range: the header ``If-Range``: the ETag of the file of which the client has a part.
    :raises OutOfRange: if there is no such byte.
    """
    whole = Part(0, file.bytes - 1, True)
    found = _RANGE.fullmatch((asked or "").strip())
    if found is None or found.groups() == ("", "") or if_range != etag(file):
        return whole
    begin, end = found.groups()
    first = int(begin) if begin else max(file.bytes - int(end), 0)
    last = min(int(end), file.bytes - 1) if begin and end else file.bytes - 1
    if begin and end and int(end) < first:
        return whole  # RFC 9110, 14.1.1: such a range is invalid, and ignored
    if first >= file.bytes or (not begin and int(end) == 0):
        raise OutOfRange
    return Part(first, last, False)


def etag(file: ExportedFile) -> str:
    """The ETag of the file, as HTTP writes it: its SHA-256."""
    return f'"{file.sha256}"'


class PublishedFile:
    """The bytes of a file; see `download.Reading`. The last ones are sent only if its SHA-256 is the manifest's.

    That takes reading all of it also for a part, the rest of a download that broke off: browsers ask for that by
    themselves, and would make a whole file of one that is damaged.

    :param part: the bytes to send.
    """

    def __init__(self, bucket: Bucket, manifest: Manifest, file: ExportedFile, part: Part) -> None:
        self._bucket, self._manifest, self._file, self._part = bucket, manifest, file, part
        self._sha256 = hashlib.sha256()
        self._to_the_end = part.last == file.bytes - 1
        self._skip = part.first if self._to_the_end else 0
        self._left = part.last - part.first + 1 + self._skip
        self._body: Any = None
        self._next = b""
        self._cancelled = threading.Event()

    def open(self) -> tuple[int, dict[str, str]]:
        """Open the object with the ETag of the manifest.

        :raises ObjectChanged: if the object has another ETag.
        """
        part, file = self._part, self._file
        try:
            asked = None if self._to_the_end else f"bytes={part.first}-{part.last}"
            self._body, found = self._bucket.open(file.key, asked)
        except StoreError as exc:
            if exc.code in GONE:
                raise self._replaced("it was removed") from exc
            if exc.code != _OUT_OF_RANGE:
                raise
            raise self._replaced("another export has replaced it") from exc  # since the manifest's has these bytes
        if found != file.etag:
            raise self._replaced("another export has replaced it")
        while self._skip:
            self._skip -= len(self._take(self._skip))
        self._next = self._take()
        return (200 if part.whole else 206), self.headers()

    def headers(self) -> dict[str, str]:
        """The headers of the response."""
        part, file = self._part, self._file
        named = headers(PurePosixPath(file.key).name, _TYPES[self._manifest.compression])
        span = {} if part.whole else {"Content-Range": f"bytes {part.first}-{part.last}/{file.bytes}"}
        return (
            named
            | span
            | {
                "Content-Length": str(part.last - part.first + 1),
                "Content-Encoding": "identity",  # Airflow's gzip would drop the length
                "Accept-Ranges": "bytes",
                "ETag": etag(file),
            }
        )

    def read(self) -> bytes:
        """The next bytes. The last ones are returned only after the checksum of all was compared."""
        chunk, self._next = self._next, self._take()
        if not self._next and self._to_the_end and chunk and self._sha256.hexdigest() != self._file.sha256:
            raise self._replaced("its SHA-256 differs")
        return chunk

    def cancel(self) -> None:
        """Stop at the next chunk."""
        self._cancelled.set()

    def close(self) -> None:
        """Close the connection to the store."""
        if self._body is not None:
            with suppress(BotoCoreError, HTTPError, OSError):
                self._body.close()

    def _take(self, most: int = _CHUNK_BYTES) -> bytes:
        if self._cancelled.is_set():
            raise ExportCancelled("The download was cancelled.")
        if not self._left:
            return b""
        try:
            chunk: bytes = self._body.read(min(_CHUNK_BYTES, most, self._left))
        except (BotoCoreError, HTTPError, OSError) as exc:
            raise self._broken(type(exc).__name__) from exc
        if not chunk:
            raise self._broken("it ended early")
        self._left -= len(chunk)
        self._sha256.update(chunk)
        return chunk

    def _broken(self, why: str) -> StoreError:
        failed = f"The object store failed while reading {self._bucket.url(self._file.key)}: {why}."
        return StoreError(failed, "It may be temporary: retry.", code=why, transient=True)

    def _replaced(self, why: str) -> ObjectChanged:
        return ObjectChanged(
            f"{self._bucket.url(self._file.key)} is not the object that its manifest describes: {why}.",
            "Reload the page to see the current exports. If this happens again, export again.",
        )


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of verifying the files of an export.

    :param files: number of files.
    :param bytes: size of all files.
    :param seconds: how long it took.
    """

    files: int
    bytes: int
    seconds: float


def verify(bucket: Bucket, manifest: Manifest, stop: threading.Event) -> Verified:
    """Compute the SHA-256 of every file of an export, and compare it with the manifest.

    :param stop: ends it when it is set.
    :raises ObjectChanged: if a file was replaced or damaged.
    :raises StoreError: if the store failed.
    :raises ExportCancelled: if it was stopped.
    """
    begun = time.monotonic()
    for file in manifest.files:
        reading = PublishedFile(bucket, manifest, file, Part(0, file.bytes - 1, True))
        try:
            reading.open()
            while reading.read():
                if stop.is_set():
                    reading.cancel()
        finally:
            reading.close()
    return Verified(len(manifest.files), manifest.bytes, time.monotonic() - begun)
