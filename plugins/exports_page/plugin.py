"""Registers with Airflow what its UI needs to know, where the package is installed instead of copied."""

from typing import ClassVar

from airflow.plugins_manager import AirflowPlugin

from exports_page import REACT_APPS, fastapi_apps
from postgres_to_s3.links import ExportLink


class ExportsPlugin(AirflowPlugin):
    """The page of the exports, and the link of each export to its entry there; by the entry point `airflow.plugins`."""

    name = "postgres_to_s3"
    operator_extra_links: ClassVar = [ExportLink()]
    fastapi_apps: ClassVar = fastapi_apps()
    react_apps: ClassVar = REACT_APPS
