"""Names of buckets and keys of objects, checked before anything is read."""

from __future__ import annotations

import re

from streaming_export.errors import InvalidArgument

MAX_KEY_BYTES = 1024  # Amazon S3 User Guide, "Naming Amazon S3 objects"

# Old buckets have longer names, with capitals and underscores (Amazon S3 User Guide, "Bucket naming rules").
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


def check_bucket(bucket: object) -> None:
    """Refuse what is no name of a bucket.

    :raises InvalidArgument: naming the bucket, and what is allowed.
    """
    if not isinstance(bucket, str) or not _BUCKET.fullmatch(bucket):
        raise InvalidArgument(
            "bucket", bucket, "the name of a bucket, or an access point's alias: letters, digits, '.', '-', '_'"
        )


def check_key(argument: str, key: object, most: int = MAX_KEY_BYTES) -> None:
    """Refuse a key that is too long, can't be written, or leaves the prefix that it seems to have.

    A store, a proxy or a program that reads it may take . and .. for what they are in paths.

    :param argument: its name, for the error.
    :param most: bytes of UTF-8 that it may have.
    :raises InvalidArgument: naming the argument, its value and what is allowed.
    """
    if not isinstance(key, str) or not key.strip():
        raise InvalidArgument(argument, key, "a name that is not empty")
    if key.startswith("/") or {".", ".."} & set(key.split("/")) or not key.isprintable():
        raise InvalidArgument(argument, key, "no leading /, no . or .. between slashes, no control characters")
    if len(key.encode()) > most:
        raise InvalidArgument(argument, key, f"at most {most} bytes of UTF-8")
