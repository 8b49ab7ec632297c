"""What a piece of work used: time, CPU, memory. Standard library only."""

import gc
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_SAMPLE_SECONDS = 0.01


@dataclass(frozen=True)
class Usage:
    """What a contender used.

    :param seconds: from begin to end, by the clock.
    :param cpu_seconds: of its process or processes, all threads, user and system.
    :param memory_before: bytes of the process when the work began; 0 for processes that the work started.
    :param memory_peak: bytes, the most that was resident until the work ended.
    """

    seconds: float
    cpu_seconds: float
    memory_before: int
    memory_peak: int


def measured(work: Callable[[], object]) -> Usage:
    """Do `work` in this process, and tell what it used."""
    gc.collect()
    before = _status("VmRSS")
    with _peak() as peak:
        cpu, started = time.process_time(), time.monotonic()
        work()
        seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    return Usage(seconds, cpu, before, peak())


def run(work: Callable[[dict[str, Any]], Usage]) -> None:
    """Be a runner: read the job, do it, write what it used."""
    job, result = map(Path, sys.argv[1:])
    usage = work(json.loads(job.read_text()))
    result.write_text(json.dumps(asdict(usage)))


def children_cpu_seconds() -> float:
    """CPU seconds of the processes that this one started and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def _peak() -> Iterator[Callable[[], int]]:
    """Watch the memory of this process; call what this yields for the most since then."""
    if sys.platform == "linux":
        # The kernel keeps the peak; this resets it (proc(5), /proc/pid/clear_refs).
        Path("/proc/self/clear_refs").write_text("5")
        yield lambda: _status("VmHWM")
        return
    done, most = threading.Event(), [_status("VmRSS")]

    def sample() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            most[0] = max(most[0], _status("VmRSS"))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    yield lambda: most[0]
    done.set()
    thread.join()


def _status(name: str) -> int:
    if sys.platform != "linux":
        import psutil

        return int(psutil.Process(os.getpid()).memory_info().rss)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")
