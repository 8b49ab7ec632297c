"""Who is told when an export is late."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from airflow.sdk.exceptions import AirflowFailException

from streaming_export import Bucket, published_by

log = logging.getLogger(__name__)


def check_published(bucket: Bucket, keys: Sequence[str]) -> dict[str, str]:
    """The run that has published each export.

    :raises AirflowFailException: naming those that nobody has published.
    """
    found = {key: published_by(bucket, key) for key in keys}
    if missing := [bucket.url(key) for key, run in found.items() if run is None]:
        raise AirflowFailException(
            f"Not published: {', '.join(missing)}. What was published before is still there, and whole. The runs of the"
            " DAGs that export them say what they are doing, or what they have failed with."
        )
    return {key: str(run) for key, run in found.items()}


def tell(context: dict[str, Any]) -> None:
    """Log that an export is late. Put your pager's notifier in its place: any callback of Airflow's does."""
    log.error("Exports of the orders are late: %s", context.get("exception"))
