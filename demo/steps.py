"""Says what is going on, and that it still is. Standard library only: install.py runs before all."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

ALIVE_SECONDS = 5
_begin = _said = time.monotonic()


def say(text: str) -> None:
    """Print `text` after the seconds since the program began."""
    global _said
    _said = time.monotonic()
    print(f"[{_said - _begin:5.1f} s] {text}", flush=True)


@contextmanager
def alive() -> Iterator[None]:
    """For the length of the block, say something whenever nothing was said for 5 seconds."""
    done = threading.Event()

    def remind() -> None:
        while not done.wait(max(_said + ALIVE_SECONDS - time.monotonic(), 0.1)):
            if time.monotonic() >= _said + ALIVE_SECONDS:
                say("  ... still working")

    thread = threading.Thread(target=remind, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
