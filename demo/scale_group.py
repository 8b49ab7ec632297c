"""The DAG that `make scale` runs at its end: one table over several workers."""

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG

from orders.assets import ORDERS_EXPORT
from orders.models import select_orders
from postgres_to_s3 import export_over_workers

with DAG(
    dag_id="orders_over_workers",
    description="All orders in pieces, on all workers",
    schedule="@once",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    is_paused_upon_creation=True,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(seconds=5)},
):
    export_over_workers(
        "export",
        workers=4,
        query=select_orders(),
        unique_key="id",
        s3_bucket="exports",
        s3_key="orders/orders-in-pieces.csv",
        latest_key="orders/latest.json",
        postgres_conn_id="orders_db",
        aws_conn_id="exports_s3",
        outlets=[ORDERS_EXPORT],
    )
