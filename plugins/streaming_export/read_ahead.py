"""Reads several batches at a time, in threads, and hands their bytes on in order.

Reader i reads the batches i, i + N, i + 2N, … into its own pipe, and the consumer empties the pipes in
turn. A reader that is ahead waits when its pipe is full, so memory is bounded by the pipes, whatever the
number and the width of the rows.
"""

from __future__ import annotations

import io
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

#: Bytes that a reader may be ahead: enough for a batch of 50,000 rows of 80 bytes.
PIPE_BYTES = 4 * 1024 * 1024

# Bytes collected before they are handed to the pipe: COPY delivers each row by itself.
_CHUNK_BYTES = 256 * 1024

#: What a reader does for a batch: writes its bytes, returns its rows; None when there is no such batch.
ReadBatch = Callable[[int, BinaryIO], int | None]


class Stopped(Exception):
    """The consumer has gone; the reader ends."""


class Pipe(io.RawIOBase):
    """Bytes on their way from one reader to the consumer, at most `limit` of them (or one write).

    The reader calls `write`, `end_batch` and at last `finish`; the consumer calls `batch`; anyone calls
    `stop`.
    """

    def __init__(self, limit: int = PIPE_BYTES) -> None:
        self._limit = limit
        self._held = 0
        self._items: deque[bytes | int] = deque()
        self._finished = False
        self._stopped = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Add bytes, waiting for room.

        :raises Stopped: if the consumer has gone.
        """
        chunk = bytes(data)
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or not self._held or self._held + len(chunk) <= self._limit)
            if self._stopped:
                raise Stopped
            self._items.append(chunk)
            self._held += len(chunk)
            self._changed.notify_all()
        return len(chunk)

    def end_batch(self, rows: int) -> None:
        """Mark the end of a batch of `rows` rows."""
        with self._changed:
            self._items.append(rows)
            self._changed.notify_all()

    def finish(self, error: BaseException | None = None) -> None:
        """There are no more batches, or the reader failed."""
        with self._changed:
            self._finished, self._error = True, error
            self._changed.notify_all()

    def stop(self) -> None:
        """The consumer takes no more: wake the reader, and the consumer if it waits."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def batch(self) -> Iterator[tuple[bytes, int]]:
        """The bytes of the next batch, each with 0 rows, and last the batch's rows; nothing after the last batch.

        :raises BaseException: what the reader failed with.
        :raises Stopped: if the pipe was stopped.
        """
        while (item := self._take()) is not None:
            if isinstance(item, int):
                yield b"", item
                return
            yield item, 0

    def _take(self) -> bytes | int | None:
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._finished or self._stopped)
            if self._stopped:
                raise Stopped
            if self._error:
                raise self._error
            if not self._items:
                return None
            item = self._items.popleft()
            if isinstance(item, bytes):
                self._held -= len(item)
                self._changed.notify_all()
            return item


class ReadAhead:
    """Runs readers in threads, and yields what they read in the order of the batches.

    :param readers: one function a reader, each used by its own thread. They are called with the number of
        a batch, so that together they read batches 0, 1, 2, … each once.
    """

    def __init__(self, readers: list[ReadBatch]) -> None:
        self._pipes = [Pipe() for _ in readers]
        self._threads = [
            threading.Thread(target=self._read, args=(number, read), name=f"reader-{number}", daemon=True)
            for number, read in enumerate(readers)
        ]

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        """Chunks of bytes with the number of rows of the batch that they end, 0 inside a batch."""
        for thread in self._threads:
            thread.start()
        for pipe in itertools.cycle(self._pipes):
            empty = True
            for data, rows in pipe.batch():
                empty = False
                yield data, rows
            if empty:
                return

    def stop(self) -> None:
        """Wake and end readers and consumer; safe from any thread. Cancel what the readers run first."""
        for pipe in self._pipes:
            pipe.stop()

    def alive(self) -> bool:
        """Whether a reader is still running."""
        return any(thread.is_alive() for thread in self._threads)

    def _read(self, number: int, read: ReadBatch) -> None:
        pipe = self._pipes[number]
        writer = io.BufferedWriter(pipe, _CHUNK_BYTES)
        try:
            while (rows := read(number, writer)) is not None:
                writer.flush()
                pipe.end_batch(rows)
                number += len(self._pipes)
            pipe.finish()
        except BaseException as exc:  # whatever it is, the consumer raises it
            pipe.finish(exc)
        finally:
            # What is left of a failed batch must not be flushed when the writer is collected.
            pipe.close()
