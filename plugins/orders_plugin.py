"""Airflow's plugin for the UI; the only file here that the plugin loader runs."""

from typing import ClassVar

from airflow.plugins_manager import AirflowPlugin

from exports_page import REACT_APPS, fastapi_apps
from postgres_to_s3 import ExportLink


class OrdersPlugin(AirflowPlugin):
    """Registers the page "Exports" with `orders.csv`, and the link of each export to its entry there."""

    name = "orders"
    operator_extra_links: ClassVar = [ExportLink()]
    fastapi_apps: ClassVar = fastapi_apps("orders_live.route")
    react_apps: ClassVar = REACT_APPS
