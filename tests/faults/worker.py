"""A worker of Airflow's, as a program: runs PostgresToS3Operator by the task SDK's own supervisor and task runner.

    python -m tests.faults.worker FOLDER

Reads a line of JSON for each try from its standard input, the arguments of the operator, and writes one when the try
has ended: the state that the supervisor reports. The task's log is in the folder. In place of Airflow's API server
there is a stub: SIGUSR1 has it answer that the task must not run any more, as it does when somebody marks the task
failed, or clears it.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
from airflow.sdk.api.client import Client
from airflow.sdk.api.datamodels._generated import BundleInfo, TaskInstance
from airflow.sdk.execution_time import supervisor
from airflow.sdk.timezone import utcnow

from postgres_to_s3 import PostgresToS3Operator  # noqa: F401  once, and not in each task

DAG = """
import resource
from datetime import timedelta

from airflow.sdk import DAG
from postgres_to_s3 import PostgresToS3Operator

def limit_memory(context):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + {memory}, -1))

with DAG("faults", schedule=None):
    PostgresToS3Operator(
        task_id="export",
        postgres_conn_id="orders_db",
        aws_conn_id="exports_s3",
        execution_timeout=timedelta(seconds={timeout}),
        pre_execute=limit_memory if {memory} else None,
        **{arguments},
    )
"""


class Server:
    """What an attempt needs of Airflow's API server."""

    def __init__(self) -> None:
        self.stopped = False
        self.state = ""

    def answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path.endswith("/run"):
            now = utcnow().isoformat()
            run = {"dag_id": "faults", "run_id": "a_run", "run_type": "manual", "state": "running"}
            run |= {"run_after": now, "start_date": now, "consumed_asset_events": []}
            run |= dict.fromkeys(["logical_date", "data_interval_start", "data_interval_end", "end_date"])
            run |= {"partition_key": None}
            return httpx.Response(200, json={"dag_run": run, "max_tries": 0, "should_retry": False})
        if path.endswith("/heartbeat") and self.stopped:
            return httpx.Response(409, json={"detail": {"reason": "not_running", "current_state": "failed"}})
        if "/xcoms/" in path and request.method == "GET":
            return httpx.Response(404, json={"detail": {"reason": "not_found"}})
        if path.endswith("/state"):
            self.state = json.loads(request.content)["state"]
        return httpx.Response(200, json={})


def run(folder: Path, arguments: dict[str, Any]) -> None:
    """Run the task once."""
    server = Server()
    signal.signal(signal.SIGUSR1, lambda *_: setattr(server, "stopped", True))
    options = {"memory": arguments.pop("memory", 0), "timeout": arguments.pop("timeout", 3600)}
    (folder / "faults.py").write_text(DAG.format(arguments=repr(arguments), **options))
    log = folder / "task.log"
    log.unlink(missing_ok=True)
    ti = TaskInstance(
        id="00000000-0000-0000-0000-000000000001",
        dag_version_id="00000000-0000-0000-0000-000000000002",
        dag_id="faults",
        task_id="export",
        run_id="a_run",
        try_number=1,
    )
    supervisor.supervise_task(
        ti=ti,
        bundle_info=BundleInfo(name="faults"),
        dag_rel_path="faults.py",
        token="",
        client=Client(base_url=None, dry_run=True, token="", transport=httpx.MockTransport(server.answer)),
        log_path=str(log),
    )
    print(json.dumps({"state": server.state}), flush=True)


def main() -> None:
    folder = Path(sys.argv[1])
    for line in sys.stdin:
        run(folder, json.loads(line))


if __name__ == "__main__":
    main()
