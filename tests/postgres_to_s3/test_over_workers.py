"""export_over_workers: one table over several workers is one export, whatever becomes of the workers."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from orders.models import select_orders
from streaming_export import InvalidArgument
from streaming_export.pieces import Plan
from tests.conftest import content, keys

if TYPE_CHECKING:
    from tests.postgres_to_s3.slots import Slots

KEY = "a/orders.csv"
PIECES = 4

Run = Callable[..., "Slots"]


@pytest.fixture
def group(airflow_home: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes a DAG of one group."""
    from airflow.sdk import DAG, Asset

    from postgres_to_s3 import export_over_workers, over_workers

    waits = {"_LOOK_SECONDS": 0.05, "_AGAIN_SECONDS": 0.1, "_EACH_SECONDS": 0.5, "_PLAN_SECONDS": 0.5}
    for name, seconds in waits.items():
        monkeypatch.setattr(over_workers, name, seconds)

    def make(**arguments: Any) -> DAG:
        defaults = {
            "workers": PIECES,
            "query": select_orders(),
            "unique_key": "id",
            "s3_bucket": bucket,
            "s3_key": KEY,
            "latest_key": "a/latest.json",
            "outlets": [Asset("orders_in_pieces")],
            "postgres_conn_id": "orders_db",
            "aws_conn_id": "exports_s3",
        }
        with DAG("a_dag", schedule=None) as dag:
            export_over_workers("export", **defaults | arguments)
        return dag

    return make


@pytest.fixture
def run(group: Callable[..., Any], orders: int) -> Run:
    """Runs a group on so many slots."""
    from tests.postgres_to_s3.slots import Slots, Task

    one_at_a_time = threading.Lock()

    def go(slots: int = 3, on_start: Callable[..., None] = lambda *_: None, **arguments: Any) -> Slots:
        def task(name: str) -> Any:
            with one_at_a_time:  # a process makes one DAG at a time
                return group(**arguments).task_dict[f"export.{name}"]

        def piece(number: int) -> Task:
            return Task("export.export_piece", number, lambda: task("export_piece").unmap({"piece": number}))

        tasks = [
            Task("export.hold_snapshot", -1, lambda: task("hold_snapshot")),
            *map(piece, range(PIECES)),
            Task("export.publish", -1, lambda: task("publish"), after=("export.hold_snapshot",)),
        ]
        running = Slots(slots, tasks, on_start)
        running.run()
        return running

    return go


@pytest.fixture
def writers(engine: sa.Engine, orders: int) -> Iterator[set[str]]:
    """Change the table all the time, but not the sum of its totals; the names that exports had in pg_stat_activity."""
    done, names = threading.Event(), set[str]()

    def write() -> None:
        one, other = "(SELECT min(id) FROM orders)", "(SELECT max(id) FROM orders)"
        with engine.connect() as connection:
            while not done.wait(0.01):
                connection.exec_driver_sql(f"UPDATE orders SET total_cents = total_cents - 9 WHERE id = {one}")
                connection.exec_driver_sql(f"UPDATE orders SET total_cents = total_cents + 9 WHERE id = {other}")
                connection.exec_driver_sql(
                    "WITH gone AS (DELETE FROM orders WHERE id = (SELECT id FROM orders ORDER BY id OFFSET 99 LIMIT 1)"
                    " RETURNING *) INSERT INTO orders SELECT (SELECT max(id) + 1 FROM orders), customer_email,"
                    " total_cents, status, created_at FROM gone"
                )
                names.update(
                    row[0] for row in connection.exec_driver_sql("SELECT application_name FROM pg_stat_activity")
                )
                connection.commit()

    thread = threading.Thread(target=write)
    thread.start()
    yield names
    done.set()
    thread.join()


def published(client: Any, bucket: str) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The manifest, and the rows of its files."""
    manifest = json.loads(content(client, bucket, f"{KEY}.manifest.json"))
    rows: list[dict[str, str]] = []
    for file in manifest["files"]:
        text = content(client, bucket, file["url"].removeprefix(f"s3://{bucket}/")).decode()
        rows += csv.DictReader(io.StringIO(text, newline=""))
    return manifest, rows


def count_metrics(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[str, int]]]:
    """What is counted from now on: by metric, the task and the number."""
    from airflow.sdk.observability import stats

    counted = defaultdict(list)
    monkeypatch.setattr(stats, "incr", lambda name, count=1, *, tags: counted[name].append((tags["task_id"], count)))
    return counted


def total(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT sum(total_cents::numeric) FROM orders").scalar_one())


@pytest.mark.parametrize("slots", [2, 5])
def test_while_others_write(
    run: Run,
    client: Any,
    bucket: str,
    orders: int,
    engine: sa.Engine,
    writers: set[str],
    slots: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Count and sum are those of one moment; there is one manifest, one event, and a name for each piece.

    With two slots, pieces that are complete let the others begin, though a look at them takes longer than they wait.
    """
    counted = count_metrics(monkeypatch)
    ran = run(slots, lambda task, operator: time.sleep(0.15))
    assert counted["postgres_to_s3.rows"] == [("export.publish", orders)]
    assert [error for task in ran.tasks for error in task.errors] == []
    manifest, rows = published(client, bucket)
    ids = [int(row["id"]) for row in rows]
    assert (len(ids), len(set(ids)), manifest["rows"]) == (orders, orders, orders)
    assert ids == sorted(ids)
    assert sum(int(row["total_cents"]) for row in rows) == total(engine)
    assert manifest["run"] == {"dag": "a_dag", "task": "export.hold_snapshot", "run": "a_run", "try": 1}
    events = [event.extra for of_task in ran.events for event in of_task.values()]
    assert [event["rows"] for event in events] == [orders]
    assert json.loads(content(client, bucket, "a/latest.json"))["manifest_url"] == f"s3://{bucket}/{KEY}.manifest.json"
    assert {f"airflow a_dag.export.export_piece[{n}] a_run" for n in range(PIECES)} <= writers


def test_a_piece_is_killed(run: Run, client: Any, bucket: str, orders: int, engine: sa.Engine, writers: Any) -> None:
    """Its retry reads the same snapshot; the other pieces stay."""
    killed: list[int] = []

    def kill(task: Any, operator: Any) -> None:
        if task.task_id.endswith("piece") and task.index == 2 and not killed:
            export = operator._export

            def dies(*arguments: Any) -> Any:
                killed.append(task.index)
                export(*arguments).run()
                raise SystemExit("killed before it could say that it was complete")

            operator._export = dies

    ran = run(on_start=kill)
    assert killed == [2]
    assert [task.tries for task in ran.tasks] == [1, 1, 1, 2, 1, 1]
    manifest, rows = published(client, bucket)
    assert len({row["id"] for row in rows}) == len(rows) == manifest["rows"] == orders
    assert sum(int(row["total_cents"]) for row in rows) == total(engine)


def test_the_holder_is_killed(
    run: Run, client: Any, bucket: str, orders: int, engine: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """The group starts again by itself: no piece of the earlier snapshot is in the manifest."""
    killed: list[float] = []

    def kill(task: Any, operator: Any) -> None:
        if task.task_id.endswith("piece") and not killed:
            while not any("-00001.csv.piece.json" in key for key in keys(client, bucket)) and task.index == 3:
                time.sleep(0.02)  # the first piece is complete, and this one has not begun
            if task.index == 3:
                killed.append(time.monotonic())
                with engine.begin() as connection:
                    connection.exec_driver_sql(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE application_name = 'airflow a_dag.export.hold_snapshot a_run'"
                    )
                    connection.exec_driver_sql("DELETE FROM orders WHERE mod(id, 2) = 0")

    ran = run(slots=5, on_start=kill)
    assert [task.state for task in ran.tasks] == ["success"] * len(ran.tasks)
    assert [str(error).split(":")[0] for error in ran.of("hold_snapshot")[0].errors] == [
        "Postgres failed while holding the snapshot"
    ]
    manifest, rows = published(client, bucket)
    with engine.connect() as connection:
        left = connection.exec_driver_sql("SELECT count(*) FROM orders").scalar_one()
    assert len(rows) == manifest["rows"] == left < orders
    token = manifest["export_id"][:12]
    assert all(f"a/orders-{token}-" in file["url"] for file in manifest["files"])
    assert any(token not in key for key in keys(client, bucket) if key.endswith(".piece.json"))


def test_one_slot(run: Run, client: Any, bucket: str) -> None:
    """Pieces that can't run are no deadlock: the holder gives up and says what is missing; nothing is published."""
    started = time.monotonic()
    ran = run(slots=1, start_timeout=1)
    assert time.monotonic() - started < 10
    assert {task.state for task in ran.tasks} == {"failed", "upstream_failed"}
    (error,) = ran.of("hold_snapshot")[0].errors
    assert str(error).startswith("No piece has started within 1 s: the pieces need slots besides this task's.")
    assert "hold_snapshot is failed, so this piece can't be used" in str(ran.of("export_piece")[0].errors[-1])
    assert keys(client, bucket) == []


def test_what_the_holder_reports(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Its errors are logged in short lines that name the connection; a query that is wrong is not tried again."""
    ran = run(query="SELECT id, none FROM orders", start_timeout=1)
    (error,) = ran.of("hold_snapshot")[0].errors
    assert str(error).splitlines()[1::2] == ["Nothing was published.", "Connection: postgres_conn_id='orders_db'."]
    logged = capsys.readouterr().out
    assert all(line in logged for line in str(error).splitlines())


def test_a_piece_that_fails_for_good(run: Run, client: Any, bucket: str) -> None:
    """The holder does not wait for it; nothing is published."""

    def refuse(task: Any, operator: Any) -> None:
        if task.task_id.endswith("piece") and task.index == 1:
            raise InvalidArgument("a", 1, "nothing")

    ran = run(on_start=refuse)
    (error,) = ran.of("hold_snapshot")[0].errors
    assert str(error).startswith("A piece is failed, so the export can't be complete.\nNothing was published")
    assert [key for key in keys(client, bucket) if "manifest" in key or "latest" in key] == []


@pytest.mark.parametrize(
    ("plan", "why"),
    [(Plan("0" * 32, KEY, "1-1-1", 1, ((None, None),), {}), "without this piece"), (None, "without a snapshot")],
)
def test_a_holder_that_was_marked_as_success(
    group: Callable[..., Any], orders: int, plan: Plan | None, why: str
) -> None:
    """A piece that is not complete by then can't be: it fails, where it would come again for ever."""
    from airflow.sdk.exceptions import AirflowFailException

    ti = SimpleNamespace(
        dag_id="a_dag",
        run_id="a_run",
        xcom_pull=lambda **_: plan and asdict(plan),
        get_task_states=lambda **_: {"a_run": {"export.hold_snapshot": "success"}},
    )
    piece = group().task_dict["export.export_piece"].unmap({"piece": 0})
    with pytest.raises(AirflowFailException, match=rf"^export\.hold_snapshot has ended {why}\.\nNothing was published"):
        piece.execute({"ti": ti})


def test_a_piece_that_was_marked_as_success(run: Run, client: Any, bucket: str) -> None:
    """It will not run again: the holder does not wait for it, and nothing is published."""

    def mark(task: Any, operator: Any) -> None:
        if task.task_id.endswith("piece") and task.index == 1:
            operator.execute = lambda context: None

    ran = run(on_start=mark)
    (error,) = ran.of("hold_snapshot")[0].errors
    assert str(error).startswith("A piece is success, but not on this snapshot, so the export can't be complete.")
    assert [key for key in keys(client, bucket) if "manifest" in key or "latest" in key] == []


def test_the_dag_changes_meanwhile(run: Run, client: Any, bucket: str) -> None:
    """A piece that starts after a change, here of the mask, is not put among the others; nothing is published."""

    def change(task: Any, operator: Any) -> None:
        if task.task_id.endswith("piece") and task.index == 2:
            operator.options = dataclasses.replace(operator.options, mask={})

    ran = run(on_start=change, mask={"customer_email": "redact"})
    (error,) = ran.of("export_piece")[2].errors
    assert "differs from the whole export in: masked" in str(error)
    assert ran.of("publish")[0].state == "upstream_failed"
    assert [key for key in keys(client, bucket) if "manifest" in key or "latest" in key] == []


def test_in_another_group(airflow_home: Path) -> None:
    """The holder looks at the states of the pieces by the ids that they have there, or it would wait for ever."""
    from airflow.sdk import DAG, TaskGroup

    from postgres_to_s3 import export_over_workers

    arguments = {"query": "SELECT 1 AS id", "unique_key": "id", "s3_bucket": "exports", "s3_key": KEY}
    with DAG("a_dag", schedule=None) as dag, TaskGroup("outer"):
        export_over_workers("export", workers=PIECES, **arguments)
    assert dag.task_dict["outer.export.hold_snapshot"].pieces_id == "outer.export.export_piece"
    assert "outer.export.export_piece" in dag.task_dict


def test_only_the_last_task_tells(group: Callable[..., Any]) -> None:
    """Holder and pieces update no asset and move no pointer."""
    tasks = group().task_dict
    assert {name: len(task.outlets) for name, task in tasks.items()} == {
        "export.hold_snapshot": 0,
        "export.export_piece": 0,
        "export.publish": 1,
    }
    assert tasks["export.hold_snapshot"].latest_key is None
    assert "latest_key" not in tasks["export.export_piece"].partial_kwargs


@pytest.mark.parametrize(
    "wrong", [{"workers": 0}, {"workers": "2"}, {"unique_key": None}, {"on_empty": "fail"}, {"overwrite": False}]
)
def test_what_is_refused(group: Callable[..., Any], wrong: dict[str, Any]) -> None:
    """A group that no run could finish fails the import of the DAG."""
    with pytest.raises(InvalidArgument, match=next(iter(wrong))):
        group(**wrong)
