"""Prints the steps of a program and their progress. Standard library only, for install.py."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

ALIVE_SECONDS = 5
_begin = _said = time.monotonic()
_step = ""
_progress: Callable[[], str] = str


def say(text: str, progress: Callable[[], str] = str) -> None:
    """Print `text`, with the seconds since the start of the program.

    :param progress: returns the progress in a few words; "" if unknown. Called every 5 seconds within `alive`.
    """
    global _step, _progress
    _step, _progress = text, progress
    _print(text)


@contextmanager
def alive() -> Iterator[None]:
    """During the block, print the progress of the step whenever nothing was printed for 5 seconds."""
    done = threading.Event()

    def remind() -> None:
        while not done.wait(max(_said + ALIVE_SECONDS - time.monotonic(), 0.1)):
            if time.monotonic() >= _said + ALIVE_SECONDS:
                _print(f"  {_how_far()}")

    thread = threading.Thread(target=remind, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _how_far() -> str:
    found = ""
    with suppress(Exception):  # the log may not exist yet, the server may be busy
        found = _progress()
    return found or f"{_step[0].lower()}{_step[1:].partition(' (')[0]}, not done yet"


def _print(text: str) -> None:
    global _said
    _said = time.monotonic()
    print(f"[{_said - _begin:5.1f} s] {text}", flush=True)
