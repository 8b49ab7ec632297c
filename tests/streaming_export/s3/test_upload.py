"""Upload: what arrives in the store, how much is on its way at a time, and what is left after a failure."""

from __future__ import annotations

import base64
import hashlib
import itertools
import logging
import random
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import EndpointConnectionError, ReadTimeoutError

from demo import services
from streaming_export import InvalidArgument, UploadError, VerificationError, multipart
from streaming_export.multipart import (
    FIRST_PART_BYTES,
    IN_FLIGHT_BYTES,
    MAX_OBJECT_BYTES,
    MAX_PARTS,
    Upload,
    part_bytes,
)
from tests.conftest import content, keys, open_uploads
from tests.streaming_export.store import answer, hook, part_number, record, refusal
from tests.streaming_export.waiting import PATIENCE, Running, eventually

MiB = 1024 * 1024
GiB = 1024 * MiB
PARTS_IN_FLIGHT = IN_FLIGHT_BYTES // FIRST_PART_BYTES

# Three parts, the last of them short.
DATA = random.Random(1).randbytes(2 * FIRST_PART_BYTES + 12_345)
PART = DATA[:FIRST_PART_BYTES]


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


def send(client: Any, bucket: str, *chunks: bytes, **extra_args: Any) -> multipart.StoredObject:
    """Upload chunks to a.csv."""
    with Upload(client, bucket, "a.csv", extra_args) as upload:
        for chunk in chunks:
            upload.write(chunk)
        return upload.complete()


def interrupted(client: Any, bucket: str, data: bytes, kind: type[BaseException]) -> None:
    """An upload to a.csv that something ends before it is complete."""
    with Upload(client, bucket, "a.csv") as upload:
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


@pytest.mark.parametrize("size", [0, 1, FIRST_PART_BYTES - 1])
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
        (FIRST_PART_BYTES, 1),
        (FIRST_PART_BYTES + 1, 2),
        (2 * FIRST_PART_BYTES, 2),
        (2 * FIRST_PART_BYTES + 1, 3),
    ],
)
def test_larger_content_is_a_multipart_upload(client: Any, bucket: str, size: int, parts: int) -> None:
    """Content that fills a part is sent in parts, none of them empty, at whatever size it ends."""
    requests = record(client)
    stored = send(client, bucket, DATA[:size])
    sent = [len(arguments["Body"]) for name, arguments in requests if name == "UploadPart"]
    assert "PutObject" not in operations(requests)
    assert (stored.parts, len(sent), sum(sent), min(sent) > 0) == (parts, parts, size, True)
    assert content(client, bucket, "a.csv") == DATA[:size]


@pytest.mark.parametrize("chunk", [65_537, 3 * MiB - 1, FIRST_PART_BYTES, len(DATA)])
def test_writes_of_any_size(client: Any, bucket: str, chunk: int) -> None:
    """However the content is cut into writes, it arrives as it is, and the answer tells its size and sums."""
    stored = send(client, bucket, *(DATA[at : at + chunk] for at in range(0, len(DATA), chunk)))
    head = client.head_object(Bucket=bucket, Key="a.csv")
    assert content(client, bucket, "a.csv") == DATA
    assert stored.size == head["ContentLength"] == len(DATA)
    assert stored.sha256 == hashlib.sha256(DATA).hexdigest()
    assert stored.etag == head["ETag"].strip('"')
    assert stored.parts == 3


def test_writes_of_nothing_change_nothing(client: Any, bucket: str) -> None:
    """An empty write adds nothing."""
    assert send(client, bucket, b"", b"a", b"", b"b", b"").size == 2
    assert content(client, bucket, "a.csv") == b"ab"


@pytest.mark.parametrize("character", ["ü", "€", "😀"])
def test_part_boundary_inside_a_character(client: Any, bucket: str, character: str) -> None:
    """A part may end inside a multi-byte character: the object is bytes, and whole."""
    text = "a" + character * (FIRST_PART_BYTES // len(character.encode()) + 10)
    data = text.encode()
    with pytest.raises(UnicodeDecodeError, match="unexpected end of data"):
        data[:FIRST_PART_BYTES].decode()
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


def hook_once_published(client: Any, operation: str, function: Callable[[dict[str, Any]], Any]) -> None:
    """The same as `hook`, but not before the upload is complete: what is found first is what it replaces."""

    def begin(**_: Any) -> None:
        hook(client, operation, function)

    client.meta.events.register("after-call.s3.CompleteMultipartUpload", begin)


def test_another_size_in_the_store_is_an_error(client: Any, bucket: str) -> None:
    """An object whose size in the store is not what was sent is reported, with both sizes, as visible."""
    hook_once_published(client, "HeadObject", lambda params: answer(ContentLength=5, ETag='"etag"'))
    expected = rf"visible with 5 bytes and .*, but {len(DATA)} bytes with .* were sent"
    with pytest.raises(VerificationError, match=expected):
        send(client, bucket, DATA)


def test_an_object_that_cannot_be_checked_is_not_called_unpublished(client: Any, bucket: str) -> None:
    """If only the check fails, the error says that the object is visible."""
    hook(client, "HeadObject", lambda params: refusal("403"))
    with pytest.raises(UploadError, match=r"while checking .*The object is visible but not verified"):
        send(client, bucket, DATA)
    assert keys(client, bucket) == ["a.csv"]


# ---- Sizes of parts and bytes on their way


def test_parts_are_what_s3_allows() -> None:
    """A part has at least 5 MiB and at most 5 GiB (Amazon S3 User Guide, "multipart upload limits")."""
    sizes = {part_bytes(number) for number in range(1, MAX_PARTS + 1)}
    assert min(sizes) >= 5 * MiB
    assert max(sizes) <= 5 * GiB


def test_neither_number_nor_size_of_parts_is_the_limit() -> None:
    """Parts never shrink, and 10,000 of them hold the 5 TiB that an object may have."""
    sizes = [part_bytes(number) for number in range(1, MAX_PARTS + 1)]
    assert sizes == sorted(sizes)
    assert sum(sizes) >= MAX_OBJECT_BYTES


def test_parts_of_growing_size(client: Any, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that have grown beyond the bytes that may be on their way go one at a time, whole."""
    monkeypatch.setattr(multipart, "_PARTS_BEFORE_GROWTH", 2)
    monkeypatch.setattr(multipart, "_PARTS_OF_A_SIZE", 1)
    data = DATA * 4
    load = Load(client)
    send(client, bucket, data)
    full = [FIRST_PART_BYTES * factor for factor in (1, 1, 2, 4)]
    rest = len(data) - sum(full)
    assert load.sizes == {**dict(enumerate(full, 1)), 5: rest}
    assert load.most <= max(IN_FLIGHT_BYTES, *full) + rest
    assert content(client, bucket, "a.csv") == data


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
            self.sizes[part_number(params)] = params["body"].getbuffer().nbytes
            self._now += params["body"].getbuffer().nbytes
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
        with Upload(client, bucket, "a.csv") as upload:
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
    assert len(content(client, bucket, "a.csv")) == 2 * PARTS_IN_FLIGHT * FIRST_PART_BYTES


def test_memory_is_bounded(client: Any, bucket: str) -> None:
    """Memory is the parts on their way and the one that is filled, however much is written."""
    hook(client, "UploadPart", lambda params: answer(ETag='"etag"'))
    hook(client, "CompleteMultipartUpload", lambda params: answer())
    hook(client, "HeadObject", lambda params: answer(ContentLength=20 * FIRST_PART_BYTES, ETag='"etag"'))
    tracemalloc.start()
    try:
        send(client, bucket, *[PART] * 20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= IN_FLIGHT_BYTES + FIRST_PART_BYTES + 4 * MiB


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
    with pytest.raises(UploadError) as caught:
        send(client, bucket, DATA)
    assert str(caught.value) == (
        f"The object store failed while {doing} s3://{bucket}/a.csv: QuotaFull: injected by a test."
        " Nothing was published. It will come again until somebody mends its cause: then export again."
    )
    assert caught.value.code == "QuotaFull"
    assert open_uploads(client, bucket) == []
    assert content(client, bucket, "a.csv") == before


@pytest.mark.parametrize(
    ("data", "operation"),
    [(b"small", "PutObject"), (DATA, "CompleteMultipartUpload")],
    ids=["small", "multipart"],
)
def test_a_lost_answer_is_not_called_unpublished(client: Any, bucket: str, data: bytes, operation: str) -> None:
    """If the store can't be asked after a lost answer either, the error says that it is not known what is there."""

    def lose(**_: Any) -> None:
        hook(client, "HeadObject", lambda params: refusal("InternalError", 400))
        raise ReadTimeoutError(endpoint_url="http://store.invalid")

    client.meta.events.register(f"after-call.s3.{operation}", lose)
    with pytest.raises(UploadError, match=r"ReadTimeoutError.*Whether it was published is not known"):
        send(client, bucket, data)


@pytest.mark.parametrize(
    ("data", "operation"),
    [(b"small", "PutObject"), (DATA, "CompleteMultipartUpload")],
    ids=["small", "multipart"],
)
@pytest.mark.parametrize("checksum", [True, False])
def test_a_lost_answer_of_an_encrypted_object(
    endpoint: str, bucket: str, before: bytes, data: bytes, operation: str, checksum: bool
) -> None:
    """Encryption can change the ETag: then the store's checksum tells; without one, it is not known what is there."""
    needed = "when_supported" if checksum else "when_required"
    client = services.s3_client(endpoint, Config(request_checksum_calculation=needed))

    def lose(**_: Any) -> None:
        client.meta.events.register("after-call.s3.HeadObject", lambda parsed, **_: parsed.update(ETag='"encrypted"'))
        raise ReadTimeoutError(endpoint_url="http://store.invalid")

    client.meta.events.register(f"after-call.s3.{operation}", lose)
    if checksum:
        assert send(client, bucket, data).size == len(data)
    else:
        with pytest.raises(UploadError, match="Whether it was published is not known"):
            send(client, bucket, data)
    assert content(client, bucket, "a.csv") == data


def test_a_failing_put_leaves_nothing(client: Any, bucket: str, before: bytes) -> None:
    """A put that fails leaves the object as it was."""
    hook(client, "PutObject", lambda params: refusal("QuotaFull"))
    with pytest.raises(UploadError, match=r"while writing s3://.*QuotaFull.*Nothing was published") as caught:
        send(client, bucket, b"small")
    assert caught.value.code == "QuotaFull"
    assert content(client, bucket, "a.csv") == before


def test_a_failed_part_ends_the_next_write(client: Any, bucket: str) -> None:
    """The writer learns that a part has failed when it writes on, not only at the end."""
    hook(client, "UploadPart", lambda params: refusal("QuotaFull") if part_number(params) == 1 else None)
    parts = iter([PART] * 100)

    def write() -> None:
        with Upload(client, bucket, "a.csv") as upload:
            for part in parts:
                upload.write(part)

    with pytest.raises(UploadError, match="sending part 1"):
        write()
    assert len(list(parts)) > 90
    assert keys(client, bucket) == open_uploads(client, bucket) == []


def test_an_unreachable_store(client: Any, bucket: str) -> None:
    """A store that cannot be reached is an UploadError before anything is written."""

    def unreachable(params: dict[str, Any]) -> None:
        raise EndpointConnectionError(endpoint_url=params["url"])

    hook(client, "ListMultipartUploads", unreachable)
    requests = record(client)
    with pytest.raises(UploadError, match=rf"while looking at s3://{bucket}/a.csv: .*Nothing was published"):
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
    with Upload(client, bucket, "a.csv") as upload:
        upload.write(DATA)
    assert open_uploads(client, bucket) == []
    assert content(client, bucket, "a.csv") == before


def test_more_than_s3_allows_is_refused(client: Any, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object larger than S3 allows is an error that says so, and leaves nothing."""
    monkeypatch.setattr(multipart, "MAX_OBJECT_BYTES", len(DATA) - 1)
    with pytest.raises(UploadError, match=r"5 TiB.*Nothing was published"):
        send(client, bucket, PART, DATA[FIRST_PART_BYTES:])
    assert keys(client, bucket) == open_uploads(client, bucket) == []


def test_a_part_whose_thread_cannot_be_started(
    client: Any, bucket: str, before: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that can't have another thread is not made to wait for a part that was never on its way."""
    monkeypatch.setattr(multipart, "_ABORT_TIMEOUT", 10 * PATIENCE)
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
    with caplog.at_level(logging.ERROR), pytest.raises(UploadError) as caught:
        send(client, bucket, DATA)
    assert caught.value.code == "QuotaFull"
    (left,) = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    errors = [entry.getMessage() for entry in caplog.records]
    assert any(left["UploadId"] in error and "InternalError" in error for error in errors)


def test_an_ordinary_abort_logs_no_error(client: Any, bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    """Aborting what the store has forgotten already is no failure."""
    hook(client, "UploadPart", lambda params: refusal("QuotaFull"))
    with caplog.at_level(logging.WARNING), Upload(client, bucket, "a.csv") as upload:
        upload.write(PART)
        client.abort_multipart_upload(Bucket=bucket, Key="a.csv", UploadId=upload._upload_id)
    assert caplog.records == []


# ---- Abort from another thread


def test_abort_wakes_a_waiting_write(client: Any, bucket: str, before: bytes, held: Held) -> None:
    """`abort` from another thread ends a `write` that waits for the store, before the store answers."""
    upload = Upload(client, bucket, "a.csv").__enter__()
    writing = Running(lambda: [upload.write(PART) for _ in range(10)])
    held.wait_for(PARTS_IN_FLIGHT)
    assert not writing.ends(within=0.3)
    aborting = Running(upload.abort)
    assert writing.ends()
    assert isinstance(writing.error, UploadError)
    assert "aborted. Nothing was published" in str(writing.error)
    held.release.set()
    assert aborting.ends()
    assert open_uploads(client, bucket) == []
    assert content(client, bucket, "a.csv") == before


def test_abort_wakes_a_waiting_complete(client: Any, bucket: str, before: bytes, held: Held) -> None:
    """`abort` from another thread ends a `complete` that waits for the last parts."""
    upload = Upload(client, bucket, "a.csv").__enter__()
    upload.write(DATA)
    held.wait_for(2)
    completing = Running(upload.complete)
    held.wait_for(1)
    assert not completing.ends(within=0.3)
    aborting = Running(upload.abort)
    assert completing.ends()
    assert isinstance(completing.error, UploadError)
    held.release.set()
    assert aborting.ends()
    assert open_uploads(client, bucket) == []
    assert content(client, bucket, "a.csv") == before


def test_abort_while_the_upload_is_being_started(client: Any, bucket: str) -> None:
    """An upload that the store opens only after `abort` is aborted as well."""
    asked, go_on = threading.Event(), threading.Event()
    hook(client, "CreateMultipartUpload", lambda params: asked.set() or (go_on.wait(PATIENCE) and None))
    upload = Upload(client, bucket, "a.csv").__enter__()
    writing = Running(lambda: upload.write(PART))
    assert asked.wait(PATIENCE)
    upload.abort()
    go_on.set()
    assert writing.ends()
    assert isinstance(writing.error, UploadError)
    assert keys(client, bucket) == open_uploads(client, bucket) == []


def test_a_part_that_arrives_after_the_abort_does_not_stay(client: Any, bucket: str, held: Held) -> None:
    """A part on its way may be stored after the abort (S3 API, AbortMultipartUpload): then there is a second abort."""
    aborts: list[str] = []

    def first_has_no_effect(params: dict[str, Any]) -> Any:
        aborts.append(params["url"])
        return answer(204) if len(aborts) == 1 else None

    hook(client, "AbortMultipartUpload", first_has_no_effect)
    upload = Upload(client, bucket, "a.csv").__enter__()
    upload.write(PART)
    held.wait_for(1)
    aborting = Running(upload.abort)
    assert eventually(lambda: aborts)
    held.release.set()
    assert aborting.ends()
    assert open_uploads(client, bucket) == []


def test_abort_at_any_moment_of_a_write(client: Any, bucket: str) -> None:
    """Wherever in a `write` the abort of another thread comes: it follows every part, so that none can stay."""
    requests = record(client)
    sending_part = []
    for moment in range(60):
        upload = Upload(client, bucket, "a.csv").open()
        del requests[:]
        aborting = interrupted_at(moment, lambda: upload.write(PART), upload.abort)  # noqa: B023
        assert aborting.ends()
        upload.abort()
        sent = operations(requests)
        sending_part.append("UploadPart" in sent)
        assert sent[-1:] in ([], ["AbortMultipartUpload"]), (moment, sent)
        assert open_uploads(client, bucket) == []
    assert {*sending_part} == {True, False}


def interrupted_at(moment: int, write: Callable[[], None], abort: Callable[[], None]) -> Running:
    """Run `abort` in another thread when `write` has run so many lines of multipart.py; it may have to wait there."""
    lines = itertools.count()
    aborting: list[Running] = []

    def trace(frame: Any, event: str, _: object) -> Any:
        if event == "line" and frame.f_code.co_filename == multipart.__file__ and next(lines) == moment:
            aborting.append(Running(abort))
            aborting[0].ends(within=0.1)
        return trace

    def traced() -> None:
        sys.settrace(trace)
        write()

    assert Running(traced).ends()
    return aborting[0] if aborting else Running(abort)


def test_no_part_is_sent_after_an_abort(client: Any, bucket: str) -> None:
    """After `abort` nothing more is sent: a part that came later could stay for ever."""
    requests = record(client)
    with Upload(client, bucket, "a.csv") as upload:
        upload.write(PART)
        upload.abort()
        sent = len(requests)
        with pytest.raises(UploadError, match="aborted"):
            upload.write(DATA)
        with pytest.raises(UploadError, match="aborted"):
            upload.complete()
    assert operations(requests[sent:]) == []


@pytest.mark.parametrize("data", [b"small", DATA], ids=["small", "multipart"])
def test_abort_after_complete_does_nothing(client: Any, bucket: str, data: bytes) -> None:
    """What is complete stays."""
    with Upload(client, bucket, "a.csv") as upload:
        upload.write(data)
        upload.complete()
        upload.abort()
    assert content(client, bucket, "a.csv") == data


def test_abort_during_complete(client: Any, bucket: str, before: bytes) -> None:
    """If the abort reaches the store before the completion, `complete` fails, and nothing is published."""
    upload = Upload(client, bucket, "a.csv").__enter__()
    hook(client, "CompleteMultipartUpload", lambda params: upload.abort())
    upload.write(DATA)
    with pytest.raises(UploadError, match="Nothing was published"):
        upload.complete()
    assert open_uploads(client, bucket) == []
    assert content(client, bucket, "a.csv") == before


def test_the_block_ends_after_an_abort_from_elsewhere_is_done(client: Any, bucket: str) -> None:
    """The end of the block waits for an abort that another thread has begun: the process may end right after."""
    asked, go_on = threading.Event(), threading.Event()
    hook(client, "AbortMultipartUpload", lambda params: asked.set() or (go_on.wait(PATIENCE) and None))
    upload = Upload(client, bucket, "a.csv").__enter__()
    upload.write(PART)
    aborting = Running(upload.abort)
    assert asked.wait(PATIENCE)
    leaving = Running(lambda: upload.__exit__(None, None, None))
    ended_before = leaving.ends(within=0.3)
    go_on.set()
    assert leaving.ends()
    assert aborting.ends()
    assert not ended_before
    assert open_uploads(client, bucket) == []


# ---- What earlier attempts left, and what the store does not allow


def test_leftovers_of_the_same_key_are_aborted(
    client: Any, bucket: str, before: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """On entry, what killed attempts left behind under the key is aborted, and said; other keys are left alone."""
    for key in ("a.csv", "a.csv", "a.csv.bak", "a.cs", "b/a.csv"):
        leave_upload_open(client, bucket, key)
    with caplog.at_level(logging.WARNING), Upload(client, bucket, "a.csv"):
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
    with pytest.raises(UploadError, match=r"s3://no-such-bucket/a.csv.*NoSuchBucket.*Nothing was published") as caught:
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
        hook(client, operation, lambda params: answer(ContentLength=len(DATA), ETag='"etag"', UploadId="id"))
    requests = record(client)
    with Upload(client, bucket, "a.csv", extra_args) as upload:  # a put
        upload.write(b"small")
        with pytest.raises(VerificationError):
            upload.complete()
    with Upload(client, bucket, "a.csv", extra_args) as upload:  # aborted
        upload.write(DATA)
    send(client, bucket, DATA, **extra_args)
    assert set(operations(requests)) == ALL
    for name, arguments in requests:
        given = {key: value for key, value in arguments.items() if key in extra_args}
        assert given == (extra_args if name in expected else {}), name


def test_metadata_and_type_are_the_objects(client: Any, bucket: str) -> None:
    """The stored object has the type and the metadata, sent in one put or in parts."""
    for data in (b"small", DATA):
        send(client, bucket, data, ContentType="text/csv", Metadata={"made-by": "us"})
        head = client.head_object(Bucket=bucket, Key="a.csv")
        assert (head["ContentType"], head["Metadata"]) == ("text/csv", {"made-by": "us"})


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


def test_another_checksum_in_the_store_is_an_error(client: Any, bucket: str) -> None:
    """An object of the right size whose content is another is reported, as visible."""
    other = {"ChecksumCRC32": crc32(b"other"), "ChecksumType": "FULL_OBJECT"}
    found = answer(ContentLength=len(DATA), ETag='"etag"', **other)
    hook_once_published(client, "HeadObject", lambda params: found)
    with pytest.raises(VerificationError, match=r"is visible .*CRC32 .* Do not use it"):
        send(client, bucket, DATA)


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


@pytest.mark.parametrize("name", ["Bucket", "Key", "Body", "UploadId", "PartNumber", "ContentLength", "Foo", "acl"])
def test_other_extra_arguments_are_refused(client: Any, bucket: str, name: str) -> None:
    """A name that is the upload's own, or that no request knows, is refused with the names that are allowed."""
    requests = record(client)
    with pytest.raises(InvalidArgument, match=rf"extra_args=\['{name}'\] is not allowed: .*'ServerSideEncryption'"):
        Upload(client, bucket, "a.csv", {name: "x", "ACL": "private"})
    assert requests == []
