"""What the README says is so."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest
import sqlalchemy as sa

from demo import services
from streaming_export import Bucket, StoreError, move_latest
from tests.conftest import content
from tests.streaming_export.exporting import export
from tests.streaming_export.store import hook, record, refusal

README = (services.PROJECT / "README.md").read_text(encoding="utf-8")


def python_block(containing: str) -> str:
    """The only block of Python in the README with this text."""
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if containing in block)
    return block


def json_block(containing: str) -> Any:
    """The only JSON in the README with this text."""
    (block,) = (block for block in re.findall(r"```json\n(.*?)```", README, re.DOTALL) if containing in block)
    return json.loads(block)


def test_engine_example(
    orders: int, exporter: sa.Engine, client: Any, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example of the engine runs as it stands, but for where database and store are, in under ten lines."""
    example = python_block("from streaming_export import Bucket, Export")
    assert len(example.splitlines()) < 10
    if services.BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        services.create_bucket(endpoint)
    monkeypatch.setattr(sa, "create_engine", lambda url: exporter)
    monkeypatch.setattr(boto3, "client", lambda service: client)
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["result"].rows == orders
    assert content(client, services.BUCKET, "orders.csv").startswith(b"id,customer_email,")


def test_dag_example(airflow_home: object) -> None:
    """The example of another table is a DAG that Airflow accepts."""
    names: dict[str, Any] = {}
    exec(python_block("customers_export"), names)
    dag = next(value for value in names.values() if getattr(value, "dag_id", None) == "customers_export")
    dag.validate()
    assert dag.task_ids == ["export_customers"]


def test_commands_exist() -> None:
    """Each `make` command of the README is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (services.PROJECT / "Makefile").read_text(), re.MULTILINE))
    commands = set(re.findall(r"^make ([a-z]+)|`make ([a-z]+)", README, re.MULTILINE))
    named = {word for pair in commands for word in pair if word}
    assert named
    assert named <= targets


def test_arguments_of_the_operator_are_documented_with_their_defaults(airflow_home: object) -> None:
    """The README names every argument of the operator, and the right defaults of its options."""
    import inspect

    from postgres_to_s3 import PostgresToS3Operator
    from streaming_export.options import DEFAULT_YIELD_PER

    arguments = inspect.signature(PostgresToS3Operator.__init__).parameters
    names = arguments.keys() - {"self", "kwargs"}
    assert {name for name in names if not re.search(rf"\b{name}\b", README)} == set()
    assert f"| `readers` | {arguments['readers'].default} |" in README
    assert f"| `method` | `{arguments['method'].default}` |" in README
    assert f"| `on_empty` | `{arguments['on_empty'].default}` |" in README
    assert f"| `yield_per` | {DEFAULT_YIELD_PER['copy']:,}; for `rows` {DEFAULT_YIELD_PER['rows']:,} |" in README


def test_the_lifecycle_rule_is_accepted(client: Any, bucket: str) -> None:
    """The rule to paste is one that an S3 server takes: old exports expire, abandoned uploads are aborted."""
    rules = json_block('"Rules"')
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules)
    rules = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert rules[0]["Expiration"] == {"Days": 90}
    assert rules[1]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 2}


# The action that allows a request (Amazon S3 User Guide, "Required permissions for Amazon S3 API operations").
ACTIONS = {
    "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
}


def test_the_policy_allows_exactly_what_is_asked_for(exporter: sa.Engine, endpoint: str, bucket: str) -> None:
    """Each request of exports that succeed, fail or are the first needs an action of the policy, and each is needed."""
    client = services.s3_client(endpoint)
    requests = record(client)
    places: dict[str, Any] = {"engine": exporter, "client": client, "bucket": bucket}
    large = "SELECT i, repeat('x', 1000) AS x FROM generate_series(1, 60000) AS i"
    for key in ("small.csv", "large.csv", "large.csv"):
        export("SELECT 1 AS one" if key == "small.csv" else large, key=key, **places)
    move_latest(Bucket(client, bucket), "latest.json", "s3://b/m", datetime.now(UTC))
    hook(client, "UploadPart", lambda params: refusal("AccessDenied"))
    with pytest.raises(StoreError):
        export(large, key="large.csv", **places)
    statements = json_block('"Statement"')["Statement"]
    allowed = {action for statement in statements for action in statement["Action"]}
    # Without s3:ListBucket S3 answers 403 for an object that is not there.
    assert {ACTIONS[name] for name, _ in requests} | {"s3:ListBucket"} == allowed
