"""Ends a program on Ctrl-C, SIGTERM or SIGHUP: it prints "Stopping…" at once, and then unwinds.

Standard library only.
"""

import os
import signal
import sys
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_stopping = False


def end_at_once() -> None:
    """End at the first of these signals: during the imports, when there is nothing to unwind.

    A KeyboardInterrupt may get lost in an import, and the program would go on.
    """
    for number in _SIGNALS:
        signal.signal(number, _end)


def end_in_order() -> None:
    """Raise KeyboardInterrupt in the main thread at the first of these signals, and flush each line that is printed."""
    for number in _SIGNALS:
        signal.signal(number, _stop)
    sys.excepthook = _without_traceback
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]


def _stop(number: int, frame: FrameType | None) -> None:
    global _stopping
    if _stopping:
        return  # it is stopping already: a second KeyboardInterrupt would interrupt that
    _stopping = True
    _say()
    raise KeyboardInterrupt


def _end(number: int, frame: FrameType | None) -> None:
    _say()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _say() -> None:
    os.write(2, "\nStopping…\n".encode())


def _without_traceback(kind: type[BaseException], exc: BaseException, trace: TracebackType | None) -> None:
    """Print no traceback of a KeyboardInterrupt: the signal came before there was anything to stop."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, exc, trace)
