"""Runs a command that never outlives the program that started it.

    python guard.py SIGNAL SECONDS COMMAND [ARGUMENT ...]

The starter holds the guard's standard input open. Once it writes to it, closes it or dies, even by
SIGKILL, the guard sends SIGNAL to the command's process group and kills after SECONDS what is left.
Ends with the command's exit status.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

import psutil

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


def main() -> int:
    stop_signal, seconds, command = signal.Signals[sys.argv[1]], float(sys.argv[2]), sys.argv[3:]
    # The starter decides about the end, so that it comes in order. Handlers, unlike SIG_IGN, are
    # not inherited by the command.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, lambda *_: None)
    if sys.platform == "linux":
        # Processes whose parent died become ours, so that they are found at the end.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_stop_on_request, args=(child, stop_signal, seconds), daemon=True).start()
    status = child.wait()
    _kill_descendants()
    return status if status >= 0 else 128 - status


def _stop_on_request(child: subprocess.Popen[bytes], stop_signal: signal.Signals, seconds: float) -> None:
    os.read(0, 1)
    if child.poll() is None:
        os.killpg(child.pid, stop_signal)
        time.sleep(seconds)
        _kill_descendants()


def _kill_descendants() -> None:
    for process in psutil.Process().children(recursive=True):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass


if __name__ == "__main__":
    sys.exit(main())
