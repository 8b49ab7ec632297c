"""A scheduler small enough for a test: runs the tasks of a group in threads, on so many slots, as Airflow would."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from airflow.sdk.exceptions import AirflowFailException, AirflowRescheduleException

from streaming_export import ExportError

RETRIES = 3
FINAL = {"success", "failed", "upstream_failed"}


@dataclass
class Task:
    """A task, or one instance of a mapped one.

    :param make: makes its operator anew for each try, as a process of its own would.
    :param after: ids of the tasks that have to succeed before.
    """

    task_id: str
    index: int
    make: Callable[[], Any]
    after: tuple[str, ...] = ()
    state: str = "scheduled"
    tries: int = 1
    due: float = 0.0
    errors: list[BaseException] = field(default_factory=list)
    operator: Any = None


class Slots:
    """Runs tasks.

    :param number: of slots.
    :param on_start: told of each start: the task and the operator that will run.
    """

    def __init__(self, number: int, tasks: list[Task], on_start: Callable[[Task, Any], None] = lambda *_: None) -> None:
        self.tasks = tasks
        self.xcoms: dict[tuple[str, int, str], Any] = {}
        self.events: list[Any] = []
        self._begun = datetime.now(UTC)
        self._free = number
        self._on_start = on_start
        self._changed = threading.Condition()

    def run(self, timeout: float = 60) -> None:
        """Run all tasks to their ends."""
        deadline, threads = time.monotonic() + timeout, []
        while any(task.state not in FINAL for task in self.tasks):
            if time.monotonic() > deadline:
                self._kill()
                raise AssertionError([(task.task_id, task.index, task.state) for task in self.tasks])
            with self._changed:
                for task in self.tasks:
                    self._look(task, threads)
                self._changed.wait(0.02)
        for thread in threads:
            thread.join()

    def of(self, name: str) -> list[Task]:
        """The instances of a task."""
        return [task for task in self.tasks if task.task_id.endswith(name)]

    def _look(self, task: Task, threads: list[threading.Thread]) -> None:
        before = [other.state for other in self.tasks if other.task_id in task.after]
        if task.state in FINAL or task.state == "running":
            return
        if {"failed", "upstream_failed"} & set(before):
            task.state = "upstream_failed"
        elif all(state == "success" for state in before) and time.monotonic() >= task.due and self._free:
            self._free -= 1
            task.state = "running"
            threads.append(threading.Thread(target=self._run, args=(task,), daemon=True))
            threads[-1].start()

    def _kill(self) -> None:
        for task in self.tasks:
            if task.state == "running" and task.operator:
                task.operator.on_kill()

    def _run(self, task: Task) -> None:
        state, due = "success", 0.0
        try:
            operator = task.operator = task.make()
            for key in [key for key in self.xcoms if key[:2] == (task.task_id, task.index)]:
                self.xcoms.pop(key)
            self._on_start(task, operator)
            operator.execute(self._context(task))
        except AirflowRescheduleException as exc:
            wait = exc.reschedule_date - datetime.now(UTC)
            state, due = "up_for_reschedule", time.monotonic() + wait.total_seconds()
        except BaseException as exc:  # whatever it is, it ends a try
            task.errors.append(exc)
            hopeless = isinstance(exc, AirflowFailException) or (
                isinstance(exc, ExportError) and exc.transient is False
            )
            state, due = ("failed" if hopeless or task.tries > RETRIES else "up_for_retry"), time.monotonic() + 0.3
            task.tries += state == "up_for_retry"
        with self._changed:
            self._free += 1
            task.state, task.due = state, due
            self._changed.notify_all()

    def _context(self, task: Task) -> Any:
        ti = SimpleNamespace(
            dag_id="a_dag",
            task_id=task.task_id,
            run_id="a_run",
            try_number=task.tries,
            map_index=task.index,
            xcom_push=lambda key, value: self.xcoms.update({(task.task_id, task.index, key): value}),
            xcom_pull=lambda task_ids, key, map_indexes: self.xcoms.get((task_ids, map_indexes, key)),
            get_task_states=self._states,
        )
        events: Any = defaultdict(SimpleNamespace)
        self.events.append(events)
        return {"ti": ti, "dag_run": SimpleNamespace(start_date=self._begun), "outlet_events": events}

    def _states(self, dag_id: str, task_ids: list[str], run_ids: list[str]) -> dict[str, dict[str, str]]:
        found = {f"{task.task_id}_{task.index}": task.state for task in self.tasks if task.task_id in task_ids}
        return {run_ids[0]: found}
