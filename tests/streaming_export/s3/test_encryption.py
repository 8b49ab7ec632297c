"""Exports that the store encrypts: each request has the arguments that it needs, and no other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from demo import services
from streaming_export import StoreError, manifest
from streaming_export.s3.bucket import Bucket
from streaming_export.s3.parts import MIN_PART_BYTES
from tests.streaming_export.publishing import KEY, publish
from tests.streaming_export.store import Answer, hook, record, refusal

SMALL, LARGE = [b"1\n"], [b"2" * MIN_PART_BYTES + b"\n"]
LATEST = "orders/latest.json"
NOON = datetime(2026, 11, 5, 12, tzinfo=UTC)

# The operations that have an argument (Amazon S3 API Reference).
CREATING = {"CreateMultipartUpload", "PutObject"}
ENCRYPTED = {*CREATING, "UploadPart", "CompleteMultipartUpload", "HeadObject", "GetObject"}
ALL = {*ENCRYPTED, "ListMultipartUploads", "AbortMultipartUpload"}

CUSTOMERS_KEY = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "k" * 32}


@pytest.fixture
def client(moto_endpoint: str) -> Any:
    """A client of the test's own; of moto, since the demo's store has no KMS."""
    return services.s3_client(moto_endpoint)


def export_all(client: Any, bucket: str, extra_args: dict[str, Any]) -> None:
    """Every kind of request; file, manifest and latest.json once new and once replaced."""
    there = Bucket(client, bucket, extra_args)
    for hour, rows in enumerate((SMALL, LARGE)):
        publish(there, rows)
        manifest.move_latest(there, LATEST, "s3://b/m", NOON + timedelta(hours=hour))
        assert there.head(KEY)
    hook(client, "CompleteMultipartUpload", lambda params: refusal("QuotaFull"))
    with pytest.raises(StoreError, match="QuotaFull"):
        publish(there, LARGE, key="orders/b.csv")


@pytest.mark.parametrize(
    ("extra_args", "expected"),
    [
        ({"ServerSideEncryption": "AES256"}, CREATING),
        ({"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/exports", "BucketKeyEnabled": True}, CREATING),
        (CUSTOMERS_KEY, ENCRYPTED),
        ({"ExpectedBucketOwner": "123456789012"}, ALL),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_each_request_has_what_it_needs(
    client: Any, bucket: str, extra_args: dict[str, Any], expected: set[str]
) -> None:
    """Of the file, the manifest and the pointer: written, read, replaced, looked at, aborted."""
    requests = record(client)
    export_all(client, bucket, extra_args)
    assert {name for name, _ in requests} == ALL
    for name, arguments in requests:
        given = {key: value for key, value in arguments.items() if key in extra_args}
        assert given == (extra_args if name in expected else {}), (name, arguments["Key"])


def test_a_customers_key(client: Any, bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    """A store that gives and takes nothing without the key, as S3 does, is written to again and again."""

    def demand_key(params: dict[str, Any]) -> Answer:
        has_key = params["headers"].get("x-amz-server-side-encryption-customer-key")
        return None if has_key else refusal("InvalidRequest", 400)

    for operation in ENCRYPTED:
        hook(client, operation, demand_key)
    with caplog.at_level("WARNING"):
        export_all(client, bucket, CUSTOMERS_KEY)
    assert caplog.messages == []


def test_an_object_of_another_key(client: Any, bucket: str) -> None:
    """A manifest that can't be read with the arguments ends the export before it writes, and says what to do."""
    hook(client, "GetObject", lambda params: refusal("InvalidRequest", 400))
    requests = record(client)
    with pytest.raises(StoreError, match=r"a/orders\.csv\.manifest\.json(.|\n)*another key than the one in extra_args"):
        publish(Bucket(client, bucket), SMALL)
    assert [name for name, _ in requests] == ["GetObject"]
