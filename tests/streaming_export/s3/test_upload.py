"""Upload: what arrives in the store, how much is on its way at a time, and what is left after a failure."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import random
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import EndpointConnectionError, ReadTimeoutError

from demo import services
from streaming_export import ExportCancelled, ExportedFile, StoreError, Superseded, VerificationError
from streaming_export.cancellation import Stop, Stopped, cancelled
from streaming_export.s3 import bucket as bucket_module
from streaming_export.s3 import parts, upload
from streaming_export.s3.bucket import PATIENCE_SECONDS, Bucket
from streaming_export.s3.parts import (
    IN_FLIGHT_BYTES,
    MAX_OBJECT_BYTES,
    MAX_PARTS,
    MIN_PART_BYTES,
    grown_part_bytes,
    part_bytes_for,
)
from streaming_export.s3.upload import Upload
from tests.conftest import content, keys, open_uploads
from tests.streaming_export.store import answer, hook, part_number, part_sizes, record, refusal
from tests.streaming_export.waiting import PATIENCE, Running

MiB = 1024 * 1024
GiB = 1024 * MiB
PARTS_IN_FLIGHT = IN_FLIGHT_BYTES // MIN_PART_BYTES
OURS = "export-1"

# Three parts, the last of them short.
DATA = random.Random(1).randbytes(2 * MIN_PART_BYTES + 12_345)
PART = DATA[:MIN_PART_BYTES]


@pytest.fixture
def client(endpoint: str) -> Any:
    """A client of the test's own: its hooks reach no other test."""
    return services.s3_client(endpoint)


@pytest.fixture
def before(client: Any, bucket: str) -> bytes:
    """What is stored under the key before the test."""
    body = b"what was there before"
    client.put_object(Bucket=bucket, Key="a.csv", Body=body)
    return body


@pytest.fixture
def held(client: Any) -> Iterator[Held]:
    """Holds all parts on their way to the store until they are released."""
    held = Held()
    hook(client, "UploadPart", held)
    yield held
    held.release.set()


class Held:
    """Parts that do not arrive before `release` is set."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.started = threading.Semaphore(0)

    def __call__(self, params: dict[str, Any]) -> None:
        self.started.release()
        assert self.release.wait(2 * PATIENCE)

    def wait_for(self, parts: int) -> None:
        """Return when so many more parts are on their way."""
        for _ in range(parts):
            assert self.started.acquire(timeout=PATIENCE)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are tried once."""
    monkeypatch.setattr(sys.modules[__name__], "patience", 0)


#: Seconds in which the uploads of these tests try again; a test's own.
patience = PATIENCE_SECONDS


@contextlib.contextmanager
def uploading(
    client: Any, bucket: str, stop: Stop | None = None, export_id: str = OURS, **extra_args: Any
) -> Iterator[Upload]:
    """An upload to a.csv, which is aborted at the end if it is not complete."""
    there = Bucket(client, bucket, extra_args, patience).within(stop or Stop())
    upload = Upload(there, "a.csv", export_id=export_id)
    upload.open()
    try:
        yield upload
    finally:
        upload.abort(sys.exception())


def send(client: Any, bucket: str, *chunks: bytes, **arguments: Any) -> ExportedFile:
    """Upload chunks to a.csv, as an export does: what stops it is raised."""
    stop = Stop()
    try:
        with uploading(client, bucket, stop, **arguments) as upload:
            for chunk in chunks:
                upload.write(chunk)
            return upload.complete()
    except Stopped:
        assert stop.reason is not None
        raise stop.reason from None


def head_answer(data: bytes = b"", **more: Any) -> Any:
    """What HEAD answers for an object of this export."""
    known = {"ContentLength": len(data), "ETag": '"etag"', "LastModified": datetime.now(UTC)}
    return answer(**{**known, "Metadata": {"export-id": OURS}, **more})


def interrupted(client: Any, bucket: str, data: bytes, kind: type[BaseException]) -> None:
    """An upload to a.csv that something ends before it is complete."""
    with uploading(client, bucket) as upload:
        upload.write(data)
        raise kind


def leave_upload_open(client: Any, bucket: str, key: str) -> str:
    """Leave behind what a killed attempt does; returns the upload's id."""
    upload_id: str = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    client.upload_part(Bucket=bucket, Key=key, UploadId=upload_id, PartNumber=1, Body=b"a part")
    return upload_id


def operations(requests: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [name for name, _ in requests]


# ---- What arrives


@pytest.mark.parametrize("size", [0, 1, MIN_PART_BYTES - 1])
def test_content_smaller_than_a_part_is_one_put(client: Any, bucket: str, size: int) -> None:
    """Content that does not fill a part is one put: no multipart upload is started for it."""
    requests = record(client)
    stored = send(client, bucket, DATA[:size])
    assert operations(requests) == ["ListMultipartUploads", "HeadObject", "PutObject", "HeadObject"]
    assert stored.parts == 1
    assert content(client, bucket, "a.csv") == DATA[:size]


@pytest.mark.parametrize(
    ("size", "parts"),
    [
        (MIN_PART_BYTES, 1),
        (MIN_PART_BYTES + 1, 2),
        (2 * MIN_PART_BYTES, 2),
        (2 * MIN_PART_BYTES + 1, 3),
    ],
)
def test_larger_content_is_a_multipart_upload(client: Any, bucket: str, size: int, parts: int) -> None:
    """Content that fills a part is sent in parts, none of them empty, at whatever size it ends."""
    requests, sizes = record(client), part_sizes(client)
    stored = send(client, bucket, DATA[:size])
    sent = list(sizes.values())
    assert "PutObject" not in operations(requests)
    assert (stored.parts, len(sent), sum(sent), min(sent) > 0) == (parts, parts, size, True)
    assert content(client, bucket, "a.csv") == DATA[:size]


@pytest.mark.parametrize("chunk", [65_537, 3 * MiB - 1, MIN_PART_BYTES, len(DATA)])
def test_writes_of_any_size(client: Any, bucket: str, chunk: int) -> None:
    """However the content is split into writes, it arrives unchanged, and the result has its size and checksums."""
    stored = send(client, bucket, *(DATA[at : at + chunk] for at in range(0, len(DATA), chunk)))
    head = client.head_object(Bucket=bucket, Key="a.csv")
    assert content(client, bucket, "a.csv") == DATA
    assert stored.bytes == head["ContentLength"] == len(DATA)
    assert stored.sha256 == hashlib.sha256(DATA).hexdigest()
    assert stored.etag == head["ETag"].strip('"')
    assert stored.parts == 3


def test_writes_of_nothing_change_nothing(client: Any, bucket: str) -> None:
    """An empty write adds nothing."""
    assert send(client, bucket, b"", b"a", b"", b"b", b"").bytes == 2
    assert content(client, bucket, "a.csv") == b"ab"


@pytest.mark.parametrize("character", ["ü", "€", "😀"])
def test_part_boundary_inside_a_character(client: Any, bucket: str, character: str) -> None:
    """A part may end inside a multi-byte character: the object is bytes, and whole."""
    text = "a" + character * (MIN_PART_BYTES // len(character.encode()) + 10)
    data = text.encode()
    with pytest.raises(UnicodeDecodeError, match="unexpected end of data"):
        data[:MIN_PART_BYTES].decode()
    stored = send(client, bucket, data)
    assert stored.parts == 2
    assert content(client, bucket, "a.csv").decode() == text


def test_parts_may_arrive_in_any_order(client: Any, bucket: str) -> None:
    """The object's content is in the order of the writes, even if a later part arrives earlier."""
    second_sent = threading.Event()

    def first_after_second(params: dict[str, Any]) -> None:
        assert part_number(params) != 1 or second_sent.wait(PATIENCE)

    def sent(context: dict[str, Any], **_: Any) -> None:
        if context["s3_redirect"]["params"]["PartNumber"] == 2:
            second_sent.set()

    hook(client, "UploadPart", first_after_second)
    client.meta.events.register("after-call.s3.UploadPart", sent)
    send(client, bucket, DATA)
    assert content(client, bucket, "a.csv") == DATA


def test_the_answer_of_complete_needs_no_etag(client: Any, bucket: str) -> None:
    """A store that answers the completion without an ETag (Ceph RGW) is fine: HEAD has it."""
    client.meta.events.register("after-call.s3.CompleteMultipartUpload", lambda parsed, **_: parsed.pop("ETag"))
    stored = send(client, bucket, DATA)
    assert stored.etag == client.head_object(Bucket=bucket, Key="a.csv")["ETag"].strip('"')


@pytest.mark.parametrize(
    ("found", "error", "text"),
    [
        ({"ContentLength": 5}, VerificationError, rf"not what was sent: it has 5 bytes instead of {len(DATA):,}\.\n"),
        ({"ChecksumCRC32": "AAAA", "ChecksumType": "FULL_OBJECT"}, VerificationError, r"has CRC32 AAAA instead of"),
        ({"Metadata": {"export-id": "another"}, "ContentLength": 5}, Superseded, "Another export replaced"),
    ],
    ids=["size", "checksum", "another export's"],
)
def test_what_is_visible_is_compared(
    client: Any, bucket: str, found: dict[str, Any], error: type[Exception], text: str
) -> None:
    """An object that is not what was sent is an error that says how it differs, in what the store reports."""
    hook(client, "HeadObject", lambda params: head_answer(DATA, **found))
    with pytest.raises(error, match=text):
        send(client, bucket, DATA)


@pytest.mark.usefixtures("impatient")
def test_an_object_that_cannot_be_checked_is_not_called_unpublished(client: Any, bucket: str) -> None:
    """If only the check fails, the error says that the object is visible."""
    hook(client, "HeadObject", lambda params: refusal("403"))
    with pytest.raises(StoreError, match="The object is visible but not verified") as caught:
        send(client, bucket, DATA)
    assert caught.value.published is True
    assert keys(client, bucket) == ["a.csv"]


# ---- Sizes of parts and bytes on their way


@pytest.mark.parametrize(
    ("estimated", "size"),
    [(0, 6 * MiB), (20 * GiB, 6 * MiB), (21 * GiB, 7 * MiB), (1024 * GiB, 300 * MiB), (10**18, 5 * GiB)],
)
def test_parts_have_one_size_chosen_by_the_estimate(estimated: int, size: int) -> None:
    """Twice the estimate fits into 7,000 parts of one size, within what S3 allows."""
    assert part_bytes_for(estimated) == size
    assert size == 5 * GiB or 7_000 * size >= 2 * estimated
    assert {grown_part_bytes(number, size) for number in range(1, 7_001)} == {size}


@pytest.mark.parametrize("first", [6 * MiB, 7 * MiB, 300 * MiB, 5 * GiB])
def test_neither_number_nor_size_of_parts_is_the_limit(first: int) -> None:
    """However wrong the estimate: parts never shrink, S3 takes them, and 10,000 hold the 5 TiB of an object."""
    sizes = [grown_part_bytes(number, first) for number in range(1, MAX_PARTS + 1)]
    assert sizes == sorted(sizes)
    assert min(sizes) >= 5 * MiB
    assert max(sizes) <= 5 * GiB
    assert sum(sizes) >= MAX_OBJECT_BYTES


def test_parts_of_growing_size(client: Any, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that have grown beyond the bytes that may be on their way go one at a time, whole."""
    monkeypatch.setattr(parts, "_PARTS_BEFORE_GROWTH", 2)
    monkeypatch.setattr(parts, "_PARTS_OF_A_SIZE", 1)
    data = DATA * 4
    load = Load(client)
    send(client, bucket, data)
    full = [MIN_PART_BYTES * factor for factor in (1, 1, 2, 4)]
    rest = len(data) - sum(full)
    assert load.sizes == {**dict(enumerate(full, 1)), 5: rest}
    assert load.most <= max(IN_FLIGHT_BYTES, *full) + rest
    assert content(client, bucket, "a.csv") == data


def test_a_store_that_takes_parts_of_one_size_only(client: Any, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that had to grow are refused at completion there: the error says what to do."""
    monkeypatch.setattr(parts, "_PARTS_BEFORE_GROWTH", 1)
    hook(client, "CompleteMultipartUpload", lambda params: refusal("InvalidPart", 400))
    with pytest.raises(StoreError, match="takes only parts of one size"):
        send(client, bucket, DATA)


class Load:
    """The parts that are on their way to the store at a time."""

    def __init__(self, client: Any) -> None:
        self.most = 0
        self.sizes: dict[int, int] = {}
        self._now = 0
        self._lock = threading.Lock()
        hook(client, "UploadPart", self._begin)
        client.meta.events.register("after-call.s3.UploadPart", self._end)

    def _begin(self, params: dict[str, Any]) -> None:
        with self._lock:
            self.sizes[part_number(params)] = size = len(memoryview(params["body"]))
            self._now += size
            self.most = max(self.most, self._now)

    def _end(self, context: dict[str, Any], **_: Any) -> None:
        with self._lock:
            self._now -= self.sizes[context["s3_redirect"]["params"]["PartNumber"]]


def test_several_parts_are_on_their_way_at_a_time(client: Any, bucket: str) -> None:
    """While a part is being sent, others are as well."""
    together = threading.Barrier(PARTS_IN_FLIGHT, timeout=PATIENCE)

    def meet(params: dict[str, Any]) -> None:
        together.wait()

    hook(client, "UploadPart", meet)
    stored = send(client, bucket, *[PART] * (2 * PARTS_IN_FLIGHT))
    assert stored.parts == 2 * PARTS_IN_FLIGHT


def test_write_waits_while_the_bytes_on_their_way_are_at_their_bound(client: Any, bucket: str, held: Held) -> None:
    """When the store does not take the parts that are on their way, `write` waits instead of collecting."""
    written = threading.Semaphore(0)

    def write() -> None:
        with uploading(client, bucket) as upload:
            for _ in range(2 * PARTS_IN_FLIGHT):
                upload.write(PART)
                written.release()
            upload.complete()

    writing = Running(write)
    held.wait_for(PARTS_IN_FLIGHT)
    for _ in range(PARTS_IN_FLIGHT):
        assert written.acquire(timeout=PATIENCE)
    assert not held.started.acquire(timeout=0.3)
    assert not written.acquire(blocking=False)
    held.release.set()
    assert writing.ends()
    assert writing.error is None
    assert len(content(client, bucket, "a.csv")) == 2 * PARTS_IN_FLIGHT * MIN_PART_BYTES


def test_memory_is_bounded(client: Any, bucket: str) -> None:
    """Memory is the parts on their way and the one that is filled, however much is written."""
    hook(client, "UploadPart", lambda params: answer(ETag='"etag"'))
    hook(client, "CompleteMultipartUpload", lambda params: answer())
    hook(client, "HeadObject", lambda params: head_answer(ContentLength=20 * MIN_PART_BYTES))
    tracemalloc.start()
    try:
        send(client, bucket, *[PART] * 20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= IN_FLIGHT_BYTES + MIN_PART_BYTES + 4 * MiB


# ---- Failures


@pytest.mark.parametrize(
    ("operation", "number", "doing"),
    [
        ("CreateMultipartUpload", None, "starting"),
        ("UploadPart", 1, "sending part 1 of"),
        ("UploadPart", 3, "sending part 3 of"),
        ("CompleteMultipartUpload", None, "completing"),
    ],
)
def test_a_failing_request_leaves_nothing(
    client: Any, bucket: str, before: bytes, operation: str, number: int | None, doing: str
) -> None:
    """Whichever request fails: no upload stays open, the object is as it was, the error says so and what to do."""
    hook(client, operation, lambda p: refusal("QuotaFull") if number is None or part_number(p) == number else None)
    with pytest.raises(StoreError) as caught:
        send(client, bucket, DATA)
    assert str(caught.value) == (
        f"The object store failed: QuotaFull: injected by a test, while {doing} s3://{bucket}/a.csv.\n"
        "Fix the cause, then export again."
    )
    assert caught.value.published is False
    assert caught.value.code == "QuotaFull"
    assert open_uploads(client, bucket) == []
    assert content(client, bucket, "a.csv") == before


PUBLISHING = pytest.mark.parametrize(
    ("data", "operation"),
    [(b"small", "PutObject"), (DATA, "CompleteMultipartUpload")],
    ids=["small", "multipart"],
)


def lose_answer(client: Any, operation: str, always: bool = False) -> None:
    """Have the store's answer to a request that succeeds get lost: to the first one, or always."""
    lost: list[bool] = []

    def lose(**_: Any) -> None:
        if always or not lost:
            lost.append(True)
            raise ReadTimeoutError(endpoint_url="http://store.invalid")

    client.meta.events.register(f"after-call.s3.{operation}", lose)


@PUBLISHING
@pytest.mark.parametrize("always", [False, True], ids=["retried", "given up"])
@pytest.mark.parametrize("there_before", [False, True])
def test_a_lost_answer(
    client: Any, bucket: str, data: bytes, operation: str, always: bool, there_before: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What is visible has the export's id: then nothing failed, whatever is answered to another try."""
    monkeypatch.setattr(sys.modules[__name__], "patience", 0 if always else 2)
    monkeypatch.setattr(bucket_module, "_FIRST_PAUSE", 0.01)
    if there_before:
        send(client, bucket, b"before", export_id="another")
    lose_answer(client, operation, always)
    assert send(client, bucket, data).bytes == len(data)
    assert content(client, bucket, "a.csv") == data


@PUBLISHING
@pytest.mark.usefixtures("impatient")
def test_a_lost_answer_is_not_called_unpublished(client: Any, bucket: str, data: bytes, operation: str) -> None:
    """If the store can't be asked after a lost answer either, the error says that it is not known what is there."""

    def lose(**_: Any) -> None:
        hook(client, "HeadObject", lambda params: refusal("InternalError", 400))
        raise ReadTimeoutError(endpoint_url="http://store.invalid")

    client.meta.events.register(f"after-call.s3.{operation}", lose)
    with pytest.raises(StoreError, match=r"ReadTimeoutError.*\nThe object may or may not be visible\.") as caught:
        send(client, bucket, data)
    assert (caught.value.published, caught.value.transient) == (None, True)


@PUBLISHING
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("checksum", [True, False])
def test_a_lost_answer_of_a_store_that_keeps_no_metadata(
    endpoint: str, bucket: str, before: bytes, data: bytes, operation: str, checksum: bool
) -> None:
    """Then size and the store's checksum of the whole object tell; without one, it is not known what is there."""
    needed = "when_supported" if checksum else "when_required"
    client = services.s3_client(endpoint, Config(request_checksum_calculation=needed))
    whole = {"ChecksumCRC32": crc32(data), "ChecksumType": "FULL_OBJECT"} if checksum else {}

    def forget(parsed: dict[str, Any], **_: Any) -> None:
        parsed.pop("Metadata", None)
        parsed.update(whole if parsed.get("ContentLength") == len(data) else {})

    client.meta.events.register("after-call.s3.HeadObject", forget)
    lose_answer(client, operation)
    if checksum:
        assert send(client, bucket, data).bytes == len(data)
    else:
        with pytest.raises(StoreError, match="may or may not be visible"):
            send(client, bucket, data)
    assert content(client, bucket, "a.csv") == data


@PUBLISHING
@pytest.mark.usefixtures("impatient")
def test_a_request_that_never_arrived(client: Any, bucket: str, before: bytes, data: bytes, operation: str) -> None:
    """A multipart upload is aborted, and can't complete any more; a put may still be on its way."""

    def vanish(params: dict[str, Any]) -> None:
        raise ReadTimeoutError(endpoint_url="http://store.invalid")

    hook(client, operation, vanish)
    with pytest.raises(StoreError) as caught:
        send(client, bucket, data)
    assert caught.value.published is (False if data == DATA else None)
    assert open_uploads(client, bucket) == []
    assert content(client, bucket, "a.csv") == before


@PUBLISHING
def test_another_writer_came_first(client: Any, bucket: str, data: bytes, operation: str) -> None:
    """An object that another has written meanwhile stays; the error asks for a retry."""
    others = [b"the other one's"]

    def come_first(params: dict[str, Any]) -> None:
        if others:
            client.put_object(Bucket=bucket, Key="a.csv", Body=others.pop())

    hook(client, operation, come_first)
    with pytest.raises(Superseded, match="Another writer replaced") as caught:
        send(client, bucket, data)
    assert caught.value.transient
    assert content(client, bucket, "a.csv") == b"the other one's"
    assert open_uploads(client, bucket) == []


def test_a_failing_put_leaves_nothing(client: Any, bucket: str, before: bytes) -> None:
    """A put that fails leaves the object as it was."""
    hook(client, "PutObject", lambda params: refusal("QuotaFull"))
    with pytest.raises(StoreError, match=r"QuotaFull: .*while writing s3://") as caught:
        send(client, bucket, b"small")
    assert caught.value.code == "QuotaFull"
    assert content(client, bucket, "a.csv") == before


def test_a_failed_part_ends_the_next_write(client: Any, bucket: str) -> None:
    """The writer learns that a part has failed when it writes on, not only at the end."""
    hook(client, "UploadPart", lambda params: refusal("QuotaFull") if part_number(params) == 1 else None)
    chunks, stop = iter([PART] * 100), Stop()

    def write() -> None:
        with uploading(client, bucket, stop) as upload:
            for part in chunks:
                upload.write(part)

    with pytest.raises(Stopped):
        write()
    assert "sending part 1" in str(stop.reason)
    assert len(list(chunks)) > 90
    assert keys(client, bucket) == open_uploads(client, bucket) == []


@pytest.mark.usefixtures("impatient")
def test_an_unreachable_store(client: Any, bucket: str) -> None:
    """A store that cannot be reached is an StoreError before anything is written."""

    def unreachable(params: dict[str, Any]) -> None:
        raise EndpointConnectionError(endpoint_url=params["url"])

    hook(client, "ListMultipartUploads", unreachable)
    requests = record(client)
    with pytest.raises(StoreError, match=rf"EndpointConnectionError: .*while looking at s3://{bucket}/a.csv\."):
        send(client, bucket, b"small")
    assert operations(requests) == ["ListMultipartUploads"]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("written", [b"small", DATA], ids=["small", "multipart"])
def test_any_exception_in_the_block_aborts(
    client: Any, bucket: str, before: bytes, kind: type[BaseException], written: bytes
) -> None:
    """Whatever ends the block before `complete`, a BaseException too, aborts the upload; nothing is published."""
    with pytest.raises(kind):
        interrupted(client, bucket, written, kind)
    assert open_uploads(client, bucket) == []
    assert content(client, bucket, "a.csv") == before


def test_a_block_that_does_not_complete_publishes_nothing(client: Any, bucket: str, before: bytes) -> None:
    """Without `complete` nothing is published, even if nothing went wrong."""
    with uploading(client, bucket) as upload:
        upload.write(DATA)
    assert open_uploads(client, bucket) == []
    assert content(client, bucket, "a.csv") == before


def test_more_than_s3_allows_is_refused(client: Any, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object larger than S3 allows is an error that says so, and leaves nothing."""
    monkeypatch.setattr(upload, "MAX_OBJECT_BYTES", len(DATA) - 1)
    with pytest.raises(StoreError, match="5 TiB"):
        send(client, bucket, PART, DATA[MIN_PART_BYTES:])
    assert keys(client, bucket) == open_uploads(client, bucket) == []


def test_a_part_whose_thread_cannot_be_started(
    client: Any, bucket: str, before: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that can't have another thread is not made to wait for a part that was never on its way."""
    monkeypatch.setattr(upload, "_ABORT_SECONDS", 10 * PATIENCE)
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("part-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    sending = Running(lambda: send(client, bucket, DATA))
    assert sending.ends()
    assert isinstance(sending.error, RuntimeError)
    assert open_uploads(client, bucket) == []
    assert content(client, bucket, "a.csv") == before


def test_a_part_that_fails_for_want_of_memory(client: Any, bucket: str) -> None:
    """What is not the store's fault is not called that."""

    def exhaust(params: dict[str, Any]) -> None:
        raise MemoryError

    hook(client, "UploadPart", exhaust)
    with pytest.raises(MemoryError):
        send(client, bucket, DATA)
    assert open_uploads(client, bucket) == []


def test_an_abort_that_fails_does_not_hide_the_first_error(
    client: Any, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If the abort fails too, the first error is raised, and the log names the upload that stays behind."""
    hook(client, "UploadPart", lambda params: refusal("QuotaFull"))
    hook(client, "AbortMultipartUpload", lambda params: refusal("InternalError", 500))
    with caplog.at_level(logging.ERROR), pytest.raises(StoreError) as caught:
        send(client, bucket, DATA)
    assert caught.value.code == "QuotaFull"
    (left,) = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    errors = [entry.getMessage() for entry in caplog.records]
    assert any(left["UploadId"] in error and "InternalError" in error for error in errors)


def test_an_ordinary_abort_logs_no_error(client: Any, bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    """Aborting what the store has forgotten already is no failure."""
    with caplog.at_level(logging.WARNING), uploading(client, bucket) as upload:
        upload.write(PART)
        upload.finish()
        (open_one,) = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
        client.abort_multipart_upload(Bucket=bucket, Key="a.csv", UploadId=open_one["UploadId"])
    assert caplog.records == []


# ---- The stop flag


@pytest.mark.parametrize("writes", [10, 1], ids=["write", "complete"])
def test_the_stop_flag_wakes_who_waits_for_parts(
    client: Any, bucket: str, before: bytes, held: Held, writes: int
) -> None:
    """Whoever sets the flag ends a `write` or `complete` that waits for the store; its thread then aborts."""
    stop = Stop()

    def write() -> None:
        with uploading(client, bucket, stop) as upload:
            for _ in range(writes):
                upload.write(DATA)
            upload.complete()

    writing = Running(write)
    held.wait_for(PARTS_IN_FLIGHT)
    assert not writing.ends(within=0.3)
    stop.set(cancelled())
    assert not writing.ends(within=0.3)  # a part that arrived after the abort would stay
    held.release.set()
    assert writing.ends()
    assert isinstance(writing.error, Stopped)
    assert isinstance(stop.reason, ExportCancelled)
    assert open_uploads(client, bucket) == []
    assert content(client, bucket, "a.csv") == before


def test_a_part_that_arrives_after_the_abort_does_not_stay(client: Any, bucket: str, held: Held) -> None:
    """A part on its way may be stored after the abort (S3 API, AbortMultipartUpload): then there is a second abort."""
    aborts: list[str] = []

    def first_has_no_effect(params: dict[str, Any]) -> Any:
        aborts.append(params["url"])
        held.release.set()
        return answer(204) if len(aborts) == 1 else None

    hook(client, "AbortMultipartUpload", first_has_no_effect)
    with uploading(client, bucket) as upload:
        upload.write(PART)
        held.wait_for(1)
    assert len(aborts) == 2
    assert open_uploads(client, bucket) == []


@pytest.mark.parametrize("data", [b"small", DATA], ids=["small", "multipart"])
def test_nothing_is_published_once_the_flag_is_set(client: Any, bucket: str, before: bytes, data: bytes) -> None:
    """An export that is stopped completes nothing."""
    stop = Stop()
    with pytest.raises(Stopped), uploading(client, bucket, stop) as upload:  # noqa: PT012
        upload.write(data)
        upload.finish() if data == DATA else None
        stop.set(cancelled())
        upload.complete()
    assert open_uploads(client, bucket) == []
    assert content(client, bucket, "a.csv") == before


def test_parts_are_not_tried_again_after_the_end(client: Any, bucket: str) -> None:
    """What ends an export ends the pauses between tries, in all threads."""
    tried = threading.Event()

    def fail(params: dict[str, Any]) -> Any:
        tried.set()
        return refusal("SlowDown", 503)

    hook(client, "UploadPart", fail)

    def write() -> None:
        with uploading(client, bucket) as upload:
            upload.write(PART)
            assert tried.wait(PATIENCE)
            raise KeyError

    writing = Running(write)
    assert writing.ends(within=5)
    assert isinstance(writing.error, KeyError)
    assert open_uploads(client, bucket) == []


# ---- What earlier attempts left, and what the store does not allow


def test_leftovers_of_the_same_key_are_aborted(
    client: Any, bucket: str, before: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """On entry, what killed attempts left behind under the key is aborted, and said; other keys are left alone."""
    for key in ("a.csv", "a.csv", "a.csv.bak", "a.cs", "b/a.csv"):
        leave_upload_open(client, bucket, key)
    with caplog.at_level(logging.WARNING), uploading(client, bucket):
        assert sorted(open_uploads(client, bucket)) == ["a.cs", "a.csv.bak", "b/a.csv"]
    assert sum(f"s3://{bucket}/a.csv" in entry.getMessage() for entry in caplog.records) == 2
    assert content(client, bucket, "a.csv") == before


def test_without_the_right_to_list_uploads(client: Any, bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    """A role that may not list uploads can export: there is a warning that says what may stay behind."""
    hook(client, "ListMultipartUploads", lambda params: refusal("AccessDenied"))
    with caplog.at_level(logging.WARNING):
        send(client, bucket, DATA)
    (warning,) = caplog.records
    assert "AccessDenied" in warning.getMessage()
    assert content(client, bucket, "a.csv") == DATA


def test_a_missing_bucket(client: Any) -> None:
    """A bucket that does not exist is an error before anything else is asked of the store."""
    requests = record(client)
    with pytest.raises(StoreError, match=r"failed: NoSuchBucket: .*s3://no-such-bucket/a.csv\.") as caught:
        send(client, "no-such-bucket", DATA)
    assert caught.value.code == "NoSuchBucket"
    assert operations(requests) == ["ListMultipartUploads"]


# ---- Extra arguments

CREATING = {"CreateMultipartUpload", "PutObject"}
ENCRYPTED = {*CREATING, "UploadPart", "CompleteMultipartUpload", "HeadObject"}
ALL = {*ENCRYPTED, "ListMultipartUploads", "AbortMultipartUpload"}


@pytest.mark.parametrize(
    ("extra_args", "expected"),
    [
        ({"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/exports"}, CREATING),
        ({"ACL": "bucket-owner-full-control"}, CREATING),
        ({"StorageClass": "STANDARD_IA"}, CREATING),
        ({"Metadata": {"made-by": "us"}}, CREATING),
        ({"ContentType": "text/csv", "ContentDisposition": "attachment"}, CREATING),
        ({"Tagging": "team=data"}, CREATING),
        ({"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "k" * 32}, ENCRYPTED),
        ({"ExpectedBucketOwner": "123456789012"}, ALL),
        ({"RequestPayer": "requester"}, ALL),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_extra_arguments_go_to_the_requests_that_know_them(
    client: Any, bucket: str, extra_args: dict[str, Any], expected: set[str]
) -> None:
    """Each extra argument goes, as it is, to every request of an upload that knows it, and to no other."""
    for operation in ALL:
        hook(client, operation, lambda params: head_answer(DATA, UploadId="id"))
    requests = record(client)
    with uploading(client, bucket, **extra_args) as upload:  # a put
        upload.write(b"small")
        with pytest.raises(VerificationError):
            upload.complete()
    with uploading(client, bucket, **extra_args) as upload:  # aborted
        upload.write(DATA)
    send(client, bucket, DATA, **extra_args)
    assert set(operations(requests)) == ALL
    for name, arguments in requests:
        given = {key: value for key, value in arguments.items() if key in extra_args}
        if "Metadata" in given:
            assert given["Metadata"].pop("export-id") == OURS
        elif name in CREATING:
            assert arguments["Metadata"] == {"export-id": OURS}
        assert given == (extra_args if name in expected else {}), name


def test_metadata_and_type_are_the_objects(client: Any, bucket: str) -> None:
    """The stored object has the type and the metadata, sent in one put or in parts."""
    for data in (b"small", DATA):
        send(client, bucket, data, ContentType="text/csv", Metadata={"made-by": "us"})
        head = client.head_object(Bucket=bucket, Key="a.csv")
        assert (head["ContentType"], head["Metadata"]) == ("text/csv", {"made-by": "us", "export-id": OURS})


def crc32(data: bytes) -> str:
    """A CRC32 as S3 writes it."""
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


@pytest.mark.parametrize("data", [b"small", DATA], ids=["one put", "parts"])
def test_the_store_has_the_checksum_of_the_whole_object(client: Any, bucket: str, data: bytes) -> None:
    """The checksum that the store gives of the object is that of the bytes, not one of the parts' checksums."""
    requests = record(client)
    send(client, bucket, data)
    head = client.head_object(Bucket=bucket, Key="a.csv", ChecksumMode="ENABLED")
    assert head["ChecksumCRC32"] == crc32(data)
    completions = [arguments for name, arguments in requests if name == "CompleteMultipartUpload"]
    assert [arguments["ChecksumCRC32"] for arguments in completions] == [crc32(data)] * (data == DATA)


def test_a_store_that_knows_no_checksums_is_asked_for_none(endpoint: str, bucket: str) -> None:
    """With request_checksum_calculation=when_required no request names a checksum."""
    config = Config(request_checksum_calculation="when_required", response_checksum_validation="when_required")
    client = services.s3_client(endpoint, config)
    requests = record(client)
    send(client, bucket, DATA)
    assert not [name for _, arguments in requests for name in arguments if name.startswith("Checksum")]
    assert content(client, bucket, "a.csv") == DATA


def test_a_checksum_algorithm_names_the_checksum_of_each_part(client: Any, bucket: str) -> None:
    """With a checksum algorithm S3 wants each part's checksum in the completion, and refuses one without."""
    requests = record(client)
    send(client, bucket, DATA, ChecksumAlgorithm="SHA256")
    (completed,) = [arguments for name, arguments in requests if name == "CompleteMultipartUpload"]
    assert all(part.get("ChecksumSHA256") for part in completed["MultipartUpload"]["Parts"])
