"""Rules for every DAG, and runs of each through Airflow."""

from __future__ import annotations

import copy
import csv
import functools
import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from demo import services
from tests.conftest import content, keys

if TYPE_CHECKING:
    from airflow.dag_processing.dagbag import DagBag

ROWS = 1_234

# Of DAGs and tasks, by their id(), before any run.
PARAMS: dict[int, Any] = {}


@pytest.fixture(scope="session")
def dags(airflow_database: Path) -> DagBag:
    """All DAG files, imported by Airflow."""
    from airflow.dag_processing import dagbag

    # Each `dag.test` would import all files of the folder again, and write all DAGs into the database.
    dagbag.BundleDagBag = functools.cache(dagbag.BundleDagBag)
    dagbag.sync_bag_to_db = functools.cache(dagbag.sync_bag_to_db)
    return dagbag.DagBag(services.PROJECT / "dags")


def for_one_run(dags: DagBag, dag_id: str) -> Any:
    """A DAG whose tasks fail at once, and whose form is as it was: `dag.test` leaves the values of a run in it."""
    dag = dags.dags[dag_id]
    for holder in (dag, *dag.tasks):
        unchanged = PARAMS.setdefault(id(holder), copy.deepcopy(holder.params))
        holder.params = copy.deepcopy(unchanged)
    for task in dag.tasks:
        task.retries = 0
    return dag


@pytest.fixture
def orders_export(dags: DagBag, engine: sa.Engine, database: str, client: Any) -> Any:
    """The DAG, with a table to export and an empty bucket to export to."""
    services.load_orders(database, ROWS)
    services.make_exporter(database)
    for item in client.list_objects_v2(Bucket=services.BUCKET).get("Contents", []):
        client.delete_object(Bucket=services.BUCKET, Key=item["Key"])
    yield for_one_run(dags, "orders_export")
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE orders")


def test_every_dag_file_imports(dags: DagBag) -> None:
    """Airflow imports every file in dags/ without an error, and each defines a DAG."""
    assert not dags.import_errors, f"Fix the import of: {dags.import_errors}"
    files = {path.name for path in (services.PROJECT / "dags").glob("*.py")}
    defining = {Path(dag.fileloc).name for dag in dags.dags.values()}
    assert defining == files


def test_every_dag_is_fit_for_operation(dags: DagBag) -> None:
    """Each DAG has documentation, does not catch up by itself, and retries."""
    for dag_id, dag in dags.dags.items():
        assert dag.doc_md, f"{dag_id}: set doc_md=__doc__ and say what it does and what to do when it fails"
        assert dag.catchup is False, f"{dag_id}: set catchup=False; the past is for backfills"
        if dag_id != "orders_export_daily":  # each of its runs writes a key of its own
            assert dag.max_active_runs == 1, f"{dag_id}: set max_active_runs=1; runs write the same keys"
        for task in dag.tasks:
            assert task.retries >= 1, f"{dag_id}.{task.task_id}: set retries in default_args"
            assert task.retry_exponential_backoff, f"{dag_id}.{task.task_id}: set retry_exponential_backoff"


def test_importing_dags_reads_no_variable_and_no_database(airflow_home: Path) -> None:
    """A DAG file is parsed every few seconds: it must need neither Variables nor connections for that."""
    code = (
        "import sys, runpy, pathlib; sys.path.insert(0, 'plugins');"
        "[runpy.run_path(str(path)) for path in pathlib.Path('dags').glob('*.py')]"
    )
    environment = {"PATH": "/nowhere", "AIRFLOW_HOME": str(airflow_home), "AIRFLOW__CORE__UNIT_TEST_MODE": "False"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=services.PROJECT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_nightly_file(orders_export: Any, client: Any) -> None:
    """A run exports all orders, ordered by id, to the day on which its data interval ends, and says so."""
    run = orders_export.test(logical_date=datetime(2026, 11, 5, 2, tzinfo=UTC))
    assert run.state == "success"
    assert keys(client, services.BUCKET) == ["orders/orders-20261105.csv"]
    text = content(client, services.BUCKET, "orders/orders-20261105.csv").decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert list(rows[0]) == ["id", "customer_email", "total_cents", "status", "created_at"]
    ids = [int(row["id"]) for row in rows]
    assert len(ids) == ROWS
    assert ids == sorted(ids)
    head = client.head_object(Bucket=services.BUCKET, Key="orders/orders-20261105.csv")
    assert head["ContentType"] == "text/csv"
    assert head["ContentDisposition"] == 'attachment; filename="orders-20261105.csv"'


def test_triggered_without_a_logical_date(orders_export: Any, client: Any) -> None:
    """A run without a logical date has no data interval: its file has the day (UTC) of the trigger."""
    before = datetime.now(UTC)
    run = orders_export.test(logical_date=None)
    after = datetime.now(UTC)
    assert run.state == "success"
    assert run.data_interval_end is None
    (key,) = keys(client, services.BUCKET)
    assert key in {f"orders/orders-{day:%Y%m%d}.csv" for day in (before, after)}


def test_a_dry_run_of_the_form_as_it_is(orders_export: Any, client: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """It shows what the same form would write without it, and writes nothing."""
    run = orders_export.test(logical_date=datetime(2026, 11, 7, 2, tzinfo=UTC), run_conf={"dry_run": True})
    assert run.state == "success"
    assert {ti.task_id: ti.state for ti in run.get_task_instances()} == {
        "choose_export": "success",
        "export_orders": "skipped",
        "export_selection": "skipped",
    }
    assert "Would write s3://exports/orders/orders-20261107.csv, which does not exist yet." in capsys.readouterr().out
    assert keys(client, services.BUCKET) == []


def test_bucket_and_prefix_are_variables(
    orders_export: Any, client: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bucket and prefix come from Airflow Variables, without a change to the code."""
    monkeypatch.setenv("AIRFLOW_VAR_ORDERS_EXPORT_BUCKET", bucket)
    monkeypatch.setenv("AIRFLOW_VAR_ORDERS_EXPORT_PREFIX", "finance/all")
    run = orders_export.test(logical_date=datetime(2026, 11, 6, 2, tzinfo=UTC))
    assert run.state == "success"
    assert keys(client, bucket) == ["finance/all/orders-20261106.csv"]


def test_the_run_updates_the_asset(dags: DagBag) -> None:
    """Consumers can schedule on the asset that the export updates."""
    task = dags.dags["orders_export"].get_task("export_orders")
    assert [asset.name for asset in task.outlets] == ["orders_export"]


@pytest.fixture
def orders_there(orders_export: Any, engine: sa.Engine) -> sa.Engine:
    """The table and the empty bucket of `orders_export`, for other DAGs."""
    return engine


@pytest.fixture
def runnable(dags: DagBag, orders_there: sa.Engine) -> Callable[[str], Any]:
    """A DAG by its id, whose tasks fail at once."""
    return functools.partial(for_one_run, dags)


def count(engine: sa.Engine, where: str) -> int:
    with engine.connect() as connection:
        return int(connection.exec_driver_sql(f"SELECT count(*) FROM orders WHERE {where}").scalar_one())


def rows_of(client: Any, key: str) -> list[dict[str, str]]:
    text = content(client, services.BUCKET, key).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def events_of(run: Any) -> list[Any]:
    """The events of assets that a run has made."""
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session

    with create_session() as session:
        return list(session.scalars(sa.select(AssetEvent).where(AssetEvent.source_run_id == run.run_id)))


def test_a_selection_by_hand(orders_export: Any, client: Any, engine: sa.Engine) -> None:
    """The form's filters make a file of the run's own, that moves no pointer and updates no asset."""
    asked = {
        "created_from": "2026-10-24T00:00:00+02:00",
        "created_to": "2026-10-30T00:00:00+00:00",
        "statuses": ["paid", "shipped"],
        "suffix": "mine",
        "yield_per": 100,
    }
    run = orders_export.test(logical_date=None, run_conf=asked)
    assert run.state == "success"
    (key,) = keys(client, services.BUCKET)
    assert key.startswith(f"orders/manual/{run.run_id}/orders-")
    assert key.endswith("-mine.csv")
    where = "created_at >= '2026-10-23 22:00+00' AND created_at < '2026-10-30+00' AND status IN ('paid', 'shipped')"
    rows = rows_of(client, key)
    assert 0 < len(rows) == count(engine, where) < ROWS
    assert {row["status"] for row in rows} == {"paid", "shipped"}
    assert events_of(run) == []


def test_a_compressed_selection(orders_export: Any, client: Any) -> None:
    """Compression alone is a selection of all orders."""
    run = orders_export.test(logical_date=None, run_conf={"compression": "gzip"})
    assert run.state == "success"
    key, manifest = keys(client, services.BUCKET)
    assert manifest == f"{key.removesuffix('.gz')}.manifest.json"
    assert key.endswith(".csv.gz")
    text = gzip.decompress(content(client, services.BUCKET, key)).decode()
    assert len(list(csv.DictReader(io.StringIO(text, newline="")))) == ROWS


def test_a_dry_run(orders_export: Any, client: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """It shows the SQL, an estimate and the keys, skips the task, and writes nothing."""
    run = orders_export.test(logical_date=None, run_conf={"dry_run": True, "statuses": ["paid"]})
    states = {ti.task_id: ti.state for ti in run.get_task_instances()}
    assert states == {"choose_export": "success", "export_orders": "skipped", "export_selection": "skipped"}
    assert keys(client, services.BUCKET) == []
    log = capsys.readouterr().out
    assert "SELECT orders.id" in log
    assert f"Would write s3://exports/orders/manual/{run.run_id}/orders-" in log
    assert " rows (counted), about " in log


def test_refused_parameters_write_nothing(orders_export: Any, client: Any) -> None:
    """What the form can't refuse fails the run at its start."""
    asked = {"created_from": "2026-11-02T00:00:00+00:00", "created_to": "2026-11-01T00:00:00+00:00"}
    for wrong in (asked, {"state": "paid"}):
        assert orders_export.test(logical_date=None, run_conf=wrong).state == "failed"
    assert keys(client, services.BUCKET) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"created_from": "2026-11-01T00:00:00"},
        {"created_to": "tomorrow"},
        {"statuses": ["lost"]},
        {"statuses": "paid"},
        {"compression": "zip"},
        {"yield_per": 0},
        {"suffix": "../x"},
        {"dry_run": "no"},
    ],
    ids=str,
)
def test_the_form_refuses(orders_export: Any, wrong: dict[str, Any]) -> None:
    """Values that can't be are refused before a run is made, by the parameter's name."""
    from airflow.sdk.exceptions import ParamValidationError

    with pytest.raises(ParamValidationError, match=next(iter(wrong))):
        orders_export.test(logical_date=None, run_conf=wrong)


def test_the_file_of_a_day(runnable: Callable[[str], Any], client: Any, engine: sa.Engine) -> None:
    """A run has the orders that were created in its data interval, and its event has the window."""
    run = runnable("orders_export_daily").test(logical_date=datetime(2026, 11, 6, tzinfo=UTC))
    assert run.state == "success"
    assert keys(client, services.BUCKET) == ["orders/daily/dt=2026-11-05/orders-20261105.csv"]
    rows = rows_of(client, "orders/daily/dt=2026-11-05/orders-20261105.csv")
    assert 0 < len(rows) == count(engine, "created_at >= '2026-11-05+00' AND created_at < '2026-11-06+00'")
    (event,) = events_of(run)
    assert event.extra["window"] == {"from": "2026-11-05T00:00:00+00:00", "to": "2026-11-06T00:00:00+00:00"}


def test_days_add_up_to_the_table(runnable: Callable[[str], Any], client: Any, engine: sa.Engine) -> None:
    """The files of all days, run in any order and one of them twice, have every order once."""
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE orders SET created_at = '2026-11-01+00'::timestamptz + mod(id, 72) * interval '1h'"
        )
    for day in (3, 2, 4, 2):
        run = runnable("orders_export_daily").test(logical_date=datetime(2026, 11, day, tzinfo=UTC))
        assert run.state == "success"
    files = keys(client, services.BUCKET)
    assert files == [f"orders/daily/dt=2026-11-0{day}/orders-2026110{day}.csv" for day in (1, 2, 3)]
    ids = [int(row["id"]) for key in files for row in rows_of(client, key)]
    assert len(ids) == len(set(ids)) == ROWS


def test_a_day_is_put_into_the_analytics_table(
    runnable: Callable[[str], Any], orders_ingest: Any, database: str, engine: sa.Engine, next_run: Callable[..., None]
) -> None:
    """The event of a daily export starts an ingest that adds its orders, and leaves those of other days."""
    nightly = runnable("orders_export").test(logical_date=datetime(2026, 11, 14, 2, tzinfo=UTC))
    add_order(engine, "'2026-11-20 12:00+00'")
    daily = runnable("orders_export_daily").test(logical_date=datetime(2026, 11, 21, tzinfo=UTC))
    next_run(exports=[nightly, daily])
    assert orders_ingest.test(logical_date=None).state == "success"
    assert services.count_orders(services.analytics(database), "analytics") == ROWS + 1


def test_a_query_in_a_file(runnable: Callable[[str], Any], client: Any, engine: sa.Engine) -> None:
    """The .sql file of the example is read, its parameters are the day before, and its rows are the database's."""
    run = runnable("orders_by_status").test(logical_date=datetime(2026, 11, 6, 3, tzinfo=UTC))
    assert run.state == "success"
    key = "orders/by-status/orders-by-status-20261105.csv"
    assert keys(client, services.BUCKET) == [key]
    rows = rows_of(client, key)
    where = "created_at >= '2026-11-05+00' AND created_at < '2026-11-06+00'"
    assert sum(int(row["orders"]) for row in rows) == count(engine, where) > 0
    assert [row["status"] for row in rows] == sorted(row["status"] for row in rows)


def test_the_deadline(
    runnable: Callable[[str], Any], client: Any, caplog: pytest.LogCaptureFixture, dags: DagBag
) -> None:
    """At 04:00 an alert names what is not published; there is none if everything is."""
    deadline = runnable("orders_deadline")
    assert deadline.get_task("check_published").on_failure_callback
    at_four = datetime(2026, 11, 7, 4, tzinfo=UTC)
    with caplog.at_level("ERROR", "orders"):
        assert deadline.test(logical_date=at_four).state == "failed"
    lines = next(record.getMessage() for record in caplog.records if record.name == "orders.alerts").splitlines()
    assert lines[0] == "Exports are late. Not published: s3://exports/orders/orders-20261107.csv"
    assert lines[1].startswith("Not published: s3://exports/orders/daily/")
    runnable("orders_export").test(logical_date=datetime(2026, 11, 7, 2, tzinfo=UTC))
    runnable("orders_export_daily").test(logical_date=datetime(2026, 11, 7, tzinfo=UTC))
    assert deadline.test(logical_date=at_four).state == "success"


@pytest.fixture
def orders_ingest(dags: DagBag, orders_export: Any, database: str) -> Any:
    """The DAG, with an analytics database that holds nothing of it."""
    with sa.create_engine(analytics_url(database)).begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA IF EXISTS analytics CASCADE")
    return for_one_run(dags, "orders_ingest")


def analytics_url(database: str) -> str:
    return services.analytics(database).replace("postgresql://", "postgresql+psycopg2://")


def loads(database: str) -> list[tuple[str, str, int]]:
    """Manifest, outcome and rows of each export that was looked at, in order."""
    with sa.create_engine(analytics_url(database)).connect() as connection:
        if not connection.exec_driver_sql("SELECT to_regclass('analytics.load_history')").scalar_one():
            return []
        query = "SELECT manifest_url, mode, rows FROM analytics.load_history ORDER BY loaded_at"
        return [(row[0], row[1], row[2]) for row in connection.exec_driver_sql(query)]


def add_order(engine: sa.Engine, created_at: str = "now()") -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(f"INSERT INTO orders SELECT max(id) + 1, 'a@b', 1, 'paid', {created_at} FROM orders")


@pytest.fixture
def next_run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the next `dag.test` one that a scheduler would have made: of a run type, or from events of assets."""
    from airflow.models import dagrun
    from airflow.models.asset import AssetEvent
    from airflow.utils.types import DagRunType

    make = dagrun.get_or_create_dagrun

    def set_up(run_type: str = "manual", exports: Sequence[Any] = ()) -> None:
        def get_or_create(*, session: Any, **arguments: Any) -> Any:
            run = make(session=session, **arguments)
            run.run_type = DagRunType(run_type)
            runs = [export.run_id for export in exports]
            run.consumed_asset_events.extend(
                session.scalars(sa.select(AssetEvent).where(AssetEvent.source_run_id.in_(runs)))
            )
            session.commit()
            return run

        monkeypatch.setattr(dagrun, "get_or_create_dagrun", get_or_create)

    return set_up


def test_the_event_tells_what_was_published(orders_export: Any, client: Any) -> None:
    """The event of the asset leads to the manifest, and has rows, bytes, checksum and window."""
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session

    run = orders_export.test(logical_date=datetime(2026, 11, 7, 2, tzinfo=UTC))
    with create_session() as session:
        event = session.scalars(sa.select(AssetEvent).where(AssetEvent.source_run_id == run.run_id)).one()
    url = "s3://exports/orders/orders-20261107.csv.manifest.json"
    manifest = json.loads(content(client, services.BUCKET, url.removeprefix("s3://exports/")))
    assert event.extra == {
        "manifest_url": url,
        "rows": ROWS,
        "bytes": manifest["bytes"],
        "sha256": manifest["files"][0]["sha256"],
        "window": None,
    }


@pytest.mark.parametrize(("run_type", "moves"), [("scheduled", True), ("backfill", True), ("manual", False)])
def test_the_schedule_moves_the_pointer(
    orders_export: Any, client: Any, next_run: Callable[..., None], run_type: str, moves: bool
) -> None:
    """latest.json names the newest export of the schedule; a run by hand never moves it."""
    next_run(run_type)
    run = orders_export.test(logical_date=datetime(2026, 11, 8, 2, tzinfo=UTC))
    assert run.state == "success"
    assert ("orders/latest.json" in keys(client, services.BUCKET)) is moves
    if moves:
        latest = json.loads(content(client, services.BUCKET, "orders/latest.json"))
        assert latest["manifest_url"] == "s3://exports/orders/orders-20261108.csv.manifest.json"
        assert latest["rows"] == ROWS


def test_an_event_is_a_doorbell(
    orders_export: Any, orders_ingest: Any, database: str, engine: sa.Engine, next_run: Callable[..., None]
) -> None:
    """A run loads what is published, also where Airflow has lost the event; the newest export of all rows is enough."""
    exports = [orders_export.test(logical_date=datetime(2026, 11, 9, 2, tzinfo=UTC))]
    add_order(engine)
    orders_export.test(logical_date=datetime(2026, 11, 10, 2, tzinfo=UTC))
    next_run(exports=exports)
    assert orders_ingest.test(logical_date=None).state == "success"
    assert loads(database) == [
        ("s3://exports/orders/orders-20261110.csv.manifest.json", "replaced", ROWS + 1),
        ("s3://exports/orders/orders-20261109.csv.manifest.json", "outdated", ROWS),
    ]
    assert services.count_orders(services.analytics(database), "analytics") == ROWS + 1


def test_the_same_event_twice(
    orders_export: Any, orders_ingest: Any, database: str, next_run: Callable[..., None]
) -> None:
    """A run that is started again by the same event, or cleared, succeeds and changes nothing."""
    exports = [orders_export.test(logical_date=datetime(2026, 11, 11, 2, tzinfo=UTC))]
    next_run(exports=exports)
    assert [orders_ingest.test(logical_date=None).state for _ in range(2)] == ["success"] * 2
    assert loads(database) == [("s3://exports/orders/orders-20261111.csv.manifest.json", "replaced", ROWS)]


def test_a_run_each_hour(dags: DagBag) -> None:
    """The ingest runs without an event, too: an hour is the longest that anything waits."""
    timetable = dags.dags["orders_ingest"].timetable
    assert [asset.name for asset in timetable.asset_condition.objects] == ["orders_export", "orders_export_daily"]
    assert timetable.timetable.expression == "40 * * * *"


def test_a_selection_is_not_loaded(orders_export: Any, orders_ingest: Any, database: str) -> None:
    """What somebody has exported by hand is theirs: it is published, and stays out of the table."""
    assert orders_export.test(logical_date=None, run_conf={"statuses": ["paid"]}).state == "success"
    assert orders_ingest.test(logical_date=None).state == "success"
    assert not loads(database)


def test_a_selection_given_by_hand(orders_export: Any, orders_ingest: Any, database: str, client: Any) -> None:
    """It would replace all rows by its own, so that is refused, and the table stays."""
    orders_export.test(logical_date=datetime(2026, 11, 12, 2, tzinfo=UTC))
    assert orders_ingest.test(logical_date=None).state == "success"
    orders_export.test(logical_date=None, run_conf={"statuses": ["paid"]})
    (key,) = (key for key in keys(client, services.BUCKET) if key.startswith("orders/manual/"))
    url = f"s3://exports/{key}.manifest.json"
    assert orders_ingest.test(logical_date=None, run_conf={"manifest_url": url}).state == "failed"
    assert services.count_orders(services.analytics(database), "analytics") == ROWS


def test_a_manifest_given_by_hand(orders_export: Any, orders_ingest: Any, database: str) -> None:
    """Whoever triggers the DAG can name a manifest, which is then the only one that is loaded."""
    for day in (12, 13):
        orders_export.test(logical_date=datetime(2026, 11, day, 2, tzinfo=UTC))
    url = "s3://exports/orders/orders-20261112.csv.manifest.json"
    assert orders_ingest.test(logical_date=None, run_conf={"manifest_url": url}).state == "success"
    assert loads(database) == [(url, "replaced", ROWS)]


def test_what_is_no_manifest_url_is_refused(orders_ingest: Any) -> None:
    """The parameter is typed: a run with anything but an s3:// URL is not even made."""
    from airflow.sdk.exceptions import ParamValidationError

    for wrong in ("orders.csv", "https://exports/orders.csv", 7):
        with pytest.raises(ParamValidationError):
            orders_ingest.test(logical_date=None, run_conf={"manifest_url": wrong})


def test_what_no_retry_makes_better_fails_at_once(dags: DagBag, bucket: str) -> None:
    """A manifest that is gone must not hold up the events after it: the task fails without a retry."""
    from postgres_to_s3.loading import load_published
    from streaming_export import ManifestMissing

    with pytest.raises(ManifestMissing, match="There is no manifest") as caught:
        load_published(
            ["gone"],
            only=f"s3://{bucket}/gone.csv.manifest.json",
            bucket=bucket,
            schema="analytics",
            table="orders",
            postgres_conn_id="analytics_db",
            aws_conn_id="exports_s3",
        )
    policy = dags.dags["orders_ingest"].get_task("load_orders").retry_policy
    assert policy.evaluate(caught.value, 1, 3).action.value == "fail"
