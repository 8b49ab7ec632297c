"""One program at a time in a folder, by flock: the lock ends with its process, however that ends."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, *, seconds: float = 0) -> Iterator[int]:
    """Hold the lock on the file `path`, which contains the pid of its holder; yields the file's descriptor.

    A process that keeps the descriptor open shares the lock. Waits for at most `seconds`, then raises RuntimeError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    file.seek(0)
                    holder = file.read().strip()
                    raise RuntimeError(
                        f"Another demo or test run uses {path.parent}{f' (process {holder})' if holder else ''}."
                        " Wait for it to end, or stop it."
                    ) from None
                time.sleep(0.1)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield file.fileno()
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
