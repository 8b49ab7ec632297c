"""Loads published exports by Airflow's connections."""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from airflow.sdk.exceptions import AirflowFailException

from postgres_to_s3.connections import postgres_engine, s3_bucket
from postgres_to_s3.reporting import report
from streaming_export import ExportError, ManifestError
from streaming_ingest import ColumnsChanged, catch_up, ingest

log = logging.getLogger(__name__)


def load_published(
    prefixes: Sequence[str],
    *,
    bucket: str,
    schema: str,
    table: str,
    postgres_conn_id: str,
    aws_conn_id: str | None,
    add_columns: bool = False,
) -> list[dict[str, Any]]:
    """Load every export that is published and not loaded yet: an event only says that there may be some.

    Airflow can lose events that come while a run goes on, so they are no list of what to load.

    :param prefixes: what the keys of the exports begin with.
    :returns: what `streaming_ingest.IngestResult` holds, of each.
    :raises streaming_export.ExportError: see `streaming_ingest.catch_up`.
    """
    try:
        where = {"engine": postgres_engine(postgres_conn_id), "bucket": s3_bucket(aws_conn_id, bucket)}
        results = catch_up(prefixes, schema=schema, table=table, add_columns=add_columns, **where)
    except ExportError as exc:
        raise report(log, exc, postgres_conn_id=postgres_conn_id, aws_conn_id=aws_conn_id) from None
    return [dataclasses.asdict(result) for result in results]


def load_manifests(
    urls: Iterable[str],
    *,
    bucket: str,
    schema: str,
    table: str,
    postgres_conn_id: str,
    aws_conn_id: str | None,
    add_columns: bool = False,
) -> list[dict[str, Any]]:
    """Load manifests one after the other; what was loaded before an error stays, and a retry skips it.

    Windows that an export of all rows has taken away from the table, by coming late, are loaded again after it.

    :returns: what `streaming_ingest.IngestResult` holds, of each.
    :raises streaming_export.ExportError: see `streaming_ingest.ingest`.
    :raises AirflowFailException: for a manifest or columns that no retry makes better.
    """
    try:
        engine, store = postgres_engine(postgres_conn_id), s3_bucket(aws_conn_id, bucket)
        where = {"engine": engine, "bucket": store, "schema": schema, "table": table}
        results, waiting, again = [], deque(urls), set[str]()
        while waiting:
            result = ingest(waiting.popleft(), add_columns=add_columns, **where)
            results.append(result)
            # Each once: its URL may lead to another manifest by now.
            waiting.extend(url for url in result.load_again if url not in again)
            again.update(result.load_again)
    except ExportError as exc:
        error = report(log, exc, postgres_conn_id=postgres_conn_id, aws_conn_id=aws_conn_id)
        if isinstance(exc, ManifestError | ColumnsChanged) and not exc.transient:
            raise AirflowFailException(str(error)) from None
        raise error from None
    return [dataclasses.asdict(result) for result in results]
