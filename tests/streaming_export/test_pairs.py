"""Exports to one key at a time: object and manifest belong together in the end, or a retry makes them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from demo import services
from streaming_export import ExportError, Superseded, manifest_reader
from streaming_export.s3.bucket import Bucket
from tests.conftest import open_uploads
from tests.streaming_export.publishing import KEY, MANIFEST, publish
from tests.streaming_export.store import Answer, hook, refusal

ROUNDS = 3  # enough for each run of the tests; 50 find what is rare
DELAY = 0.06  # seconds that a request or its answer is late, at most; most of them are hardly late
LATE = 0.15  # seconds after the others that an export begins, at most: it may meet the end of another
CONDITIONS = ("If-Match", "If-None-Match")


def keeps(client: Any) -> None:
    """A store that keeps conditions, as AWS S3 does."""


def ignores(client: Any, requests: str = "before-call.s3") -> None:
    """A store that ignores conditions."""

    def strip(params: dict[str, Any], **_: Any) -> None:
        for name in CONDITIONS:
            params["headers"].pop(name, None)

    client.meta.events.register(requests, strip)


def confuses(client: Any) -> None:
    """A store that takes an ETag in quotes for another one, and ignores conditions of complete, as Ceph RGW does."""

    def compare(params: dict[str, Any]) -> Answer:
        return refusal("PreconditionFailed", 412) if "If-Match" in params["headers"] else None

    hook(client, "PutObject", compare)
    ignores(client, "before-call.s3.CompleteMultipartUpload")


def delayed(client: Any, chance: random.Random) -> None:
    """Have each request and each answer come late."""
    for event in ("before-call.s3", "after-call.s3"):
        client.meta.events.register(event, lambda **_: time.sleep(DELAY * chance.random() ** 4))


@pytest.fixture
def clients(endpoint: str) -> Callable[[int, Callable[[Any], None]], list[Any]]:
    """Makes clients of one kind of store, each of which is late in its own way."""

    def make(number: int, store: Callable[[Any], None]) -> list[Any]:
        made = [services.s3_client(endpoint) for _ in range(number)]
        for seed, client in enumerate(made):
            store(client)
            delayed(client, random.Random(seed))
        return made

    return make


@pytest.mark.parametrize("store", [keeps, ignores, confuses])
@pytest.mark.parametrize(("exports", "max_rows"), [(2, None), (4, 1)], ids=["2", "4 multipart"])
def test_object_and_manifest_belong_together(
    clients: Any, client: Any, bucket: str, store: Callable[[Any], None], exports: int, max_rows: int | None
) -> None:
    """After exports at one time the manifest describes the objects, or one has failed whose retry makes it so.

    With `max_rows` there are several files, and all but the last are multipart uploads.
    """
    buckets = [Bucket(one, bucket) for one in clients(exports, store)]
    with ThreadPoolExecutor(exports) as threads:
        for number in range(ROUNDS):
            rows = [[b"%d\n" % value for value in (number, export)] for export in range(exports)]
            errors = list(threads.map(attempt, buckets, rows, [max_rows] * exports))
            if not belong_together(client, bucket):
                late = [export for export, error in enumerate(errors) if error is not None and error.transient]
                assert late, f"round {number}: nobody retries; {errors}"
                assert attempt(buckets[late[-1]], [b"again\n"], max_rows) is None
                assert belong_together(client, bucket)
            assert open_uploads(client, bucket) == []


def attempt(bucket: Bucket, rows: list[bytes], max_rows: int | None) -> ExportError | None:
    """One export, begun sooner or later; its error, if it fails."""
    time.sleep(random.uniform(0, LATE))
    try:
        publish(bucket, rows, max_rows=max_rows)
    except ExportError as exc:
        return exc
    return None


def belong_together(client: Any, bucket: str) -> bool:
    """Whether the visible objects are those that the visible manifest describes."""
    there = Bucket(client, bucket)
    described = manifest_reader.read(there, there.url(MANIFEST))
    found = [there.head(file.key) for file in described.files]
    return all(info and info.etag == file.etag for info, file in zip(found, described.files, strict=True))


@pytest.fixture
def meeting(client: Any, bucket: str) -> Callable[..., Any]:
    """Makes a client that meets another export, which begins and ends just before a request of its own."""

    def make(store: Callable[[Any], None], operation: str, key: str = "") -> Any:
        others = [lambda: publish(Bucket(client, bucket), [b"1\n"])]

        def meet(params: dict[str, Any]) -> None:
            if others and params["url"].endswith(key):
                others.pop()()

        met = services.s3_client(client.meta.endpoint_url)
        store(met)
        hook(met, operation, meet)
        return met

    return make


def test_a_manifest_that_was_late_is_written_over(client: Any, bucket: str, meeting: Callable[..., Any]) -> None:
    """An export whose manifest is refused, while its objects are the visible ones, writes it over the present one."""
    # The other one publishes after this one has looked for a manifest, and before it looks for an object.
    written = publish(Bucket(meeting(keeps, "ListMultipartUploads"), bucket), [b"2\n"])
    there = Bucket(client, bucket)
    assert manifest_reader.read(there, there.url(MANIFEST)).export_id == written["export_id"]
    assert there.head(KEY).export_id == written["export_id"]


@pytest.mark.parametrize("store", [keeps, ignores, confuses])
@pytest.mark.parametrize("key", [KEY, MANIFEST])
def test_an_export_that_was_late_fails(
    client: Any, bucket: str, meeting: Callable[..., Any], store: Callable[[Any], None], key: str
) -> None:
    """An export whose objects another has replaced fails, unless it has replaced them all; a retry makes the pair."""
    late = Bucket(meeting(store, "PutObject", key), bucket)
    if key == KEY and store is ignores:
        publish(late, [b"2\n"])  # the last one to write the object writes the manifest, too
    else:
        with pytest.raises(Superseded) as caught:
            publish(late, [b"2\n"])
        assert caught.value.transient
        publish(late, [b"2\n"])
    assert belong_together(client, bucket)
