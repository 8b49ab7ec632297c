"""Airflow's plugin, if the package is installed by pip instead of copied."""

from typing import ClassVar

from airflow.plugins_manager import AirflowPlugin

from exports_page import REACT_APPS, fastapi_apps
from postgres_to_s3.links import ExportLink


class ExportsPlugin(AirflowPlugin):
    """Registers the page, and the operator's link to it; Airflow finds it by the entry point `airflow.plugins`."""

    name = "postgres_to_s3"
    operator_extra_links: ClassVar = [ExportLink()]
    fastapi_apps: ClassVar = fastapi_apps()
    react_apps: ClassVar = REACT_APPS
