"""A bucket: the one place for requests, keys, retries, and what a store can't do."""

from __future__ import annotations

import copy
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, MutableSequence
from datetime import datetime
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from isal import isal_zlib
from urllib3.exceptions import HTTPError

from streaming_export.cancellation import Stop
from streaming_export.errors import InvalidArgument, StoreError
from streaming_export.s3 import conditional
from streaming_export.s3.codes import GONE, store_error
from streaming_export.s3.conditional import ANYTHING
from streaming_export.s3.objects import ObjectInfo

log = logging.getLogger(__name__)

MAX_KEY_BYTES = 1024  # Amazon S3 User Guide, "Naming Amazon S3 objects"

#: Most bytes of a document that are read into memory; the manifest of an export of 100,000 files has 60 MB.
MAX_DOCUMENT_BYTES = 100 * 2**20

#: Seconds after the first try in which a request that fails transiently is repeated.
PATIENCE_SECONDS = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0

# Old buckets may have longer names, with capitals and underscores (Amazon S3 User Guide, "Bucket naming rules").
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")

# Extra arguments that describe the content of the CSV files, and so do not apply to JSON documents.
_OF_THE_FILES = {"ContentType", "ContentDisposition", "ContentEncoding", "ContentLanguage"}

_EXPORT_ID = "export-id"


def check_key(argument: str, key: object, most: int = MAX_KEY_BYTES) -> None:
    """Refuse a key that is too long, has control characters, or could leave its prefix by . and .. as in paths.

    :param argument: name of the argument, for the error.
    :param most: maximum bytes in UTF-8.
    :raises InvalidArgument: naming the argument, its value and what is allowed.
    """
    if not isinstance(key, str) or not key.strip():
        raise InvalidArgument(argument, key, "a name that is not empty")
    if key.startswith("/") or {".", ".."} & set(key.split("/")) or not key.isprintable():
        raise InvalidArgument(argument, key, "no leading /, no . or .. between slashes, no control characters")
    if len(key.encode()) > most:
        raise InvalidArgument(argument, key, f"at most {most} bytes of UTF-8")


class _Quirks:
    """What the requests have shown about the store; all views of a bucket share it."""

    conditional = True


class Bucket:
    """A bucket. A request that fails transiently is repeated, with growing pauses.

    :param client: a boto3 S3 client, or a function that gives it when it is first needed, while rows are read already.
        Its own time-outs and retries come in addition. With boto3's defaults a silent store is given up after six
        minutes; ``Config(connect_timeout=10, read_timeout=20, retries={"total_max_attempts": 1})``, which the operator
        uses, makes that two.
    :param name: of the bucket.
    :param extra_args: further arguments of the requests by their boto3 names, such as ``ServerSideEncryption``,
        ``SSEKMSKeyId``, ``ACL``, ``StorageClass``, ``Metadata``; each goes to every request that knows it.
    :param patience: seconds after the first try in which a request is repeated.
    :raises InvalidArgument: if the name is not valid for a bucket, or an extra argument is not one of a write.
    """

    def __init__(
        self,
        client: Any | Callable[[], Any],
        name: str,
        extra_args: Mapping[str, Any] | None = None,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        if not isinstance(name, str) or not _BUCKET.fullmatch(name):
            allowed = "the name of a bucket, or an access point's alias: letters, digits, '.', '-', '_'"
            raise InvalidArgument("bucket", name, allowed)
        self._client = client
        self.name = name
        self.patience = patience
        self.extra_args: Mapping[str, Any] = dict(extra_args or {})
        self.stop = Stop()
        self._quirks = _Quirks()
        if self.extra_args:  # without any, the client is not needed here
            known = (self._members("create_multipart_upload") & self._members("put_object")) - {"Bucket", "Key"}
            if unknown := sorted(self.extra_args.keys() - known):
                raise InvalidArgument("extra_args", unknown, f"names out of {sorted(known)}")

    def __repr__(self) -> str:
        return f"Bucket({self.name!r})"

    @property
    def client(self) -> Any:
        """The boto3 client."""
        return self._client() if callable(self._client) else self._client

    def within(self, stop: Stop) -> Bucket:
        """The same bucket, but once `stop` is set its pauses between tries raise `Stopped`."""
        view = copy.copy(self)
        view.stop = stop
        return view

    def url(self, key: str) -> str:
        """The ``s3://`` URL of a key."""
        return f"s3://{self.name}/{key}"

    @property
    def checksums(self) -> bool:
        """Whether the store gets a CRC32 of each whole object; False if the user chose another checksum, or none."""
        wanted = self.client.meta.config.request_checksum_calculation in (None, "when_supported")
        return wanted and "ChecksumAlgorithm" not in self.extra_args

    def metadata(self, export_id: str) -> dict[str, str]:
        """The metadata of an object: the user's, and the id of the export."""
        return {**self.extra_args.get("Metadata", {}), _EXPORT_ID: export_id}

    def request(
        self,
        operation: str,
        key: str,
        doing: str,
        *,
        patient: bool = True,
        failures: MutableSequence[BaseException] | None = None,
        hopeless: Callable[[], bool] = lambda: False,
        receive: Callable[[Any], Any] = lambda answer: answer,
        **arguments: Any,
    ) -> Any:
        """Send one request, with the extra arguments that it knows, and repeat it while it fails transiently.

        :param operation: boto3's name of the request.
        :param doing: for the error, as in "starting".
        :param patient: False: try only once.
        :param failures: gets botocore's error of each failed try.
        :param hopeless: called before each new try; True ends the tries.
        :param receive: makes the result of the answer, as a part of each try.
        :raises StoreError: if the store refused or failed.
        :raises Stopped: if the export is stopped meanwhile.
        """
        doing, pause, deadline = f"{doing} {self.url(key)}", _FIRST_PAUSE, time.monotonic() + self.patience
        while True:
            try:
                return receive(self._call(operation, key, **arguments))
            except (ClientError, BotoCoreError, HTTPError) as exc:
                if failures is not None:
                    failures.append(exc)
                error = store_error(doing, exc)
                if not (patient and error.transient and time.monotonic() + pause < deadline) or hopeless():
                    raise error from exc
            log.warning("%s Trying again in %.1f s.", error.failed, pause)
            self.stop.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def head(self, key: str, *, patient: bool = True) -> ObjectInfo | None:
        """What the store says about an object; None if there is none.

        :param patient: False: try only once.
        :raises StoreError: if the store refused or failed; without s3:ListBucket, S3 answers 403 if there is no object.
        """
        checksum: dict[str, Any] = {"ChecksumMode": "ENABLED"} if self.checksums else {}
        head = self._find("head_object", key, "looking at", patient=patient, **checksum)
        if head is None:
            return None
        return ObjectInfo(
            key=key,
            size=head["ContentLength"],
            etag=head.get("ETag", "").strip('"'),
            modified=head["LastModified"],
            crc32=head.get("ChecksumCRC32") if head.get("ChecksumType") == "FULL_OBJECT" else None,
            export_id=head.get("Metadata", {}).get(_EXPORT_ID),
        )

    def read(self, key: str, most: int = MAX_DOCUMENT_BYTES) -> tuple[bytes, str] | None:
        """A document, of at most its first `most` bytes, and its ETag without quotes; None if there is none.

        :raises StoreError: if the store refused or failed.
        """

        def receive(answer: Any) -> tuple[bytes, str]:
            with answer["Body"] as body:
                # Without a number of bytes, botocore checks that the body is complete.
                fits = answer.get("ContentLength", most + 1) <= most
                return body.read(None if fits else most), answer.get("ETag", "").strip('"')

        found: tuple[bytes, str] | None = self._find("get_object", key, "reading", receive=receive)
        return found

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The objects whose keys begin with a prefix, in the order of their keys; one request per 1,000.

        :raises StoreError: if the store refused or failed; S3 requires s3:ListBucket.
        """
        page: dict[str, Any] = {"Prefix": prefix}
        while True:
            answer = self.request("list_objects_v2", prefix, "listing", **page)
            for found in answer.get("Contents", []):
                page["StartAfter"] = found["Key"]
                yield ObjectInfo(found["Key"], found["Size"], found["ETag"].strip('"'), found["LastModified"])
            if not answer.get("IsTruncated"):
                return

    def open(self, key: str, range: str | None = None) -> tuple[Any, str]:
        """A body that streams an object, and the object's ETag without quotes.

        :param range: as HTTP writes it, ``bytes=0-99``.
        :raises StoreError: if the store refused or failed; its code is in `GONE` if there is no object.
        """
        part: dict[str, Any] = {"Range": range} if range else {}
        answer = self.request("get_object", key, "reading", **part)
        return answer["Body"], answer.get("ETag", "").strip('"')

    def put(self, key: str, document: bytes, *, replaces: str | None, export_id: str) -> bool:
        """Write a JSON document, unless another writer has changed the object meanwhile; see `conditional.write`.

        :param replaces: ETag of the object to replace, without quotes; None: there must be none; `ANYTHING`: any or
            none.
        :returns: False if another writer has changed the object; nothing was written then.
        :raises StoreError: if the store refused or failed; it says so if the document may be visible.
        """
        plain = copy.copy(self)
        plain.extra_args = {name: value for name, value in self.extra_args.items() if name not in _OF_THE_FILES}
        return conditional.write(
            plain,
            "put_object",
            key,
            "writing",
            sent=conditional.Sent(export_id, len(document), conditional.base64_crc32(isal_zlib.crc32(document))),
            replaces=replaces,
            Body=document,
            ContentType="application/json",
            Metadata=self.metadata(export_id),
        )

    def unfinished_uploads(self, key: str, *, patient: bool = True) -> Iterator[tuple[str, datetime]]:
        """Id and start of each multipart upload of a key that was neither completed nor aborted.

        :param patient: False: try only once.
        :raises StoreError: if the store refused or failed.
        """
        page: dict[str, Any] = {"Prefix": key}
        while True:
            answer = self.request("list_multipart_uploads", key, "looking at", patient=patient, **page)
            for upload in answer.get("Uploads", []):
                if upload["Key"] == key:
                    yield upload["UploadId"], upload["Initiated"]
            if not answer.get("IsTruncated"):
                return
            page |= {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer.get("NextUploadIdMarker", "")}

    def _find(self, operation: str, key: str, doing: str, **arguments: Any) -> Any:
        """The result of `request`; None if there is no such object."""
        try:
            return self.request(operation, key, doing, **arguments)
        except StoreError as exc:
            if exc.code in GONE:
                return None
            raise

    def _call(self, operation: str, key: str, **arguments: Any) -> Any:
        members = self._members(operation)
        known = {name: value for name, value in self.extra_args.items() if name in members}
        where = {"Bucket": self.name} | ({"Key": key} if "Key" in members else {})
        return getattr(self.client, operation)(**{**where, **known, **arguments})

    def _members(self, operation: str) -> set[str]:
        name = self.client.meta.method_to_api_mapping[operation]
        return set(self.client.meta.service_model.operation_model(name).input_shape.members)

    def condition(self, replaces: str | None) -> dict[str, Any]:
        """The argument that makes a request conditional on the object's ETag; see `put`."""
        if not self._quirks.conditional or replaces in (ANYTHING, ""):
            return {}
        return {"IfMatch": f'"{replaces}"'} if replaces else {"IfNoneMatch": "*"}

    def distrust_conditions(self, why: str) -> None:
        """Write without conditions from now on, and log why: the store does not support them, or gets them wrong."""
        if self._quirks.conditional:
            log.warning("%s. Writing without conditions: of two exports to one key, the last writer wins.", why)
        self._quirks.conditional = False
