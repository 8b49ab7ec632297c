"""The parts of an upload: how large they are, and their way to the store."""

from __future__ import annotations

import contextvars
import math
import threading
from concurrent.futures import Future, wait
from typing import Any

from isal import isal_zlib

from streaming_export.cancellation import Stop, Stopped
from streaming_export.errors import StoreError, VerificationError
from streaming_export.s3.bucket import Bucket
from streaming_export.s3.conditional import base64_crc32

MiB = 1024 * 1024

# Amazon S3 User Guide, "Amazon S3 multipart upload limits".
MAX_PARTS = 10_000
MAX_PART_BYTES = 5 * 1024 * MiB
MAX_OBJECT_BYTES = 5 * 1024 * 1024 * MiB

#: The smallest part. S3 asks for at least 5 MiB.
MIN_PART_BYTES = 6 * MiB

#: Bytes of parts on their way to the store, beside the part that is being filled.
IN_FLIGHT_BYTES = 3 * MIN_PART_BYTES

# All parts have one size, but for the last, as some stores demand. Only where the estimate was wrong by more than
# twice they grow: they double every 180 then, up to 3 GiB, so that 10,000 of them hold the 5 TiB of an object.
_PARTS_BEFORE_GROWTH = 7_000
_PARTS_OF_A_SIZE = 180
_MOST_GROWN_BYTES = 3 * 1024 * MiB


def part_bytes_for(estimated_bytes: int) -> int:
    """Size of the parts of an object that is estimated to have so many bytes: 7,000 of them hold twice that."""
    size = math.ceil(2 * estimated_bytes / _PARTS_BEFORE_GROWTH / MiB) * MiB
    return min(max(MIN_PART_BYTES, size), MAX_PART_BYTES)


def grown_part_bytes(number: int, first: int) -> int:
    """Size of the part with this number (from 1), but for the last one; `first` is that of the first."""
    doublings = max(0, math.ceil((number - _PARTS_BEFORE_GROWTH) / _PARTS_OF_A_SIZE))
    return max(first, min(first << min(doublings, 10), _MOST_GROWN_BYTES))


class Parts:
    """Sends the parts of one multipart upload, several at a time, each in a thread of its own.

    :param stop: of the export; a part that can't be sent sets it, and who waits for parts gets `Stopped`.
    """

    def __init__(self, bucket: Bucket, key: str, upload_id: str, stop: Stop) -> None:
        self.upload_id = upload_id
        self._bucket = bucket
        self._key = key
        self._stop = stop
        # botocore joins bytes with the headers, once more in memory; but where it sends a checksum behind the body, as
        # over TLS, it copies what is not bytes.
        self._copy = bytes if bucket.client.meta.endpoint_url.startswith("https") else bytearray
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

    def send(self, part: bytearray) -> None:
        """Send a copy of the next part, once the parts in flight leave room for it.

        :raises Stopped: if the export shall end: a part could not be sent, perhaps.
        """
        room = max(1, IN_FLIGHT_BYTES // len(part)) if part else 1
        self._stop.wait_for(lambda: self.in_flight < room)
        future = Future[dict[str, Any]]()
        arguments = (self._send, future, self.number + 1, self._copy(part))
        # Not of an executor: its threads keep the interpreter from ending.
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=arguments, name=f"part-{self.number + 1}", daemon=True).start()
        self._parts.append(future)
        self._flying.add(future)

    def wait(self) -> None:
        """Return when all parts have arrived.

        :raises Stopped: if the export shall end: a part could not be sent, perhaps.
        """
        self._stop.wait_for(lambda: not self.in_flight)

    def sent(self) -> list[dict[str, Any]]:
        """What completes the upload; all parts have arrived."""
        return [part.result() for part in self._parts]

    def is_gone(self) -> bool:
        """Whether the upload is complete, or another export has aborted it: some stores answer 500 from there on."""
        try:
            return self.upload_id not in [one for one, _ in self._bucket.unfinished_uploads(self._key, patient=False)]
        except StoreError:
            return False

    def settle(self, seconds: float) -> None:
        """Wait for the parts in flight, whatever becomes of them."""
        wait(self._flying, seconds)

    def _send(self, future: Future[dict[str, Any]], number: int, part: bytes | bytearray) -> None:
        try:
            sent = self._request(number, part)
        except BaseException as exc:  # whatever it is, the export ends with it
            if not isinstance(exc, Stopped):
                self._stop.set(exc)
            with self._stop.changing():
                future.set_exception(exc)
        else:
            with self._stop.changing():
                future.set_result(sent)

    def _request(self, number: int, part: bytes | bytearray) -> dict[str, Any]:
        doing = f"sending part {number} of"
        where: dict[str, Any] = {"UploadId": self.upload_id, "PartNumber": number}
        answer = self._bucket.request("upload_part", self._key, doing, hopeless=self.is_gone, **where, Body=part)
        received, crc32 = answer.get("ChecksumCRC32"), base64_crc32(isal_zlib.crc32(part))
        if received not in (None, crc32):
            raise VerificationError(
                f"The store received part {number} of {self._bucket.url(self._key)} with CRC32 {received} instead of"
                f" {crc32}.",
                "It was damaged on its way: retry.",
                transient=True,
            )
        # Where the user chose a checksum, S3 wants each part's in the completion.
        checksums = {name: value for name, value in answer.items() if name.startswith("Checksum")}
        checksums.pop("ChecksumType", None)
        return {"PartNumber": number, "ETag": answer["ETag"], **checksums}
