"""The Airflow side of the export: the operator, its link, and its retry policy."""

from postgres_to_s3.connections import s3_bucket
from postgres_to_s3.links import ExportLink
from postgres_to_s3.operator import PostgresToS3Operator
from postgres_to_s3.over_workers import export_over_workers
from postgres_to_s3.reporting import Readable
from postgres_to_s3.retries import RetryByCause

__all__ = ["ExportLink", "PostgresToS3Operator", "Readable", "RetryByCause", "export_over_workers", "s3_bucket"]
