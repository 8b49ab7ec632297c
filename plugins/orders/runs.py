"""What a run exports: of which day, to which key, and what was asked for in the trigger form."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowFailException

from orders.models import STATUSES
from streaming_export import Bucket, published_by

log = logging.getLogger(__name__)

_TIME = {"type": ["null", "string"], "format": "date-time"}
_ZONE = "; the picker shows the time zone, JSON must have one"

#: The trigger form of `orders_export`. As it is, it asks for what the nightly run exports.
FORM = {
    "created_from": Param(
        None, title="Created from", description=f"Orders created at this time or later{_ZONE}", **_TIME
    ),
    "created_to": Param(None, title="Created before", description=f"Orders created before this time{_ZONE}", **_TIME),
    "statuses": Param(
        None,
        type=["null", "array"],
        items={"type": "string", "enum": list(STATUSES)},
        examples=list(STATUSES),
        title="Statuses",
        description="Orders of these statuses; none chosen: of all",
    ),
    "compression": Param(
        None,
        type=["null", "string"],
        enum=[None, "gzip", "zstd"],
        values_display={"null": "none"},
        title="Compression",
        description="Adds .gz or .zst to the file's name",
    ),
    "yield_per": Param(
        50_000,
        type="integer",
        minimum=1,
        maximum=10_000_000,
        title="Batch size",
        description="Rows that are read at a time; the file has all rows whatever it is",
    ),
    "suffix": Param(
        None,
        type=["null", "string"],
        pattern=r"^[A-Za-z0-9_-]{1,40}\Z",  # $ would let a line end pass
        title="File name suffix",
        description="Makes it orders-YYYYMMDD-SUFFIX.csv; letters, digits, - and _, at most 40",
    ),
    "dry_run": Param(
        False,
        type="boolean",
        title="Dry run",
        description="Write nothing: the log shows the SQL, how much it would be, and what it would replace",
    ),
}

#: The form's values before anybody has changed them: Airflow writes those of a run into the Params themselves.
DEFAULTS = {name: param.value for name, param in FORM.items()}


class FieldRefused(AirflowFailException):
    """What was asked for in the form can't be.

    :param field: its name.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Day:
    """A day (UTC), from midnight to midnight.

    :param start: its midnight.
    :param end: that of the next day.
    """

    start: datetime
    end: datetime


def day_of(dag_run: Any) -> Day:
    """The day of a run's data interval; for a run without one, the last day that was over when it was to start."""
    start = dag_run.data_interval_start or dag_run.run_after - timedelta(days=1)
    midnight = start.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return Day(midnight, midnight + timedelta(days=1))


def choose_task(params: Mapping[str, Any], dag_run: Any, bucket: Bucket, key: str) -> str:
    """The task that does what was asked for: "export_orders", or "export_selection" for a run by hand of its own.

    :param bucket: of the exports.
    :param key: of the nightly file; a run by hand does not replace what another run has published there.
    :raises FieldRefused: naming the field of the form that can't be.
    """
    check_form(params, dag_run.conf or {})
    asked = {name for name, value in DEFAULTS.items() if (params[name] or None) != (value or None)}
    if changed := sorted(asked - {"dry_run"}):
        log.info("The form asks for %s: this run exports a selection to a place of its own.", ", ".join(changed))
        return "export_selection"
    if dag_run.run_type not in ("scheduled", "backfill"):
        by = published_by(bucket, key)
        if by not in (None, dag_run.run_id):
            log.info("%s is by run %s, and stays: this run writes to a place of its own.", bucket.url(key), by)
            return "export_selection"
    return "export_orders"


def check_form(params: Mapping[str, Any], conf: Mapping[str, Any]) -> None:
    """Refuse what the form's own rules do not.

    :param conf: what was given, under whatever names.
    :raises FieldRefused: naming the field.
    """
    if unknown := sorted(conf.keys() - FORM.keys()):
        # Without its value, which nobody expects here and may be personal.
        raise FieldRefused(
            unknown[0], f"{unknown[0]} is no parameter: they are {', '.join(FORM)}. Nothing was read or written."
        )
    times: dict[str, datetime] = {}
    for name in ("created_from", "created_to"):
        if params[name] is None:
            continue
        try:
            times[name] = datetime.fromisoformat(params[name])
        except ValueError:
            raise _refused(name, params[name], "a date and time such as 2026-11-01T00:00:00+00:00") from None
        if times[name].utcoffset() is None:
            raise _refused(name, params[name], "its zone is missing, as in 2026-11-01T00:00:00+00:00")
    if len(times) == 2 and times["created_from"] >= times["created_to"]:
        raise _refused("created_from", params["created_from"], f"it must be before created_to={params['created_to']!r}")
    if unknown := sorted(set(params["statuses"] or ()) - set(STATUSES)):
        raise _refused("statuses", unknown, f"out of {', '.join(STATUSES)}")


def _refused(name: str, value: object, allowed: str) -> FieldRefused:
    return FieldRefused(name, f"{name}={value!r} is not allowed: {allowed}. Nothing was read or written.")
