"""Runs shell-like pipelines; see the package.

Job: `commands`, each a list of words; each reads what the one before it writes, and what the last one
writes is thrown away. They run in a new folder with `files` (texts by name), with `environment` added to their
variables; the one that is named by `home` gets the folder. A process of its own with few imports: the kernel's figure
for the memory of a child starts at that of the process which forked it, which is about 10 MB here.
"""

import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.runners.usage import Usage, children_cpu_seconds, run


def pipeline(job: dict[str, Any]) -> Usage:
    """Measure the commands from the start of the first to the end of the last."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in job.get("files", {}).items():
            (Path(folder) / name).write_text(text)
        home = {job["home"]: folder} if "home" in job else {}
        environment = {**os.environ, **job.get("environment", {}), **home}
        return _measured(job["commands"], folder, environment)


def _measured(commands: list[list[str]], folder: str, environment: dict[str, str]) -> Usage:
    started = time.monotonic()
    processes: list[subprocess.Popen[bytes]] = []
    for number, command in enumerate(commands, 1):
        source = processes[-1].stdout if processes else subprocess.DEVNULL
        target = subprocess.PIPE if number < len(commands) else subprocess.DEVNULL
        processes.append(subprocess.Popen(command, stdin=source, stdout=target, cwd=folder, env=environment))
        if processes[:-1]:
            source.close()  # type: ignore[union-attr]
    peak = 0
    for process in processes:
        _, status, used = os.wait4(process.pid, 0)
        peak += used.ru_maxrss * 1024
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - started
    # Only the programs' names: this stands in the results, whose readers have no use for the paths of this machine.
    failed = [Path(process.args[0]).name for process in processes if process.returncode]  # type: ignore[index]
    if failed:
        raise RuntimeError(f"{' and '.join(failed)} failed")
    return Usage(seconds, children_cpu_seconds(), 0, peak)


if __name__ == "__main__":
    run(pipeline)
