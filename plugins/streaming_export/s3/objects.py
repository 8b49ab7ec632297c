"""What is known of objects."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the store says about an object.

    :param key: its key.
    :param size: in bytes.
    :param etag: without quotes.
    :param modified: when it was last written.
    :param crc32: of the whole object, in base64; None if the store reports none, as in a listing.
    :param export_id: of the export that wrote it; None if unknown, as in a listing.
    """

    key: str
    size: int
    etag: str
    modified: datetime
    crc32: str | None = None
    export_id: str | None = None

    def __str__(self) -> str:
        return f"{self.size:,} bytes of {self.modified.isoformat()}"


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """A file of an export, complete.

    :param key: its key in the bucket.
    :param rows: its data rows, without the header.
    :param bytes: size of the object.
    :param sha256: of the object's content, in hex.
    :param etag: of the object, without quotes.
    :param parts: number of parts it was uploaded in; 1 if it was one put.
    """

    key: str
    rows: int
    bytes: int
    sha256: str
    etag: str
    parts: int
