"""Tries of an Airflow task in processes of their own, to be stopped in all the ways in which Airflow and kernels do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from demo import services
from tests.faults.outcome import Outcome
from tests.streaming_export.waiting import PATIENCE, Running

BUNDLE = "airflow.dag_processing.bundles.local.LocalDagBundle"


class Worker:
    """The program worker.py, and the task that it runs.

    :param database: URI of the PostgreSQL server.
    :param endpoint: URL of the S3 server.
    :param client: settings of the S3 client, by their names in botocore.
    """

    def __init__(self, database: str, endpoint: str, client: Mapping[str, Any]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="worker-"))
        bundle = {"name": "faults", "classpath": BUNDLE, "kwargs": {"path": str(self._folder)}}
        environment = services.airflow_environment(self._folder, database, endpoint)
        store = json.loads(environment["AIRFLOW_CONN_EXPORTS_S3"])
        store["extra"]["config_kwargs"] = client
        environment |= {
            "AIRFLOW_CONN_EXPORTS_S3": json.dumps(store),
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([bundle]),
            "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
            "PYTHONPATH": os.pathsep.join(map(str, [services.PROJECT / "plugins", services.PROJECT])),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.worker", self._folder],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, **arguments: Any) -> Outcome:
        """Have the task run once.

        :param arguments: those of the operator; and ``timeout``, its execution_timeout in seconds, and ``memory``,
            the bytes that it may take more than it has.
        """
        assert self.process.stdin
        self.process.stdin.write(json.dumps(arguments) + "\n")
        self.process.stdin.flush()
        ending = Running(self._end)
        if not ending.ends(within=4 * PATIENCE):
            self.stop_all()  # the next fault has to meet a worker that is idle
            raise AssertionError("the task hangs")
        if ending.error:
            raise ending.error
        state = ending.result
        if state == "success":
            return Outcome(True, None, "published")
        return self._failed()

    def alive(self) -> bool:
        """Whether it can run another task."""
        return self.process.poll() is None

    def stop_task(self, number: signal.Signals) -> None:
        """Send a signal to the process of the task."""
        for task in psutil.Process(self.process.pid).children():
            task.send_signal(number)

    def stop_all(self) -> None:
        """End the worker and its task at once, as a machine that is gone."""
        tasks = psutil.Process(self.process.pid).children()
        self.process.kill()
        for task in tasks:
            task.kill()

    def close(self) -> None:
        """End the program."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(PATIENCE)
        shutil.rmtree(self._folder)

    def _end(self) -> str:
        assert self.process.stdout
        said = []
        for line in self.process.stdout:
            if line.startswith('{"state"'):
                return str(json.loads(line)["state"])
            said.append(line)
        assert self.process.wait() == -signal.SIGKILL, "".join(said)
        return "killed"

    def _failed(self) -> Outcome:
        """What the task's log says."""
        log = self._folder / "task.log"
        entries = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        raised = [entry["error_detail"][0] for entry in entries if entry["event"] == "Task failed with exception"]
        if not raised:
            return Outcome(False, None, "killed")
        told = " ".join([raised[0]["exc_value"], *raised[0]["exc_notes"]]).replace("\n", " ")
        return Outcome(False, told, raised[0]["exc_type"])
