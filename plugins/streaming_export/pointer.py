"""A small JSON document that names the newest export; it only ever moves forward."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from streaming_export import manifest
from streaming_export.errors import VerificationError
from streaming_export.keys import check_bucket, check_key

# Each lost race means that somebody else moved the pointer; more than a few at a time are not to be expected.
_TRIES = 10


def move_pointer(
    client: Any,
    bucket: str,
    key: str,
    manifest_url: str,
    taken_at: datetime,
    extra: Mapping[str, Any] | None = None,
    extra_args: Mapping[str, Any] | None = None,
) -> bool:
    """Have the pointer name this export's manifest, unless it names one of the same or a later snapshot.

    Each write is on condition that the pointer is still the one that was read. A store without conditional
    writes keeps the last write: a pointer may then go back by one export when two end at the same moment.

    :param client: boto3 S3 client.
    :param key: where the pointer is.
    :param manifest_url: what it shall name.
    :param taken_at: when the export's snapshot was taken.
    :param extra: what else it shall say, as the number of rows.
    :param extra_args: further arguments of the S3 requests by their boto3 names.
    :returns: whether it was moved.
    :raises InvalidArgument: if bucket or key is none.
    :raises VerificationError: if others kept moving it.
    :raises UploadError: if the store failed.
    """
    check_bucket(bucket)
    check_key("key", key)
    document = {"manifest_url": manifest_url, "taken_at": taken_at.isoformat(), **(extra or {})}
    state = f"{manifest_url} is published, and is not named by this yet: export again"
    for attempt in range(1, _TRIES + 1):
        current, etag = manifest.get(client, bucket, key, extra_args or {}, state)
        if (there := _taken_at(current)) and there >= taken_at:
            return False
        try:
            manifest.put(client, bucket, key, document, extra_args or {}, etag, state)
        except VerificationError:
            if attempt == _TRIES:
                raise
        else:
            return True
    raise AssertionError("unreachable")


def _taken_at(document: Any) -> datetime | None:
    """Of the snapshot that a pointer names; None for one that can't be read, and gets replaced."""
    try:
        time = datetime.fromisoformat(document["taken_at"])
    except (TypeError, KeyError, ValueError):
        return None
    return time if time.tzinfo else None
