"""Runs the DAGs `orders_export` and `orders_ingest` once, as `airflow dags test` does, and measures memory.

    python demo/run_dag.py RESULT.json

It runs as a separate process, with the environment of `services.airflow_environment`, so that Airflow's output does not
confuse a newcomer, and only the export's memory counts. RESULT.json gets

    state          of the last run: success, failed
    error          of its task, if it failed
    export         what the task of orders_export returned (its XCom)
    ingest         what the task of orders_ingest returned
    memory_before  bytes of the process when the task's execute began
    memory_peak    bytes, the most until it ended

Without RESULT.json it only creates Airflow's database.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import airflow
import psutil
from airflow.dag_processing.dagbag import DagBag
from airflow.listeners import hookimpl
from airflow.models.xcom import XComModel
from airflow.sdk.listener import get_listener_manager
from airflow.utils import db
from airflow.utils.session import create_session

EXPORT, INGEST = ("orders_export", "export_orders"), ("orders_ingest", "load_orders")
SAMPLE_SECONDS = 0.01


class Watch:
    """Airflow's listener: the memory of this process while the task runs, and its error."""

    def __init__(self) -> None:
        self.before = self.peak = 0
        self.error: str | None = None
        self._done = threading.Event()

    @hookimpl
    def on_task_instance_running(self, previous_state: Any, task_instance: Any) -> None:
        if task_instance.task_id == EXPORT[1]:
            self.before = self.peak = psutil.Process().memory_info().rss
            threading.Thread(target=self._sample, daemon=True).start()

    @hookimpl
    def on_task_instance_success(self, previous_state: Any, task_instance: Any) -> None:
        if task_instance.task_id == EXPORT[1]:
            self._done.set()

    @hookimpl
    def on_task_instance_failed(self, previous_state: Any, task_instance: Any, error: Any) -> None:
        self._done.set()
        self.error = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)

    def _sample(self) -> None:
        process = psutil.Process()
        while not self._done.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, process.memory_info().rss)


def run(result: Path) -> None:
    """Run the DAGs and write the outcome to `result`."""
    bag = DagBag(Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"]))
    if bag.import_errors:
        sys.exit("\n".join(bag.import_errors.values()))
    watch = Watch()
    get_listener_manager().add_listener(watch)  # type: ignore[no-untyped-call]
    state, export = run_task(bag, *EXPORT)
    ingest = None
    if state == "success":
        # Without a scheduler, no asset event starts the ingest, so the run is given what to load.
        state, ingest = run_task(bag, *INGEST, conf={"manifest_url": export["manifest_url"]})
    answer = {"state": state, "error": watch.error, "export": export, "ingest": ingest}
    answer |= {"memory_before": watch.before, "memory_peak": watch.peak}
    result.write_text(json.dumps(answer, indent=2))


def run_task(bag: DagBag, dag_id: str, task_id: str, conf: dict[str, Any] | None = None) -> tuple[str, Any]:
    """Run a DAG of one task; returns the state of the run and what the task returned."""
    dag = bag.dags[dag_id]
    for task in dag.tasks:
        task.retries = 0  # show an error now, not after the retries
    done = dag.test(run_conf=conf)
    with create_session() as session:
        query = XComModel.get_many(run_id=done.run_id, key="return_value", task_ids=task_id, dag_ids=dag_id)
        returned = session.scalars(query).first()
        return done.state, XComModel.deserialize_value(returned) if returned else None


def prepare_database() -> None:
    """Create Airflow's tables, unless this version of Airflow has done so before."""
    done = Path(os.environ["AIRFLOW_HOME"]) / f"database-of-{airflow.__version__}"
    if not done.exists():
        db.initdb()
        done.touch()


if __name__ == "__main__":
    prepare_database()
    for argument in sys.argv[1:]:
        run(Path(argument))
