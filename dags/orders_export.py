"""
### orders_export

**Healthy** if today's `{prefix}/orders-YYYYMMDD.csv.manifest.json` exists by 04:00 UTC. A red run leaves yesterday's
files unchanged.

Streams all orders from Postgres into one CSV file in object storage, every night at 02:00 UTC.

| | |
|---|---|
| reads | table `orders`, connection `orders_db` |
| writes | `s3://{bucket}/{prefix}/orders-YYYYMMDD.csv`, connection `exports_s3` |
| manifest | `….csv.manifest.json` beside the file: columns, rows, checksums; written last |
| newest | `s3://{bucket}/{prefix}/latest.json` names the newest manifest; runs triggered by hand do not change it |
| read by | `orders_ingest`, through the asset `orders_export` |
| date in the name | the day (UTC) on which the run's data interval ends: today, for a nightly run |
| bucket | Airflow Variable `orders_export_bucket`, default `exports` |
| prefix | Airflow Variable `orders_export_prefix`, default `orders` |
| deadline | 04:00 UTC: `orders_deadline` alerts if the file is not published |

**By hand.** If the form is unchanged, a run exports what the nightly run does, under the same name. If another run has
published that file already, or the form is changed, the file goes to `{prefix}/manual/{run id}/orders-YYYYMMDD.csv`.
Such a file does not update `latest.json`, and is not ingested. *Dry run* writes nothing: the log of the skipped task
shows the SQL, the number of rows, and what would be replaced.

**When it fails.** The file of that day is either complete or unchanged; nothing half-written is ever visible. The error
in the task's log says what happened and what to do. The task retries three times where that can help. To run it again
later, clear it; that is always safe.

**When it is slow.** The log shows rows, bytes and rows/s every 10 seconds. In `pg_stat_activity`, the
`application_name` of its connections begins with `airflow orders_export`.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, task
from airflow.timetables.interval import CronDataIntervalTimetable

from orders.assets import ORDERS_EXPORT
from orders.models import UNIQUE_KEY, select_orders, select_orders_by
from orders.places import BUCKET, LATEST_KEY, NIGHTLY_KEY, SELECTION_KEY
from orders.runs import FORM, choose_task
from postgres_to_s3 import PostgresToS3Operator, Readable, RetryByCause, s3_bucket

log = logging.getLogger(__name__)

CONNECTIONS = {"postgres_conn_id": "orders_db", "aws_conn_id": "exports_s3"}

with DAG(
    dag_id="orders_export",
    description="All orders as one CSV file, every night; a selection of them by hand",
    schedule=CronDataIntervalTimetable("0 2 * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={
        "retries": 3,
        "retry_delay": timedelta(minutes=2),
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(minutes=30),
    },
    params=FORM,
    render_template_as_native_obj=True,
    doc_md=__doc__,
    tags=["orders", "export"],
):

    @task.branch(task_id="choose_export", retry_policy=RetryByCause())
    def choose_export(bucket: str, key: str, params: Any = None, dag_run: Any = None) -> str:
        """Check the form, and choose the task to run."""
        with Readable(log, aws_conn_id="exports_s3"):
            return choose_task(params, dag_run, s3_bucket("exports_s3", str(bucket)), str(key))

    export_orders = PostgresToS3Operator(
        task_id="export_orders",
        query=select_orders(),
        unique_key=UNIQUE_KEY,
        s3_bucket=BUCKET,
        s3_key=NIGHTLY_KEY,
        latest_key=LATEST_KEY,
        preview="{{ params.dry_run }}",
        outlets=[ORDERS_EXPORT],
        **CONNECTIONS,
    )
    export_selection = PostgresToS3Operator(
        task_id="export_selection",
        query=select_orders_by(),
        parameters={name: "{{ params." + name + " or none }}" for name in ("created_from", "created_to", "statuses")},
        unique_key=UNIQUE_KEY,
        s3_bucket=BUCKET,
        s3_key=SELECTION_KEY,
        compression="{{ params.compression }}",
        yield_per="{{ params.yield_per }}",
        preview="{{ params.dry_run }}",
        **CONNECTIONS,
    )
    choose_export(BUCKET, NIGHTLY_KEY) >> [export_orders, export_selection]
