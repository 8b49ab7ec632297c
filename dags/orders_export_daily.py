"""
### orders_export_daily

**Healthy** if yesterday's manifest exists by 04:00 UTC. Until then, a run that is waiting for transactions is healthy
too.

Exports the orders that were created on one day (UTC), into one file, every day.

| | |
|---|---|
| reads | table `orders`, connection `orders_db` |
| writes | `s3://{bucket}/{prefix}/daily/dt=YYYY-MM-DD/orders-YYYYMMDD.csv`, connection `exports_s3` |
| manifest | `….csv.manifest.json` beside the file, with the day as its window |
| read by | `orders_ingest`, through the asset `orders_export_daily`; it upserts the orders by their id |
| the past | `airflow backfill create --dag-id orders_export_daily --from-date 2026-10-01 --to-date 2026-10-31` |
| bucket, prefix | Airflow Variables, as for `orders_export` |
| wait | Airflow Variable `orders_export_wait_seconds`, default 3600 |
| deadline | 04:00 UTC: `orders_deadline` alerts if yesterday's file is not published |

**No order is skipped.** `created_at` is the time at which a transaction began, but others see the order only after the
commit. So a run first waits for all transactions that began before the end of the day; the log names them. If they do
not end in time, the run fails, publishes nothing, and retries. To see the transactions of other roles, the role needs
`pg_read_all_stats`; what it could not see is in the log and in the manifest.

**Running a day again** replaces its file. Days can run in any order, several at a time.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable

from orders.assets import ORDERS_EXPORT_DAILY
from orders.models import UNIQUE_KEY, select_orders_created
from orders.places import BUCKET, DAILY_KEY
from orders.runs import day_of
from postgres_to_s3 import PostgresToS3Operator

START, END = "{{ day_of(dag_run).start.isoformat() }}", "{{ day_of(dag_run).end.isoformat() }}"

with DAG(
    dag_id="orders_export_daily",
    description="The orders of each day as a CSV file",
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=8,
    default_args={
        "retries": 3,
        "retry_delay": timedelta(minutes=2),
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(minutes=30),
    },
    user_defined_macros={"day_of": day_of},
    render_template_as_native_obj=True,
    doc_md=__doc__,
    tags=["orders", "export"],
):
    PostgresToS3Operator(
        task_id="export_day",
        query=select_orders_created(),
        parameters={"created_from": START, "created_to": END},
        unique_key=UNIQUE_KEY,
        window=[START, END],
        wait_for_transactions="{{ var.value.get('orders_export_wait_seconds', 3600) }}",
        s3_bucket=BUCKET,
        s3_key=DAILY_KEY,
        postgres_conn_id="orders_db",
        aws_conn_id="exports_s3",
        outlets=[ORDERS_EXPORT_DAILY],
    )
