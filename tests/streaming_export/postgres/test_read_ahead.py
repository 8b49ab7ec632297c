"""ReadAhead: order, bounds, and how an end, an error or a stop reaches the other side."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming_export.cancellation import Stop, Stopped
from streaming_export.postgres.read_ahead import AHEAD_BYTES, ReadAhead
from tests.streaming_export.waiting import PATIENCE, Running, eventually

CHUNK_BYTES = 1024 * 1024

Read = Callable[[Any, BinaryIO], int]


class Setting:
    """A ReadAhead whose tasks are bytes to write, a row each, with threads as a `Reader` has them."""

    def __init__(self) -> None:
        self.stop = Stop()
        self.read_ahead = ReadAhead[Any](self.stop)
        self.threads: list[Running] = []

    def held(self) -> int:
        """Bytes that wait for the consumer, without those on their way."""
        with self.stop.changing():
            return sum(len(chunk) for piece in self.read_ahead._pieces for _, chunk in piece.chunks)

    def feed(self, tasks: Iterable[Any]) -> None:
        for task in tasks:
            self.read_ahead.add(task)
        self.read_ahead.end()

    def read(self, *reads: Read) -> None:
        """Start a reader for each; what one fails with is the reason of the stop."""
        for read in reads:
            self.threads.append(Running(lambda read=read: self._work(read)))  # type: ignore[misc]

    def _work(self, read: Read) -> None:
        try:
            self.read_ahead.work(read)
        except Stopped:
            raise
        except BaseException as exc:
            self.stop.set(exc)
            raise

    def gather(self) -> tuple[bytes, list[int]]:
        """All bytes, and the rows of each task."""
        gathering = Running(lambda: list(self.read_ahead))
        assert gathering.ends()
        if gathering.error:
            raise gathering.error
        items: Any = gathering.result
        return b"".join(data for data, _ in items), [rows for data, rows in items if not data]

    def end(self) -> list[BaseException | None]:
        """Wait until the readers have ended; what they ended with."""
        assert all(thread.ends() for thread in self.threads)
        return [thread.error for thread in self.threads]


def write(task: bytes, writer: BinaryIO) -> int:
    """Reads a task as it is, a row each byte."""
    writer.write(task)
    return len(task)


# Order


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    readers=st.integers(1, 4),
    tasks=st.lists(st.lists(st.integers(0, 3 * CHUNK_BYTES) | st.integers(0, 20), max_size=4), max_size=10),
    slow=st.integers(0, 2**32),
)
def test_bytes_come_in_the_order_of_the_tasks(readers: int, tasks: list[list[int]], slow: int) -> None:
    """With any readers, tasks and delays, all bytes come in order, in chunks, and each task's rows at its end."""
    setting, wait = Setting(), random.Random(slow)

    def read(task: tuple[int, list[int]], writer: BinaryIO) -> int:
        number, sizes = task
        for size in sizes:
            time.sleep(wait.choice((0, 0, 0.001)))
            writer.write(bytes([number + 1]) * size)
        return sum(sizes)

    setting.read(*[read] * readers)
    feeding = Running(lambda: setting.feed(enumerate(tasks)))
    items = list(setting.read_ahead)
    expected = b"".join(bytes([number + 1]) * sum(sizes) for number, sizes in enumerate(tasks))
    assert b"".join(data for data, _ in items) == expected
    assert [rows for data, rows in items if not data] == [sum(sizes) for sizes in tasks]
    assert max((len(data) for data, _ in items), default=0) <= CHUNK_BYTES
    assert feeding.ends()
    assert setting.end() == [None] * readers


def test_readers_read_at_the_same_time() -> None:
    """As many tasks are read at a time as there are readers; a slow one is not overtaken in the file."""
    setting, together = Setting(), threading.Barrier(3)

    def read(task: bytes, writer: BinaryIO) -> int:
        together.wait(PATIENCE)
        return write(task, writer)

    setting.feed([b"a", b"b", b"c"])
    setting.read(read, read, read)
    assert setting.gather() == (b"abc", [1, 1, 1])


def test_reading_begins_before_all_tasks_are_known() -> None:
    """What is read is handed on at once; who comes too early waits for the next task."""
    setting = Setting()
    setting.read(write)
    setting.read_ahead.add(b"a")
    chunks = iter(setting.read_ahead)
    assert [next(chunks), next(chunks)] == [(b"a", 0), (b"", 1)]
    consuming = Running(lambda: next(chunks))
    assert not consuming.ends(within=0.1)
    setting.read_ahead.add(b"b")
    assert consuming.ends()
    assert consuming.result == (b"b", 0)
    setting.read_ahead.end()
    assert list(chunks) == [(b"", 1)]
    assert setting.end() == [None]


def test_the_end_wakes_who_waits() -> None:
    """Readers and the consumer, who wait for a task that does not come, learn that there is none."""
    setting = Setting()
    setting.read(write, write)
    consuming = Running(setting.gather)
    assert not consuming.ends(within=0.1)
    setting.read_ahead.end()
    assert consuming.ends()
    assert consuming.result == (b"", [])
    assert setting.end() == [None, None]


def test_a_buffer_may_be_used_again() -> None:
    """What is handed over is a copy: libpq frees its buffer."""
    setting, buffer = Setting(), bytearray(2 * CHUNK_BYTES)

    def read(task: bytes, writer: BinaryIO) -> int:
        writer.write(buffer)
        writer.flush()
        buffer[:] = b"x" * len(buffer)
        return 1

    setting.feed([b""])
    setting.read(read)
    assert setting.end() == [None]
    assert setting.gather() == (bytes(2 * CHUNK_BYTES), [1])


# Bounds


def test_a_wide_row_is_handed_over_in_chunks() -> None:
    """A row of many megabytes is never a second time in memory as a whole; the bound holds within it."""
    setting, row = Setting(), bytes(4 * AHEAD_BYTES)
    setting.feed([row])
    setting.read(write)
    assert eventually(lambda: setting.held() >= AHEAD_BYTES - CHUNK_BYTES)
    assert not setting.threads[0].ends(within=0.1)
    assert setting.held() <= AHEAD_BYTES
    items = list(setting.read_ahead)
    assert {len(data) for data, _ in items} == {CHUNK_BYTES, 0}
    assert b"".join(data for data, _ in items) == row


@pytest.mark.parametrize("readers", [1, 2, 3])
def test_readers_ahead_hold_a_bounded_number_of_bytes(readers: int) -> None:
    """Readers that are ahead of the consumer stop at the bound, however many rows they have, whatever their width."""
    setting, written, lock = Setting(), [0], threading.Lock()

    def read(row: bytes, writer: BinaryIO) -> int:
        for _ in range(4 * AHEAD_BYTES // len(row)):
            writer.write(row)
            with lock:
                written[0] += len(row)
        return 0

    tasks = [bytes(100), bytes(100_000), bytes(1_000_000)] * readers
    setting.feed(tasks)
    setting.read(*[read] * readers)
    chunks = iter(setting.read_ahead)
    next(chunks)
    size = 0
    while size != written[0]:
        size = written[0]
        time.sleep(0.1)
    # Beside it, for each reader the chunk that waits for room and what its writer collects, and the chunk taken above.
    assert size <= readers * (AHEAD_BYTES + 1_000_000 + CHUNK_BYTES) + CHUNK_BYTES
    setting.stop.set(ZeroDivisionError())
    assert all(isinstance(error, Stopped) for error in setting.end())


def test_the_reader_that_the_consumer_waits_for_is_never_held_up() -> None:
    """Others may hold all there is: the one whose bytes come next still hands over a chunk at a time."""
    setting, full = Setting(), threading.Event()

    def read(task: str, writer: BinaryIO) -> int:
        if task == "next":
            assert full.wait(PATIENCE)
        writer.write(task[:1].encode() * 3 * AHEAD_BYTES)
        return 1

    setting.feed(["next", "after"])
    setting.read(read, read)
    assert eventually(lambda: setting.held() > AHEAD_BYTES - CHUNK_BYTES)
    full.set()
    assert setting.gather() == (b"n" * 3 * AHEAD_BYTES + b"a" * 3 * AHEAD_BYTES, [1, 1])
    assert setting.end() == [None, None]


# Errors and stops


@pytest.mark.parametrize("failing", [0, 1, 4])
@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt])
def test_a_reader_that_fails_stops_all(failing: int, kind: type[BaseException]) -> None:
    """Its error is the reason; nobody gets the rest of its task, and no thread waits for it."""
    setting = Setting()

    def read(task: int, writer: BinaryIO) -> int:
        writer.write(bytes([task]) * 10)
        if task == failing:
            writer.write(b"half a row")
            raise kind("first")
        return 1

    got: list[bytes] = []

    def consume() -> None:
        for data, _ in setting.read_ahead:
            got.append(data)

    consuming = Running(consume)
    setting.read(read, read, read)
    Running(lambda: setting.feed(range(6)))
    assert consuming.ends()
    assert isinstance(consuming.error, Stopped)
    assert isinstance(setting.stop.reason, kind)
    setting.end()
    gc.collect()  # a writer that is collected flushes what it holds
    whole = b"".join(bytes([task]) * 10 for task in range(failing))
    assert whole.startswith(b"".join(got))


def test_a_stop_ends_whoever_waits() -> None:
    """A reader that waits for room, one that waits for a task, the consumer, and the feeder: all end, at once."""
    setting = Setting()
    waiting, query = threading.Event(), threading.Event()

    def read(task: str, writer: BinaryIO) -> int:
        if task == "a query that takes long":
            assert query.wait(PATIENCE)  # until it is cancelled
            writer.write(b"x" * 10 * AHEAD_BYTES)
        waiting.set()
        writer.write(bytes(10 * AHEAD_BYTES))
        return 1

    for task in ("a query that takes long", "ahead"):
        setting.read_ahead.add(task)
    setting.read(read, read, read)
    consuming = Running(setting.gather)
    feeding = Running(lambda: setting.stop.wait_for(lambda: False))
    assert waiting.wait(PATIENCE)
    assert not consuming.ends(within=0.1)
    reason = ZeroDivisionError("first")
    setting.stop.set(reason)
    setting.stop.set(KeyError("second"))
    assert [one.ends() for one in (consuming, feeding)] == [True, True]
    query.set()
    assert all(isinstance(error, Stopped) for error in [*setting.end(), consuming.error, feeding.error])
    assert setting.stop.reason is reason


def test_what_is_stopped_before_it_begins_reads_nothing() -> None:
    """No task is taken or added after a stop."""
    setting = Setting()
    setting.read_ahead.add(b"a")
    setting.stop.set(ZeroDivisionError())
    setting.read(write)
    with pytest.raises(Stopped):
        setting.gather()
    with pytest.raises(Stopped):
        setting.read_ahead.add(b"b")
    assert isinstance(setting.end()[0], Stopped)
    assert setting.held() == 0


def test_a_wait_ends_when_its_time_is_over() -> None:
    """`Stop.wait_for` returns after its time-out, though the condition does not hold."""
    started = time.monotonic()
    Stop().wait_for(lambda: False, 0.01)
    assert 0.01 <= time.monotonic() - started < PATIENCE
