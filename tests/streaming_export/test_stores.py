"""One suite for every store that can be had: an export is right on each, and can be run again.

docs/stores.md says which store of the world does what each of these does.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa
from botocore.config import Config

from demo import services
from streaming_export import Bucket, ExportResult, ManifestError, StoreError, manifest, manifest_reader, published_by
from streaming_export.s3 import parts
from streaming_export.s3.parts import MIN_PART_BYTES
from tests.conftest import content, open_uploads
from tests.stores import SETTINGS, STORES
from tests.streaming_export.exporting import export
from tests.streaming_export.store import hook, refusal

KEY = "a/b.csv"
SMALL = "SELECT i, 'small' AS x FROM generate_series(1, {rows}) AS i"
LARGE = "SELECT i, repeat('x', 1000) AS x FROM generate_series(1, {rows}) AS i"
FEW, MANY = 100, 12_800  # of the large ones, three parts
THREE_PARTS = {"seaweedfs", "moto", "equal parts"}  # to the others, two parts are as many as three

Send = Callable[..., ExportResult]


@dataclass(frozen=True)
class Store:
    """A store, with a bucket.

    :param name: in `STORES`.
    :param client: for what the test does itself; boto3 tries again what fails.
    """

    name: str
    client: Any
    bucket: str

    def exporting(self) -> Any:
        """A new client for exports, which try again by themselves."""
        config = Config(retries={"total_max_attempts": 1}, **SETTINGS.get(self.name, {}))
        return services.s3_client(self.client.meta.endpoint_url, config)


@pytest.fixture(scope="module", params=STORES)
def endpoint_of(request: pytest.FixtureRequest, moto_endpoint: str) -> Iterator[tuple[str, str]]:
    """Name and URL of each store."""
    with STORES[request.param](moto_endpoint) as endpoint:
        yield request.param, endpoint


@pytest.fixture
def store(endpoint_of: tuple[str, str]) -> Store:
    """Each store, with an empty bucket."""
    name, endpoint = endpoint_of
    client = services.s3_client(endpoint, Config(retries={"mode": "standard"}, **SETTINGS.get(name, {})))
    bucket = f"test-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=bucket)
    return Store(name, client, bucket)


@pytest.fixture
def send(store: Store, exporter: sa.Engine) -> Send:
    """Exports to the store, and makes sure that file and manifest are whole, right, and belong together."""

    def send(query: str, rows: int, **arguments: Any) -> ExportResult:
        result = export(
            query.format(rows=rows),
            **{"engine": exporter, "client": store.exporting(), "bucket": store.bucket, "key": KEY, **arguments},
        )
        body = content(store.client, store.bucket, KEY)
        assert body.count(b"\n") == rows + 1
        assert (result.rows, result.bytes) == (rows, len(body))
        published = manifest_reader.read(Bucket(store.client, store.bucket), str(result.manifest_url))
        (file,) = published.files
        assert (file.bytes, file.sha256) == (len(body), hashlib.sha256(body).hexdigest())
        assert file.etag == store.client.head_object(Bucket=store.bucket, Key=KEY)["ETag"].strip('"')
        return result

    return send


def test_again_and_in_any_order(store: Store, send: Send) -> None:
    """A small file, a large one, each again, and each replacing the other: all succeed, night after night."""
    many = MANY if store.name in THREE_PARTS else MANY // 2
    for night, (query, rows) in enumerate([(SMALL, FEW), (SMALL, FEW + 1), (LARGE, many), (LARGE, many), (SMALL, FEW)]):
        result = send(query, rows, run={"run": str(night)})
        assert result.parts == (1 if query == SMALL else 1 + result.bytes // MIN_PART_BYTES)
        assert published_by(Bucket(store.client, store.bucket), KEY) == str(night)
    assert store.name == "no listing" or open_uploads(store.client, store.bucket) == []


# As far as sizes of parts go, the other stores are the moto behind them.
@pytest.mark.parametrize("endpoint_of", ["seaweedfs", "moto", "equal parts"], indirect=True, scope="module")
def test_an_estimate_that_was_wrong(
    store: Store, send: Send, exporter: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts that have to grow are right, but where all must have one size: what the error says helps there."""
    monkeypatch.setattr(parts, "_PARTS_BEFORE_GROWTH", 1)
    if store.name != "equal parts":
        assert send(LARGE, MANY).parts == 2
        return
    with pytest.raises(StoreError, match=r"Pass max_file_bytes.*only parts of one size"):
        send(LARGE, MANY)
    place = {"client": store.exporting(), "bucket": store.bucket, "key": KEY}
    result = export(LARGE.format(rows=MANY), engine=exporter, **place, max_file_bytes=MIN_PART_BYTES)
    assert (result.rows, len(result.files)) == (MANY, 3)


def test_what_fails_leaves_what_was_there(store: Store, send: Send) -> None:
    """An upload that can't be completed is aborted; file and manifest stay as they were, and the next one succeeds."""
    send(SMALL, FEW)
    before = _objects(store)
    failing = store.exporting()
    hook(failing, "CompleteMultipartUpload", lambda params: refusal("QuotaFull"))
    with pytest.raises(StoreError, match="QuotaFull") as caught:
        send(LARGE, MANY // 2, client=failing)
    assert caught.value.published is False
    assert _objects(store) == before
    assert store.name == "no listing" or open_uploads(store.client, store.bucket) == []
    send(SMALL, FEW + 1)


def test_what_a_killed_export_has_left_is_removed(store: Store, send: Send) -> None:
    """The next export to the same key aborts the upload, where it may see it."""
    store.client.create_multipart_upload(Bucket=store.bucket, Key=KEY)
    send(SMALL, FEW)
    assert store.name == "no listing" or open_uploads(store.client, store.bucket) == []


def test_objects_of_somebody_else_in_the_place_of_a_manifest(store: Store, send: Send) -> None:
    """Whatever is there is replaced; until then it is called what it is."""
    bucket = Bucket(store.client, store.bucket)
    for thing in (b"[1, 2]", b'{"a": 1}', b"<html>", b'{"manifest_version": 1, "files": ['):
        store.client.put_object(Bucket=store.bucket, Key=manifest.manifest_key(KEY), Body=thing)
        with pytest.raises(ManifestError, match=manifest.manifest_key(KEY)):
            published_by(bucket, KEY)
    send(SMALL, FEW)


def test_latest_moves_forward(store: Store, send: Send) -> None:
    """The document that names the newest export is moved night after night, and never back."""
    bucket = Bucket(store.client, store.bucket)
    first, second = (datetime.fromisoformat(f"2026-11-0{day}T00:00:00+00:00") for day in (1, 2))
    assert manifest.move_latest(bucket, "latest.json", "s3://b/1", first)
    assert manifest.move_latest(bucket, "latest.json", "s3://b/2", second)
    assert not manifest.move_latest(bucket, "latest.json", "s3://b/1", first)
    assert json.loads(content(store.client, store.bucket, "latest.json"))["manifest_url"] == "s3://b/2"


def _objects(store: Store) -> dict[str, bytes]:
    keys = (KEY, manifest.manifest_key(KEY))
    return {key: content(store.client, store.bucket, key) for key in keys}
