"""What a run exports: which day, to which key, and what was chosen in the trigger form."""

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
_ZONE = "; the picker shows the time zone, in JSON it is required"

#: The trigger form of `orders_export`. Its defaults are what the nightly run exports.
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
        description="Orders with these statuses; none chosen: all orders",
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
        description="Rows read at a time; it does not change the file",
    ),
    "suffix": Param(
        None,
        type=["null", "string"],
        pattern=r"^[A-Za-z0-9_-]{1,40}\Z",  # $ would also match before a line end
        title="File name suffix",
        description="Makes it orders-YYYYMMDD-SUFFIX.csv; letters, digits, - and _, at most 40",
    ),
    "dry_run": Param(
        False,
        type="boolean",
        title="Dry run",
        description="Write nothing: the log shows the SQL, the number of rows, and what would be replaced",
    ),
}

#: The form's defaults, kept here because Airflow writes the values of a run into the Params.
DEFAULTS = {name: param.value for name, param in FORM.items()}


class FieldRefused(AirflowFailException):
    """A value in the form is not allowed; the text is three lines: why, what is published, what to do.

    :param field: name of the field.
    :param cause: why, in a sentence.
    """

    def __init__(self, field: str, cause: str) -> None:
        super().__init__(f"{cause}\nNothing was read or written.\nCorrect {field}, and trigger the DAG again.")
        self.field = field
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Day:
    """A day (UTC), from midnight to midnight.

    :param start: its midnight.
    :param end: that of the next day.
    """

    start: datetime
    end: datetime


def day_of(dag_run: Any) -> Day:
    """The day of a run's data interval; for a run without one, the day before it was due."""
    start = dag_run.data_interval_start or dag_run.run_after - timedelta(days=1)
    midnight = start.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return Day(midnight, midnight + timedelta(days=1))


def choose_task(params: Mapping[str, Any], dag_run: Any, bucket: Bucket, key: str) -> str:
    """The task to run: "export_orders", or "export_selection" if the run has to write to its own folder.

    :param bucket: of the exports.
    :param key: of the nightly file; a run by hand does not replace what another run has published there.
    :raises FieldRefused: naming the field of the form that is not allowed.
    """
    check_form(params, dag_run.conf or {})
    asked = {name for name, value in DEFAULTS.items() if (params[name] or None) != (value or None)}
    if changed := sorted(asked - {"dry_run"}):
        log.info("The form sets %s, so this run exports a selection to its own folder.", ", ".join(changed))
        return "export_selection"
    if dag_run.run_type not in ("scheduled", "backfill"):
        by = published_by(bucket, key)
        if by not in (None, dag_run.run_id):
            log.info("Run %s published %s, which stays. This run writes to its own folder.", by, bucket.url(key))
            return "export_selection"
    return "export_orders"


def check_form(params: Mapping[str, Any], conf: Mapping[str, Any]) -> None:
    """Refuse values that the form's own rules allow.

    :param conf: the values that were given, with any names.
    :raises FieldRefused: naming the field.
    """
    if unknown := sorted(conf.keys() - FORM.keys()):
        # Without the value, which may be personal.
        raise FieldRefused(unknown[0], f"{unknown[0]} is not a parameter. The parameters are {', '.join(FORM)}.")
    times: dict[str, datetime] = {}
    for name in ("created_from", "created_to"):
        if params[name] is None:
            continue
        try:
            times[name] = datetime.fromisoformat(params[name])
        except ValueError:
            raise _refused(name, params[name], "a date and time such as 2026-11-01T00:00:00+00:00") from None
        if times[name].utcoffset() is None:
            raise _refused(name, params[name], "it needs a time zone, as in 2026-11-01T00:00:00+00:00")
    if len(times) == 2 and times["created_from"] >= times["created_to"]:
        raise _refused("created_from", params["created_from"], f"it must be before created_to={params['created_to']!r}")
    if unknown := sorted(set(params["statuses"] or ()) - set(STATUSES)):
        raise _refused("statuses", unknown, f"only {', '.join(STATUSES)}")


def _refused(name: str, value: object, allowed: str) -> FieldRefused:
    return FieldRefused(name, f"{name}={value!r} is not allowed: {allowed}.")
