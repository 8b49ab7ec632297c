"""
### orders_ingest

**Healthy** if `analytics.load_history` has the newest manifest. After a red run the table is as it was before.

Loads each published export of the orders into the analytics database, exactly as its manifest describes it.

| | |
|---|---|
| starts | when `orders_export` or `orders_export_daily` has published, and each hour |
| loads | what is published under `{prefix}/orders-` and `{prefix}/daily/` and not loaded yet; no selections |
| reads | the manifests, and the files that they name, in the bucket of the exports, connection `exports_s3` |
| writes | table `analytics.orders`, connection `analytics_db`; the first load creates it |
| bucket | Airflow Variable `orders_export_bucket`, default `exports`; no other bucket is read |
| history | table `analytics.load_history`: each manifest that was loaded or outdated, and when |
| trigger by hand | same; `{"manifest_url": "s3://exports/orders/….csv.manifest.json"}` loads only that one of these |
| new columns | `{"add_columns": true}` adds new columns of the export to the table |

**Lost events do not matter.** Airflow can lose events that arrive during a run. So each run loads everything that is in
the bucket and not in the history, and looks again before it ends.

**When it fails.** Each export is loaded in one transaction, or not at all. If one can't be loaded, the run loads the
others, and fails at the end, naming it. The error in the task's log says what happened and what to do. The task retries
three times where that can help. To run it again later, clear it; that is always safe, since nothing is loaded twice.

**When nothing changes.** The history says why: an export is `outdated` if a later snapshot was loaded before. To load
everything again, drop the table and trigger the DAG by hand.
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
            description="The one manifest to load, s3://bucket/key; none: all that are new",
        ),
        "add_columns": Param(False, type="boolean", description="Add new columns of the export to the table"),
    },
    doc_md=__doc__,
    tags=["orders", "ingest"],
):

    @task(task_id="load_orders", retry_policy=RetryByCause())
    def load_orders(bucket: str, prefixes: list[str], params: Any = None) -> list[dict[str, Any]]:
        """Load what is published and not loaded yet, or the one manifest of the form."""
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
