"""The bucket and the database of the page, from the connections and Variables that the DAGs use."""

from __future__ import annotations

from airflow.sdk import BaseHook, Variable

from postgres_to_s3.connections import s3_bucket
from streaming_export import Bucket

_STORE = "exports_s3"


def exports_bucket() -> Bucket:
    """The bucket of the exports.

    :raises AirflowNotFoundException: if Airflow does not know the connection.
    """
    BaseHook.get_connection(_STORE)
    return s3_bucket(_STORE, str(Variable.get("orders_export_bucket", default="exports")))
