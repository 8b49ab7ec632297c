"""The write that makes an object visible, unless another writer was first; and the check of it afterwards."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streaming_export.cancellation import Stopped
from streaming_export.errors import ExportError, StoreError, Superseded, VerificationError
from streaming_export.s3.codes import REFUSED, UNSUPPORTED, is_answer

if TYPE_CHECKING:
    from streaming_export.s3.bucket import Bucket
    from streaming_export.s3.objects import ObjectInfo

#: Instead of an ETag: any object may be replaced.
ANYTHING = "*"

_UNKNOWN = "The object may or may not be visible."


def base64_crc32(crc32: int) -> str:
    """A CRC32 as S3 writes it."""
    return base64.b64encode(crc32.to_bytes(4, "big")).decode()


@dataclass(frozen=True, slots=True)
class Sent:
    """What identifies an object after the answer to its write was lost.

    :param export_id: of the export that writes it.
    :param size: in bytes.
    :param crc32: of the whole object, in base64.
    """

    export_id: str
    size: int
    crc32: str

    def wrote(self, found: ObjectInfo | None) -> bool | None:
        """Whether an object is this one; None if unknown, because the store keeps neither metadata nor checksums."""
        if found is None or found.export_id is not None:
            return found is not None and found.export_id == self.export_id
        if found.size != self.size:
            return False
        return None if found.crc32 is None else found.crc32 == self.crc32


def write(
    bucket: Bucket,
    operation: str,
    key: str,
    doing: str,
    *,
    sent: Sent,
    replaces: str | None,
    hopeless: Callable[[], bool] = lambda: False,
    give_up: Callable[[], bool] = lambda: False,
    **arguments: Any,
) -> bool:
    """Send the request that makes an object visible, unless another writer has changed the object meanwhile.

    If the store turns out to have no conditional writes, the last writer wins. If the answer is lost, one request tells
    whether the object is visible.

    :param doing: for the error, as in "completing".
    :param sent: what identifies the object.
    :param replaces: ETag of the object to replace, without quotes; None: there must be none; `ANYTHING`: any or none.
    :param hopeless: called before each new try; True ends the tries.
    :param give_up: called after a failure; returns whether nothing can become visible any more.
    :returns: False if another writer has changed the object; nothing was written then.
    :raises StoreError: if the store refused or failed; it says so if the object may be visible.
    :raises Stopped: if the export is stopped; its reason says so if the object may be visible.
    """
    condition, failures = bucket.condition(replaces), list[BaseException]()
    error: StoreError | Stopped
    try:
        bucket.request(operation, key, doing, failures=failures, hopeless=hopeless, **condition, **arguments)
        return True
    except (StoreError, Stopped) as exc:
        error = exc
    if condition and isinstance(error, StoreError) and error.code in (*REFUSED, *UNSUPPORTED):
        why = f"The store has no conditional writes ({error.code})"
        if error.code in REFUSED:
            ours, unchanged = _look(bucket, key, sent, replaces)
            if ours:
                return True
            # Ceph RGW compares an ETag in quotes with one without, so a refusal counts only if the object has changed.
            if not unchanged:
                if ours is None and not all(map(is_answer, failures)):
                    # An earlier try, whose answer was lost, may have changed it.
                    error.transient, error.remedy = True, "Retry."
                    error.during(_UNKNOWN, None)
                    raise error
                return False
            why = f"The store says that {bucket.url(key)} has changed, but it has not"
        bucket.distrust_conditions(why)
        arguments |= {"hopeless": hopeless, "give_up": give_up}
        return write(bucket, operation, key, doing, sent=sent, replaces=ANYTHING, **arguments)
    certain = give_up() or all(map(is_answer, failures))  # no request is still on its way
    ours, unchanged = _look(bucket, key, sent, replaces)
    if ours:
        return True
    if not certain or (ours is None and not unchanged):
        say(bucket, error, _UNKNOWN, None)
    raise error


def check_visible(bucket: Bucket, key: str, sent: Sent) -> str:
    """Compare the visible object with what was sent; returns its ETag, without quotes.

    :raises Superseded: if it is another export's.
    :raises VerificationError: if it is gone, or not what was sent.
    :raises StoreError: if the store failed.
    :raises Stopped: if the export is stopped.
    """
    url = bucket.url(key)
    try:
        found = bucket.head(key)
    except (StoreError, Stopped) as exc:
        say(bucket, exc, "The object is visible but not verified.", True)
        raise
    if found is None:
        raise VerificationError(
            f"{url} was complete but is gone.", "Find out who removes objects there, and export again."
        )
    if found.export_id not in (None, sent.export_id):
        raise Superseded(f"Another export replaced {url} as soon as it was complete.")
    differences = [f"{found.size:,} bytes instead of {sent.size:,}"] if found.size != sent.size else []
    if found.crc32 not in (None, sent.crc32):
        differences.append(f"CRC32 {found.crc32} instead of {sent.crc32}")
    if differences:
        error = VerificationError(
            f"{url} is not what was sent: it has {' and '.join(differences)}.",
            "Do not use it; export again. Another writer replaced it, or the store is at fault.",
        )
        error.during("The object is visible.", True)
        raise error
    return found.etag


def say(bucket: Bucket, error: ExportError | Stopped, state: str, published: bool | None) -> None:
    """Have an error, or the reason of a stop, say what is visible."""
    reason = bucket.stop.reason if isinstance(error, Stopped) else error
    if isinstance(reason, ExportError):
        reason.during(state, published)


def _look(bucket: Bucket, key: str, sent: Sent, replaces: str | None) -> tuple[bool | None, bool]:
    """After a failure: whether the object is the one that was sent, None if unknown; and whether it is unchanged."""
    try:
        found = bucket.head(key, patient=False)
    except StoreError:
        return None, False
    return sent.wrote(found), (found.etag if found else None) == replaces
