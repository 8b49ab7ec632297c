"""What a run exports: its day, and what was asked for in the trigger form."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from streaming_export import Bucket, ManifestInvalid
from tests.streaming_export.exporting import export

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.usefixtures("airflow_home")

KEY = "orders/orders-20261102.csv"
FROM, TO = "2026-11-01T00:00:00+00:00", "2026-11-02T00:00:00+00:00"


def form(**changed: Any) -> dict[str, Any]:
    """The form's values, with some changed."""
    from orders.runs import DEFAULTS

    return DEFAULTS | changed


def dag_run(conf: Mapping[str, Any] | None = None, **attributes: Any) -> Any:
    return SimpleNamespace(**{"conf": conf, "run_type": "manual", "run_id": "mine", **attributes})


@pytest.fixture
def published(exporter: sa.Engine, client: Any, bucket: str) -> None:
    """The nightly file is there, by the run `nightly`."""
    export("SELECT 1 AS one", engine=exporter, client=client, bucket=bucket, key=KEY, run={"run": "nightly"})


def chosen(client: Any, bucket: str, run: Any, **changed: Any) -> str:
    from orders.runs import choose_task

    return choose_task(form(**changed), run, Bucket(client, bucket), KEY)


@pytest.mark.parametrize(
    "changed",
    [
        {"created_from": FROM},
        {"created_to": TO},
        {"statuses": ["paid"]},
        {"compression": "gzip"},
        {"yield_per": 10},
        {"suffix": "mine"},
    ],
    ids=lambda changed: next(iter(changed)),
)
@pytest.mark.parametrize("run_type", ["manual", "scheduled", "backfill"])
def test_whatever_is_changed_makes_a_selection(client: Any, bucket: str, run_type: str, changed: Any) -> None:
    """Any changed field of the form keeps the run away from the nightly file, however it was started."""
    assert chosen(client, bucket, dag_run(changed, run_type=run_type), **changed) == "export_selection"


@pytest.mark.parametrize("empty", [{"statuses": []}, {"suffix": None}, {"compression": None}, {"dry_run": True}, {}])
def test_an_untouched_form_makes_the_nightly_export(client: Any, bucket: str, empty: Any) -> None:
    """By hand too, while no other run has published it; a dry run shows what that would do."""
    assert chosen(client, bucket, dag_run(empty), **empty) == "export_orders"


def test_a_run_by_hand_never_replaces_a_nightly_file(published: None, client: Any, bucket: str) -> None:
    """What another run has published stays; the schedule's own runs, and a retry of the same run, replace it."""
    for run_type in ("manual", "operator_triggered", "asset_triggered"):
        assert chosen(client, bucket, dag_run(run_type=run_type)) == "export_selection"
    assert chosen(client, bucket, dag_run(run_id="nightly")) == "export_orders"
    assert chosen(client, bucket, dag_run(run_type="scheduled")) == "export_orders"


def test_something_else_in_the_place_of_a_manifest(client: Any, bucket: str) -> None:
    """If the manifest can't be read, nobody knows which run published the file: the run fails, and names it."""
    client.put_object(Bucket=bucket, Key=f"{KEY}.manifest.json", Body=b'{"a": 1}')
    with pytest.raises(ManifestInvalid, match=f"s3://{bucket}/{KEY}.manifest.json"):
        chosen(client, bucket, dag_run())


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"created_from": TO, "created_to": FROM}, r"created_from='2026-11-02.* before created_to='2026-11-01"),
        ({"created_from": TO, "created_to": TO}, "created_from="),
        ({"created_from": "2026-11-01T00:00:00"}, "created_from='2026-11-01T00:00:00' is not allowed: it needs"),
        ({"created_to": "tomorrow"}, "created_to='tomorrow' is not allowed"),
        ({"created_from": "2026-11-01' OR true --"}, "created_from=.* is not allowed"),
        ({"statuses": ["paid", "lost"]}, r"statuses=\['lost'\] is not allowed: only pending, paid"),
        ({"statuses": ["paid' OR true --", "paid", "$1", "\0"]}, r"statuses=\['\\x00', '\$1', .* is not allowed"),
    ],
)
def test_what_contradicts_itself_is_refused(client: Any, bucket: str, changed: Any, told: str) -> None:
    """The message names the field, its value, and what is allowed."""
    from airflow.sdk.exceptions import AirflowFailException

    with pytest.raises(AirflowFailException, match=told):
        chosen(client, bucket, dag_run(changed), **changed)


def test_an_unknown_parameter_is_refused(client: Any, bucket: str) -> None:
    """A name with a typing error would otherwise export everything, silently."""
    from airflow.sdk.exceptions import AirflowFailException

    message = r"status is not a parameter. The parameters are .*\n.*\nCorrect status"
    with pytest.raises(AirflowFailException, match=message):
        chosen(client, bucket, dag_run({"status": "paid"}))


@pytest.mark.parametrize(
    ("interval_start", "run_after", "start"),
    [
        (datetime(2026, 11, 5, tzinfo=UTC), None, datetime(2026, 11, 5, tzinfo=UTC)),
        (datetime(2026, 11, 5, 4, tzinfo=UTC), None, datetime(2026, 11, 5, tzinfo=UTC)),
        (datetime(2026, 11, 5, 1, tzinfo=timezone(timedelta(hours=2))), None, datetime(2026, 11, 4, tzinfo=UTC)),
        (None, datetime(2026, 11, 5, 13, 7, tzinfo=UTC), datetime(2026, 11, 4, tzinfo=UTC)),
    ],
)
def test_the_day_of_a_run(interval_start: Any, run_after: Any, start: datetime) -> None:
    """The UTC day of its data interval; without one, the last day that was over."""
    from orders.runs import day_of

    day = day_of(SimpleNamespace(data_interval_start=interval_start, run_after=run_after))
    assert (day.start, day.end) == (start, start + timedelta(days=1))
