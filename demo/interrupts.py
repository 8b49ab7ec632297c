"""Ends a program in order: Ctrl-C, SIGTERM and SIGHUP say "Stopping…" at once, and then unwind it.

Standard library only. To be called before anything slow is imported, so that the first second is no exception.
"""

import os
import signal
import sys
from types import FrameType, TracebackType

_stopping = False


def end_in_order() -> None:
    """Raise KeyboardInterrupt in the main thread at the first of these signals, and print any text at once."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    sys.excepthook = _without_traceback
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]


def _stop(number: int, frame: FrameType | None) -> None:
    global _stopping
    if _stopping:
        return  # what is being stopped ends by itself: a second signal would leave half of it
    _stopping = True
    os.write(2, "\nStopping…\n".encode())
    raise KeyboardInterrupt


def _without_traceback(kind: type[BaseException], exc: BaseException, trace: TracebackType | None) -> None:
    """For a signal before the program has begun: there is nothing to end yet."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, exc, trace)
