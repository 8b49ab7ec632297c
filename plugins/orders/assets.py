"""The assets that consumers of the orders schedule on."""

from airflow.sdk import Asset

#: Updated when an export of all orders is published.
ORDERS_EXPORT = Asset("orders_export")

#: Updated when the orders of a day are published.
ORDERS_EXPORT_DAILY = Asset("orders_export_daily")
