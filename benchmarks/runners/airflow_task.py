"""Runs `execute` of an operator as a worker would; see the package.

Job: `operator` (its import path), `arguments` (its own), `imports` (modules that it will import), `connections`
(ids that it will use), and for a profile `threads` (a file that gets the CPU seconds of its threads by name).
"""

import importlib
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from airflow.sdk import BaseHook

from benchmarks.runners.usage import Usage, measured, run


def execute(job: dict[str, Any]) -> Usage:
    """Measure the operator's `execute`, and nothing before it."""
    logging.disable(logging.INFO)
    module, name = job["operator"].rsplit(".", 1)
    operator = getattr(importlib.import_module(module), name)(task_id="benchmark", **job["arguments"])
    for library in job["imports"]:  # what the operator imports when it is executed
        importlib.import_module(library)
    for connection in job["connections"]:
        BaseHook.get_connection(connection).get_hook()
    names = dict.fromkeys(("dag_id", "task_id", "run_id"), "benchmark")
    task_instance = SimpleNamespace(**names, try_number=1, map_index=-1)
    if not job.get("threads"):
        return measured(lambda: operator.execute({"ti": task_instance}))
    seconds = watch_threads()
    usage = measured(lambda: operator.execute({"ti": task_instance}))
    Path(job["threads"]).write_text(json.dumps(seconds))
    return usage


def watch_threads() -> Counter[str]:
    """CPU seconds of the threads that start from now on, once they have ended; by name without its number."""
    seconds: Counter[str] = Counter()
    run_thread: Callable[[threading.Thread], None] = threading.Thread.run

    def counted(thread: threading.Thread) -> None:
        started = time.thread_time()
        try:
            run_thread(thread)
        finally:
            seconds[thread.name.split("-")[0]] += time.thread_time() - started

    threading.Thread.run = counted  # type: ignore[method-assign]
    return seconds


if __name__ == "__main__":
    run(execute)
