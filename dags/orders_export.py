"""
### orders_export

Streams all orders from Postgres into one CSV file in object storage, every night at 02:00 UTC.

| | |
|---|---|
| reads | table `orders`, connection `orders_db` |
| writes | `s3://{bucket}/{prefix}/orders-YYYYMMDD.csv`, connection `exports_s3` |
| manifest | `….csv.manifest.json` beside the file: columns, rows, checksums; written last |
| newest | `s3://{bucket}/{prefix}/latest.json` names the newest manifest; runs by hand leave it alone |
| read by | `orders_ingest`, through the asset `orders_export` |
| date in the name | the day (UTC) on which the run's data interval ends: today, for a nightly run |
| bucket | Airflow Variable `orders_export_bucket`, default `exports` |
| prefix | Airflow Variable `orders_export_prefix`, default `orders` |
| trigger by hand | no parameters; replaces the file of that day in one step |

**When it fails.** The file of that day is either whole or still what it was before: nothing half-written is
ever visible. The last line of the task's log says what happened and what to do. The task retries by itself
three times; to run it again later, clear it. Running it twice is always safe.

**When it is slow.** The log shows rows, bytes and rows/s every 10 seconds. In Postgres, `pg_stat_activity` shows
its connections with `application_name` beginning `airflow orders_export`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable

from orders.assets import ORDERS_EXPORT
from orders.models import select_orders
from postgres_to_s3 import PostgresToS3Operator

# Only runs of the schedule move the pointer: what somebody exports by hand is theirs.
LATEST = """{%- if dag_run.run_type in ("scheduled", "backfill") -%}
{{ var.value.get('orders_export_prefix', 'orders') }}/latest.json
{%- endif -%}"""

# A run triggered without a logical date has no data interval.
DAY = "{{ (dag_run.data_interval_end or dag_run.run_after) | ds_nodash }}"

with DAG(
    dag_id="orders_export",
    description="All orders as one CSV file, every night",
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
    doc_md=__doc__,
    tags=["orders", "export"],
):
    PostgresToS3Operator(
        task_id="export_orders",
        query=select_orders(),
        unique_key="id",
        s3_bucket="{{ var.value.get('orders_export_bucket', 'exports') }}",
        s3_key="{{ var.value.get('orders_export_prefix', 'orders') }}/orders-" + DAY + ".csv",
        latest_key=LATEST,
        postgres_conn_id="orders_db",
        aws_conn_id="exports_s3",
        outlets=[ORDERS_EXPORT],
    )
