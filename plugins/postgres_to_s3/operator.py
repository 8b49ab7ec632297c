"""PostgresToS3Operator: streams a Postgres query into a CSV object in S3."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException
from airflow.sdk.observability import stats
from sqlalchemy import text
from sqlalchemy.dialects import postgresql

from postgres_to_s3 import arguments, summary
from postgres_to_s3.connections import postgres_engine, postgres_hook, s3_bucket, secret
from postgres_to_s3.links import ExportLink
from postgres_to_s3.reporting import Readable
from postgres_to_s3.retries import RetryByCause
from streaming_export import (
    Bucket,
    Export,
    ExportError,
    ExportResult,
    InvalidArgument,
    Options,
    check_key,
    move_latest,
)

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context, RetryPolicy
    from sqlalchemy.sql.expression import SelectBase

# Airflow takes a mapped task's policy from the default in the signature.
_RETRY_BY_CAUSE = RetryByCause()


class PostgresToS3Operator(BaseOperator):
    """Streams a Postgres query into one CSV object in S3, in flat memory.

    The object becomes visible in one step, complete, or what was there before stays. A retry is always safe. Returns a
    summary of what was published, as XCom.

    :param query: a SQLAlchemy ``Select``, the text of a SELECT with ``:name`` parameters, or the path of a file that
        ends in ``.sql``. (templated)
    :param s3_bucket: bucket of the object. (templated)
    :param s3_key: key of the object, with the name of the file. (templated)
    :param parameters: a value for each parameter of the query. (templated)
    :param unique_key: column of the query that is unique and not null: it orders the file, and the query is read in
        ranges of it. Without it, the query is read as one stream in its own order. (templated)
    :param postgres_conn_id: the Postgres connection, with its libpq options (``sslmode``, ``options``, …) and IAM
        login. (templated)
    :param aws_conn_id: the AWS connection, with its endpoint, role and ``config_kwargs``. (templated)
    :param method: ``copy``, or ``rows`` where COPY is not available; the bytes are the same.
    :param yield_per: rows per batch; by default 50,000 for ``copy`` and 5,000 for ``rows``, or what 4 MiB hold of wide
        rows. (templated, in a DAG with ``render_template_as_native_obj``)
    :param readers: Postgres connections that read at the same time, each a range of the key; by default 2, or 3 if the
        database takes more than 15 ms to answer. With 1, the query is read as one ordered stream, and no value of a row
        appears in SQL.
    :param on_empty: if the query returns no rows: ``header`` writes just the header, ``skip`` writes nothing and marks
        the task skipped, ``fail`` fails it.
    :param verify_rows: have the database count the rows of a stream in the same snapshot, and compare; turn it off for
        queries that are too expensive to run twice. Rows that are read in ranges are always counted.
    :param columns: the columns of the file, in order; None: all. A column that is added to the table later is not
        exported.
    :param mask: column name → ``hash``, ``redact`` or ``drop``.
    :param mask_conn_id: a connection of any type; its password is the key of ``hash``. (templated)
    :param spreadsheet_safe: put ``'`` before text that a spreadsheet would take for a formula; it changes the data, so
        only for files that people open.
    :param compression: ``gzip`` or ``zstd``; adds ``.gz`` or ``.zst`` to the key. (templated)
    :param max_file_rows: maximum data rows of a file; the files are then ``…-00001.csv``, ``…-00002.csv``, …
    :param max_file_bytes: maximum CSV bytes of a file, before compression; likewise.
    :param overwrite: False: fail if the object exists, as ``replace=False`` does in ``SqlToS3Operator``.
    :param window: begin and end of the period that the query covers; the ingest then adds these rows instead of
        replacing all. (templated)
    :param wait_for_transactions: maximum seconds to wait, before the snapshot is taken, for transactions that began
        before the end of `window`; rows that they commit later would be missing. None does not wait. (templated, in a
        DAG with ``render_template_as_native_obj``)
    :param preview: log what an export would do, with the number of rows, push it as the XCom ``preview``, write
        nothing, and mark the task skipped. (templated, in a DAG with ``render_template_as_native_obj``)
    :param latest_key: key of a JSON document that names the manifest of the newest export; an export with an older
        snapshot, or an older `window`, does not change it. None or empty: no such document. (templated)
    :param extra_args: more arguments of the S3 requests, by their boto3 names, such as ``ServerSideEncryption``,
        ``SSEKMSKeyId``, ``ACL``, ``StorageClass``, ``Metadata``.
    :param retry_policy: by default, transient failures are retried, and all others fail at once. None retries
        everything.
    """

    template_fields: Sequence[str] = (
        "query",
        "parameters",
        "unique_key",
        "s3_bucket",
        "s3_key",
        "compression",
        "yield_per",
        "window",
        "latest_key",
        "wait_for_transactions",
        "preview",
        "mask_conn_id",
        "postgres_conn_id",
        "aws_conn_id",
    )
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers: ClassVar[dict[str, str]] = {"query": "sql", "parameters": "json"}
    operator_extra_links = (ExportLink(),)

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
        readers: int | None = None,
        on_empty: Literal["header", "skip", "fail"] = "header",
        verify_rows: bool = True,
        columns: Sequence[str] | None = None,
        mask: Mapping[str, Literal["hash", "redact", "drop"]] | None = None,
        mask_conn_id: str | None = None,
        spreadsheet_safe: bool = False,
        compression: Literal["gzip", "zstd"] | None = None,
        max_file_rows: int | None = None,
        max_file_bytes: int | None = None,
        overwrite: bool = True,
        window: Sequence[str] | None = None,
        wait_for_transactions: int | None = None,
        preview: bool = False,
        latest_key: str | None = None,
        extra_args: Mapping[str, Any] | None = None,
        retry_policy: RetryPolicy | None = _RETRY_BY_CAUSE,
        **kwargs: Any,
    ) -> None:
        with arguments.of_task(kwargs.get("task_id")):
            arguments.check_names(kwargs)
        super().__init__(retry_policy=retry_policy, **kwargs)
        self.query = query
        self.parameters = parameters
        self.unique_key = unique_key
        self.s3_bucket = s3_bucket
        self.s3_key = s3_key
        self.postgres_conn_id = postgres_conn_id
        self.aws_conn_id = aws_conn_id
        self.window = window
        self.latest_key = latest_key
        self.compression = compression
        self.yield_per = yield_per
        self.wait_for_transactions = wait_for_transactions
        self.preview = preview
        self.mask_conn_id = mask_conn_id
        self.extra_args = extra_args
        with arguments.of_task(self.task_id):
            self.options = Options(
                method=method,
                readers=readers,
                on_empty=on_empty,
                verify_rows=verify_rows,
                columns=columns,
                mask=mask or {},
                spreadsheet_safe=spreadsheet_safe,
                max_file_rows=max_file_rows,
                max_file_bytes=max_file_bytes,
                overwrite=overwrite,
            )
            self._check(rendered=False)
            known = {name: value for name, value in self._templated().items() if not arguments.is_template(value)}
            dataclasses.replace(self.options, **known)  # refuses values that no run could use
            if "hash" in self.options.mask.values() and not mask_conn_id:
                raise InvalidArgument("mask_conn_id", mask_conn_id, "a connection whose password is the key of 'hash'")
        self._running: Export | None = None
        self._result: ExportResult | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the export.

        :returns: the fields of `streaming_export.ExportResult`, with the number of files instead of the files, and the
            link to the page.
        :raises streaming_export.ExportError: see `streaming_export.Export.run`; its text is logged first.
        """
        ti = context["ti"]
        with self._reporting(ti):
            self._check(rendered=True)
            # Digits are rendered as an int.
            bucket = s3_bucket(self.aws_conn_id, str(self.s3_bucket), self.extra_args)
            if ti.map_index >= 0:
                arguments.check_own(bucket, str(self.s3_key), _run(ti), since=context["dag_run"].start_date)
            export = self._running = self._export(bucket, ti)
            if self.preview:
                found = summary.show(self.log, export.preview(), list(self.parameters or {}), self.options.overwrite)
                ti.xcom_push(key=summary.PREVIEW, value=found)
                raise AirflowSkipException("This was a dry run: nothing was written.")
            result = export.run()
            summary.count(result, _tags(ti))
            self._move_latest(bucket, result)
        self._result = result
        if result.key is None:
            raise AirflowSkipException(
                f"The query returned no rows: nothing was written to s3://{self.s3_bucket}/{self.s3_key}."
            )
        summary.tell_consumers(context, self.outlets, result, self.window)
        # Only their number, since there can be more files than an XCom should hold; the manifest lists them.
        published = dataclasses.asdict(result) | {"files": len(result.files)}
        return {**published, "link": summary.link(result)}

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage | None:
        """What was read and written, for Airflow's OpenLineage provider."""
        if self._result is None:
            return None
        from postgres_to_s3.lineage import lineage

        return lineage(postgres_hook(self.postgres_conn_id), self._sql(), self._result)

    def on_kill(self) -> None:
        """Cancel the query on the server, and have the export abort its upload; returns within 3 seconds."""
        if self._running:
            self._running.cancel()

    def _reporting(self, ti: Any, state: str = "") -> Readable:
        """A block whose errors are counted and logged.

        :param state: what is published, if the error does not say so.
        """

        def count(exc: ExportError) -> None:
            if state:
                exc.during(state)
            stats.incr(f"postgres_to_s3.failures.{type(exc).__name__}", tags=_tags(ti))

        return Readable(self.log, count, postgres_conn_id=self.postgres_conn_id, aws_conn_id=self.aws_conn_id)

    def _check(self, rendered: bool) -> None:
        """Refuse arguments that no run could use.

        :param rendered: False when the DAG is parsed: then templates are not checked.
        """
        if rendered and not isinstance(self.preview, bool):
            raise InvalidArgument("preview", self.preview, "true or false; is render_template_as_native_obj set?")
        names = ("query", "parameters", "unique_key", "s3_key", "latest_key", "window")
        arguments.check(**{name: getattr(self, name) for name in names}, rendered=rendered)
        if rendered and self.latest_key:
            check_key("latest_key", str(self.latest_key))

    def _export(self, bucket: Bucket, ti: Any) -> Export:
        return Export(self.query, self.parameters, **self._arguments(bucket, ti))

    def _arguments(self, bucket: Bucket, ti: Any) -> dict[str, Any]:
        """The arguments of the export, by name."""
        return {
            "engine": postgres_engine(self.postgres_conn_id),
            "bucket": bucket,
            "key": str(self.s3_key),
            "unique_key": self.unique_key,
            "window": (self.window[0], self.window[1]) if self.window else None,
            "mask_key": secret(self.mask_conn_id) if self.mask_conn_id else None,
            "run": _run(ti),
            "application_name": f"airflow {ti.dag_id}.{ti.task_id} {ti.run_id}",
            "options": dataclasses.replace(self.options, **self._templated()),
        }

    def _templated(self) -> dict[str, Any]:
        """Options that may be templates, and so are known only when the task runs."""
        return {
            "compression": self.compression or None,
            "yield_per": self.yield_per,
            "wait_for_transactions": self.wait_for_transactions,
        }

    def _sql(self) -> str:
        """The query without the values of its parameters."""
        query = text(self.query) if isinstance(self.query, str) else self.query
        return str(query.compile(dialect=postgresql.dialect(paramstyle="named")))

    def _move_latest(self, bucket: Bucket, result: ExportResult) -> None:
        if not self.latest_key or result.key is None:
            return
        key, url = str(self.latest_key), str(result.manifest_url)
        taken_at = datetime.fromisoformat(result.snapshot_taken_at)
        moved = move_latest(bucket, key, url, taken_at, {"rows": result.rows, "bytes": result.bytes}, self.window)
        self.log.info("%s %s", bucket.url(key), f"names {url}." if moved else "names a later export.")


def _run(ti: Any) -> dict[str, Any]:
    """What the manifest says of a task."""
    of_mapping = {"map_index": ti.map_index} if ti.map_index >= 0 else {}
    return {"dag": ti.dag_id, "task": ti.task_id, "run": ti.run_id, "try": ti.try_number, **of_mapping}


def _tags(ti: Any) -> dict[str, str]:
    """Of a task's metrics."""
    return {"dag_id": ti.dag_id, "task_id": ti.task_id}
