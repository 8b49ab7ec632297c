"""A bounded, concurrent upload of one S3 object: completed or aborted, never in between."""

from __future__ import annotations

import hashlib
import logging
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from streaming_export.errors import InvalidArgument, UploadError, VerificationError

log = logging.getLogger(__name__)

MiB = 1024 * 1024

# Amazon S3 User Guide, "Amazon S3 multipart upload limits".
MAX_PARTS = 10_000
MAX_OBJECT_BYTES = 5 * 1024 * 1024 * MiB

#: Size of a part up to part 4,000, which is 31 GiB of content. S3 asks for at least 5 MiB.
FIRST_PART_BYTES = 8 * MiB

#: Bytes of parts on their way to the store, beside the part that is being filled.
IN_FLIGHT_BYTES = 3 * FIRST_PART_BYTES

# From there parts double every 600, up to 4 GiB (S3 takes 5), so that 10,000 of them hold the 5 TiB of an object.
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
    a killed attempt left behind, or an attempt that this one supersedes.

    :param client: a boto3 S3 client; retries are its own (``Config(retries={"mode": "standard"})``).
    :param extra_args: further arguments of the requests by their boto3 names, as ``ContentType``,
        ``ServerSideEncryption``, ``SSEKMSKeyId``, ``ACL``, ``StorageClass``, ``Metadata``; each goes to all
        requests that know it.
    :raises InvalidArgument: if an extra argument is not one of an upload's.
    """

    def __init__(self, client: Any, bucket: str, key: str, extra_args: Mapping[str, Any] | None = None) -> None:
        self._client = client
        self._target = {"Bucket": bucket, "Key": key}
        self._extra_args = dict(extra_args or {})
        self._check_extra_args()
        self.url = f"s3://{bucket}/{key}"
        self._upload_id: str | None = None
        self._number = 1
        self._part = bytearray(FIRST_PART_BYTES)
        self._filled = 0
        self._spare: list[bytearray] = []
        self._etags: dict[int, str] = {}
        self._size = 0
        self._sha256 = hashlib.sha256()
        self._in_flight = 0
        self._error: BaseException | None = None
        self._done = False
        self._changed = threading.Condition()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._size

    def __enter__(self) -> Upload:
        try:
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
        return self

    def write(self, data: bytes) -> None:
        """Add bytes to the object, waiting while the parts in flight are at their bound.

        :raises UploadError: if a part could not be sent, or the object would be larger than S3 allows.
        """
        if self._size + len(data) > MAX_OBJECT_BYTES:
            raise UploadError(
                f"{self.url} would be larger than the 5 TiB that S3 allows; nothing was published."
                " Export fewer rows or columns."
            )
        self._sha256.update(data)
        self._size += len(data)
        rest = memoryview(data)
        while rest:
            taken = rest[: len(self._part) - self._filled]
            self._part[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            rest = rest[len(taken) :]
            if self._filled == len(self._part):
                self._send_part()

    def complete(self) -> StoredObject:
        """Make the object visible, in one step, and check its size.

        :raises UploadError: if it could not be sent or completed.
        :raises VerificationError: if the store reports another size than was sent.
        """
        del self._part[self._filled :]
        if self._upload_id is None:
            self._raise_error()
            self._call("writing", "put_object", Body=self._part)
        else:
            if self._part:
                self._send_part()
            self._wait_until(lambda: not self._in_flight)
            parts = [{"PartNumber": number, "ETag": etag} for number, etag in sorted(self._etags.items())]
            self._call(
                "completing",
                "complete_multipart_upload",
                UploadId=self._upload_id,
                MultipartUpload={"Parts": parts},
                MpuObjectSize=self._size,
            )
        self._done = True
        return self._verify()

    def abort(self) -> None:
        """Give up: nothing becomes visible, and no part stays. Does nothing once completed or aborted.

        Safe from any thread; a `write` or `complete` that waits meanwhile raises.
        """
        with self._changed:
            if self._done:
                return
            self._done = True
            self._error = self._error or UploadError(f"The upload of {self.url} was aborted. Nothing was published.")
            in_flight = self._in_flight
            self._changed.notify_all()
        if self._upload_id is None:
            return
        self._abort_upload(self._upload_id)
        if in_flight:
            # A part that was on its way may have been stored after the abort (Amazon S3 API Reference,
            # AbortMultipartUpload).
            with self._changed:
                self._changed.wait_for(lambda: not self._in_flight, timeout=_ABORT_TIMEOUT)
            self._abort_upload(self._upload_id)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _send_part(self) -> None:
        """Hand the filled part to a thread that sends it, and go on with another buffer."""
        if self._upload_id is None:
            self._start()
        if self._number > MAX_PARTS:
            raise UploadError(f"{self.url} needs more than {MAX_PARTS} parts. Nothing was published.")
        self._wait_until(lambda: not self._in_flight or (self._in_flight + 1) * len(self._part) <= IN_FLIGHT_BYTES)
        with self._changed:
            self._in_flight += 1
        threading.Thread(
            target=self._send, args=(self._number, self._part), name=f"part-{self._number}", daemon=True
        ).start()
        self._number += 1
        size = part_bytes(self._number)
        self._spare = [part for part in self._spare if len(part) == size]
        self._part = self._spare.pop() if self._spare else bytearray(size)
        self._filled = 0

    def _start(self) -> None:
        self._raise_error()
        upload_id = self._call("starting", "create_multipart_upload")["UploadId"]
        with self._changed:
            self._upload_id = upload_id
            aborted = self._done
        if aborted:
            self._abort_upload(upload_id)

    def _send(self, number: int, part: bytearray) -> None:
        etag, error = None, None
        try:
            etag = self._request("upload_part", UploadId=self._upload_id, PartNumber=number, Body=part)["ETag"]
        except BaseException as exc:  # whatever it is, the writer raises it
            error = self._failed(f"sending part {number} of", exc)
        with self._changed:
            if etag is not None:
                self._etags[number] = etag
                self._spare.append(part)
            self._error = self._error or error
            self._in_flight -= 1
            self._changed.notify_all()

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or condition())
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _verify(self) -> StoredObject:
        head = self._call("checking", "head_object", published=True)
        if head["ContentLength"] != self._size:
            raise VerificationError(
                f"{self.url} is visible with {head['ContentLength']} bytes, but {self._size} were sent. It is"
                " not whole: another writer has replaced it, or the store is at fault. Do not use it; export again."
            )
        return StoredObject(self._size, self._sha256.hexdigest(), head["ETag"].strip('"'), max(1, len(self._etags)))

    def _abort_leftovers(self) -> None:
        bucket, key = self._target["Bucket"], self._target["Key"]
        for page in self._client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=key):
            for upload in page.get("Uploads", []):
                if upload["Key"] == key:
                    log.warning("Aborting an unfinished upload of %s, started %s.", self.url, upload["Initiated"])
                    self._abort_upload(upload["UploadId"])

    def _abort_upload(self, upload_id: str) -> None:
        try:
            self._request("abort_multipart_upload", UploadId=upload_id)
        except (ClientError, BotoCoreError) as exc:
            if _code(exc) != "NoSuchUpload":
                log.error(
                    "Cannot abort upload %s of %s (%s). It is invisible, but its parts are stored (and paid for)"
                    " until the next export to this key, or the bucket's lifecycle rule, removes them.",
                    upload_id,
                    self.url,
                    _code(exc),
                )

    def _call(self, doing: str, operation: str, *, published: bool = False, **arguments: Any) -> Any:
        try:
            return self._request(operation, **arguments)
        except (ClientError, BotoCoreError) as exc:
            raise self._failed(doing, exc, published) from exc

    def _request(self, operation: str, **arguments: Any) -> Any:
        known = _members(self._client, operation)
        extra = {name: value for name, value in self._extra_args.items() if name in known}
        return getattr(self._client, operation)(**self._target, **extra, **arguments)

    def _failed(self, doing: str, exc: BaseException, published: bool = False) -> UploadError:
        state = "The object is visible but not verified" if published else "Nothing was published"
        return UploadError(f"The object store failed while {doing} {self.url}: {_reason(exc)}. {state}.", _code(exc))

    def _check_extra_args(self) -> None:
        allowed = _members(self._client, "create_multipart_upload") & _members(self._client, "put_object")
        allowed -= self._target.keys()
        if unknown := sorted(self._extra_args.keys() - allowed):
            raise InvalidArgument("extra_args", unknown, f"names out of {sorted(allowed)}")


def _members(client: Any, operation: str) -> set[str]:
    """Names of an operation's arguments, as boto3 knows them."""
    name = client.meta.method_to_api_mapping[operation]
    return set(client.meta.service_model.operation_model(name).input_shape.members)


def _code(exc: BaseException) -> str:
    if isinstance(exc, ClientError):
        return str(exc.response.get("Error", {}).get("Code", "unknown"))
    return type(exc).__name__


def _reason(exc: BaseException) -> str:
    message = exc.response.get("Error", {}).get("Message", "") if isinstance(exc, ClientError) else str(exc)
    return f"{_code(exc)}: {message}" if message else _code(exc)
