"""What a store says about objects."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the store says about an object.

    :param size: in bytes.
    :param etag: without quotes.
    :param modified: when it was last written.
    :param crc32: of the whole object, in base64; None if the store reports none.
    :param export_id: of the export that wrote it; None if unknown.
    """

    size: int
    etag: str
    modified: datetime
    crc32: str | None
    export_id: str | None


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as a listing shows it.

    :param key: its key.
    :param size: in bytes.
    :param etag: without quotes.
    :param modified: when it was last written.
    """

    key: str
    size: int
    etag: str
    modified: datetime
