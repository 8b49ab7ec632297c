"""The IAM policy of docs/running.md, enforced by the S3 server: it allows enough, and nothing else is allowed."""

from __future__ import annotations

import json
import logging
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
import sqlalchemy as sa

from demo import services
from streaming_export import Bucket, StoreError, move_latest, published_by
from streaming_ingest import ingest
from tests.conftest import content, keys, open_uploads
from tests.streaming_export.exporting import export, preview
from tests.streaming_export.store import hook, refusal
from tests.test_docs import RUNNING, only

BUCKET, OTHER = "shop-exports", "another-bucket"
SMALL, LARGE = "SELECT 1 AS a", "SELECT i, repeat('x', 1000) AS x FROM generate_series(1, 7000) AS i"
NOON = datetime(2026, 11, 5, 12, tzinfo=UTC)

READ_ONLY = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{BUCKET}/*"}
EVERYTHING = {"Effect": "Allow", "Action": "*", "Resource": "*"}


@dataclass(frozen=True)
class Store:
    """A store that enforces policies.

    :param endpoint: its URL.
    :param secrets: of each user, the arguments of a client that is to be theirs.
    """

    endpoint: str
    secrets: dict[str, dict[str, str]]

    def client(self, user: str) -> Any:
        """A new client of a user: `exporter`, with the policy of docs/running.md, `loader`, or `owner`."""
        return boto3.client("s3", endpoint_url=self.endpoint, region_name=services.REGION, **self.secrets[user])


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """The store with two buckets and its users."""
    policy = json.loads(only("json", '"s3:PutObject"', RUNNING).replace("BUCKET", BUCKET))
    with services.moto() as endpoint:
        for bucket in (BUCKET, OTHER):
            services.create_bucket(endpoint, bucket)
        keys_of_demo = {"aws_access_key_id": services.ACCESS_KEY, "aws_secret_access_key": services.SECRET_KEY}
        iam = boto3.client("iam", endpoint_url=endpoint, region_name=services.REGION, **keys_of_demo)
        users = {"exporter": policy["Statement"], "loader": [READ_ONLY], "owner": [EVERYTHING]}
        secrets = {name: make_user(iam, name, statements) for name, statements in users.items()}
        # From now on no request is let through without a right to it (moto's documentation, "IAM-like Access Control").
        enforce = urllib.request.Request(f"{endpoint}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
        urllib.request.urlopen(enforce).close()
        yield Store(endpoint, secrets)


def make_user(iam: Any, name: str, statements: list[dict[str, Any]]) -> dict[str, str]:
    """Make a user with a policy; returns the arguments of a client that is to be theirs."""
    document = json.dumps({"Version": "2012-10-17", "Statement": statements})
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName="only", PolicyDocument=document)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}


@pytest.fixture
def owner(store: Store) -> Iterator[Any]:
    """A client that may do everything; what the test leaves in the buckets is removed."""
    client = store.client("owner")
    yield client
    for bucket in (BUCKET, OTHER):
        for item in client.list_objects_v2(Bucket=bucket).get("Contents", []):
            client.delete_object(Bucket=bucket, Key=item["Key"])


def test_exports_that_succeed(exporter: sa.Engine, store: Store, owner: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Small or in parts, new or replacing another, with latest.json: nothing is refused, not even with a warning.

    (The server does not know that S3 answers 403 for an object that is not there unless s3:ListBucket is allowed.)
    """
    client = store.client("exporter")
    with caplog.at_level(logging.WARNING):
        for hour, query in enumerate((SMALL, LARGE, LARGE, SMALL)):
            places: dict[str, Any] = {"engine": exporter, "client": client, "bucket": BUCKET, "key": "orders/a.csv"}
            preview(query, **places)
            result = export(query, run={"run": f"{hour}"}, **places)
            taken_at = NOON + timedelta(hours=hour)
            exports = Bucket(client, BUCKET)
            assert move_latest(exports, "orders/latest.json", str(result.manifest_url), taken_at)
            assert published_by(exports, "orders/a.csv") == f"{hour}"
    assert caplog.messages == []
    assert keys(owner, BUCKET) == ["orders/a.csv", "orders/latest.json"]
    assert content(owner, BUCKET, "orders/a.csv") == b"a\n1\n"


def test_an_export_that_fails(exporter: sa.Engine, store: Store, owner: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Its upload can be aborted."""
    client = store.client("exporter")
    hook(client, "CompleteMultipartUpload", lambda params: refusal("QuotaFull"))
    with caplog.at_level(logging.WARNING), pytest.raises(StoreError, match="QuotaFull"):
        export(LARGE, engine=exporter, client=client, bucket=BUCKET, key="orders/a.csv")
    assert caplog.messages == []
    assert keys(owner, BUCKET) == open_uploads(owner, BUCKET) == []


def test_what_a_killed_export_left(
    exporter: sa.Engine, store: Store, owner: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It can be found and aborted."""
    owner.create_multipart_upload(Bucket=BUCKET, Key="orders/a.csv")
    with caplog.at_level(logging.WARNING):
        export(SMALL, engine=exporter, client=store.client("exporter"), bucket=BUCKET, key="orders/a.csv")
    (warning,) = caplog.messages
    assert warning.startswith(f"Aborting an unfinished upload of s3://{BUCKET}/orders/a.csv")
    assert open_uploads(owner, BUCKET) == []


@pytest.mark.parametrize(
    ("bucket", "key"),
    [(BUCKET, "reports/a.csv"), (BUCKET, "orders.csv"), (BUCKET, "orders-of-others/a.csv"), (OTHER, "orders/a.csv")],
)
def test_an_export_to_elsewhere(exporter: sa.Engine, store: Store, owner: Any, bucket: str, key: str) -> None:
    """Another prefix, or another bucket, is refused by the store: nothing is written, and what is there stays."""
    owner.put_object(Bucket=bucket, Key=key, Body=b"theirs")
    with pytest.raises(StoreError, match=f"s3://{bucket}/{key}") as caught:
        export(LARGE, engine=exporter, client=store.client("exporter"), bucket=bucket, key=key)
    assert caught.value.code == "AccessDenied"
    assert keys(owner, bucket) == [key]
    assert content(owner, bucket, key) == b"theirs"
    assert open_uploads(owner, bucket) == []


def test_a_pointer_elsewhere(store: Store, owner: Any) -> None:
    """The pointer is held to the prefix, too."""
    with pytest.raises(StoreError) as caught:
        move_latest(Bucket(store.client("exporter"), BUCKET), "latest.json", "s3://b/m", NOON)
    assert caught.value.code == "AccessDenied"
    assert keys(owner, BUCKET) == []


@pytest.mark.parametrize("call", ["delete_object", "get_object_acl", "put_object_acl", "get_object_tagging"])
def test_other_calls(exporter: sa.Engine, store: Store, owner: Any, call: str) -> None:
    """Even on its own prefix the role can do nothing that an export does not."""
    client = store.client("exporter")
    export(SMALL, engine=exporter, client=client, bucket=BUCKET, key="orders/a.csv")
    more = {"ACL": "public-read"} if call == "put_object_acl" else {}
    with pytest.raises(client.exceptions.ClientError, match="AccessDenied"):
        getattr(client, call)(Bucket=BUCKET, Key="orders/a.csv", **more)
    assert "orders/a.csv" in keys(owner, BUCKET)


def test_a_loader_only_reads(exporter: sa.Engine, engine: sa.Engine, schema: str, store: Store, owner: Any) -> None:
    """For loading an export, s3:GetObject is enough, and needed."""
    where: dict[str, Any] = {"engine": engine, "schema": schema, "table": "loaded"}
    client = store.client("exporter")
    result = export(SMALL, engine=exporter, client=client, bucket=BUCKET, key="orders/a.csv")
    assert ingest(str(result.manifest_url), bucket=Bucket(store.client("loader"), BUCKET), **where).rows == 1
    with pytest.raises(StoreError):
        ingest(f"s3://{BUCKET}/elsewhere.json", bucket=Bucket(client, BUCKET), **where)
