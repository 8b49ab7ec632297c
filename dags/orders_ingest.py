"""
### orders_ingest

**Healthy** if `analytics.load_history` has the newest manifest. After a red run the table is as it was before.

Loads each published export of the orders into the analytics database, exactly as its manifest describes it.

| | |
|---|---|
| starts | by itself, when `orders_export` or `orders_export_daily` has published, and each hour |
| loads | what is published under `{prefix}/orders-` and `{prefix}/daily/` and not loaded yet; selections are not |
| reads | the manifests and the files that they name, in the bucket of the exports, connection `exports_s3` |
| writes | table `analytics.orders`, connection `analytics_db`; created by the first load |
| bucket | Airflow Variable `orders_export_bucket`, default `exports`; no other bucket is read |
| history | table `analytics.load_history`: each manifest that was loaded, or was outdated, and when |
| trigger by hand | the same; `{"manifest_url": "s3://exports/orders/….csv.manifest.json"}` loads that one alone |
| new columns | `{"add_columns": true}` adds those that an export has and the table has not |

**An event is a doorbell.** Airflow can lose events that come while a run goes on. So a run loads what the bucket has
and the history has not, whatever its events tell of, and looks again before it ends.

**When it fails.** An export is loaded in one transaction, or not at all. One that can't be loaded does not hold up the
others: the run loads them, and fails at its end, naming those that it could not. The error in the task's log says
what happened and what to do. The task retries by itself three times where that can help; to run it again later, clear
it. Running it twice is always safe: what the history has is not loaded again.

**When nothing changes.** The history says why: an export is `outdated` if a later snapshot was loaded before. To have
all that is published loaded again, drop the table and trigger by hand.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, AssetOrTimeSchedule, CronTriggerTimetable, Param, task

from orders.assets import ORDERS_EXPORT, ORDERS_EXPORT_DAILY
from orders.models import TABLE
from orders.places import BUCKET, DAILY_PREFIX, NIGHTLY_PREFIX
from postgres_to_s3 import RetryByCause
from postgres_to_s3.loading import load_published

with DAG(
    dag_id="orders_ingest",
    description="Each export of the orders into the analytics database",
    schedule=AssetOrTimeSchedule(
        timetable=CronTriggerTimetable("40 * * * *", timezone="UTC"), assets=ORDERS_EXPORT | ORDERS_EXPORT_DAILY
    ),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={
        "retries": 3,
        "retry_delay": timedelta(minutes=2),
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(minutes=30),
    },
    params={
        "manifest_url": Param(
            None,
            type=["null", "string"],
            pattern="^s3://[^/]+/.+$",
            description="The one manifest to load, when triggered by hand: s3://bucket/key; none: all that are new",
        ),
        "add_columns": Param(
            False, type="boolean", description="Add columns that the export has and the table has not"
        ),
    },
    doc_md=__doc__,
    tags=["orders", "ingest"],
):

    @task(task_id="load_orders", retry_policy=RetryByCause())
    def load_orders(bucket: str, prefixes: list[str], params: Any = None) -> list[dict[str, Any]]:
        """Load what is published and not loaded yet, or the one manifest that was asked for."""
        return load_published(
            prefixes,
            only=params["manifest_url"],
            bucket=bucket,
            schema="analytics",
            table=TABLE.name,
            postgres_conn_id="analytics_db",
            aws_conn_id="exports_s3",
            add_columns=params["add_columns"],
        )

    load_orders(BUCKET, [NIGHTLY_PREFIX, DAILY_PREFIX])
