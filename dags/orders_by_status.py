"""
### orders_by_status

**Healthy** if the last run is green. No other DAG depends on it.

Exports the orders and revenue of each day by status. The query is in a file with parameters, `orders_by_status.sql`.

Writes `s3://{bucket}/{prefix}/by-status/orders-by-status-YYYYMMDD.csv` for the day before, at 03:00 UTC. If it fails,
the error in the task's log says what to do. It is always safe to run it again.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable

from orders.models import STATUS
from orders.places import BUCKET, BY_STATUS_KEY
from orders.runs import day_of
from orders.sql_names import SQL_NAMES
from postgres_to_s3 import PostgresToS3Operator

with DAG(
    dag_id="orders_by_status",
    description="Orders and revenue of each day by status",
    schedule=CronDataIntervalTimetable("0 3 * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=2), "retry_exponential_backoff": 2.0},
    user_defined_macros={"day_of": day_of, "sql": SQL_NAMES},
    doc_md=__doc__,
    tags=["orders", "export"],
):
    PostgresToS3Operator(
        task_id="export_totals",
        query="orders_by_status.sql",
        parameters={"created_from": "{{ day_of(dag_run).start }}", "created_to": "{{ day_of(dag_run).end }}"},
        unique_key=STATUS.name,
        s3_bucket=BUCKET,
        s3_key=BY_STATUS_KEY,
        postgres_conn_id="orders_db",
        aws_conn_id="exports_s3",
    )
