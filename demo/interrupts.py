"""Ends a program in order: on Ctrl-C, SIGTERM or SIGHUP it prints "Stopping…" at once, and then unwinds.

Standard library only. Call it before slow imports, so that it works in the first second, too.
"""

import os
import signal
import sys
from types import FrameType, TracebackType

_stopping = False


def end_in_order() -> None:
    """Raise KeyboardInterrupt in the main thread at the first of these signals, and flush each line that is printed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    sys.excepthook = _without_traceback
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]


def _stop(number: int, frame: FrameType | None) -> None:
    global _stopping
    if _stopping:
        return  # it is stopping already: a second KeyboardInterrupt would interrupt that
    _stopping = True
    os.write(2, "\nStopping…\n".encode())
    raise KeyboardInterrupt


def _without_traceback(kind: type[BaseException], exc: BaseException, trace: TracebackType | None) -> None:
    """Print no traceback of a KeyboardInterrupt: the signal came before there was anything to stop."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, exc, trace)
