"""Rules for every DAG, and runs of each through Airflow."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from demo import services
from tests.conftest import content, keys

if TYPE_CHECKING:
    from airflow.dag_processing.dagbag import DagBag

ROWS = 1_234


@pytest.fixture(scope="session")
def dags(airflow_home: Path) -> DagBag:
    """All DAG files, imported by Airflow."""
    from airflow.dag_processing.dagbag import DagBag
    from airflow.utils import db

    db.initdb()
    return DagBag(services.PROJECT / "dags")


@pytest.fixture
def orders_export(dags: DagBag, engine: sa.Engine, database: str, client: Any) -> Any:
    """The DAG, with a table to export and an empty bucket to export to."""
    services.load_orders(database, ROWS)
    for key in keys(client, services.BUCKET):
        client.delete_object(Bucket=services.BUCKET, Key=key)
    dag = dags.dags["orders_export"]
    for task in dag.tasks:
        task.retries = 0
    yield dag
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE orders")


def test_every_dag_file_imports(dags: DagBag) -> None:
    """Airflow imports every file in dags/ without an error, and each defines a DAG."""
    assert not dags.import_errors, f"Fix the import of: {dags.import_errors}"
    files = {path.name for path in (services.PROJECT / "dags").glob("*.py")}
    defining = {Path(dag.fileloc).name for dag in dags.dags.values()}
    assert defining == files


def test_every_dag_is_fit_for_operation(dags: DagBag) -> None:
    """Each DAG tells whoever is on call what it is, doesn't run the past by itself, and retries."""
    for dag_id, dag in dags.dags.items():
        assert dag.doc_md, f"{dag_id}: set doc_md=__doc__ and say what it does and what to do when it fails"
        assert dag.catchup is False, f"{dag_id}: set catchup=False; the past is for backfills"
        assert dag.max_active_runs == 1, f"{dag_id}: set max_active_runs=1; runs write the same keys"
        for task in dag.tasks:
            assert task.retries >= 1, f"{dag_id}.{task.task_id}: set retries in default_args"
            assert task.retry_exponential_backoff, f"{dag_id}.{task.task_id}: set retry_exponential_backoff"


def test_importing_dags_reads_no_variable_and_no_database(airflow_home: Path) -> None:
    """A DAG file is parsed every few seconds: it must need neither Variables nor connections for that."""
    code = "import sys, runpy; sys.path.insert(0, 'plugins'); runpy.run_path('dags/orders_export.py')"
    environment = {"PATH": "/nowhere", "AIRFLOW_HOME": str(airflow_home), "AIRFLOW__CORE__UNIT_TEST_MODE": "False"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=services.PROJECT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_nightly_file(orders_export: Any, client: Any) -> None:
    """A run exports all orders, ordered by id, to the day on which its data interval ends, and says so."""
    run = orders_export.test(logical_date=datetime(2026, 11, 5, 2, tzinfo=UTC))
    assert run.state == "success"
    assert keys(client, services.BUCKET) == ["orders/orders-20261105.csv"]
    text = content(client, services.BUCKET, "orders/orders-20261105.csv").decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert list(rows[0]) == ["id", "customer_email", "total_cents", "status", "created_at"]
    ids = [int(row["id"]) for row in rows]
    assert len(ids) == ROWS
    assert ids == sorted(ids)
    head = client.head_object(Bucket=services.BUCKET, Key="orders/orders-20261105.csv")
    assert head["ContentType"] == "text/csv"
    assert head["ContentDisposition"] == 'attachment; filename="orders-20261105.csv"'


def test_triggered_without_a_logical_date(orders_export: Any, client: Any) -> None:
    """A run without a logical date has no data interval: its file has the day (UTC) of the trigger."""
    before = datetime.now(UTC)
    run = orders_export.test(logical_date=None)
    after = datetime.now(UTC)
    assert run.state == "success"
    assert run.data_interval_end is None
    (key,) = keys(client, services.BUCKET)
    assert key in {f"orders/orders-{day:%Y%m%d}.csv" for day in (before, after)}


def test_bucket_and_prefix_are_variables(
    orders_export: Any, client: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bucket and prefix come from Airflow Variables, without a change to the code."""
    monkeypatch.setenv("AIRFLOW_VAR_ORDERS_EXPORT_BUCKET", bucket)
    monkeypatch.setenv("AIRFLOW_VAR_ORDERS_EXPORT_PREFIX", "finance/all")
    run = orders_export.test(logical_date=datetime(2026, 11, 6, 2, tzinfo=UTC))
    assert run.state == "success"
    assert keys(client, bucket) == ["finance/all/orders-20261106.csv"]


def test_the_run_updates_the_asset(dags: DagBag) -> None:
    """Consumers can schedule on the asset that the export updates."""
    (task,) = dags.dags["orders_export"].tasks
    assert [asset.name for asset in task.outlets] == ["orders_export"]
