"""Pipe, ReadAhead and Cuts: order, bounds, and how an end or an error reaches the other side."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming_export.batches import Cuts
from streaming_export.read_ahead import PIPE_BYTES, Pipe, ReadAhead, ReadBatch, Stopped
from tests.streaming_export.waiting import PATIENCE, Running


def reader(batches: list[bytes], before: Callable[[int], object] = lambda number: None) -> ReadBatch:
    """A reader of batches of one row each byte, which runs `before` ahead of each."""

    def read(number: int, writer: BinaryIO) -> int | None:
        before(number)
        if number >= len(batches):
            return None
        writer.write(batches[number])
        return len(batches[number])

    return read


def gather(chunks: Iterator[tuple[bytes, int]]) -> tuple[bytes, int]:
    """All bytes, and the sum of the rows."""
    items = list(chunks)
    return b"".join(data for data, _ in items), sum(rows for _, rows in items)


def join(read_ahead: ReadAhead) -> None:
    """Wait until the readers have ended."""
    for thread in read_ahead._threads:
        thread.join(PATIENCE)
    assert not read_ahead.alive()


# ---- Pipe


def test_a_pipe_keeps_order_and_rows() -> None:
    """What was written comes out in order, batch by batch, each ended by its number of rows."""
    pipe = Pipe()
    pipe.write(b"a")
    pipe.write(b"b")
    pipe.end_batch(2)
    pipe.end_batch(0)
    pipe.write(b"c")
    pipe.end_batch(1)
    pipe.finish()
    assert list(pipe.batch()) == [(b"a", 0), (b"b", 0), (b"", 2)]
    assert list(pipe.batch()) == [(b"", 0)]
    assert list(pipe.batch()) == [(b"c", 0), (b"", 1)]
    assert list(pipe.batch()) == []


def test_a_pipe_copies_what_is_written() -> None:
    """The writer may use its buffer again at once."""
    pipe = Pipe()
    buffer = bytearray(b"first")
    pipe.write(memoryview(buffer))
    buffer[:] = b"other"
    pipe.end_batch(1)
    assert gather(pipe.batch()) == (b"first", 1)


def test_a_full_pipe_makes_the_writer_wait() -> None:
    """A writer waits until there is room for all of what it writes."""
    pipe = Pipe(limit=10)
    pipe.write(b"123456")
    pipe.write(b"7890")
    writing = Running(lambda: pipe.write(b"abcde"))
    batch = pipe.batch()
    assert not writing.ends(within=0.2)
    assert next(batch) == (b"123456", 0)
    assert writing.ends()
    assert writing.result == 5


def test_a_write_larger_than_the_limit_passes_alone() -> None:
    """One write may be larger than the limit: it waits until the pipe is empty, and then passes."""
    pipe = Pipe(limit=10)
    pipe.write(b"1")
    writing = Running(lambda: pipe.write(b"x" * 100))
    assert not writing.ends(within=0.2)
    batch = pipe.batch()
    assert next(batch) == (b"1", 0)
    assert next(batch) == (b"x" * 100, 0)
    assert writing.ends()
    assert writing.error is None


def test_an_error_comes_before_what_is_buffered() -> None:
    """When the reader has failed, the consumer gets its error, and not the rest of a batch that is not whole."""
    pipe = Pipe()
    pipe.write(b"half a batch")
    pipe.finish(ZeroDivisionError("first"))
    with pytest.raises(ZeroDivisionError, match="first"):
        next(pipe.batch())


def test_stop_wakes_the_writer() -> None:
    """A writer that waits for room ends when the consumer goes, and so does one that comes later."""
    pipe = Pipe(limit=1)
    pipe.write(b"1")
    writing = Running(lambda: pipe.write(b"2"))
    assert not writing.ends(within=0.1)
    pipe.stop()
    assert writing.ends()
    assert isinstance(writing.error, Stopped)
    with pytest.raises(Stopped):
        pipe.write(b"3")


def test_stop_wakes_the_consumer() -> None:
    """A consumer that waits for bytes ends when the pipe is stopped."""
    pipe = Pipe()
    consuming = Running(lambda: next(pipe.batch()))
    assert not consuming.ends(within=0.1)
    pipe.stop()
    assert consuming.ends()
    assert isinstance(consuming.error, Stopped)


def test_finish_wakes_the_consumer() -> None:
    """A consumer that waits for bytes learns that there are no more batches."""
    pipe = Pipe()
    consuming = Running(lambda: list(pipe.batch()))
    assert not consuming.ends(within=0.1)
    pipe.finish()
    assert consuming.ends()
    assert consuming.result == []


# ---- ReadAhead


@settings(max_examples=60, deadline=None)
@given(
    readers=st.integers(1, 5),
    batches=st.lists(st.binary(max_size=20), max_size=12),
)
def test_batches_come_in_order(readers: int, batches: list[bytes]) -> None:
    """With any number of readers and batches, all bytes come in the order of the batches, and all rows."""
    read_ahead = ReadAhead([reader(batches) for _ in range(readers)])
    assert gather(iter(read_ahead)) == (b"".join(batches), sum(map(len, batches)))
    join(read_ahead)


@pytest.mark.parametrize("slow", range(3))
def test_order_does_not_depend_on_speed(slow: int) -> None:
    """A reader that waits until the others have read all they may is not overtaken in the file."""
    batches = [bytes([number]) * 3 for number in range(12)]
    others_done = threading.Barrier(3)

    def wait_for_others(number: int) -> None:
        if number == slow or (number >= len(batches) and number % 3 != slow):
            others_done.wait(PATIENCE)

    read_ahead = ReadAhead([reader(batches, wait_for_others) for _ in range(3)])
    assert gather(iter(read_ahead)) == (b"".join(batches), 36)
    join(read_ahead)


def test_readers_read_at_the_same_time() -> None:
    """As many batches are read at a time as there are readers."""
    together = threading.Barrier(3)
    batches = [b"a", b"b", b"c"]
    read_ahead = ReadAhead(
        [reader(batches, lambda number: together.wait(PATIENCE) if number < 3 else None) for _ in range(3)]
    )
    assert gather(iter(read_ahead)) == (b"abc", 3)
    join(read_ahead)


def test_each_reader_is_used_by_one_thread() -> None:
    """Reader i reads the batches i, i + N, …: a connection is never shared by two threads."""
    seen: list[set[tuple[int, str]]] = [set(), set()]
    batches = [b"x"] * 6

    def watched(index: int) -> ReadBatch:
        return reader(batches, lambda number: seen[index].add((number, threading.current_thread().name)))

    read_ahead = ReadAhead([watched(0), watched(1)])
    gather(iter(read_ahead))
    join(read_ahead)
    for index, calls in enumerate(seen):
        assert [number for number, _ in sorted(calls)] == [index, index + 2, index + 4, index + 6]
        assert len({thread for _, thread in calls}) == 1


def test_readers_ahead_hold_a_bounded_number_of_bytes() -> None:
    """Readers that are ahead of the consumer stop at the pipe's limit, however large their batches are."""
    row = bytes(100_000)
    written = [0, 0]

    def large_batch(index: int) -> ReadBatch:
        def read(number: int, writer: BinaryIO) -> int | None:
            while written[index] < 5 * PIPE_BYTES:
                writer.write(row)
                written[index] += len(row)
            return None

        return read

    read_ahead = ReadAhead([large_batch(0), large_batch(1)])
    next(iter(read_ahead))
    assert not Running(lambda: join(read_ahead)).ends(within=0.5)
    # The pipe, the chunk that waits for room, the one that is being collected, the one taken above.
    assert max(written) <= PIPE_BYTES + 1_000_000
    read_ahead.stop()
    join(read_ahead)


@pytest.mark.parametrize("failing", range(3))
@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt])
def test_a_readers_error_reaches_the_consumer(failing: int, kind: type[BaseException]) -> None:
    """What a reader failed with, whatever it is, is raised at the latest where its batch would come."""
    batches = [b"a", b"b", b"c", b"d", b"e", b"f"]

    def fail(number: int) -> None:
        if number == 3 + failing:
            raise kind("first")

    read_ahead = ReadAhead([reader(batches, fail) for _ in range(3)])
    got: list[bytes] = []
    consuming = Running(lambda: [got.append(data) for data, _ in read_ahead])
    assert consuming.ends()
    assert isinstance(consuming.error, kind)
    assert str(consuming.error) == "first"
    assert b"abcdef"[: 3 + failing].startswith(b"".join(got))
    read_ahead.stop()
    join(read_ahead)


def test_the_rest_of_a_failed_batch_is_not_handed_on() -> None:
    """What a failed reader had buffered is dropped: nobody gets it, and no thread waits for room for it."""

    def failing(number: int, writer: BinaryIO) -> int | None:
        writer.write(bytes(PIPE_BYTES))
        writer.write(b"half a row")
        raise ZeroDivisionError

    def consume() -> None:
        read_ahead = ReadAhead([reader([b"a"]), failing])
        chunks = iter(read_ahead)
        assert next(chunks) == (b"a", 0)
        join(read_ahead)
        assert next(chunks) == (b"", 1)
        with pytest.raises(ZeroDivisionError):
            next(chunks)

    def consume_and_collect() -> None:
        consume()
        gc.collect()

    consuming = Running(consume_and_collect)
    assert consuming.ends()
    assert consuming.error is None


def test_stop_ends_readers_and_consumer() -> None:
    """`stop` wakes readers that wait for room and a consumer that waits for bytes; no thread is left."""
    waiting = threading.Event()
    blocked = threading.Event()

    def first(number: int, writer: BinaryIO) -> int | None:
        assert blocked.wait(PATIENCE)  # as a query that takes long, until it is cancelled
        writer.write(b"x")
        writer.flush()
        return 1

    def ahead(number: int, writer: BinaryIO) -> int | None:
        waiting.set()
        while True:
            writer.write(bytes(PIPE_BYTES))

    read_ahead = ReadAhead([first, ahead])
    consuming = Running(lambda: gather(iter(read_ahead)))
    assert waiting.wait(PATIENCE)
    read_ahead.stop()
    blocked.set()
    assert consuming.ends()
    assert isinstance(consuming.error, Stopped)
    join(read_ahead)


def test_stop_before_the_start() -> None:
    """What was stopped before it began yields nothing."""
    read_ahead = ReadAhead([reader([b"a"])])
    read_ahead.stop()
    with pytest.raises(Stopped):
        gather(iter(read_ahead))
    join(read_ahead)


# ---- Cuts


def test_cuts_bound_the_batches() -> None:
    """Each cut ends a batch; the first has no lower bound, the last no upper one, and then there is none."""
    cuts = Cuts()
    cuts.add("10")
    cuts.add("20")
    cuts.finish()
    assert [cuts.batch(number) for number in range(5)] == [(None, "10"), ("10", "20"), ("20", None), None, None]


def test_without_a_cut_there_is_one_batch() -> None:
    """A query smaller than a batch is one batch without bounds."""
    cuts = Cuts()
    cuts.finish()
    assert [cuts.batch(0), cuts.batch(1)] == [(None, None), None]


def test_a_batch_is_known_before_all_cuts_are() -> None:
    """Reading starts while cuts are still being found; who asks too early waits for the cut."""
    cuts = Cuts()
    cuts.add("10")
    assert cuts.batch(0) == (None, "10")
    asking = Running(lambda: cuts.batch(1))
    assert not asking.ends(within=0.1)
    cuts.add("20")
    assert asking.ends()
    assert asking.result == ("10", "20")


def test_the_end_of_the_cuts_wakes_who_waits() -> None:
    """Whoever waits for a cut that does not come learns that the batch is the last, or not there."""
    cuts = Cuts()
    asking = [Running(lambda number=number: cuts.batch(number)) for number in range(3)]  # type: ignore[misc]
    cuts.add("10")
    cuts.finish()
    assert all(one.ends() for one in asking)
    assert [one.result for one in asking] == [(None, "10"), ("10", None), None]


def test_an_error_in_the_search_reaches_all_who_ask() -> None:
    """If the search for cuts fails, so does whoever asks for a batch, now or later."""
    cuts = Cuts()
    cuts.add("10")
    asking = Running(lambda: cuts.batch(1))
    cuts.finish(ZeroDivisionError("first"))
    assert asking.ends()
    assert isinstance(asking.error, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError, match="first"):
        cuts.batch(0)
