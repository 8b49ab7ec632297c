"""Runs a contender once, in a fresh process, and returns what it used."""

import json
import time
from dataclasses import dataclass
from typing import Any

from benchmarks import checks, network, statements
from benchmarks.checks import Rows
from benchmarks.contenders import Contender
from benchmarks.data import Data
from benchmarks.peers import Job, Task
from benchmarks.setting import FOLDER, Setting, Store, cpu_seconds
from demo.guard import guarded

# Backends of Postgres count once they have ended, which they do after the client has gone.
BACKENDS_END_SECONDS = 0.2


@dataclass(frozen=True)
class Figures:
    """One run of one contender.

    :param seconds: from begin to end.
    :param cpu_seconds: of the contender's own processes.
    :param postgres_cpu_seconds: of the database server.
    :param store_cpu_seconds: of the S3 server, if it is the benchmark's own.
    :param longest_seconds: the longest statement that Postgres ran for it.
    :param memory_before: bytes of the process when the measuring began.
    :param memory_peak: bytes, the most that was resident.
    :param bytes: of the object or objects.
    :param file: what is to be said of the object, if it was looked at.
    """

    seconds: float
    cpu_seconds: float
    postgres_cpu_seconds: float
    store_cpu_seconds: float
    longest_seconds: float
    memory_before: int
    memory_peak: int
    bytes: int
    file: str | None


def run(
    setting: Setting, contender: Contender, data: Data, select: str, rows: Rows | None = None, size: int | None = None
) -> Figures:
    """Run a contender once.

    :param select: the SELECT of the file's text.
    :param rows: what its object must contain, if that is checked; then it goes to the store that keeps objects.
    :param size: bytes that its object must have.
    """
    store = setting.store if rows else setting.discard
    job = contender.job(Task(setting, store, contender.key, data, select))
    postgres, stored = cpu_seconds(setting.postgres_pid), cpu_seconds(store.pid)
    logged = statements.end_of(setting.log)
    usage = _usage(setting, store, contender, job)
    time.sleep(BACKENDS_END_SECONDS)
    postgres, stored = cpu_seconds(setting.postgres_pid) - postgres, cpu_seconds(store.pid) - stored
    written, file = _look(setting, store, contender, rows)
    if size is not None and written != size:
        file = checks.WRONG
    return Figures(
        postgres_cpu_seconds=postgres,
        store_cpu_seconds=stored,
        longest_seconds=statements.longest(setting.log, logged),
        bytes=written,
        file=file,
        **usage,
    )


def _look(setting: Setting, store: Store, contender: Contender, rows: Rows | None) -> tuple[int, str | None]:
    """The size of a contender's object and the verdict on it; removes the object."""
    if not contender.uploads:
        return 0, None
    with network.inside(setting.namespace):
        written = sum(checks.objects(store, contender.key).values())
        file = rows.compare(store, contender.key) if rows else None
        checks.remove(store, contender.key)
    return written, file


def _usage(setting: Setting, store: Store, contender: Contender, job: Job) -> dict[str, Any]:
    """What the contender used, from its runner's output."""
    task, result, log_path = (FOLDER / name for name in ("job.json", "usage.json", "runner.log"))
    task.write_text(json.dumps(job))
    result.unlink(missing_ok=True)
    command = [str(contender.python), "-m", f"benchmarks.runners.{contender.runner}", str(task), str(result)]
    environment = setting.environment(store)
    with (
        network.inside(setting.namespace),
        log_path.open("wb") as log,
        guarded(command, log, env=environment) as process,
    ):
        process.wait()
    if not result.exists():
        tail = "\n  ".join(log_path.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(f"{contender.name} failed:\n  {tail}")
    usage: dict[str, Any] = json.loads(result.read_text())
    return usage
