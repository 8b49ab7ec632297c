"""A bounded, concurrent upload of one S3 object: completed or aborted, never in between."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import BotoCoreError
from isal import isal_zlib

from streaming_export.cancellation import Stop, cancelled
from streaming_export.errors import AlreadyExists, StoreError, Superseded
from streaming_export.s3.bucket import Bucket
from streaming_export.s3.conditional import ANYTHING, Sent, base64_crc32, check_visible, write
from streaming_export.s3.objects import ExportedFile
from streaming_export.s3.parts import MAX_OBJECT_BYTES, MAX_PARTS, MIN_PART_BYTES, Parts, grown_part_bytes

log = logging.getLogger(__name__)

_ABORT_SECONDS = 10.0  # how long an abort waits for parts in flight


class Upload:
    """Writes one object. Only one thread may use it.

    Until `complete`, nothing new is visible under the key, and an existing object stays. Content smaller than a part is
    sent by one put. `open` aborts unfinished uploads of the same key: a killed attempt left them behind, or this upload
    supersedes them; nothing is sent before. The object is replaced only if it is still the one that `open` saw. The
    store gets a CRC32 of each part and of the whole object, and refuses what differs (Amazon S3 User Guide, "Checking
    object integrity").

    :param bucket: with the export's `stop`: a part that can't be sent sets it; waiting for parts then raises `Stopped`.
    :param export_id: id of the export, for the object's metadata.
    :param headers: HTTP headers of the object, by boto3's names; the bucket's extra arguments take precedence.
    :param part_bytes: size of all parts except the last.
    :param overwrite: False: do not replace an existing object.
    """

    def __init__(
        self,
        bucket: Bucket,
        key: str,
        *,
        export_id: str,
        headers: Mapping[str, Any] | None = None,
        part_bytes: int = MIN_PART_BYTES,
        overwrite: bool = True,
    ) -> None:
        self._overwrite = overwrite
        self._bucket = bucket
        self.key = key
        self.url = bucket.url(key)
        self._export_id = export_id
        self._stop = bucket.stop
        self._headers = {name: value for name, value in (headers or {}).items() if name not in bucket.extra_args}
        self._first_bytes = part_bytes
        self._part = bytearray(part_bytes)
        self._filled = 0
        self._parts: Parts | None = None
        self._replaces: str | None = ANYTHING if overwrite else None
        #: Bytes written so far.
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._crc32 = 0
        self._opened = self._done = self._finished = False

    def open(self) -> None:
        """Look at the existing object; another thread may do it, while the first part is filled. All else waits for it.

        :raises StoreError: if the bucket does not exist, or the store does not answer.
        :raises AlreadyExists: if an object exists, and `overwrite` is False.
        """
        try:
            # First, so that no completion which a killed attempt has left on its way can interfere after that.
            for upload_id, started in self._bucket.unfinished_uploads(self.key):
                log.warning("Aborting an unfinished upload of %s, started %s.", self.url, started)
                self._abort_upload(upload_id)
        except StoreError as exc:
            if exc.code == "NoSuchBucket" or isinstance(exc.__cause__, BotoCoreError):  # the store did not answer
                raise
            log.warning(
                "Cannot look for unfinished uploads of %s (%s). If an earlier attempt was killed, its parts stay until"
                " the bucket's lifecycle rule removes them.",
                self.url,
                exc.code,
            )
        try:
            found = self._bucket.head(self.key)
            if found and not self._overwrite:
                raise AlreadyExists(self.url, str(found))
            self._replaces = found.etag if found else None
        except StoreError as exc:
            # S3 does not say whether there is an object: without s3:ListBucket (403), or without its SSE-C key (400).
            if exc.transient:
                raise
        with self._stop.changing():
            self._opened = True

    def write(self, data: bytes) -> None:
        """Add bytes to the object; waits while the maximum of parts is in flight.

        :raises StoreError: if the upload can't be started, or the object would be larger than S3 allows.
        :raises Stopped: if the export is stopped, for instance because a part could not be sent.
        """
        if self.size + len(data) > MAX_OBJECT_BYTES:
            raise self._too_large("S3 allows 5 TiB")
        self._sha256.update(data)
        self._crc32 = isal_zlib.crc32(data, self._crc32)
        self.size += len(data)
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
        """Whether parts were sent; smaller content is sent by `complete`."""
        return self._parts is not None

    def finish(self) -> None:
        """Send the last part, and wait for all of them. The object is not visible yet; nothing more can be written.

        :raises StoreError: if the upload can't be started.
        :raises Stopped: if the export is stopped, for instance because a part could not be sent.
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
        """Ignore `stop` from now on: other files of the export are visible already."""
        self._bucket = self._bucket.within(Stop())

    def complete(self, rows: int = 0) -> ExportedFile:
        """Make the object visible, in one step, and check it.

        :param rows: data rows in it.
        :raises StoreError: if it could not be completed; it says so if the object may be visible.
        :raises Superseded: if another export replaced the old object meanwhile, or the new one just now.
        :raises AlreadyExists: if another writer was first, and `overwrite` is False.
        :raises VerificationError: if the stored object is not what was sent.
        :raises Stopped: if the export is stopped.
        """
        self._bucket.stop.wait_for(lambda: self._opened)
        sent = Sent(self._export_id, self.size, base64_crc32(self._crc32))
        if not self._publish(sent):
            if not self._overwrite:
                raise AlreadyExists(self.url, "written while this export ran")
            raise Superseded(f"Another writer replaced {self.url} while this export ran; its object stays.")
        self._done = True
        etag = check_visible(self._bucket, self.key, sent)
        parts = self._parts.number if self._parts else 1
        return ExportedFile(self.key, rows, self.size, self._sha256.hexdigest(), etag, parts)

    def abort(self, reason: BaseException | None = None, *, answering: bool = True) -> bool:
        """Give up: nothing becomes visible, and no part stays. Does nothing once completed or aborted.

        If parts are in flight, this sets the export's `stop`, so that they are not sent again.

        :param reason: the reason for `stop`.
        :param answering: False: send no request, since the store does not answer.
        :returns: False if the store does not answer, or did not confirm it; the log names what stays.
        """
        done, self._done = self._done, True
        if done or self._parts is None:
            return answering
        if not answering:
            self._log_left(self._parts.upload_id, "not tried, since the store does not answer")
            return False
        flying = self._parts.in_flight
        if flying:
            self._stop.set(reason or cancelled())
        gone = self._abort_upload(self._parts.upload_id)
        if flying and gone:
            # A part in flight may be stored after an abort (Amazon S3 API Reference, AbortMultipartUpload).
            self._parts.settle(_ABORT_SECONDS)
            gone = self._abort_upload(self._parts.upload_id)
        return gone

    def _send_part(self) -> None:
        """Send the filled part."""
        parts = self._parts or self._start()
        if parts.number == MAX_PARTS:
            raise self._too_large(f"the object needs more than {MAX_PARTS:,} parts")
        self._part = parts.send(self._part)
        self._filled = 0
        size = grown_part_bytes(parts.number + 1, self._first_bytes)
        if len(self._part) < size:
            self._part = bytearray(size)

    def _start(self) -> Parts:
        self._stop.wait_for(lambda: self._opened)
        arguments = {**self._headers, **self._checksum(ChecksumAlgorithm="CRC32")}
        metadata = self._bucket.metadata(self._export_id)
        answer = self._bucket.request("create_multipart_upload", self.key, "starting", Metadata=metadata, **arguments)
        self._parts = Parts(self._bucket, self.key, answer["UploadId"])
        return self._parts

    def _checksum(self, **arguments: str) -> dict[str, str]:
        """Arguments for the checksum of the whole object, if the store gets one."""
        return {"ChecksumType": "FULL_OBJECT", **arguments} if self._bucket.checksums else {}

    def _publish(self, sent: Sent) -> bool:
        """Put or complete; False if another writer has changed the object."""
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
                MpuObjectSize=self.size,
                **self._checksum(ChecksumCRC32=sent.crc32),
            )
        except StoreError as exc:
            grown = grown_part_bytes(len(parts), self._first_bytes) > self._first_bytes
            if grown and (exc.code == "InvalidPart" or "same length" in exc.failed):
                exc.remedy = (
                    "Pass max_file_bytes. The file was more than twice as large as estimated, so its parts had to grow,"
                    " but this store (perhaps Cloudflare R2) takes only parts of one size."
                )
            raise

    def _write(self, operation: str, doing: str, sent: Sent, **arguments: Any) -> bool:
        return write(self._bucket, operation, self.key, doing, sent=sent, replaces=self._replaces, **arguments)

    def _abort_upload(self, upload_id: str) -> bool:
        """Abort an upload, in one try; returns whether the store says that it is gone."""
        try:
            self._bucket.request(
                "abort_multipart_upload", self.key, "aborting an upload of", patient=False, UploadId=upload_id
            )
        except StoreError as exc:
            if exc.code != "NoSuchUpload":
                self._log_left(upload_id, exc.code)
                return False
        return True

    def _log_left(self, upload_id: str, why: str) -> None:
        log.error(
            "Cannot abort upload %s of %s (%s). It is invisible, but its parts cost storage until the next export to"
            " this key, or the bucket's lifecycle rule, removes them.",
            upload_id,
            self.url,
            why,
        )

    def _too_large(self, reason: str) -> StoreError:
        failed = f"{self.url} is too large: {reason}."
        remedy = "Export fewer rows or columns, or split the file by max_file_bytes."
        return StoreError(failed, remedy, code="EntityTooLarge")
