"""Loads published exports, with Airflow's connections."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from postgres_to_s3.connections import postgres_engine, s3_bucket
from postgres_to_s3.reporting import report
from streaming_export import ExportError, InvalidArgument
from streaming_ingest import IngestResult, catch_up, ingest

log = logging.getLogger(__name__)


def load_published(
    prefixes: Sequence[str],
    *,
    only: str | None = None,
    bucket: str,
    schema: str,
    table: str,
    postgres_conn_id: str,
    aws_conn_id: str | None,
    add_columns: bool = False,
) -> list[dict[str, Any]]:
    """Load every export that is published and not loaded yet.

    The events of the exports do not say what to load, because Airflow can lose events that arrive during a run.

    :param prefixes: prefixes of the exports' keys.
    :param only: URL of the one manifest to load, instead of all new ones; below one of the prefixes, too.
    :returns: the fields of `streaming_ingest.IngestResult`, for each export.
    :raises streaming_export.ExportError: see `streaming_ingest.catch_up` and `ingest`.
    """
    try:
        if only:
            _check_place(only, [f"s3://{bucket}/{prefix}" for prefix in prefixes])
        where = {"engine": postgres_engine(postgres_conn_id), "bucket": s3_bucket(aws_conn_id, bucket)}
        target = {"schema": schema, "table": table, "add_columns": add_columns, **where}
        results = _load_one(only, **target) if only else catch_up(prefixes, **target)
    except ExportError as exc:
        raise report(log, exc, postgres_conn_id=postgres_conn_id, aws_conn_id=aws_conn_id) from None
    return [dataclasses.asdict(result) for result in results]


def _check_place(url: str, places: Sequence[str]) -> None:
    """Refuse a manifest from elsewhere: that of a selection looks like one of all rows, and would replace them."""
    if not url.startswith(tuple(places)):
        raise InvalidArgument("manifest_url", url, f"a manifest whose URL begins with {' or '.join(places)}")


def _load_one(url: str, **target: Any) -> list[IngestResult]:
    """Load a manifest, and after it the windows whose rows it has removed or changed, by coming late."""
    loaded = ingest(url, **target)
    return [loaded, *(ingest(window, **target) for window in loaded.load_again)]
