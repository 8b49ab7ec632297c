"""What an export counts for Airflow's metrics."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from orders.models import select_orders
from streaming_export import Bucket, DatabaseError, StoreError
from tests.postgres_to_s3.test_operator import CONTEXT, Make, make
from tests.streaming_export.store import hook, refusal

__all__ = ["make"]

TAGS = {"dag_id": "a_dag", "task_id": "a_task"}


class Backend:
    """Stands in for Airflow's StatsD client, whose package is not installed: keeps what it is given."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}
        self.tags: list[dict[str, str]] = []

    def incr(self, stat: str, count: int = 1, *, tags: dict[str, str]) -> None:
        self.given[stat] = count
        self.tags.append(tags)

    def timing(self, stat: str, dt: timedelta, *, tags: dict[str, str]) -> None:
        self.given[stat] = dt
        self.tags.append(tags)


@pytest.fixture
def metrics(make: Make) -> Iterator[Backend]:
    """Airflow's metrics, switched on."""
    from airflow.sdk._shared.observability.metrics.base_stats_logger import NoStatsLogger
    from airflow.sdk.observability import stats

    backend = Backend()
    stats.initialize(factory=lambda: backend, export_legacy_names=True)  # type: ignore[arg-type, return-value]
    yield backend
    stats.initialize(factory=NoStatsLogger, export_legacy_names=True)


def test_what_was_published(make: Make, orders: int, metrics: Backend) -> None:
    """Rows, bytes and time of an export, as in its XCom."""
    summary = make().execute(CONTEXT)
    assert metrics.given == {
        "postgres_to_s3.rows": orders,
        "postgres_to_s3.bytes": summary["bytes"],
        "postgres_to_s3.duration": timedelta(seconds=summary["seconds"]),
    }
    assert metrics.tags == [TAGS] * 3


def test_what_failed(make: Make, orders: int, metrics: Backend, client: Any, bucket: str) -> None:
    """A failure counts by its exception, and no rows."""
    with pytest.raises(DatabaseError):
        make(query="SELECT * FROM not_there").execute(CONTEXT)
    with pytest.raises(StoreError):
        make(s3_bucket="not-there").execute(CONTEXT)
    assert metrics.given == {"postgres_to_s3.failures.DatabaseError": 1, "postgres_to_s3.failures.StoreError": 1}
    assert metrics.tags == [TAGS] * 2


def test_a_pointer_that_is_not_moved(
    make: Make, orders: int, metrics: Backend, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export that was published, and then fails to move the pointer, counts as both."""
    from demo import services
    from postgres_to_s3 import operator

    store = services.s3_client(endpoint)
    hook(store, "PutObject", lambda params: refusal("AccessDenied") if "latest.json" in params["url_path"] else None)
    monkeypatch.setattr(operator, "s3_bucket", lambda conn_id, name, *_, **__: Bucket(store, name))
    with pytest.raises(StoreError, match="AccessDenied"):
        make(latest_key="latest.json").execute(CONTEXT)
    assert metrics.given["postgres_to_s3.rows"] == orders
    assert metrics.given["postgres_to_s3.failures.StoreError"] == 1


def test_nothing_to_publish(make: Make, orders: int, metrics: Backend) -> None:
    """An export that writes nothing counts no rows, and a preview nothing at all."""
    from airflow.sdk.exceptions import AirflowSkipException

    with pytest.raises(AirflowSkipException):
        make(preview=True).execute(CONTEXT)
    assert metrics.given == {}
    with pytest.raises(AirflowSkipException):
        make(query=select_orders().where(sa.false()), on_empty="skip").execute(CONTEXT)
    assert metrics.given["postgres_to_s3.rows"] == 0
