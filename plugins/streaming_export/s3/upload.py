"""A bounded, concurrent upload of one S3 object: completed or aborted, never in between."""

from __future__ import annotations

import base64
import hashlib
import logging
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from isal import isal_zlib

from streaming_export.errors import (
    InvalidArgument,
    UploadAborted,
    UploadError,
    VerificationError,
    retry_helps,
    upload_error,
)

log = logging.getLogger(__name__)

MiB = 1024 * 1024

# Amazon S3 User Guide, "Amazon S3 multipart upload limits".
MAX_PARTS = 10_000
MAX_OBJECT_BYTES = 5 * 1024 * 1024 * MiB

#: Size of a part up to part 4,000, which is 23 GiB of content. S3 asks for at least 5 MiB.
FIRST_PART_BYTES = 6 * MiB

#: Bytes of parts on their way to the store, beside the part that is being filled.
IN_FLIGHT_BYTES = 3 * FIRST_PART_BYTES

# From there parts double every 600, up to 3 GiB (S3 takes 5), so that 10,000 of them hold the 5 TiB of an object.
_PARTS_BEFORE_GROWTH = 4_000
_PARTS_OF_A_SIZE = 600
_MAX_DOUBLINGS = 9

_ABORT_TIMEOUT = 10.0  # seconds that an abort waits for parts still on their way


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


def part_bytes(number: int) -> int:
    """Size of the part with this number (from 1), but for the last one."""
    doublings = math.ceil(max(0, number - _PARTS_BEFORE_GROWTH) / _PARTS_OF_A_SIZE)
    return FIRST_PART_BYTES << min(doublings, _MAX_DOUBLINGS)


class Upload:
    """Writes one object; a context manager that aborts what was not completed.

    Nothing is visible under the key before `complete`, and what was there before stays until then. Content
    smaller than a part is one put. On entry, unfinished uploads of the same key are aborted: they are what
    a killed attempt left behind, or an attempt that this one supersedes. Where the store knows conditional
    writes (Amazon S3 User Guide, "Conditional requests"), the object is replaced only if it is still the
    one that was there on entry; elsewhere the last writer wins. The store gets a CRC32 of each part and of the
    whole object, and refuses what differs (Amazon S3 User Guide, "Checking object integrity").

    :param client: a boto3 S3 client; retries are its own (``Config(retries={"mode": "standard"})``).
    :param extra_args: further arguments of the requests by their boto3 names, as ``ContentType``,
        ``ServerSideEncryption``, ``SSEKMSKeyId``, ``ACL``, ``StorageClass``, ``Metadata``; each goes to all
        requests that know it.
    :param on_error: called, by any thread, when a part could not be sent; `write` raises the error.
    :raises InvalidArgument: if an extra argument is not one of an upload's.
    """

    def __init__(
        self,
        client: Any,
        bucket: str,
        key: str,
        extra_args: Mapping[str, Any] | None = None,
        on_error: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._on_error = on_error
        self._target = {"Bucket": bucket, "Key": key}
        self._extra_args = dict(extra_args or {})
        self._check_extra_args()
        self.url = f"s3://{bucket}/{key}"
        #: What an error says of what is visible, until the object is.
        self.state = "Nothing was published"
        self._upload_id: str | None = None
        self._gone = False
        self._number = 1
        self._part = bytearray(FIRST_PART_BYTES)
        self._filled = 0
        self._finished = False
        self._condition: dict[str, str] = {}
        self._parts: dict[int, dict[str, Any]] = {}
        self._size = 0
        self._sha256 = hashlib.sha256()
        self._crc32 = 0
        self._in_flight = 0
        self._error: BaseException | None = None
        self._done = False
        self._ended = threading.Event()
        self._changed = threading.Condition()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._size

    @property
    def started(self) -> bool:
        """Whether parts were sent; what is smaller than one is put by `complete`."""
        return self._upload_id is not None

    def open(self) -> Upload:
        """Look at what is there; the caller sees to it that `complete` or `abort` is called.

        :raises UploadError: if the bucket is not there, or the store does not answer.
        """
        try:
            # Before looking at what is there: a completion that a killed attempt has left on its way can't come
            # between any more.
            self._abort_leftovers()
        except ClientError as exc:
            if _code(exc) == "NoSuchBucket":
                raise self._failed("looking at", exc) from exc
            log.warning(
                "Cannot look for unfinished uploads of %s (%s); if an earlier attempt was killed, its parts"
                " stay until the bucket's lifecycle rule removes them.",
                self.url,
                _code(exc),
            )
        except BotoCoreError as exc:
            raise self._failed("looking at", exc) from exc
        self._condition = self._unchanged()
        return self

    def replaced(self) -> str | None:
        """What is there already, in words; None if there is nothing.

        :raises UploadError: if the store does not answer.
        """
        try:
            head = self._request("head_object")
        except (ClientError, BotoCoreError) as exc:
            if _code(exc) in ("404", "NoSuchKey"):
                return None
            raise self._failed("looking at", exc) from exc
        return f"{head['ContentLength']:,} bytes of {head['LastModified'].isoformat()}"

    def write(self, data: bytes) -> None:
        """Add bytes to the object, waiting while the parts in flight are at their bound.

        :raises UploadError: if a part could not be sent, or the object would be larger than S3 allows.
        """
        if self._size + len(data) > MAX_OBJECT_BYTES:
            reason = "the object would be larger than the 5 TiB that S3 allows"
            raise upload_error(f"writing {self.url}", "EntityTooLarge", reason, self.state)
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

    def finish(self) -> None:
        """Send what is left; the object is not visible yet, and takes no more. Frees the part's memory.

        :raises UploadError: if a part could not be sent.
        """
        if self._finished:
            return
        del self._part[self._filled :]
        if self._part or self._number == 1:
            self._send_part()
        self._wait_until(lambda: not self._in_flight)
        self._part, self._finished = bytearray(), True

    def complete(self) -> StoredObject:
        """Make the object visible, in one step, and check it.

        :raises UploadError: if it could not be sent or completed.
        :raises VerificationError: if the store holds something else than was sent, or the object was
            replaced by another writer since the upload was entered.
        """
        if self._upload_id is None:
            del self._part[self._filled :]
            self.raise_error()
            self._publish("writing", "put_object", Body=self._part)
        else:
            self.finish()
            parts = [part for _, part in sorted(self._parts.items())]
            checksum = {"ChecksumType": "FULL_OBJECT", "ChecksumCRC32": _base64(self._crc32)}
            self._publish(
                "completing",
                "complete_multipart_upload",
                UploadId=self._upload_id,
                MultipartUpload={"Parts": parts},
                MpuObjectSize=self._size,
                **(checksum if self._checksummed else {}),
            )
        self._done = True
        self._ended.set()
        return self._verify()

    def abort(self) -> None:
        """Give up: nothing becomes visible, and no part stays. Does nothing once completed or aborted.

        Safe from any thread; a `write` or `complete` that waits meanwhile raises. If another thread is
        aborting, waits for it.
        """
        with self._changed:
            first, self._done = not self._done, True
        if not first:
            self._ended.wait(_ABORT_TIMEOUT)
            return
        try:
            self._abort()
        finally:
            self._ended.set()

    def raise_error(self) -> None:
        """Raise what sending a part has failed with, if one has."""
        if self._error is not None:
            raise self._error

    def _abort(self) -> None:
        with self._changed:
            self._error = self._error or UploadAborted(f"The upload of {self.url} was aborted. Nothing was published.")
            in_flight = self._in_flight
            self._changed.notify_all()
        if self._upload_id is None:
            return
        self._gone = self._abort_upload(self._upload_id)
        if in_flight:
            # A part that was on its way may have been stored after the abort (Amazon S3 API Reference,
            # AbortMultipartUpload).
            with self._changed:
                self._changed.wait_for(lambda: not self._in_flight, timeout=_ABORT_TIMEOUT)
            self._abort_upload(self._upload_id)

    def __enter__(self) -> Upload:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _send_part(self) -> None:
        """Hand a copy of the filled part to a thread that sends it; the buffer is used again."""
        if self._upload_id is None:
            self._start()
        if self._number > MAX_PARTS:
            reason = f"the object needs more than {MAX_PARTS:,} parts"
            raise upload_error(f"writing {self.url}", "EntityTooLarge", reason, self.state)
        size = len(self._part)
        with self._changed:
            # Counted under the same lock, so that an abort either prevents a part or waits for it.
            self._wait_until(lambda: not self._in_flight or (self._in_flight + 1) * size <= IN_FLIGHT_BYTES)
            self._in_flight += 1
        try:
            # Bytes, since botocore copies a bytearray once more where it sends a checksum behind the body.
            arguments = (self._number, bytes(self._part))
            threading.Thread(target=self._send, args=arguments, name=f"part-{self._number}", daemon=True).start()
        except (MemoryError, RuntimeError):  # the process can't have more memory, or another thread
            with self._changed:
                self._in_flight -= 1
            raise
        self._number += 1
        self._filled = 0
        if len(self._part) < part_bytes(self._number):
            self._part = bytearray(part_bytes(self._number))

    def _start(self) -> None:
        self.raise_error()
        checksum = {"ChecksumType": "FULL_OBJECT", "ChecksumAlgorithm": "CRC32"} if self._checksummed else {}
        upload_id = self._call("starting", "create_multipart_upload", **checksum)["UploadId"]
        with self._changed:
            self._upload_id = upload_id
            aborted = self._done
        if aborted:
            self._abort_upload(upload_id)

    def _send(self, number: int, part: bytes) -> None:
        sent: dict[str, Any] = {}
        error: BaseException | None = None
        try:
            answer = self._request("upload_part", UploadId=self._upload_id, PartNumber=number, Body=part)
            _check_checksum(answer, part)
            checksums = {name: value for name, value in answer.items() if name.startswith("Checksum")}
            checksums.pop("ChecksumType", None)
            sent = {"PartNumber": number, "ETag": answer["ETag"], **checksums}
        except (ClientError, BotoCoreError, VerificationError) as exc:
            error = self._failed(f"sending part {number} of", exc)
        except BaseException as exc:  # whatever it is, the writer raises it
            error = exc
        with self._changed:
            if sent:
                self._parts[number] = sent
            self._error = self._error or error
            self._in_flight -= 1
            self._changed.notify_all()
        if error:
            self._on_error()

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or condition())
        self.raise_error()

    @property
    def _checksummed(self) -> bool:
        """Whether the store is given, and asked for, a checksum of the whole object.

        Not if the user chose another checksum, or none for a store that knows none (botocore's
        ``request_checksum_calculation``).
        """
        wanted = self._client.meta.config.request_checksum_calculation in (None, "when_supported")
        return wanted and "ChecksumAlgorithm" not in self._extra_args

    def _publish(self, doing: str, operation: str, **arguments: Any) -> None:
        """Put or complete, if the object is still the one that was there on entry."""
        try:
            try:
                self._request(operation, **self._condition, **arguments)
            except ClientError as exc:
                if _code(exc) != "NotImplemented":
                    raise
                # The store knows no conditional writes.
                self._request(operation, **arguments)
        except (ClientError, BotoCoreError) as exc:
            # The answer to a request that succeeded may have been lost, and its retry refused. One that is still on
            # its way can't succeed any more once the upload is gone.
            error = self._error
            self.abort()
            published = self._is_published()
            if published:
                return
            if error:
                raise error from None
            if _code(exc) in ("PreconditionFailed", "ConditionalRequestConflict"):
                raise VerificationError(
                    f"{self.url} was replaced by another writer while this export ran, and stays as that left it."
                    f" {self.state}. See whether two runs write to this key."
                ) from exc
            settled = published is False and (self._gone or _is_only_answer(exc))
            raise self._failed(doing, exc, None if settled else "Whether it was published is not known") from exc

    def _is_published(self) -> bool | None:
        """Whether the object is what was sent; None if that can't be found out."""
        try:
            head = self._request("head_object", **self._asking_checksum)
            if head["ETag"].strip('"') == self._expected_etag() or self._is_what_was_sent(head):
                return True
            # Any other object may be this one: encryption can change the ETag.
            return False if head["ETag"] == self._condition.get("IfMatch") else None
        except ClientError as exc:
            return False if _code(exc) in ("404", "NoSuchKey") else None
        except BotoCoreError:
            return None

    def _expected_etag(self) -> str:
        """The ETag that S3 gives to what was sent, but for some encryptions (Amazon S3 API Reference, Object)."""
        if not self._parts:
            return hashlib.md5(self._part, usedforsecurity=False).hexdigest()
        try:
            digests = b"".join(bytes.fromhex(part["ETag"].strip('"')) for _, part in sorted(self._parts.items()))
        except ValueError:
            return "unknown"
        return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(self._parts)}"

    def _is_what_was_sent(self, head: Mapping[str, Any]) -> bool:
        """Whether the store's own size and checksum of the object say so."""
        return (head["ContentLength"], head.get("ChecksumCRC32")) == (self._size, _base64(self._crc32))

    @property
    def _asking_checksum(self) -> dict[str, str]:
        return {"ChecksumMode": "ENABLED"} if self._checksummed else {}

    def _verify(self) -> StoredObject:
        state = "The object is visible but not verified"
        head = self._call("checking", "head_object", state, **self._asking_checksum)
        crc32 = _base64(self._crc32)
        whole = head.get("ChecksumType") == "FULL_OBJECT"
        stored = (head["ContentLength"], head.get("ChecksumCRC32", crc32) if whole else crc32)
        if stored != (self._size, crc32):
            raise VerificationError(
                f"{self.url} is visible with {stored[0]} bytes and CRC32 {stored[1]}, but {self._size} bytes with"
                f" {crc32} were sent. It is not what was exported: another writer has replaced it, or the store is"
                " at fault. Do not use it; export again."
            )
        return StoredObject(self._size, self._sha256.hexdigest(), head["ETag"].strip('"'), max(1, len(self._parts)))

    def _unchanged(self) -> dict[str, str]:
        """The condition that the object is still what it is now; none if the store does not tell.

        :raises UploadError: if the store failed.
        """
        try:
            return {"IfMatch": self._request("head_object")["ETag"]}
        except (ClientError, BotoCoreError) as exc:
            if _code(exc) in ("404", "NoSuchKey"):
                return {"IfNoneMatch": "*"}
            error = self._failed("looking at", exc)
            if isinstance(exc, BotoCoreError) or retry_helps(error):
                raise error from exc
            # Without s3:ListBucket, S3 does not tell whether there is an object (403), nor without its SSE-C key (400).
            return {}

    def _abort_leftovers(self) -> None:
        bucket, key = self._target["Bucket"], self._target["Key"]
        for page in self._client.get_paginator("list_multipart_uploads").paginate(
            **self._known("list_multipart_uploads"), Bucket=bucket, Prefix=key
        ):
            for upload in page.get("Uploads", []):
                if upload["Key"] == key:
                    log.warning("Aborting an unfinished upload of %s, started %s.", self.url, upload["Initiated"])
                    self._abort_upload(upload["UploadId"])

    def _abort_upload(self, upload_id: str) -> bool:
        """Whether the store says that the upload is gone."""
        try:
            self._request("abort_multipart_upload", UploadId=upload_id)
        except (ClientError, BotoCoreError) as exc:
            if _code(exc) == "NoSuchUpload":
                return True
            log.error(
                "Cannot abort upload %s of %s (%s). It is invisible, but its parts are stored (and paid for)"
                " until the next export to this key, or the bucket's lifecycle rule, removes them.",
                upload_id,
                self.url,
                _code(exc),
            )
            return False
        return True

    def _call(self, doing: str, operation: str, state: str | None = None, **arguments: Any) -> Any:
        try:
            return self._request(operation, **arguments)
        except (ClientError, BotoCoreError) as exc:
            raise self._failed(doing, exc, state) from exc

    def _request(self, operation: str, **arguments: Any) -> Any:
        return getattr(self._client, operation)(**self._target, **self._known(operation), **arguments)

    def _known(self, operation: str) -> dict[str, Any]:
        return known_arguments(self._client, operation, self._extra_args)

    def _failed(self, doing: str, exc: BaseException, state: str | None = None) -> UploadError:
        return upload_error(f"{doing} {self.url}", _code(exc), _reason(exc), state or self.state)

    def _check_extra_args(self) -> None:
        allowed = _members(self._client, "create_multipart_upload") & _members(self._client, "put_object")
        allowed -= self._target.keys()
        if unknown := sorted(self._extra_args.keys() - allowed):
            raise InvalidArgument("extra_args", unknown, f"names out of {sorted(allowed)}")


def known_arguments(client: Any, operation: str, extra_args: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that an operation has: a customer's key goes wherever the object is written or read."""
    known = _members(client, operation)
    return {name: value for name, value in extra_args.items() if name in known}


def _members(client: Any, operation: str) -> set[str]:
    """Names of an operation's arguments, as boto3 knows them."""
    name = client.meta.method_to_api_mapping[operation]
    return set(client.meta.service_model.operation_model(name).input_shape.members)


def _check_checksum(answer: Mapping[str, Any], part: bytes) -> None:
    """Compare what the store has received with what was sent, where it says so."""
    crc32 = _base64(isal_zlib.crc32(part))
    if answer.get("ChecksumCRC32", crc32) != crc32:
        raise VerificationError(f"the store received CRC32 {answer['ChecksumCRC32']} instead of {crc32}")


def _base64(crc32: int) -> str:
    """A CRC32 as S3 writes it."""
    return base64.b64encode(crc32.to_bytes(4, "big")).decode()


def _code(exc: BaseException) -> str:
    if isinstance(exc, ClientError):
        return str(exc.response.get("Error", {}).get("Code", "unknown"))
    return type(exc).__name__


def _is_only_answer(exc: BaseException) -> bool:
    """Whether the store has answered, and botocore has sent no other request that may still be on its way."""
    return isinstance(exc, ClientError) and not exc.response.get("ResponseMetadata", {}).get("RetryAttempts")


def _reason(exc: BaseException) -> str:
    message = exc.response.get("Error", {}).get("Message", "") if isinstance(exc, ClientError) else str(exc)
    return f"{_code(exc)}: {message}" if message else _code(exc)
