"""Exports that the store encrypts: each request has the arguments that it needs, and no other."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from demo import services
from streaming_export import Bucket, StoreError, move_latest
from tests.conftest import content
from tests.streaming_export.exporting import export, preview
from tests.streaming_export.store import Answer, hook, record, refusal

SMALL, LARGE = "SELECT 1 AS a", "SELECT i, repeat('x', 1000) AS x FROM generate_series(1, 7000) AS i"
LATEST = "orders/latest.json"
NOON = datetime(2026, 11, 5, 12, tzinfo=UTC)

# The operations that have an argument (Amazon S3 API Reference).
CREATING = {"CreateMultipartUpload", "PutObject"}
ENCRYPTED = {*CREATING, "UploadPart", "CompleteMultipartUpload", "HeadObject", "GetObject"}
ALL = {*ENCRYPTED, "ListMultipartUploads", "AbortMultipartUpload"}

CUSTOMERS_KEY = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "k" * 32}


@pytest.fixture
def client(endpoint: str) -> Any:
    """A client of the test's own."""
    return services.s3_client(endpoint)


def export_all(exporter: sa.Engine, client: Any, bucket: str, extra_args: dict[str, Any]) -> None:
    """Every kind of request, and each file, manifest and `latest` once new and once replaced."""
    places: dict[str, Any] = {"engine": exporter, "client": client, "bucket": bucket, "extra_args": extra_args}
    for hour, query in enumerate((SMALL, LARGE)):
        export(query, key="orders/a.csv", **places)
        move_latest(Bucket(client, bucket, extra_args), LATEST, "s3://b/m", NOON + timedelta(hours=hour))
        preview(query, key="orders/a.csv", **places)
    hook(client, "CompleteMultipartUpload", lambda params: refusal("QuotaFull"))
    with pytest.raises(StoreError, match="QuotaFull"):
        export(LARGE, key="orders/b.csv", **places)


@pytest.mark.parametrize(
    ("extra_args", "expected"),
    [
        ({"ServerSideEncryption": "AES256"}, CREATING),
        (CUSTOMERS_KEY, ENCRYPTED),
        ({"ExpectedBucketOwner": "123456789012"}, ALL),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_each_request_has_what_it_needs(
    exporter: sa.Engine, client: Any, bucket: str, extra_args: dict[str, Any], expected: set[str]
) -> None:
    """Of the file, the manifest and `latest`: written, read, replaced, looked at, aborted."""
    check_requests(exporter, client, bucket, extra_args, expected)


def test_each_request_has_what_kms_needs(exporter: sa.Engine, moto_endpoint: str) -> None:
    """The same for a key of KMS, which SeaweedFS has only beside a KMS."""
    client = services.s3_client(moto_endpoint)
    client.create_bucket(Bucket="kms")
    extra_args = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/exports", "BucketKeyEnabled": True}
    check_requests(exporter, client, "kms", extra_args, CREATING)


def check_requests(
    exporter: sa.Engine, client: Any, bucket: str, extra_args: dict[str, Any], expected: set[str]
) -> None:
    """Export everything, and see that requests of the expected operations have the arguments, and no others."""
    requests = record(client)
    export_all(exporter, client, bucket, extra_args)
    assert {name for name, _ in requests} == ALL
    for name, arguments in requests:
        given = {key: value for key, value in arguments.items() if key in extra_args}
        assert given == (extra_args if name in expected else {}), (name, arguments["Key"])


def test_a_customers_key(exporter: sa.Engine, client: Any, bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    """A store that gives and takes nothing without the key, as S3 does, is written to again and again."""

    def demand_key(params: dict[str, Any]) -> Answer:
        has_key = params["headers"].get("x-amz-server-side-encryption-customer-key")
        return None if has_key else refusal("InvalidRequest", 400)

    for operation in ENCRYPTED:
        hook(client, operation, demand_key)
    with caplog.at_level("WARNING"):
        export_all(exporter, client, bucket, CUSTOMERS_KEY)
    assert caplog.messages == []


def test_an_object_of_another_key(exporter: sa.Engine, client: Any, bucket: str) -> None:
    """A manifest that can't be read with the arguments ends the export before it reads a row, and says what to do."""
    hook(client, "GetObject", lambda params: refusal("InvalidRequest", 400))
    requests = record(client)
    with pytest.raises(StoreError, match=r"(?s)a\.csv\.manifest\.json.*another key than extra_args name: remove the object"):
        export(
            "SELECT 1 / (i - i) AS a FROM generate_series(1, 9) AS i",
            engine=exporter,
            client=client,
            bucket=bucket,
            key="a.csv",
        )
    assert [name for name, _ in requests] == ["GetObject"]


def test_headers_of_the_files_are_not_the_manifests(exporter: sa.Engine, client: Any, bucket: str) -> None:
    """How a file is to be read is not how its manifest and `latest` are; whose they are is the same."""
    of_the_file = {
        "ContentType": "text/plain",
        "ContentDisposition": 'attachment; filename="mine.csv"',
        "ContentEncoding": "gzip",
        "ContentLanguage": "nl",
    }
    extra_args = {**of_the_file, "CacheControl": "no-store", "Metadata": {"owner": "finance"}}
    export(SMALL, engine=exporter, client=client, bucket=bucket, key="a.csv", extra_args=extra_args)
    move_latest(Bucket(client, bucket, extra_args), LATEST, "s3://b/m", NOON)
    file = client.head_object(Bucket=bucket, Key="a.csv")
    assert {name: file[name] for name in of_the_file} == of_the_file
    for key in ("a.csv.manifest.json", LATEST):
        head = client.head_object(Bucket=bucket, Key=key)
        assert head["ContentType"] == "application/json"
        assert not {"ContentDisposition", "ContentEncoding", "ContentLanguage"} & head.keys()
        assert (head["CacheControl"], head["Metadata"]["owner"]) == ("no-store", "finance")
        assert json.loads(content(client, bucket, key))
