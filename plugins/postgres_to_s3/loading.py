"""Loads the exports that asset events tell of."""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException

from postgres_to_s3.connections import postgres_engine, s3_bucket
from postgres_to_s3.reporting import report
from streaming_export import ExportError, ManifestError
from streaming_ingest import ColumnsChanged, ingest

if TYPE_CHECKING:
    from airflow.sdk.execution_time.comms import AssetEventDagRunReferenceResult

log = logging.getLogger(__name__)


def manifest_urls(events: Sequence[AssetEventDagRunReferenceResult], manifest_url: str | None) -> list[str]:
    """The manifests to load, the oldest event's first, each once; the one given by hand goes before events.

    :raises AirflowFailException: if there is none.
    """
    if manifest_url:
        return [manifest_url]
    told = [event.extra.get("manifest_url") for event in sorted(events, key=lambda event: event.timestamp)]
    if not all(told):
        raise AirflowFailException(
            "An event of the asset names no manifest, so it is not from the export: nothing was loaded. Somebody may"
            ' have made it by hand; trigger this DAG with {"manifest_url": "s3://…"} instead.'
        )
    if not told:
        raise AirflowFailException(
            'No event started this run: trigger it with {"manifest_url": "s3://…"}. Nothing was loaded.'
        )
    return list(dict.fromkeys(str(url) for url in told))


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
    :raises AirflowFailException: for a manifest or columns that no retry makes better: later events wait meanwhile.
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
