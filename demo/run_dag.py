"""Runs the DAG `orders_export` once, as `airflow dags test` does, and measures the export's memory.

    python demo/run_dag.py RESULT.json

A process of its own, with the environment of `services.airflow_environment`: Airflow's output is
noise to a newcomer, and only the export's memory shall count. RESULT.json gets

    state          of the run: success, failed
    error          of the task, if it failed
    export         what the task returned (its XCom)
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

DAG_ID, TASK_ID = "orders_export", "export_orders"
SAMPLE_SECONDS = 0.01


class Watch:
    """Airflow's listener: the memory of this process while the task runs, and its error."""

    def __init__(self) -> None:
        self.before = self.peak = 0
        self.error: str | None = None
        self._done = threading.Event()

    @hookimpl
    def on_task_instance_running(self, previous_state: Any, task_instance: Any) -> None:
        if task_instance.task_id == TASK_ID:
            self.before = self.peak = psutil.Process().memory_info().rss
            threading.Thread(target=self._sample, daemon=True).start()

    @hookimpl
    def on_task_instance_success(self, previous_state: Any, task_instance: Any) -> None:
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
    """Run the DAG and write what came of it to `result`."""
    dags = Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
    bag = DagBag(dags / f"{DAG_ID}.py")
    if bag.import_errors:
        sys.exit("\n".join(bag.import_errors.values()))
    dag = bag.dags[DAG_ID]
    for task in dag.tasks:
        task.retries = 0  # whoever watches should see an error now, not after the retries
    watch = Watch()
    get_listener_manager().add_listener(watch)  # type: ignore[no-untyped-call]
    done = dag.test()
    with create_session() as session:
        query = XComModel.get_many(run_id=done.run_id, key="return_value", task_ids=TASK_ID, dag_ids=DAG_ID)
        returned = session.scalars(query).first()
        export = XComModel.deserialize_value(returned) if returned else None
    answer = {"state": done.state, "error": watch.error, "export": export}
    answer |= {"memory_before": watch.before, "memory_peak": watch.peak}
    result.write_text(json.dumps(answer, indent=2))


def prepare_database() -> None:
    """Create Airflow's tables unless this version of Airflow did so before."""
    done = Path(os.environ["AIRFLOW_HOME"]) / f"database-of-{airflow.__version__}"
    if not done.exists():
        db.initdb()
        done.touch()


if __name__ == "__main__":
    prepare_database()
    for argument in sys.argv[1:]:
        run(Path(argument))
