"""Runs a contender once, in a fresh process, and tells what it used and whether its object is right."""

import csv
import hashlib
import io
import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contenders import Contender, Job
from benchmarks.setting import BUCKET, FOLDER, Setting, cpu_seconds, psql
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
    :param memory_before: bytes of the process when the measuring began.
    :param memory_peak: bytes, the most that was resident.
    :param right: whether the object holds the rows that it should; None if there is no object to look at.
    """

    seconds: float
    cpu_seconds: float
    postgres_cpu_seconds: float
    store_cpu_seconds: float
    memory_before: int
    memory_peak: int
    right: bool | None


def run(setting: Setting, contender: Contender, select: str, rows: "Rows | None" = None) -> Figures:
    """Run a contender once.

    :param select: the SELECT of the file's text.
    :param rows: what its object must hold, if that shall be checked.
    """
    store = contender.store(setting)
    postgres, stored = cpu_seconds(setting.postgres_pid), cpu_seconds(store.pid)
    usage = _usage(setting, contender, contender.job(setting, contender.key, select))
    time.sleep(BACKENDS_END_SECONDS)
    postgres, stored = cpu_seconds(setting.postgres_pid) - postgres, cpu_seconds(store.pid) - stored
    right = None
    if contender.uploads and not contender.discards:
        client = store.client()
        if rows and contender.same:
            body = client.get_object(Bucket=BUCKET, Key=contender.key)["Body"]
            right = rows.match(body.iter_chunks(1 << 20))
        for key in (contender.key, f"{contender.key}.manifest.json"):
            client.delete_object(Bucket=BUCKET, Key=key)
    return Figures(postgres_cpu_seconds=postgres, store_cpu_seconds=stored, right=right, **usage)


def _usage(setting: Setting, contender: Contender, job: Job) -> dict[str, Any]:
    """What the contender's runner says that it used."""
    task, result, log_path = (FOLDER / name for name in ("job.json", "usage.json", "runner.log"))
    task.write_text(json.dumps(job))
    result.unlink(missing_ok=True)
    command = [str(contender.python), "-m", f"benchmarks.runners.{contender.runner}", str(task), str(result)]
    environment = setting.environment(contender.store(setting))
    with log_path.open("wb") as log, guarded(command, log, env=environment) as process:
        process.wait()
    if not result.exists():
        tail = "\n  ".join(log_path.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(f"{contender.name} failed:\n  {tail}")
    usage: dict[str, Any] = json.loads(result.read_text())
    return usage


class Rows:
    """The rows that every object must hold, as Postgres itself writes them.

    Quotes may differ where CSV leaves a choice: what is compared then are the fields.
    """

    def __init__(self, setting: Setting, select: str) -> None:
        path = FOLDER / "expected.csv"
        copy = f"copy ({select}) to stdout (format csv, header)"
        command = [psql(), "--no-psqlrc", "--quiet", "--command", copy]
        with path.open("wb") as file:
            subprocess.run(command, stdout=file, check=True, env=setting.environment(setting.store))
        self.bytes = path.stat().st_size
        with path.open("rb") as file:
            self._known = {hashlib.file_digest(file, "sha256").hexdigest(): True}
        self._fields = ""
        self._path = path

    def match(self, chunks: Any) -> bool:
        """Whether an object holds these rows."""
        path, digest = FOLDER / "object.csv", hashlib.sha256()
        with path.open("wb") as file:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
        content = digest.hexdigest()
        if content not in self._known:
            self._fields = self._fields or fields(self._path)
            self._known[content] = fields(path) == self._fields
        path.unlink()
        return self._known[content]


def fields(path: Path) -> str:
    """A digest of the fields of a CSV file, in their order."""
    digest = hashlib.sha256()
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file):
            buffer = io.StringIO()
            csv.writer(buffer, quoting=csv.QUOTE_ALL).writerow(row)
            digest.update(buffer.getvalue().encode())
    return digest.hexdigest()
