"""Errors as somebody on call sees them: in the log of a task that Airflow has run."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streaming_export import DatabaseError, ExportError, InvalidArgument, StoreError

DAG_FILE = """
from airflow.sdk import DAG
from postgres_to_s3 import PostgresToS3Operator

good = {{"query": "SELECT 1 AS one", "s3_bucket": "exports", "s3_key": "a.csv", "postgres_conn_id": "orders_db",
        "aws_conn_id": "exports_s3"}}
with DAG("failing", schedule=None):
    PostgresToS3Operator(task_id="export", retries=0, **good | {changed!r})
"""

Log = Callable[..., str]


@pytest.fixture
def log_of(
    airflow_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Log:
    """Has Airflow run an export with changed arguments; returns what it logs."""
    from airflow.dag_processing.dagbag import DagBag

    local = "airflow.dag_processing.bundles.local.LocalDagBundle"
    bundles = [{"name": "failing", "classpath": local, "kwargs": {"path": str(tmp_path)}}]
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps(bundles))
    lost = json.loads(os.environ["AIRFLOW_CONN_ORDERS_DB"])
    monkeypatch.setenv("AIRFLOW_CONN_LOST_DB", json.dumps(lost | {"host": "127.0.0.1", "port": 1}))
    monkeypatch.setenv("AIRFLOW_CONN_REFUSED_DB", json.dumps(lost | {"login": "nobody_knows_me"}))

    def run(**changed: Any) -> str:
        (tmp_path / "failing.py").write_text(DAG_FILE.format(changed=changed))
        bag = DagBag(tmp_path)
        assert not bag.import_errors
        capsys.readouterr()
        assert bag.dags["failing"].test(logical_date=None).state == "failed"
        return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)

    return run


def errors(log: str) -> list[str]:
    """The lines that are logged as errors before Airflow's own."""
    found = re.findall(r"\[error\s*\] (.*?)\s+\[", log)
    return found[: found.index("Task failed with exception")] if "Task failed with exception" in found else found


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            {"postgres_conn_id": "refused_db"},
            [
                'The login was refused: role "nobody_knows_me" does not exist',
                "Nothing was published.",
                "Correct the login of refused_db.",
                "Connection: postgres_conn_id='refused_db'.",
            ],
        ),
        (
            {"postgres_conn_id": "lost_db"},
            [
                "Cannot connect to the database: Connection refused",
                "Nothing was published.",
                "Retry. If it happens again, check",
                "Connection: postgres_conn_id='lost_db'.",
            ],
        ),
        (
            {"query": "SELECT * FROM not_there"},
            [
                'Postgres failed while describing the query: relation "not_there" does not exist',
                "Nothing was published.",
                "Correct the query",
                "Connection: postgres_conn_id='orders_db'.",
            ],
        ),
        (
            {"s3_bucket": "not-there"},
            [
                "The object store failed: NoSuchBucket: The specified bucket does not exist",
                "Nothing was published.",
                "Create the bucket",
                "Connection: aws_conn_id='exports_s3'.",
            ],
        ),
        (
            {"aws_conn_id": "nope"},
            [
                "aws_conn_id='nope' is not allowed: Airflow has no connection",
                "Nothing was read or",
                "Add the connection",
            ],
        ),
        (
            {"s3_key": "a/../b.csv"},
            ["s3_key='a/../b.csv' is not allowed", "Nothing was read or written."],
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_short_lines_the_cause_first(log_of: Log, changed: dict[str, str], expected: list[str]) -> None:
    """Each line can be read without scrolling; the order is cause, state, remedy, connection."""
    from postgres_to_s3.reporting import LINE

    log = log_of(**changed)
    found = errors(log)
    assert all(len(line) <= LINE for line in found), found
    assert found[0].startswith(expected[0][:LINE]) or expected[0] in " ".join(found)
    text, position = " ".join(found), 0
    for part in expected:
        assert part in text[position:], (part, found)
        position = text.index(part, position)


def test_no_traceback_of_ours(log_of: Log) -> None:
    """The engine's frames and the driver's error help nobody: only `execute` is named, and what reports its errors."""
    log = log_of(query="SELECT * FROM not_there")
    assert "Task failed with exception" in log
    named = set(re.findall(r"plugins/([\w/]+\.py)", log.partition("Task failed with exception")[2]))
    assert named <= {"postgres_to_s3/operator.py", "postgres_to_s3/reporting.py"}
    assert "UndefinedTable" not in log


def test_what_is_raised_keeps_its_kind(airflow_home: Path) -> None:
    """The retry policy, callbacks and metrics see the error itself."""
    import logging

    from postgres_to_s3.reporting import report

    for error in (DatabaseError("x", "y", transient=True), StoreError("x", "y", code="z")):
        told: ExportError = report(logging.getLogger(__name__), error, postgres_conn_id="a", aws_conn_id="b")
        assert told is error
        assert told.__traceback__ is None


@pytest.mark.parametrize("ours", [True, False])
def test_a_task_of_ones_own_is_as_readable(airflow_home: Path, caplog: pytest.LogCaptureFixture, ours: bool) -> None:
    """Tasks that are no operator log the same lines, and raise the same error without frames of what they called."""
    from airflow.sdk.exceptions import AirflowFailException

    from postgres_to_s3 import Readable

    refused = AirflowFailException("No.\nNothing was read or written.")
    error = InvalidArgument("day", "x", "a day") if ours else refused

    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as raised, Readable(logging.getLogger("task"), aws_conn_id="exports_s3"):
        fail()
    assert [record.getMessage() for record in caplog.records][-1] == "Nothing was read or written."
    assert len(caplog.records) == 2
    assert "fail" not in [frame.name for frame in raised.traceback]


def test_a_dry_run_leaves_what_it_has_found(
    airflow_home: Path, orders: int, client: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQL, rows, bytes and keys are there as an XCom, for programs; the rows are counted, or said to be an estimate."""
    from types import SimpleNamespace

    from airflow.sdk.exceptions import AirflowSkipException

    from postgres_to_s3 import PostgresToS3Operator
    from streaming_export import export as module

    pushed: dict[str, Any] = {}
    names = {"dag_id": "a", "task_id": "b", "run_id": "c", "try_number": 1, "map_index": -1}
    ti = SimpleNamespace(**names, xcom_push=lambda key, value: pushed.update({key: value}))

    def dry_run(query: str) -> dict[str, Any]:
        operator = PostgresToS3Operator(
            task_id="export",
            query=query,
            unique_key="id",
            s3_bucket=bucket,
            s3_key="a.csv",
            preview=True,
            postgres_conn_id="orders_db",
            aws_conn_id="exports_s3",
        )
        with pytest.raises(AirflowSkipException):
            operator.execute({"ti": ti})
        return dict(pushed["preview"])

    found = dry_run("SELECT * FROM orders WHERE id % 2 = 0")
    assert json.loads(json.dumps(found)) == found
    assert "SELECT * FROM orders" in found["sql"]
    assert found["rows_counted"] is True
    assert 0 < found["rows"] < orders
    assert found["bytes"] > found["rows"]
    assert list(found["keys"]) == [f"s3://{bucket}/a.csv", f"s3://{bucket}/a.csv.manifest.json"]

    monkeypatch.setattr(module, "COUNT_SECONDS", 1)
    slow = dry_run("SELECT id, pg_sleep(1) FROM orders")
    assert slow["rows_counted"] is False
    assert slow["rows"] == pytest.approx(orders, rel=0.2)
    assert client.list_objects_v2(Bucket=bucket).get("Contents", []) == []
