"""Runs tasks in threads, and passes on their bytes in the order of the tasks; memory is bounded."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Generic, TypeVar, cast

from streaming_export.cancellation import Stop

Task = TypeVar("Task")

#: Bytes that a reader may be ahead of the consumer: a batch of 50,000 rows of 80 bytes. Of each reader and not of all
#: together, since its thread's memory (malloc's arena) stays as large as it ever was.
AHEAD_BYTES = 4 * 1024 * 1024

# Bytes per chunk: COPY delivers single rows, which are collected into chunks; a wide row is split.
_CHUNK_BYTES = 1024 * 1024


class _Piece:
    """The output of one task so far; all changes are made under the lock of the `Stop`."""

    def __init__(self) -> None:
        self.chunks: deque[tuple[_Handover, bytes]] = deque()  # each with the reader that holds it
        self.rows: int | None = None  # of the task, once it has ended


class ReadAhead(Generic[Task]):
    """A queue of tasks, and of the bytes that they produce.

    One thread calls `add` for each task, and at last `end`. Readers call `work`, each in a thread of its own. The
    consumer iterates. A reader that is too far ahead waits, unless the consumer waits for its bytes.

    :param stop: ends all of them.
    """

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._tasks: deque[tuple[Task, _Piece]] = deque()
        self._pieces: deque[_Piece] = deque()
        self._ended = False

    def add(self, task: Task) -> None:
        """Add a task; its bytes come after those of the tasks before."""
        self._stop.check()
        with self._stop.changing():
            piece = _Piece()
            self._tasks.append((task, piece))
            self._pieces.append(piece)

    def end(self) -> None:
        """There are no more tasks."""
        with self._stop.changing():
            self._ended = True

    def work(self, read: Callable[[Task, BinaryIO], int]) -> None:
        """Read one task after the other, until there are no more.

        :param read: writes the bytes of a task, and returns its rows.
        :raises Stopped: if the stop is set.
        """
        raw = _Handover(self)
        writer = io.BufferedWriter(cast(Any, raw), _CHUNK_BYTES)
        try:
            while (taken := self._take()) is not None:
                task, raw.piece = taken
                rows = read(task, writer)
                writer.flush()
                with self._stop.changing():
                    raw.piece.rows = rows
        finally:
            # What is left of a task that failed must not be flushed when the writer is collected.
            raw.closed = True

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        """Bytes, with the number of rows of the task if they are its last ones, and 0 otherwise.

        :raises Stopped: if the stop is set.
        """
        while (piece := self._next()) is not None:
            while (chunk := self._chunk(piece)) is not None:
                yield chunk, 0
                del chunk
            assert piece.rows is not None
            yield b"", piece.rows
            with self._stop.changing():
                self._pieces.popleft()

    def put(self, reader: _Handover, chunk: bytes) -> None:
        """Add bytes to a reader's piece, as soon as there is room, or the consumer waits for this piece."""
        piece = reader.piece

        def room() -> bool:
            return reader.held + len(chunk) <= AHEAD_BYTES or (piece is self._pieces[0] and not piece.chunks)

        with self._stop.when(room):
            piece.chunks.append((reader, chunk))
            reader.held += len(chunk)

    def _take(self) -> tuple[Task, _Piece] | None:
        with self._stop.when(lambda: self._tasks or self._ended):
            return self._tasks.popleft() if self._tasks else None

    def _next(self) -> _Piece | None:
        with self._stop.when(lambda: self._pieces or self._ended):
            return self._pieces[0] if self._pieces else None

    def _chunk(self, piece: _Piece) -> bytes | None:
        with self._stop.when(lambda: piece.chunks or piece.rows is not None):
            if not piece.chunks:
                return None
            reader, chunk = piece.chunks.popleft()
            reader.held -= len(chunk)
            return chunk


class _Handover:
    """The raw stream below a reader's buffer: passes what is written on to the `ReadAhead`.

    It has only what `io.BufferedWriter` uses: that asks for `closed` with each row, which costs more in a subclass of
    `io.RawIOBase`.
    """

    closed = False

    def __init__(self, read_ahead: ReadAhead[Any]) -> None:
        self._read_ahead = read_ahead
        self.piece = _Piece()
        self.held = 0  # bytes of this reader that wait for the consumer

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        for start in range(0, len(view), _CHUNK_BYTES):
            self._read_ahead.put(self, bytes(view[start : start + _CHUNK_BYTES]))
        return len(view)
