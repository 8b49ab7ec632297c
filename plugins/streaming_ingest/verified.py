"""Streams an object, and checks that it is the one that the manifest describes."""

from __future__ import annotations

import hashlib
from typing import Any, cast

import zstandard
from botocore.exceptions import BotoCoreError
from isal import igzip, isal_zlib

from streaming_export.errors import ExportError, ObjectChanged, StoreError
from streaming_export.s3.bucket import Bucket
from streaming_export.s3.codes import GONE, store_error
from streaming_export.s3.objects import ExportedFile

_READ_BYTES = 2**18  # small enough for a CPU's cache, large enough to make the calls cheap

# Memory that a zstd file may require (RFC 8878, 3.1.1.1.2: decoders should support 8 MB).
_ZSTD_WINDOW_BYTES = 2**23


# The errors of the decompressors. (Any, because isal's stubs declare its class as an instance.)
_DAMAGE: tuple[Any, ...] = (isal_zlib.IsalError, zstandard.ZstdError, OSError, EOFError)


class VerifiedFile:
    """The decompressed content of an object, with ``read(size)``.

    During COPY, the driver replaces an exception of `read` by one of its own, so `error` keeps the original.

    :param bucket: where the object is.
    :param file: its entry in the manifest.
    :param compression: None, "gzip" or "zstd".
    """

    def __init__(self, bucket: Bucket, file: ExportedFile, compression: str | None) -> None:
        self._object = _Object(bucket, file)
        self._content = _decompressed(self._object, compression)
        self.error: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; b"" at the end."""
        try:
            return cast(bytes, self._content.read(size))
        except ExportError as exc:
            self.error = exc
        except _DAMAGE as exc:
            self.error = self._object.changed(f"it can't be decompressed ({type(exc).__name__})")
        except BaseException as exc:  # such as a time-out, or Ctrl-C
            self.error = exc
        raise self.error

    def verify(self) -> None:
        """Read the rest of the object, and compare it with the manifest.

        :raises ObjectChanged: if size or checksum differ.
        :raises StoreError: if the store failed.
        """
        while self._object.read(_READ_BYTES):
            pass
        self._object.compare()


class _Object:
    """The bytes of an object as they are stored; enough of a file for the decompressors."""

    def __init__(self, bucket: Bucket, file: ExportedFile) -> None:
        self._file = file
        self._url = bucket.url(file.key)
        self._sha256 = hashlib.sha256()
        self._bytes = 0
        self._body = self._open(bucket)

    def read(self, size: int = -1) -> bytes:
        try:
            data: bytes = self._body.read(size if size >= 0 else None)
        except BotoCoreError as exc:
            raise store_error(f"reading {self._url}", exc) from exc
        self._sha256.update(data)
        self._bytes += len(data)
        return data

    def readinto(self, buffer: memoryview) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def compare(self) -> None:
        if self._bytes != self._file.bytes:
            raise self.changed(f"it has {self._bytes:,} bytes instead of {self._file.bytes:,}")
        if self._sha256.hexdigest() != self._file.sha256:
            raise self.changed("its SHA-256 differs")

    def changed(self, why: str) -> ObjectChanged:
        return ObjectChanged(
            f"{self._url} is not the object that the manifest describes: {why}.",
            "Retry: if a newer export replaced it, its manifest is read then. Otherwise export again.",
        )

    def _open(self, bucket: Bucket) -> Any:
        try:
            body, etag = bucket.open(self._file.key)
        except StoreError as exc:
            if exc.code in GONE:
                raise self.changed("it is gone") from exc
            raise
        if self._file.etag not in ("", etag):
            body.close()
            raise self.changed("it was replaced (its ETag differs)")
        return body


def _decompressed(source: Any, compression: str | None) -> Any:
    """A file-like object that never returns more than the requested size, however well the file is compressed."""
    if compression == "gzip":
        return igzip.IGzipFile(fileobj=source, mode="rb")  # type: ignore[no-untyped-call]
    if compression == "zstd":
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        return decompressor.stream_reader(source, read_size=_READ_BYTES)
    return source
