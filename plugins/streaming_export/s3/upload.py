"""A bounded, concurrent upload of one S3 object: completed or aborted, never in between."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError
from isal import isal_zlib

from streaming_export.cancellation import Stop, cancelled
from streaming_export.errors import StoreError, Superseded
from streaming_export.s3.bucket import Bucket
from streaming_export.s3.conditional import ANYTHING, Sent, base64_crc32, check_visible, write
from streaming_export.s3.parts import MAX_OBJECT_BYTES, MAX_PARTS, MIN_PART_BYTES, Parts, grown_part_bytes

log = logging.getLogger(__name__)

_ABORT_SECONDS = 10.0  # that an abort waits for parts still on their way


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object that the store has confirmed.

    :param size: in bytes.
    :param sha256: of its content, in hex.
    :param etag: as the store gives it, without quotes.
    :param parts: number of parts it was sent in; 1 if it was one put.
    """

    size: int
    sha256: str
    etag: str
    parts: int


class Upload:
    """Writes one object; a context manager that aborts what was not completed. Of one thread, which owns it.

    Nothing is visible under the key before `complete`, and what was there before stays until then. Content smaller
    than a part is one put. `open` aborts unfinished uploads of the same key: a killed attempt left them behind, or this
    one supersedes them. The object is replaced only if it is still the one that `open` saw. The store gets a CRC32 of
    each part and of the whole object, and refuses what differs (Amazon S3 User Guide, "Checking object integrity").

    :param export_id: goes into the object's metadata: whose it is.
    :param stop: of the export; a part that can't be sent sets it, and who waits for parts gets `Stopped`.
    :param headers: how the content is to be read, by boto3's names; the bucket's extra arguments go before them.
    :param part_bytes: size of all parts but the last.
    """

    def __init__(
        self,
        bucket: Bucket,
        key: str,
        *,
        export_id: str,
        stop: Stop,
        headers: Mapping[str, Any] | None = None,
        part_bytes: int = MIN_PART_BYTES,
    ) -> None:
        self._bucket = bucket.within(stop)
        self.key = key
        self.url = bucket.url(key)
        self._export_id = export_id
        self._stop = stop
        self._headers = {name: value for name, value in (headers or {}).items() if name not in bucket.extra_args}
        self._first_bytes = part_bytes
        self._part = bytearray(part_bytes)
        self._filled = 0
        self._parts: Parts | None = None
        self._replaces: str | None = ANYTHING
        self._size = 0
        self._sha256 = hashlib.sha256()
        self._crc32 = 0
        self._done = self._finished = self._committed = False

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._size

    def open(self) -> Upload:
        """Look at what is there; the caller sees to it that `complete` or `abort` is called.

        :raises StoreError: if the bucket is not there, or the store does not answer.
        """
        try:
            # First: a completion that a killed attempt has left on its way can't come between any more then.
            for upload_id, started in self._bucket.unfinished_uploads(self.key):
                log.warning("Aborting an unfinished upload of %s, started %s.", self.url, started)
                self._abort_upload(upload_id)
        except StoreError as exc:
            if exc.code == "NoSuchBucket" or isinstance(exc.__cause__, BotoCoreError):  # no answer of the store's
                raise
            log.warning(
                "Cannot look for unfinished uploads of %s (%s); if an earlier attempt was killed, its parts stay until"
                " the bucket's lifecycle rule removes them.",
                self.url,
                exc.code,
            )
        try:
            found = self._bucket.head(self.key)
            self._replaces = found.etag if found else None
        except StoreError as exc:
            # Without s3:ListBucket, S3 does not say whether there is an object (403), nor without its SSE-C key (400).
            if exc.transient:
                raise
        return self

    def write(self, data: bytes) -> None:
        """Add bytes to the object, waiting while the parts in flight are at their bound.

        :raises StoreError: if the upload can't be started, or the object would be larger than S3 allows.
        :raises Stopped: if the export shall end: a part could not be sent, perhaps.
        """
        if self._size + len(data) > MAX_OBJECT_BYTES:
            raise self._too_large("the object would be larger than the 5 TiB that S3 allows")
        self._sha256.update(data)
        self._crc32 = isal_zlib.crc32(data, self._crc32)
        self._size += len(data)
        rest = memoryview(data)
        while rest:
            taken = rest[: len(self._part) - self._filled]
            self._part[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            rest = rest[len(taken) :]
            if self._filled == len(self._part):
                self._send_part()

    @property
    def started(self) -> bool:
        """Whether parts were sent; what is smaller than one is put by `complete`."""
        return self._parts is not None

    def finish(self) -> None:
        """Send what is left, however small, and wait for it; the object is not visible yet, and takes no more.

        :raises StoreError: if the upload can't be started.
        :raises Stopped: if the export shall end: a part could not be sent, perhaps.
        """
        if self._finished:
            return
        self._finished = True
        del self._part[self._filled :]
        parts = self._parts or self._start()
        if self._part:
            parts.send(self._part)
        self._part = bytearray()
        parts.wait()

    def commit(self) -> None:
        """From here on a stop does not keep the object back: others of its export are visible already."""
        self._committed, self._bucket = True, self._bucket.within(Stop())

    def complete(self) -> StoredObject:
        """Make the object visible, in one step, and check it.

        :raises StoreError: if it could not be completed; it says so if the object may be visible.
        :raises Superseded: if another export replaced what was there meanwhile, or replaced the object just now.
        :raises VerificationError: if the store holds something else than was sent.
        :raises Stopped: if the export shall end.
        """
        if not self._committed:
            self._stop.check()
        sent = Sent(self._export_id, self._size, base64_crc32(self._crc32))
        if not self._publish(sent):
            raise Superseded(
                f"{self.url} was replaced by another writer while this export ran, and stays as that left it.",
                "See whether two runs write to this key; a retry replaces it.",
                transient=True,
            )
        self._done = True
        etag = check_visible(self._bucket, self.key, sent)
        return StoredObject(
            self._size, self._sha256.hexdigest(), etag, 1 if self._parts is None else self._parts.number
        )

    def abort(self, reason: BaseException | None = None) -> bool:
        """Give up: nothing becomes visible, and no part stays. Does nothing once completed or aborted.

        Parts on their way end the export, so that they are not tried again.

        :param reason: that the export ends with then.
        :returns: False if the store did not confirm it; the log names what stays.
        """
        if self._done:
            return True
        self._done = True
        if self._parts is None:
            return True
        flying = self._parts.in_flight
        if flying:
            self._stop.set(reason or cancelled())
        gone = self._abort_upload(self._parts.upload_id)
        if flying and gone:
            # A part on its way may be stored after an abort (Amazon S3 API Reference, AbortMultipartUpload).
            self._parts.settle(_ABORT_SECONDS)
            gone = self._abort_upload(self._parts.upload_id)
        return gone

    def leave(self) -> bool:
        """Give up without asking a store that does not answer; the log names what stays."""
        if self._parts is not None and not self._done:
            self._log_left(self._parts.upload_id, "not tried, since the store does not answer")
        self._done = True
        return False

    def __enter__(self) -> Upload:
        return self.open()

    def __exit__(self, _: object, exc: BaseException | None, trace: object) -> None:
        self.abort(exc)

    def _send_part(self) -> None:
        """Send the filled part; the buffer is used again."""
        parts = self._parts or self._start()
        if parts.number == MAX_PARTS:
            raise self._too_large(f"the object needs more than {MAX_PARTS:,} parts")
        parts.send(self._part)
        self._filled = 0
        size = grown_part_bytes(parts.number + 1, self._first_bytes)
        if len(self._part) < size:
            self._part = bytearray(size)

    def _start(self) -> Parts:
        self._stop.check()
        arguments = {**self._headers, **self._checksum(ChecksumAlgorithm="CRC32")}
        metadata = self._bucket.metadata(self._export_id)
        answer = self._bucket.request("create_multipart_upload", self.key, "starting", Metadata=metadata, **arguments)
        self._parts = Parts(self._bucket, self.key, answer["UploadId"], self._stop)
        return self._parts

    def _checksum(self, **arguments: str) -> dict[str, str]:
        """Arguments about the checksum of the whole object, where the store takes any."""
        return {"ChecksumType": "FULL_OBJECT", **arguments} if self._bucket.checksums else {}

    def _publish(self, sent: Sent) -> bool:
        """Put or complete; False if another writer has replaced what was there."""
        if self._parts is None:
            del self._part[self._filled :]
            metadata = self._bucket.metadata(self._export_id)
            return self._write("put_object", "writing", sent, Body=self._part, Metadata=metadata, **self._headers)
        self.finish()
        parts = self._parts.sent()
        try:
            return self._write(
                "complete_multipart_upload",
                "completing",
                sent,
                hopeless=self._parts.is_gone,
                give_up=self.abort,
                UploadId=self._parts.upload_id,
                MultipartUpload={"Parts": parts},
                MpuObjectSize=self._size,
                **self._checksum(ChecksumCRC32=sent.crc32),
            )
        except StoreError as exc:
            grown = grown_part_bytes(len(parts), self._first_bytes) > self._first_bytes
            if grown and (exc.code == "InvalidPart" or "same length" in exc.failed):
                exc.remedy = (
                    "The file was more than twice as large as estimated, so its parts had to grow, and this store"
                    " (Cloudflare R2, perhaps) takes parts of one size only: pass max_file_bytes."
                )
            raise

    def _write(self, operation: str, doing: str, sent: Sent, **arguments: Any) -> bool:
        return write(self._bucket, operation, self.key, doing, sent=sent, replaces=self._replaces, **arguments)

    def _abort_upload(self, upload_id: str) -> bool:
        """Whether the store says that the upload is gone; it is asked once."""
        try:
            self._bucket.request(
                "abort_multipart_upload", self.key, "aborting an upload of", patient=False, UploadId=upload_id
            )
        except StoreError as exc:
            if exc.code == "NoSuchUpload":
                return True
            self._log_left(upload_id, exc.code)
            return False
        return True

    def _log_left(self, upload_id: str, why: str) -> None:
        log.error(
            "Cannot abort upload %s of %s (%s). It is invisible, but its parts are stored (and paid for) until the next"
            " export to this key, or the bucket's lifecycle rule, removes them.",
            upload_id,
            self.url,
            why,
        )

    def _too_large(self, reason: str) -> StoreError:
        failed = f"The object store can't hold {self.url}: {reason}."
        remedy = "Export fewer rows or columns, or split the file by max_file_bytes."
        return StoreError(failed, remedy, code="EntityTooLarge")
