"""The Airflow side of the export: an operator, and the link that it shows."""

from postgres_to_s3.links import S3ObjectLink
from postgres_to_s3.operator import PostgresToS3Operator

__all__ = ["PostgresToS3Operator", "S3ObjectLink"]
