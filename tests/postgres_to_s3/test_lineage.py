"""What an export reports to OpenLineage, and that it runs without it; tests/test_canaries.py has Airflow send it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa

from orders.models import Order, select_orders, select_orders_by
from streaming_export import EmptyResult
from tests.conftest import content
from tests.postgres_to_s3.test_operator import CONTEXT, Make, make

__all__ = ["make"]

COLUMNS = ["id", "customer_email", "total_cents", "status", "created_at"]

QUERIES: dict[str, dict[str, Any]] = {
    "Select": {"query": select_orders().where(Order.status.in_(["paid", "new"]))},
    "Select with parameters": {
        "query": select_orders_by(),
        "parameters": {"created_from": None, "created_to": None, "statuses": ["paid"]},
    },
    "text": {
        "query": "SELECT id, total_cents\\:\\:bigint AS cents FROM orders -- all\nWHERE status = :status;",
        "parameters": {"status": "paid"},
    },
}


def address() -> str:
    """The namespace of the tests' database: its server listens on a socket, where others have host and port."""
    host = json.loads(os.environ["AIRFLOW_CONN_ORDERS_DB"])["host"]
    return f"postgres://{quote(host, safe='')}:5432"


@pytest.mark.parametrize("kind", QUERIES)
def test_what_was_read_and_written(make: Make, orders: int, schema: str, client: Any, bucket: str, kind: str) -> None:
    """The table with its columns, the file with its rows and bytes, and the query."""
    operator = make(**QUERIES[kind])
    summary = operator.execute(CONTEXT)
    lineage = operator.get_openlineage_facets_on_complete(None)
    assert lineage is not None
    (read,), (written,) = lineage.inputs, lineage.outputs
    assert (read.namespace, read.name) == (address(), f"postgres.{schema}.orders")
    assert [field.name for field in read.facets["schema"].fields] == COLUMNS
    assert (written.namespace, written.name) == (f"s3://{bucket}", "a/file.csv")
    statistics = written.outputFacets["outputStatistics"]
    assert (statistics.rowCount, statistics.size) == (summary["rows"], len(content(client, bucket, "a/file.csv")))
    assert statistics.rowCount > 0
    told = lineage.job_facets["sql"].query
    assert "orders" in told
    assert "paid" not in told


def test_each_file(make: Make, orders: int, bucket: str) -> None:
    """An export of several files reports each."""
    operator = make(max_file_rows=10_000)
    operator.execute(CONTEXT)
    written = operator.get_openlineage_facets_on_complete(None).outputs
    assert [file.name for file in written] == ["a/file-00001.csv", "a/file-00002.csv"]
    assert [file.outputFacets["outputStatistics"].rowCount for file in written] == [10_000, orders - 10_000]


def test_nothing_was_published(make: Make, orders: int) -> None:
    """An export that failed reports nothing."""
    operator = make(query=select_orders().where(sa.false()), on_empty="fail")
    with pytest.raises(EmptyResult):
        operator.execute(CONTEXT)
    assert operator.get_openlineage_facets_on_complete(None) is None


def test_without_openlineage(make: Make, orders: int, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the provider is not installed, nothing of it is asked for."""
    for name in [name for name in sys.modules if name.startswith(("openlineage", "airflow.providers.openlineage"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "postgres_to_s3.lineage", raising=False)
    for name in ("openlineage", "airflow.providers.openlineage"):
        monkeypatch.setitem(sys.modules, name, None)
    assert make().execute(CONTEXT)["rows"] == orders
    assert "postgres_to_s3.lineage" not in sys.modules


def test_nothing_is_sent_by_these_tests(airflow_home: Path) -> None:
    """The provider is installed, but not configured."""
    from airflow.providers.openlineage import conf

    assert conf.is_disabled()
