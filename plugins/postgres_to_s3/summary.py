"""What the operator reports about an export: metrics, asset events, XComs, the log of a dry run."""

from __future__ import annotations

import importlib.util
import urllib.parse
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset
from airflow.sdk.observability import stats

from streaming_export import ExportResult, Preview

if TYPE_CHECKING:
    from airflow.sdk import Context

#: Key of a dry run's XCom.
PREVIEW = "preview"


def count(result: ExportResult, tags: dict[str, str]) -> None:
    """Emit Airflow's metrics; rows and bytes of a piece are counted only with the whole."""
    if result.key is None or result.manifest_url:
        stats.incr("postgres_to_s3.rows", result.rows, tags=tags)
        stats.incr("postgres_to_s3.bytes", result.bytes, tags=tags)
    stats.timing("postgres_to_s3.duration", timedelta(seconds=result.seconds), tags=tags)


def tell_consumers(
    context: Context, outlets: Sequence[Any], result: ExportResult, window: Sequence[str] | None
) -> None:
    """Put what was published into the asset events of the task."""
    for asset in outlets:
        if isinstance(asset, Asset):
            context["outlet_events"][asset].extra = {
                "manifest_url": result.manifest_url,
                "rows": result.rows,
                "bytes": result.bytes,
                "sha256": result.sha256,
                "window": {"from": window[0], "to": window[1]} if window else None,
            }


def show(log: Any, found: Preview, parameters: Sequence[str], overwrite: bool) -> dict[str, Any]:
    """Log what an export would do; returns it as the value of the XCom."""
    rows, size = found.rows, found.estimated_bytes
    log.info("Dry run: nothing is written.")
    log.info("SQL:\n%s", found.sql)
    log.info("Parameters: %s", ", ".join(parameters) or "none")
    log.info("Columns: %s", ", ".join(found.columns))
    if rows is None:
        rows = found.estimated_rows
        log.info(
            "About %s rows, %s bytes of CSV: the planner's estimate, because counting took too long.",
            f"{rows:,}",
            f"{size:,}",
        )
    else:
        log.info("%s rows (counted), about %s bytes of CSV (the planner's estimate).", f"{rows:,}", f"{size:,}")
    there = "replaces" if overwrite else "fails: there are already"
    for url, replaced in found.targets.items():
        log.info("Would write %s, which %s.", url, f"{there} {replaced}" if replaced else "does not exist yet")
    return {
        "sql": found.sql,
        "columns": list(found.columns),
        "rows": rows,
        "rows_counted": found.rows is not None,
        "bytes": size,
        "keys": dict(found.targets),
    }


def link(result: ExportResult) -> str:
    """Path of the export's entry on the page "Exports", below Airflow's address; empty if the page is not installed."""
    if importlib.util.find_spec("exports_page") is None:
        return ""
    return f"plugin/exports?{urllib.parse.urlencode({'export': result.manifest_url})}"
