"""The asset that consumers of the orders schedule on."""

from airflow.sdk import Asset

#: Updated when an export of all orders was published.
ORDERS_EXPORT = Asset("orders_export")
