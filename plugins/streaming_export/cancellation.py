"""Ends an export: the flag that its threads share, and cancellation from outside."""

from __future__ import annotations

import contextlib
import contextvars
import mmap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import TypeVar

from streaming_export.errors import ExportCancelled

Result = TypeVar("Result")

_CANCEL_SECONDS = 3.0

# Seconds that an interrupted export has to abort its upload and close its connections.
_END_SECONDS = 15.0

# A cancel that reaches the server between two statements stops neither, so it is repeated.
_REPEAT_SECONDS = 1.0

# Memory that a new thread gets or asks for at once: a stack of 8 MiB, and some blocks of Python's and of malloc's.
_THREAD_BYTES = 16 * 1024 * 1024


class Stopped(BaseException):
    """Raised in every waiting thread of an export once its `Stop` is set; `Stop.reason` says why."""


class Stop:
    """Whether an export has to end, and why: the one object that all its threads share.

    Any thread may set it; the first reason stays. Every wait goes through it and raises `Stopped` once it is set. The
    export's own thread then closes what it has opened, and raises the reason.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.reason: BaseException | None = None

    def set(self, reason: BaseException) -> None:
        """End the export; wakes all waiting threads."""
        with self._changed:
            self.reason = self.reason or reason
            self._changed.notify_all()

    def check(self) -> None:
        """Raise `Stopped` if it is set."""
        if self.reason is not None:
            raise Stopped

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock of all conditions, and wake the waiting threads at the end."""
        with self._changed:
            yield
            self._changed.notify_all()

    @contextlib.contextmanager
    def when(self, condition: Callable[[], object]) -> Iterator[None]:
        """Wait until a condition holds, then do what `changing` does; the condition holds while the block runs.

        :raises Stopped: if the export is stopped.
        """
        with self.changing():
            self.wait_for(condition)
            yield

    def wait_for(self, condition: Callable[[], object], timeout: float | None = None) -> None:
        """Wait until a condition holds, but at most `timeout` seconds; it is evaluated under the lock of `changing`.

        :raises Stopped: if the export is stopped.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.reason is not None or condition(), timeout)
            self.check()

    @contextlib.contextmanager
    def on_failure(self) -> Iterator[None]:
        """Set the stop if the block fails: whoever waits for what it does then gets `Stopped`."""
        try:
            yield
        except Stopped:
            raise
        except BaseException as exc:  # any exception ends the export
            self.set(exc)
            raise

    def sleep(self, seconds: float) -> None:
        """Wait for a number of seconds.

        :raises Stopped: if the export is stopped.
        """
        self.wait_for(lambda: False, seconds)


class Cancellation:
    """Stops one export from another thread or from a signal handler.

    A signal handler may interrupt any code, even code that holds the lock of `Stop`. So `cancel` only sets a flag and
    puts into a SimpleQueue, whose `put` is reentrant (Python's manual, queue.SimpleQueue). A thread that waits for the
    queue does the rest: it sets the export's `Stop`, and calls `on_cancel`.
    """

    def __init__(self) -> None:
        self.stop = Stop()
        #: Cancels the export's queries on the server; set by the code that runs them.
        self.on_cancel: Callable[[], None] = lambda: None
        #: Whether `cancel` was called.
        self.cancelled = False
        self._requests: SimpleQueue[list[bool] | None] = SimpleQueue()
        self._worker: threading.Thread | None = None

    def cancel(self) -> None:
        """Set the stop flag and cancel the queries on the server; the export then raises `ExportCancelled`.

        Returns when both are done, or after three seconds. After the export's end it does nothing.
        """
        self.cancelled = True
        if self._worker is None or not self._worker.is_alive():
            return
        done: list[bool] = []
        self._requests.put(done)
        deadline = time.monotonic() + _CANCEL_SECONDS
        while not done and self._worker.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)

    def run(self, work: Callable[[], Result]) -> Result:
        """Run `work` in a thread; anything that interrupts the caller cancels it.

        Python runs signal handlers (SIGTERM, Ctrl-C, a time-out's alarm) in the main thread between two
        instructions. A main thread that waits inside libpq would run none until Postgres answers.
        """
        future: Future[Result] = Future()
        if self.cancelled:
            self.stop.set(cancelled())
        try:
            self._worker = _start_thread("canceller", self._serve)
            in_thread("export", work, future)
            while wait([future], _REPEAT_SECONDS).not_done:
                if self.cancelled:
                    self.cancel()
            return future.result()
        except BaseException as exc:
            if not future.cancel() and not future.done():  # it has begun
                self.cancel()
                wait([future], _END_SECONDS)
            if future.cancelled() or not future.done() or future.exception() is not exc:
                exc.add_note(_fate(future))
            raise
        finally:
            self._requests.put(None)

    def _serve(self) -> None:
        while (done := self._requests.get()) is not None:
            self.stop.set(cancelled())
            self.on_cancel()
            done.append(True)


def in_thread(name: str, work: Callable[[], Result], future: Future[Result] | None = None) -> Future[Result]:
    """Begin to do `work` in a thread of its own, which does not keep the interpreter from ending.

    :param future: gets the result, and is returned; None for a new one.
    :raises Exception: if there is no memory for a thread, or the system allows no further one.
    """
    future = future or Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as exc:  # any exception: whoever asks for the result raises it
            future.set_exception(exc)

    context = contextvars.copy_context()
    _start_thread(name, lambda: context.run(run))
    return future


def _start_thread(name: str, target: Callable[[], None]) -> threading.Thread:
    # Thread.start() waits for ever if the new thread finds no memory for its first steps. Not by malloc, which would
    # keep blocks of this size from then on.
    mmap.mmap(-1, _THREAD_BYTES).close()
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


def cancelled() -> ExportCancelled:
    """The error of an export that was stopped from outside."""
    return ExportCancelled("The export was cancelled.", "If that was not intended, export again.")


def _fate(future: Future[Result]) -> str:
    """What became of the interrupted work, which the interrupting exception can't say."""
    if future.cancelled():
        return "The export had not begun: nothing was published. Retry."
    if not future.done():
        return f"The export has not ended after {_END_SECONDS:.0f} s. The object may or may not be visible. Retry."
    if exc := future.exception():
        return f"{type(exc).__name__}: {exc}"
    return "The export was complete by then: what it wrote is visible, and a retry writes it again."
