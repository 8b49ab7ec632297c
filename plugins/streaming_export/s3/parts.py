"""The parts of an upload: their sizes, and sending them."""

from __future__ import annotations

import math
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

from isal import isal_zlib

from streaming_export.cancellation import in_thread
from streaming_export.errors import StoreError, VerificationError
from streaming_export.s3.bucket import Bucket
from streaming_export.s3.conditional import base64_crc32

MiB = 1024 * 1024

# Amazon S3 User Guide, "Amazon S3 multipart upload limits".
MAX_PARTS = 10_000
MAX_PART_BYTES = 5 * 1024 * MiB
MAX_OBJECT_BYTES = 5 * 1024 * 1024 * MiB

#: The smallest part, except for the last one. S3 requires at least 5 MiB.
MIN_PART_BYTES = 6 * MiB

#: Bytes of parts on their way to the store, in addition to the part that is being filled.
IN_FLIGHT_BYTES = 3 * MIN_PART_BYTES

# All parts but the last have one size, as some stores require. They grow only if the object becomes more than twice as
# large as estimated: then they double every 180 parts, up to 3 GiB, so that 10,000 parts hold the 5 TiB of an object.
_PARTS_BEFORE_GROWTH = 7_000
_PARTS_OF_A_SIZE = 180
_MOST_GROWN_BYTES = 3 * 1024 * MiB


def part_bytes_for(estimated_bytes: int) -> int:
    """Size of the parts of an object of about `estimated_bytes`: 7,000 of them hold twice as much."""
    size = math.ceil(2 * estimated_bytes / _PARTS_BEFORE_GROWTH / MiB) * MiB
    return min(max(MIN_PART_BYTES, size), MAX_PART_BYTES)


def grown_part_bytes(number: int, first: int) -> int:
    """Size of the part with this number (from 1), unless it is the last; `first` is the size of the first."""
    doublings = max(0, math.ceil((number - _PARTS_BEFORE_GROWTH) / _PARTS_OF_A_SIZE))
    return max(first, min(first << min(doublings, 10), _MOST_GROWN_BYTES))


class Parts:
    """Sends the parts of one multipart upload, several at a time, each in its own thread.

    A part that can't be sent sets the bucket's `stop`. Once that is set, `send` and `wait` raise `Stopped`.
    """

    def __init__(self, bucket: Bucket, key: str, upload_id: str) -> None:
        self.upload_id = upload_id
        self._bucket = bucket
        self._key = key
        self._stop = bucket.stop
        # Over HTTP, botocore joins a body of type bytes with the headers, which copies it: so send a bytearray. Over
        # TLS it sends the checksum after the body, and copies a body that is not bytes.
        self._tls = bucket.client.meta.endpoint_url.startswith("https")
        # botocore is ten times slower at a CRC32; but over TLS, if it makes it itself, it signs no SHA-256.
        self._checksum = bucket.checksums and not self._tls
        self._free: list[bytearray] = []
        self._parts: list[Future[dict[str, Any]]] = []
        self._flying: set[Future[dict[str, Any]]] = set()

    @property
    def number(self) -> int:
        """Number of parts so far."""
        return len(self._parts)

    @property
    def in_flight(self) -> int:
        """Number of parts on their way to the store."""
        self._flying = {part for part in self._flying if not part.done()}
        return len(self._flying)

    def send(self, part: bytearray) -> bytearray:
        """Send the next part, as soon as those in flight leave room for it; returns a buffer for the one after it."""
        room = max(1, IN_FLIGHT_BYTES // len(part)) if part else 1
        self._stop.wait_for(lambda: self.in_flight < room)
        number = self.number + 1
        future = in_thread(f"part-{number}", partial(self._send, number, bytes(part) if self._tls else part))
        future.add_done_callback(self._wake)
        self._parts.append(future)
        self._flying.add(future)
        if self._tls:
            return part
        return self._free.pop() if self._free else bytearray(len(part))  # no other thread takes one

    def wait(self) -> None:
        """Return when all parts have arrived."""
        self._stop.wait_for(lambda: not self.in_flight)
        self._free.clear()

    def sent(self) -> list[dict[str, Any]]:
        """The list of parts for the completion; all parts have arrived."""
        return [part.result() for part in self._parts]

    def is_gone(self) -> bool:
        """Whether the upload is complete or aborted by another export; some stores then answer 500 to every request."""
        try:
            return self.upload_id not in [one for one, _ in self._bucket.unfinished_uploads(self._key, patient=False)]
        except StoreError:
            return False

    def settle(self, seconds: float) -> None:
        """Wait until the parts in flight have arrived or failed, but at most `seconds`."""
        wait(self._flying, seconds)

    def _send(self, number: int, part: bytes | bytearray) -> dict[str, Any]:
        with self._stop.on_failure():
            sent = self._request(number, part)
        if isinstance(part, bytearray):
            self._free.append(part)
        return sent

    def _wake(self, part: Future[dict[str, Any]]) -> None:
        with self._stop.changing():  # whoever waits for parts looks again
            pass

    def _request(self, number: int, part: bytes | bytearray) -> dict[str, Any]:
        doing = f"sending part {number} of"
        where: dict[str, Any] = {"UploadId": self.upload_id, "PartNumber": number}
        crc32 = base64_crc32(isal_zlib.crc32(part))
        if self._checksum:
            where["ChecksumCRC32"] = crc32
        answer = self._bucket.request("upload_part", self._key, doing, hopeless=self.is_gone, **where, Body=part)
        received = answer.get("ChecksumCRC32")
        if received not in (None, crc32):
            raise VerificationError(
                f"The store received part {number} of {self._bucket.url(self._key)} with CRC32 {received} instead of"
                f" {crc32}.",
                "It was damaged in transit: retry.",
                transient=True,
            )
        # If the user chose a checksum, S3 requires that of each part in the completion.
        checksums = {name: value for name, value in answer.items() if name.startswith("Checksum")}
        checksums.pop("ChecksumType", None)
        return {"PartNumber": number, "ETag": answer["ETag"], **checksums}
