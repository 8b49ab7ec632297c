"""Registers with Airflow what its UI needs to know; the only file here that the plugin loader runs."""

from typing import ClassVar

from airflow.plugins_manager import AirflowPlugin

from postgres_to_s3 import S3ObjectLink


class OrdersPlugin(AirflowPlugin):
    """The link of exports to their objects."""

    name = "orders"
    operator_extra_links: ClassVar = [S3ObjectLink()]
