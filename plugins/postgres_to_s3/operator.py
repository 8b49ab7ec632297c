"""PostgresToS3Operator: streams a Postgres query into a CSV object in S3."""

from __future__ import annotations

import dataclasses
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException
from botocore.config import Config
from sqlalchemy.pool import NullPool

from postgres_to_s3.links import S3ObjectLink
from streaming_export import Cancellation, ExportResult, check_options, export

if TYPE_CHECKING:
    from airflow.sdk import Context
    from sqlalchemy import Engine
    from sqlalchemy.sql.expression import SelectBase

# What a connection's own extras override. libpq waits for ever for a host that does not answer, and a
# firewall forgets a connection that is silent for minutes (PostgreSQL manual, 32.1.2 "Parameter Key Words").
_LIBPQ_DEFAULTS = {"connect_timeout": 30, "keepalives_idle": 60, "keepalives_interval": 10, "keepalives_count": 6}

# What the connection's ``config_kwargs`` override.
_BOTO_DEFAULTS = Config(retries={"mode": "standard", "max_attempts": 5})


class PostgresToS3Operator(BaseOperator):
    """Streams a Postgres query into one CSV object in S3, in flat memory.

    The object is published whole and in one step, or what was there before stays. A retry is always safe.
    Returns a summary of what was published, as XCom.

    :param query: a SQLAlchemy ``Select``, or the text of a SELECT with ``:name`` parameters, or the path of a
        file that ends in ``.sql``. (templated)
    :param s3_bucket: bucket where the object is stored. (templated)
    :param s3_key: key of the object, with the name of the file. (templated)
    :param parameters: a value for each parameter of the query. (templated)
    :param unique_key: column of the query that is unique and not null: it orders the file, and batches are cut
        along it. Without it the query is read as one stream in its own order. (templated)
    :param postgres_conn_id: the Postgres connection; its libpq options (``sslmode``, ``options``, …) and IAM
        login are used. (templated)
    :param aws_conn_id: the AWS connection; its endpoint, role and ``config_kwargs`` are used. (templated)
    :param method: ``copy``, or ``rows`` where COPY is not to be had; the bytes are the same.
    :param yield_per: rows of a batch; by default 50,000 for ``copy`` and 5,000 for ``rows``.
    :param readers: Postgres connections that read batches at the same time.
    :param on_empty: for a query without rows: ``header`` writes just the header, ``skip`` writes nothing and
        marks the task skipped, ``fail`` fails it.
    :param verify_rows: have the database count the rows in the same snapshot, and compare; turn it off for
        queries that are too expensive to run twice.
    :param extra_args: further arguments of the S3 requests by their boto3 names, as ``ServerSideEncryption``,
        ``SSEKMSKeyId``, ``ACL``, ``StorageClass``, ``Metadata``.
    """

    template_fields: Sequence[str] = (
        "query",
        "parameters",
        "unique_key",
        "s3_bucket",
        "s3_key",
        "postgres_conn_id",
        "aws_conn_id",
    )
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers: ClassVar[dict[str, str]] = {"query": "sql", "parameters": "json"}
    operator_extra_links = (S3ObjectLink(),)

    def __init__(
        self,
        *,
        query: SelectBase | str,
        s3_bucket: str,
        s3_key: str,
        parameters: Mapping[str, Any] | None = None,
        unique_key: str | None = None,
        postgres_conn_id: str = "postgres_default",
        aws_conn_id: str | None = "aws_default",
        method: Literal["copy", "rows"] = "copy",
        yield_per: int | None = None,
        readers: int = 2,
        on_empty: Literal["header", "skip", "fail"] = "header",
        verify_rows: bool = True,
        extra_args: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_options(method=method, yield_per=yield_per, readers=readers, on_empty=on_empty)
        self.query = query
        self.parameters = parameters
        self.unique_key = unique_key
        self.s3_bucket = s3_bucket
        self.s3_key = s3_key
        self.postgres_conn_id = postgres_conn_id
        self.aws_conn_id = aws_conn_id
        self.method = method
        self.yield_per = yield_per
        self.readers = readers
        self.on_empty = on_empty
        self.verify_rows = verify_rows
        self.extra_args = extra_args
        self._cancellation: Cancellation | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the export.

        :returns: bucket, key, rows, rows_verified, bytes, sha256, etag, parts, seconds, and a link to the object.
        :raises streaming_export.ExportError: see `streaming_export.export`.
        """
        self._cancellation = Cancellation()
        ti = context["ti"]
        client = self._client()
        result = export(
            self.query,
            engine=self._engine(),
            client=client,
            bucket=self.s3_bucket,
            key=self.s3_key,
            parameters=self.parameters,
            unique_key=self.unique_key,
            method=self.method,
            yield_per=self.yield_per,
            readers=self.readers,
            on_empty=self.on_empty,
            verify_rows=self.verify_rows,
            extra_args=self.extra_args,
            application_name=f"airflow {ti.dag_id}.{ti.task_id} {ti.run_id}",
            cancellation=self._cancellation,
        )
        if result.key is None:
            raise AirflowSkipException(
                f"The query returned no rows: nothing was written to s3://{self.s3_bucket}/{self.s3_key}."
            )
        return {**dataclasses.asdict(result), "link": _link(client.meta.endpoint_url, result)}

    def on_kill(self) -> None:
        """Cancel the query on the server and abort the upload; returns within 3 seconds."""
        if self._cancellation:
            self._cancellation.cancel()

    def _engine(self) -> Engine:
        hook = PostgresHook(postgres_conn_id=self.postgres_conn_id, sqlalchemy_scheme="postgresql+psycopg2")
        # The hook's URL leaves these out.
        extras = hook.connection.extra_dejson
        options = {name: extras[name] for name in extras.keys() - hook.ignored_extra_options}
        return hook.get_sqlalchemy_engine(
            {"connect_args": {**_LIBPQ_DEFAULTS, **options}, "poolclass": NullPool, "hide_parameters": True}
        )

    def _client(self) -> Any:
        hook = S3Hook(aws_conn_id=self.aws_conn_id)
        return hook.get_client_type(hook.region_name, _BOTO_DEFAULTS.merge(hook.config))


def _link(endpoint: str, result: ExportResult) -> str:
    """A page on the object: in the AWS console, or at the store's own address."""
    host = urllib.parse.urlsplit(endpoint).hostname or ""
    key = urllib.parse.quote(result.key or "")
    if host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        return f"https://console.aws.amazon.com/s3/object/{result.bucket}?prefix={key}"
    return f"{endpoint}/{result.bucket}/{key}"
