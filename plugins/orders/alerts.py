"""The alert when an export is late."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from airflow.sdk.exceptions import AirflowFailException

from streaming_export import Bucket, published_by

log = logging.getLogger(__name__)


def check_published(bucket: Bucket, keys: Sequence[str]) -> dict[str, str]:
    """The name of the run that published each export, by key.

    :raises AirflowFailException: naming the exports that are not published.
    """
    found = {key: published_by(bucket, key) for key in keys}
    if missing := [bucket.url(key) for key, run in found.items() if run is None]:
        late = [f"Not published: {url}" for url in missing]
        raise AirflowFailException(
            "\n".join([*late, "What was published before is unchanged.", "See the runs of their DAGs."])
        )
    return {key: str(run) for key, run in found.items()}


def tell(context: dict[str, Any]) -> None:
    """Log that an export is late. Replace it by your pager's notifier: any of Airflow's callbacks works."""
    log.error("Exports are late. %s", context.get("exception"))
