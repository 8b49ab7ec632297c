"""Stops an export from another thread or from a signal handler."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import TypeVar

Result = TypeVar("Result")

_CANCEL_SECONDS = 3.0

# Seconds that an interrupted export has for aborting its upload and closing its connections.
_END_SECONDS = 15.0

# A cancel that reaches the server between two statements stops neither: it is repeated.
_REPEAT_SECONDS = 1.0


class Cancellation:
    """Handed to an export so that it can be stopped from outside; used for one export.

    What `cancel` has to do is done by a thread that waits for it. A signal handler may have interrupted any
    code, starting a thread included: it can only be trusted to set a flag and to put into a SimpleQueue, whose
    `put` is reentrant (Python's manual, queue.SimpleQueue).
    """

    def __init__(self) -> None:
        self._cancelled = False
        self._actions: list[Callable[[], None]] = []
        self._requests: SimpleQueue[list[bool] | None] = SimpleQueue()
        self._worker: threading.Thread | None = None

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled

    def on_cancel(self, action: Callable[[], None]) -> None:
        """Have `cancel` call this; it is called at once if that was before."""
        self._actions.append(action)
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="canceller", daemon=True)
            self._worker.start()
        if self.cancelled:
            action()

    def cancel(self, timeout: float = _CANCEL_SECONDS) -> None:
        """Cancel the query on the server and abort the upload; the export raises `ExportCancelled`.

        Returns when both were done, or after `timeout` seconds. Does nothing after the export's end.
        """
        self._cancelled = True
        if self._worker is None or not self._worker.is_alive():
            return
        done: list[bool] = []
        self._requests.put(done)
        deadline = time.monotonic() + timeout
        while not done and self._worker.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)

    def end(self) -> None:
        """The export has ended: nothing is left to cancel."""
        self._requests.put(None)

    def _work(self) -> None:
        while (done := self._requests.get()) is not None:
            threads = [threading.Thread(target=action, daemon=True) for action in list(self._actions)]
            for thread in threads:
                thread.start()
            deadline = time.monotonic() + _CANCEL_SECONDS
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            done.append(True)


def run_cancellable(work: Callable[[], Result], cancellation: Cancellation) -> Result:
    """Run `work` in a thread; whatever interrupts the caller cancels it.

    Python runs signal handlers (SIGTERM, Ctrl-C, a time-out's alarm) in the main thread between two
    instructions. A main thread that waits inside libpq would run none until Postgres answers.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as exc:  # whatever it is, the caller raises it
            future.set_exception(exc)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="export", daemon=True)
    try:
        thread.start()
        while wait([future], _REPEAT_SECONDS).not_done:
            if cancellation.cancelled:
                cancellation.cancel()
        return future.result()
    except BaseException as exc:
        if not future.done():
            cancellation.cancel()
            wait([future], _END_SECONDS)
        if not future.done() or future.exception() is not exc:
            exc.add_note(_fate(future))
        raise
    finally:
        cancellation.end()


def _fate(future: Future[Result]) -> str:
    """What has become of work that was interrupted: who interrupts can't tell."""
    if not future.done():
        return f"It has not ended {_END_SECONDS:.0f} s later. Whether it was published is not known. Retry."
    if exc := future.exception():
        return f"{type(exc).__name__}: {exc}"
    return "It was done by then: what it wrote is visible, and a retry writes it again."
