"""Registers with Airflow what its UI needs to know, where the package is installed instead of copied."""

from typing import ClassVar

from airflow.plugins_manager import AirflowPlugin

from postgres_to_s3.links import ExportLink


class PostgresToS3Plugin(AirflowPlugin):
    """The link of exports to their objects; found by the entry point `airflow.plugins`."""

    name = "postgres_to_s3"
    operator_extra_links: ClassVar = [ExportLink()]
