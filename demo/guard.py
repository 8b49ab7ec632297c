"""Commands that never outlive the program that started them, however that ends.

`guarded` starts this file as a process between the two:

    python guard.py SIGNAL SECONDS LITTER COMMAND [ARGUMENT ...]

The program holds the guard's standard input open. When it writes to it, closes it or dies, even by SIGKILL, the guard
sends SIGNAL to the command's process group, and kills the rest after SECONDS. Then it removes the files and folders of
LITTER, a JSON list, and exits with the command's status.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

START_SECONDS = 60  # how long a service may take to answer, also on a busy machine
PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


@contextmanager
def guarded(
    command: Sequence[str],
    log: IO[bytes],
    *,
    env: dict[str, str] | None = None,
    stop: signal.Signals = signal.SIGTERM,
    seconds: float = 10,
    keep_open: Sequence[int] = (),
    litter: Sequence[Path] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` for the length of the block, its output in `log`.

    At the end its process group gets the signal `stop`, and after `seconds` it and all its descendants are killed. The
    file descriptors `keep_open` stay open until then; the files and folders `litter` are removed afterwards.
    """
    guard = subprocess.Popen(
        [
            sys.executable,
            "-P",
            str(Path(__file__)),
            stop.name,
            str(seconds),
            json.dumps(list(map(str, litter))),
            *command,
        ],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=env,
        pass_fds=keep_open,
        start_new_session=True,  # so that Ctrl-C in a terminal reaches only us, and we stop things in order
    )
    try:
        yield guard
    finally:
        ask_to_stop(guard)
        guard.wait()


def ask_to_stop(guard: subprocess.Popen[bytes]) -> None:
    """Ask a `guarded` command to stop, without waiting for it, so that several can stop at once."""
    assert guard.stdin is not None
    # Closing alone is not enough if a fork of this process also holds the pipe.
    with suppress(BrokenPipeError, ValueError):
        guard.stdin.write(b".")
        guard.stdin.close()


def wait_until(ready: Callable[[], bool], guard: subprocess.Popen[bytes], log: IO[bytes], name: str) -> None:
    """Return when `ready()`. Raises RuntimeError with the end of the log if the command ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if guard.poll() is not None or time.monotonic() > deadline:
            why = "ended" if guard.poll() is not None else f"did not answer within {START_SECONDS} s"
            log.seek(0)
            raise RuntimeError(f"{name} {why}. Its log ends with:\n{log.read()[-2000:].decode(errors='replace')}")
        time.sleep(0.03)


def main() -> int:
    """Be the guard."""
    stop_signal, seconds, command = signal.Signals[sys.argv[1]], float(sys.argv[2]), sys.argv[4:]
    litter = [Path(path) for path in json.loads(sys.argv[3])]
    # Only the program decides when to stop. Handlers, unlike SIG_IGN, are not inherited by the command.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, lambda *_: None)
    if sys.platform == "linux":
        # Processes whose parent died become our children, so that we find them at the end.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_stop_on_request, args=(child, stop_signal, seconds), daemon=True).start()
    status = child.wait()
    _kill_descendants()
    for path in litter:
        remove(path)
    return status if status >= 0 else 128 - status


def _stop_on_request(child: subprocess.Popen[bytes], stop_signal: signal.Signals, seconds: float) -> None:
    os.read(0, 1)
    if child.poll() is None:
        os.killpg(child.pid, stop_signal)
        time.sleep(seconds)
        _kill_descendants()


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _kill_descendants() -> None:
    for _ in range(10):  # a process may have started another one meanwhile
        processes = psutil.Process().children(recursive=True)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=1)
        if not processes:
            break


if __name__ == "__main__":
    sys.exit(main())
