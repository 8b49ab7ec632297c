"""Reads an object as it streams, and makes sure that it is the one that the manifest describes."""

from __future__ import annotations

import hashlib
from typing import Any, cast

import zstandard
from botocore.exceptions import BotoCoreError, ClientError
from isal import igzip, isal_zlib

from streaming_export.errors import IngestError, ObjectChanged, StoreError
from streaming_export.manifest_reader import File

_READ_BYTES = 2**18  # few enough to stay in a processor's cache, enough to make the calls cheap

# Memory that a zstd file may ask a reader for (RFC 8878, 3.1.1.1.2: decoders should support 8 MB).
_ZSTD_WINDOW_BYTES = 2**23


# What the decompressors raise. (Any, since the stubs of isal take its class for an instance.)
_DAMAGE: tuple[Any, ...] = (isal_zlib.IsalError, zstandard.ZstdError, OSError, EOFError)


class VerifiedFile:
    """The decompressed content of an object, with ``read(size)``; remembers why it could not be read.

    A `read` inside COPY can't raise through the driver: the error is kept in `error`.

    :param client: boto3 S3 client.
    :param bucket: where the object is.
    :param file: what the manifest says of it.
    :param compression: None, "gzip" or "zstd".
    """

    def __init__(self, client: Any, bucket: str, file: File, compression: str | None) -> None:
        self._object = _Object(client, bucket, file)
        self._content = _decompressed(self._object, compression)
        self.error: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; none at the end."""
        try:
            return cast(bytes, self._content.read(size))
        except IngestError as exc:
            self.error = exc
        except _DAMAGE as exc:
            self.error = self._object.changed(f"it can't be decompressed ({type(exc).__name__})")
        except BaseException as exc:  # such as a time-out, or Ctrl-C
            self.error = exc
        raise self.error

    def verify(self) -> None:
        """Read what is left of the object, and compare it with the manifest.

        :raises ObjectChanged: if size or checksum differ.
        :raises StoreError: if the store failed.
        """
        while self._object.read(_READ_BYTES):
            pass
        self._object.compare()


class _Object:
    """The bytes of an object as they are stored; file enough for the decompressors."""

    def __init__(self, client: Any, bucket: str, file: File) -> None:
        self._file = file
        self._url = f"s3://{bucket}/{file.key}"
        self._sha256 = hashlib.sha256()
        self._bytes = 0
        self._body = self._open(client, bucket)

    def read(self, size: int = -1) -> bytes:
        try:
            data: bytes = self._body.read(size if size >= 0 else None)
        except BotoCoreError as exc:
            raise StoreError(
                f"The object store failed while giving {self._url}: {exc}. Nothing was loaded; retrying is safe."
            ) from exc
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
            f"{self._url} is not the object that the manifest describes: {why}. Nothing was loaded. A newer export"
            " has a manifest of its own, which a retry reads; otherwise export again."
        )

    def _open(self, client: Any, bucket: str) -> Any:
        # A store that ignores the condition is found out by the checksum.
        condition = {"IfMatch": f'"{self._file.etag}"'} if self._file.etag else {}
        try:
            answer = client.get_object(Bucket=bucket, Key=self._file.key, **condition)
        except ClientError as exc:
            code = exc.response["Error"]["Code"]
            if code in ("PreconditionFailed", "412"):
                raise self.changed("it was replaced (its ETag differs)") from exc
            if code in ("NoSuchKey", "404"):
                raise self.changed("it is gone") from exc
            raise StoreError(
                f"The object store refused to give {self._url}: {code}. Nothing was loaded.", code
            ) from exc
        except BotoCoreError as exc:
            raise StoreError(f"The object store failed while giving {self._url}: {exc}. Nothing was loaded.") from exc
        return answer["Body"]


def _decompressed(source: Any, compression: str | None) -> Any:
    """A file-like object that never gives more than it is asked for, however well the file is compressed."""
    if compression == "gzip":
        return igzip.IGzipFile(fileobj=source, mode="rb")  # type: ignore[no-untyped-call]
    if compression == "zstd":
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        return decompressor.stream_reader(source, read_size=_READ_BYTES)
    return source
