"""
### orders_ingest

**Healthy** if `analytics.load_history` has the newest manifest. After a red run the table is as it was before.

Loads each published export of the orders into the analytics database, exactly as its manifest describes it.

| | |
|---|---|
| starts | by itself, when `orders_export` or `orders_export_daily` has published; a run can have several to load |
| reads | the manifest and the files that it names, in the bucket of the exports, connection `exports_s3` |
| writes | table `analytics.orders`, connection `analytics_db`; created by the first load |
| bucket | Airflow Variable `orders_export_bucket`, default `exports`; no other bucket is read |
| history | table `analytics.load_history`: each manifest that was loaded, and when |
| trigger by hand | `{"manifest_url": "s3://exports/orders/orders-20261122.csv.manifest.json"}` |
| new columns | `{"manifest_url": "s3://…", "add_columns": true}` adds those that the export has and the table has not |

**When it fails.** The table is as it was before: an export is loaded in one transaction, or not at all. The error
in the task's log says what happened and what to do. The task retries by itself three times where that can
help; to run it again later, clear it. Running it twice is always safe: what the history has is not loaded again.

**When nothing changes.** The log says why: `already_loaded`, or `outdated`, since a later snapshot was loaded before.
To have an export loaded again all the same, drop the table and trigger by hand.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, Param, task

from orders.assets import ORDERS_EXPORT, ORDERS_EXPORT_DAILY
from orders.models import TABLE
from orders.places import BUCKET
from postgres_to_s3 import RetryByCause
from postgres_to_s3.loading import load_manifests, manifest_urls

with DAG(
    dag_id="orders_ingest",
    description="Each export of the orders into the analytics database",
    schedule=ORDERS_EXPORT | ORDERS_EXPORT_DAILY,
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
            description="The manifest to load, when triggered by hand: s3://bucket/key",
        ),
        "add_columns": Param(
            False, type="boolean", description="Add columns that the export has and the table has not"
        ),
    },
    doc_md=__doc__,
    tags=["orders", "ingest"],
):

    @task(task_id="load_orders", retry_policy=RetryByCause())
    def load_orders(bucket: str, params: Any = None, triggering_asset_events: Any = None) -> list[dict[str, Any]]:
        """Load the manifests that started this run."""
        assets = (ORDERS_EXPORT, ORDERS_EXPORT_DAILY)
        events = [event for asset in assets for event in triggering_asset_events.get(asset, [])]
        return load_manifests(
            manifest_urls(events, params["manifest_url"]),
            bucket=bucket,
            schema="analytics",
            table=TABLE.name,
            postgres_conn_id="analytics_db",
            aws_conn_id="exports_s3",
            add_columns=params["add_columns"],
        )

    load_orders(BUCKET)
