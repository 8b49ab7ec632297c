"""Bucket: what it refuses, how long it tries, and what it finds out about the store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError

from demo import services
from streaming_export import InvalidArgument, StoreError
from streaming_export.cancellation import Stop, Stopped, cancelled
from streaming_export.s3 import bucket as bucket_module
from streaming_export.s3.bucket import ANYTHING, Bucket, check_key
from tests.conftest import content, keys
from tests.faults.store_proxy import Exchange
from tests.stores import stand_in
from tests.streaming_export.store import answer, hook, record, refusal
from tests.streaming_export.waiting import Running

KEY = "a/latest.json"


@pytest.fixture
def client(endpoint: str) -> Any:
    """A client of the test's own: its hooks reach no other test."""
    return services.s3_client(endpoint)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between tries are short."""
    monkeypatch.setattr(bucket_module, "_FIRST_PAUSE", 0.01)


# ---- What is refused


@pytest.mark.parametrize("name", ["", "a/b", "s3://a", "-a", "a b", "ä", None, 7])
def test_what_is_no_bucket_is_refused(client: Any, name: Any) -> None:
    """A name that no bucket can have is refused before anything is asked of the store."""
    with pytest.raises(InvalidArgument, match=r"^bucket="):
        Bucket(client, name)


@pytest.mark.parametrize("name", ["Bucket", "Key", "Body", "UploadId", "PartNumber", "ContentLength", "Foo", "acl"])
def test_other_extra_arguments_are_refused(client: Any, name: str) -> None:
    """A name that is the upload's own, or that no request knows, is refused with the names that are allowed."""
    with pytest.raises(InvalidArgument, match=rf"extra_args=\['{name}'\] is not allowed: .*'ServerSideEncryption'"):
        Bucket(client, "exports", {name: "x", "ACL": "private"})


@pytest.mark.parametrize(
    "key", ["", " ", None, "/a.csv", "a/../b.csv", "./a.csv", "..", "a\nb", "a\0b", "\ud800", "x" * 31]
)
def test_what_is_no_key_is_refused(key: Any) -> None:
    """A key that leaves its prefix, can't be written, or is too long is refused by the argument's name."""
    with pytest.raises(InvalidArgument, match=r"^latest_key="):
        check_key("latest_key", key, 30)


@pytest.mark.parametrize("key", ["a", "a//b", "a b/ü€😀.csv", "...", "a/.b/..c"])
def test_keys_that_are_odd_are_taken(client: Any, bucket: str, key: str) -> None:
    """Everything else is a key: what is written there is there."""
    check_key("key", key)
    there = Bucket(client, bucket)
    assert there.put(key, b"{}", replaces=None, export_id="1")
    found = there.read(key)
    assert found is not None
    assert found[0] == b"{}"


# ---- How long it tries


@pytest.mark.parametrize(
    ("code", "status"),
    [("SlowDown", 503), ("InternalError", 500), ("503", 503), ("Whatever", 502), ("RequestTimeout", 400), (None, 0)],
)
@pytest.mark.usefixtures("hurried")
def test_what_may_pass_is_tried_again(client: Any, bucket: str, code: str | None, status: int) -> None:
    """A store that fails for a while fails nothing: by its code, its status, or no answer at all."""
    failing = iter(range(3))

    def fail(params: dict[str, Any]) -> Any:
        if next(failing, None) is None:
            return None
        if code is None:
            raise ReadTimeoutError(endpoint_url=params["url"])
        return refusal(code, status)

    hook(client, "PutObject", fail)
    assert Bucket(client, bucket).put(KEY, b"{}", replaces=None, export_id="e")
    assert content(client, bucket, KEY) == b"{}"


@pytest.mark.usefixtures("hurried")
def test_patience_ends(client: Any, bucket: str) -> None:
    """After so many seconds the error is raised: transient, with what to do."""
    hook(client, "GetObject", lambda params: refusal("SlowDown", 503))
    requests = record(client)
    with pytest.raises(StoreError, match=r"SlowDown.*while reading s3://(.|\n)*run fewer exports") as caught:
        Bucket(client, bucket, patience=1).read(KEY)
    assert (caught.value.code, caught.value.transient) == ("SlowDown", True)
    assert len(requests) > 2


@pytest.mark.parametrize(
    ("code", "status", "remedy"),
    [
        ("AccessDenied", 403, "Grant the role of the connection"),
        ("NoSuchBucket", 404, "Create the bucket"),
        ("InvalidAccessKeyId", 403, "Correct the credentials"),
        ("InvalidRequest", 400, "encrypted with another key than the one in extra_args"),
        ("QuotaFull", 403, "Fix the cause, then export again"),
    ],
)
def test_what_will_not_pass_is_not_tried_again(client: Any, bucket: str, code: str, status: int, remedy: str) -> None:
    """A refusal is raised at once, with its code, and with what to do in a sentence."""
    hook(client, "GetObject", lambda params: refusal(code, status))
    requests = record(client)
    with pytest.raises(StoreError, match=remedy) as caught:
        Bucket(client, bucket).read(KEY)
    assert (caught.value.code, caught.value.transient, len(requests)) == (code, False, 1)
    assert all(line.endswith(".") and not line.endswith("..") for line in str(caught.value).splitlines())


def test_a_login_in_the_endpoint_is_not_shown() -> None:
    """botocore quotes the endpoint's URL, whose login would get into the log."""
    nowhere = services.s3_client("http://me:hidden@127.0.0.1:1")
    with pytest.raises(StoreError, match=r'endpoint URL: "http://\*\*\*@127\.0\.0\.1:1/exports/a') as caught:
        Bucket(nowhere, "exports", patience=0).read(KEY)
    assert "hidden" not in str(caught.value)


def test_the_stop_flag_ends_a_pause(client: Any, bucket: str) -> None:
    """Whoever ends the export does not wait until the store is back."""
    stop, failed = Stop(), threading.Event()

    def fail(params: dict[str, Any]) -> Any:
        failed.set()
        return refusal("SlowDown", 503)

    hook(client, "GetObject", fail)
    reading = Running(lambda: Bucket(client, bucket).within(stop).read(KEY))
    assert failed.wait(10)
    stop.set(cancelled())
    assert reading.ends(within=5)
    assert isinstance(reading.error, Stopped)


# ---- Conditional writes


def unsupported(params: dict[str, Any]) -> Any:
    """A store that knows no conditional writes, and says so."""
    conditional = {"If-Match", "If-None-Match"} & params["headers"].keys()
    return refusal("NotImplemented", 501) if conditional else None


def confused(params: dict[str, Any]) -> Any:
    """A store for which an ETag in quotes is never that of the object (Ceph RGW)."""
    return refusal("PreconditionFailed", 412) if "If-Match" in params["headers"] else None


@pytest.mark.parametrize("store", [lambda params: None, unsupported, confused])
def test_a_document_is_replaced_on_every_store(
    client: Any, bucket: str, store: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A condition that a store refuses although nothing has changed is left out, from then on; the log says so once."""
    hook(client, "PutObject", store)
    there = Bucket(client, bucket)
    for body in (b"1", b"2", b"3", b"4"):
        found = there.read(KEY)
        assert there.put(KEY, body, replaces=found[1] if found else None, export_id=body.decode())
        assert content(client, bucket, KEY) == body
    assert len(caplog.messages) == (store in (unsupported, confused))


@pytest.mark.parametrize("store", [lambda params: None, confused])
def test_what_another_has_written_is_not_replaced(client: Any, bucket: str, store: Callable[..., Any]) -> None:
    """A condition that is refused since the document did change is believed."""
    hook(client, "PutObject", store)
    there = Bucket(client, bucket)
    assert there.put(KEY, b"1", replaces=ANYTHING, export_id="1")
    etag = there.head(KEY).etag
    assert there.put(KEY, b"2", replaces=ANYTHING, export_id="2")
    assert not there.put(KEY, b"3", replaces=etag, export_id="3")
    assert not there.put(KEY, b"3", replaces=None, export_id="3")
    assert content(client, bucket, KEY) == b"2"


@pytest.mark.usefixtures("hurried")
def test_a_put_whose_answer_was_lost_is_not_an_error(client: Any, bucket: str) -> None:
    """A retry is refused by the condition that the first try has made untrue: what counts is what is there."""
    lost: list[bool] = []

    def lose(**_: Any) -> None:
        if not lost:
            lost.append(True)
            raise ReadTimeoutError(endpoint_url="http://store.invalid")

    client.meta.events.register("after-call.s3.PutObject", lose)
    assert Bucket(client, bucket).put(KEY, b"1", replaces=None, export_id="1")
    assert lost
    assert content(client, bucket, KEY) == b"1"


# ---- Reading


def test_what_is_not_there(client: Any, bucket: str) -> None:
    """Nothing is None; a bucket that is not there is an error."""
    there = Bucket(client, bucket)
    assert there.read(KEY) is None
    assert there.head(KEY) is None
    with pytest.raises(StoreError, match="NoSuchBucket"):
        Bucket(client, "no-such-bucket").read(KEY)


def test_a_part_of_an_object(client: Any, bucket: str) -> None:
    """A range is read; its ETag tells whether it is of the object that was wanted."""
    client.put_object(Bucket=bucket, Key=KEY, Body=b"0123456789")
    there = Bucket(client, bucket)
    body, etag = there.open(KEY, "bytes=2-4")
    assert (body.read(), etag) == (b"234", there.head(KEY).etag)
    client.put_object(Bucket=bucket, Key=KEY, Body=b"another")
    assert there.open(KEY)[1] not in ("", etag)


def test_extra_arguments_of_the_files_are_not_those_of_documents(client: Any, bucket: str) -> None:
    """A document is JSON as it is, whatever the files are; whose it is and who may read it is the same."""
    of_the_files = {"ContentType": "text/plain", "ContentEncoding": "gzip", "ContentLanguage": "nl"}
    there = Bucket(client, bucket, {**of_the_files, "CacheControl": "no-store", "Metadata": {"owner": "finance"}})
    there.put(KEY, b"{}", replaces=None, export_id="e")
    head = client.head_object(Bucket=bucket, Key=KEY)
    assert head["ContentType"] == "application/json"
    assert not {"ContentEncoding", "ContentLanguage"} & head.keys()
    assert (head["CacheControl"], head["Metadata"]) == ("no-store", {"owner": "finance", "export-id": "e"})


def test_uploads_are_listed_page_by_page(client: Any, bucket: str) -> None:
    """However many uploads are left open, all of a key are found, and none of another."""
    pages = [
        {"Uploads": [{"Key": key, "UploadId": str(number), "Initiated": None} for key in (KEY, f"{KEY}.bak")],
         "IsTruncated": number < 2, "NextKeyMarker": KEY, "NextUploadIdMarker": str(number)}
        for number in range(3)
    ]  # fmt: skip
    hook(client, "ListMultipartUploads", lambda params: answer(**pages.pop(0)))
    assert [upload_id for upload_id, _ in Bucket(client, bucket).unfinished_uploads(KEY)] == ["0", "1", "2"]
    assert keys(client, bucket) == []


def test_an_object_without_an_etag_is_read(endpoint: str, bucket: str) -> None:
    """What the store does not say is empty, as in a HEAD and in a manifest."""

    def without_etag(exchange: Exchange) -> None:
        status, headers, body = exchange.ask()
        exchange.answer(status, {name: value for name, value in headers.items() if name.lower() != "etag"}, body)

    with stand_in(endpoint, without_etag) as url:
        there = Bucket(services.s3_client(url), bucket)
        assert there.put(KEY, b"{}", replaces=ANYTHING, export_id="1")
        assert there.read(KEY) == (b"{}", "")
        body, etag = there.open(KEY)
        with body:
            assert (body.read(), etag) == (b"{}", "")
