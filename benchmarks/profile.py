"""Where the CPU time of an export goes: in the operator's process by thread, in Postgres by statement."""

import json
import subprocess
import time

from benchmarks.contenders import OURS, Contender, ours
from benchmarks.data import ORDERS
from benchmarks.engine import THREADS
from benchmarks.measure import BACKENDS_END_SECONDS, run
from benchmarks.peers import Job, Task
from benchmarks.setting import FOLDER, Setting, cpu_seconds, psql


def by_thread(setting: Setting) -> dict[str, float]:
    """CPU seconds of the operator's process, in words."""
    file = FOLDER / "threads.json"

    def job(task: Task) -> Job:
        return {**ours(task), "threads": str(file)}

    usage = run(setting, Contender(OURS, "", "airflow_task", job), ORDERS, "")
    threads: dict[str, float] = json.loads(file.read_text())
    found = {text: threads.get(name, 0.0) for name, text in THREADS.items()}
    return {**found, "the rest: connections, clients, first use of libraries": usage.cpu_seconds - sum(found.values())}


def by_statement(setting: Setting, select: str) -> dict[str, float]:
    """CPU seconds of Postgres for parts of what an export runs, in words."""
    plain = "select id, customer_email, total_cents, status{} from orders order by id"
    statements = {
        "COPY of the four columns without a timestamp, to nowhere": _to_nowhere(plain.format("")),
        "… and the timestamp as Postgres prints it": _to_nowhere(plain.format(", created_at")),
        "… and the timestamp as the file has it": _to_nowhere(select),
        "… sent to a client": f"copy ({select}) to stdout (format csv)",
        "count(*)": "select count(*) from orders",
    }
    return {text: min(_cpu(setting, sql) for _ in range(3)) for text, sql in statements.items()}


def _to_nowhere(select: str) -> str:
    return f"copy ({select}) to '/dev/null' (format csv)"


def _cpu(setting: Setting, sql: str) -> float:
    before = cpu_seconds(setting.postgres_pid)
    command = [psql(), "--no-psqlrc", "--quiet", "--command", sql]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=setting.environment(setting.discard))
    time.sleep(BACKENDS_END_SECONDS)
    return cpu_seconds(setting.postgres_pid) - before
