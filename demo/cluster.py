"""Airflow on CeleryExecutor; each of its programs has its own home, host name and log, as on a separate machine."""

import base64
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from demo import services
from demo.guard import ask_to_stop, guarded

START_SECONDS = 180
WORKER_STOP_SECONDS = 30  # a worker that is stopped lets its tasks end first

# Short retry delays, so that the demo shows within a minute that a killed worker does no harm. Airflow imports this
# module, `airflow_local_settings`, from the Python path, for policies of a cluster.
POLICY = """
from datetime import timedelta


def task_policy(task):
    task.retry_delay, task.retry_exponential_backoff = timedelta(seconds=5), 0
"""

SETTINGS = {
    "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
    "AIRFLOW__CORE__HOSTNAME_CALLABLE": "demo.host_name.host_name",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
    "AIRFLOW__API__HOST": "127.0.0.1",
    "AIRFLOW__API__WORKERS": "1",
    # Seconds until Airflow notices a lost worker; the default is 300.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    # A worker that is killed after taking a task and before starting it leaves it queued; the defaults are 600 and 120.
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "45",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
    # Without this, the supervisor often misses the end of a task, and holds its slot for five seconds.
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "15",
    # The worker imports before it forks what each task needs, which saves half of a task's CPU time.
    "AIRFLOW__CELERY__EXTRA_CELERY_CONFIG": json.dumps(
        {
            "imports": [
                "airflow.providers.amazon.aws.hooks.s3",
                "airflow.providers.postgres.hooks.postgres",
                "airflow.sdk.execution_time.task_runner",
                "postgres_to_s3",
                "orders.models",
            ]
        }
    ),
}


@dataclass
class Cluster:
    """The addresses of the services, and the running programs of Airflow.

    :param folder: folder of homes and logs.
    :param dags: folder of the DAGs.
    :param metadata: URI of Airflow's database.
    :param orders: URI of the orders database.
    :param store: URL of the S3 server.
    :param broker: URL of the broker.
    :param slots: tasks per worker at a time.
    """

    folder: Path
    dags: Path
    metadata: str
    orders: str
    store: str
    broker: str
    slots: int
    port: int = field(default_factory=lambda: free_port())
    parts: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=lambda: dict(_secrets()))

    def __post_init__(self) -> None:
        settings = self.folder / "settings" / "airflow_local_settings.py"
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(POLICY)

    def environment(self, host: str) -> dict[str, str]:
        """The environment of a program of Airflow on the machine `host`."""
        home, url = self.folder / host, self.metadata.replace("postgresql://", "postgresql+psycopg2://")
        home.mkdir(parents=True, exist_ok=True)
        settings = self.folder / "settings"
        return {
            **os.environ,
            **services.airflow_environment(home, self.orders, self.store),
            **SETTINGS,
            **self.secrets,
            "SCALE_HOST": host,
            "PYTHONPATH": os.pathsep.join([str(services.PROJECT), str(services.PROJECT / "plugins"), str(settings)]),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{self.port}/execution/",
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{self.port}",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url,
            "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{url}",
            "AIRFLOW__CELERY__BROKER_URL": self.broker,
        }

    def log(self, host: str) -> Path:
        """The log file of a machine."""
        return self.folder / f"{host}.log"

    def call(self, *words: str) -> None:
        """Run an Airflow command to its end. Raises RuntimeError if it fails."""
        host = "command-line"
        with self.log(host).open("ab") as log, guarded(_airflow(*words), log, env=self.environment(host)) as command:
            if command.wait():
                raise self.failed(host, f"airflow {' '.join(words[:2])} failed")

    def start(self, stack: contextlib.ExitStack, host: str, *words: str, seconds: float = 10) -> None:
        """Start a program of Airflow, which ends with `stack`."""
        log = stack.enter_context(self.log(host).open("w+b"))
        part = guarded(_airflow(*words), log, env=self.environment(host), seconds=seconds)
        self.parts[host] = stack.enter_context(part)

    def start_worker(self, stack: contextlib.ExitStack, host: str) -> None:
        """Start a Celery worker on a machine of its own."""
        words = ["celery", "worker", "--celery-hostname", f"worker@{host}", "--concurrency", str(self.slots)]
        self.start(stack, host, *words, "--skip-serve-logs", seconds=WORKER_STOP_SECONDS)

    def wait_for(self, *hosts: str) -> None:
        """Return when the API, the scheduler, the DAG processor and these workers are ready.

        Raises RuntimeError with the end of a log if one ends or takes too long.
        """
        deadline = time.monotonic() + START_SECONDS
        while not (self._is_healthy() and all(b" ready." in self.log(host).read_bytes() for host in hosts)):
            self.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"Airflow was not ready within {START_SECONDS} s: see {self.folder}/*.log.")
            time.sleep(0.3)

    def check(self) -> None:
        """Raises RuntimeError with the end of its log if a program has ended by itself."""
        for host, part in self.parts.items():
            if part.poll() is not None:
                raise self.failed(host, f"{host} ended by itself")

    def failed(self, host: str, what: str) -> RuntimeError:
        """An error with the end of a log, and then `what`."""
        tail = "\n  ".join(self.log(host).read_text(errors="replace").splitlines()[-20:])
        return RuntimeError(f"The last lines of {self.log(host)}:\n  {tail}\n\n{what}.")

    def kill(self, host: str) -> None:
        """Stop a machine as a power cut does: SIGKILL to all its processes."""
        self.signal(host, signal.SIGKILL)
        self.parts.pop(host).wait()

    def signal(self, host: str, number: int) -> None:
        """Send a signal to all processes of a machine."""
        for process in psutil.Process(self.parts[host].pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def cpu_seconds(self) -> dict[str, float]:
        """CPU seconds of each running program, including its processes that have ended."""
        return {host: cpu_seconds(guard.pid) for host, guard in self.parts.items()}

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v2/monitor/health", timeout=5) as answer:
                parts = json.load(answer)
        except (OSError, ValueError):
            return False
        return all(parts[name]["status"] == "healthy" for name in ("metadatabase", "scheduler", "dag_processor"))


@contextlib.contextmanager
def running(cluster: Cluster, workers: int) -> Iterator[contextlib.ExitStack]:
    """Run Airflow with `workers` workers; yields the stack for further ones.

    Workers end before the other programs: a worker would wait for the API server if that ended first.
    """
    with _ending_together(cluster, lambda host: "worker" not in host) as rest:
        cluster.start(rest, "api", "api-server")
        cluster.start(rest, "scheduler", "scheduler", "--skip-serve-logs")
        cluster.start(rest, "dag-processor", "dag-processor")
        with _ending_together(cluster, lambda host: "worker" in host) as theirs:
            names = [f"worker-{n + 1}" for n in range(workers)]
            for name in names:
                cluster.start_worker(theirs, name)
            cluster.wait_for(*names)
            yield theirs


@contextlib.contextmanager
def _ending_together(cluster: Cluster, belongs: Callable[[str], bool]) -> Iterator[contextlib.ExitStack]:
    """A stack of programs that are all asked to end before it waits for each."""
    with contextlib.ExitStack() as stack:
        try:
            yield stack
        finally:
            for host, part in cluster.parts.items():
                if belongs(host):
                    ask_to_stop(part)


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process and its descendants, including those that have ended and were waited for."""
    seconds = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                seconds += times.user + times.system + times.children_user + times.children_system
    return seconds


def free_port() -> int:
    """A free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _airflow(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "airflow", *words]


def _secrets() -> Iterator[tuple[str, str]]:
    """Secrets that all machines share, so that they accept each other's signatures."""
    yield "AIRFLOW__API__SECRET_KEY", secrets.token_hex(32)
    yield "AIRFLOW__API_AUTH__JWT_SECRET", secrets.token_hex(32)
    yield "AIRFLOW__CORE__FERNET_KEY", base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
