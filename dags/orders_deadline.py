"""
### orders_deadline

**Healthy** if green: last night's exports are published. If red, look at the exports, not at this DAG.

Checks at 04:00 UTC whether last night's exports of the orders are published, and alerts if they are not.

It looks for the manifests in the bucket, not at the state of runs, so it also notices a run that never started. If a
manifest is missing, the task fails, and Airflow calls its `on_failure_callback`, `orders.alerts.tell`, which logs an
error. Replace it by a notifier for your pager, Slack or e-mail.

**When it fails.** The log names what is missing. Look at the runs of `orders_export` and `orders_export_daily`. Once
they have succeeded, nothing is left to do here.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, task
from airflow.timetables.interval import CronDataIntervalTimetable

from orders.alerts import check_published, tell
from orders.places import BUCKET, DAILY_KEY, NIGHTLY_KEY
from orders.runs import day_of
from postgres_to_s3 import Readable, RetryByCause, s3_bucket

log = logging.getLogger(__name__)

with DAG(
    dag_id="orders_deadline",
    description="Alerts if the exports of the night are not published by 04:00 UTC",
    schedule=CronDataIntervalTimetable("0 4 * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    # Unpause it after the first night of exports: before, it would fail.
    is_paused_upon_creation=True,
    # Retries are for a store that does not answer; a missing export fails without a retry.
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1), "retry_exponential_backoff": 2.0},
    user_defined_macros={"day_of": day_of},
    doc_md=__doc__,
    tags=["orders", "export"],
):

    @task(task_id="check_published", retry_policy=RetryByCause(), on_failure_callback=tell)
    def check(bucket: str, keys: list[str]) -> dict[str, Any]:
        """Look for the manifests of the night."""
        with Readable(log, aws_conn_id="exports_s3"):
            return check_published(s3_bucket("exports_s3", str(bucket)), keys)

    check(BUCKET, [NIGHTLY_KEY, DAILY_KEY])
