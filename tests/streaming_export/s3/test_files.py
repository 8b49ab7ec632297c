"""Files of an export: split between rows, each with its header, compressed or not."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from demo import services
from streaming_export import InvalidArgument, StoreError
from streaming_export.s3.bucket import Bucket
from streaming_export.s3.files import FileWriter, row_ends
from streaming_export.s3.layout import FileLayout
from streaming_export.s3.objects import ExportedFile
from tests.conftest import content, keys, open_uploads
from tests.streaming_export.store import hook, part_sizes, record, refusal

HEADER = b"id,text\n"
ROWS = [b'%d,"a ""b""\n,c %d"\n' % (number, number) for number in range(1_000)]


@pytest.fixture
def client(endpoint: str) -> Any:
    """A client of the test's own: its hooks reach no other test."""
    return services.s3_client(endpoint)


@pytest.fixture
def write(client: Any, bucket: str) -> Callable[..., list[ExportedFile]]:
    """Writes rows, in pieces that end anywhere."""

    def run(
        rows: list[bytes], *, key: str = "a/b.csv", header: bytes = HEADER, piece: int = 777, estimate: int = 0,
        **layout: Any,
    ) -> list[ExportedFile]:  # fmt: skip
        with writer(client, bucket, key, FileLayout(**layout), header, estimate) as files:
            for data, ended in pieces(b"".join(rows), piece):
                files.write(data, ended)
            exported = files.complete()
            assert files.visible == files.opened == len(exported)
            return exported

    return run


@contextlib.contextmanager
def writer(
    client: Any, bucket: str, key: str, layout: FileLayout, header: bytes = HEADER, estimate: int = 0
) -> Iterator[FileWriter]:
    with FileWriter(Bucket(client, bucket), key, layout, header, export_id="e", estimated_bytes=estimate) as files:
        files.open()
        yield files


def pieces(data: bytes, size: int) -> Iterator[tuple[bytes, int]]:
    """Data in pieces, each with the number of rows that end in it."""
    ends = row_ends(data)
    for at in range(0, len(data), size):
        yield data[at : at + size], sum(at < end <= at + size for end in ends)


def unpacked(body: bytes, compression: str | None) -> bytes:
    if compression == "gzip":
        return gzip.decompress(body)
    return zstandard.ZstdDecompressor().stream_reader(body).read() if compression else body


@settings(derandomize=True, deadline=None)
@given(st.lists(st.lists(st.text(alphabet='ab,"\n\r\\é'), min_size=2, max_size=3), min_size=1, max_size=20))
def test_rows_end_where_a_reader_ends_them(table: list[list[str]]) -> None:
    """A row ends at a line break outside of quotes, whatever is between quotes."""
    rows = [(",".join('"' + field.replace('"', '""') + '"' for field in row) + "\n").encode() for row in table]
    assert row_ends(b"".join(rows)) == list(itertools.accumulate(map(len, rows)))


def test_a_row_that_has_not_ended_is_looked_through_once() -> None:
    """Rows of many megabytes take no longer to split than others of that size."""
    started = time.monotonic()
    assert row_ends(b"1,x\n2," + b"x" * 2**23) == [4]
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("options", "key", "first", "second"),
    [
        ({}, "a/b.csv", "a/b.csv", "a/b.csv"),
        ({"max_rows": 1}, "a/b.csv", "a/b-00001.csv", "a/b-00002.csv"),
        ({"max_rows": 1}, "dt=1.5/orders", "dt=1.5/orders-00001", "dt=1.5/orders-00002"),
        ({"max_bytes": 1, "compression": "gzip"}, "a/b.csv", "a/b-00001.csv.gz", "a/b-00002.csv.gz"),
        ({"max_bytes": 1, "compression": "gzip"}, "a/b.csv.gz", "a/b-00001.csv.gz", "a/b-00002.csv.gz"),
        ({"compression": "gzip"}, "a/b.csv.gz", "a/b.csv.gz", "a/b.csv.gz"),
        ({"compression": "zstd"}, "a/b.csv", "a/b.csv.zst", "a/b.csv.zst"),
    ],
)
def test_keys(options: dict[str, Any], key: str, first: str, second: str) -> None:
    """Files are numbered if there can be several, and their extension says how they are compressed, once."""
    layout = FileLayout(**options)
    assert (layout.key(key, 1), layout.key(key, 2)) == (first, second)


@pytest.mark.parametrize(
    ("key", "compression", "why"),
    [
        ("a.csv.gz", None, r"it would hold plain CSV under \.gz; pass compression=\"gzip\""),
        ("a.zst", None, r"it would hold plain CSV under \.zst"),
        ("a.csv.gz", "zstd", r"it would hold zstd under \.gz"),
    ],
)
def test_a_key_that_promises_another_compression_is_refused(key: str, compression: Any, why: str) -> None:
    """Nothing is stored under an extension that says what it is not."""
    with pytest.raises(InvalidArgument, match=rf"^key=.*{why}"):
        FileLayout(compression).key(key, 1)


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_split_by_rows(write: Callable[..., Any], client: Any, bucket: str, compression: Any) -> None:
    """Each file has its header and at most as many rows; together, in order, they are all rows."""
    files = write(ROWS, max_rows=400, compression=compression)
    assert [file.rows for file in files] == [400, 400, 200]
    texts = [unpacked(content(client, bucket, file.key), compression) for file in files]
    assert all(text.startswith(HEADER) for text in texts)
    assert b"".join(text.removeprefix(HEADER) for text in texts) == b"".join(ROWS)


def test_split_by_bytes(write: Callable[..., Any], client: Any, bucket: str) -> None:
    """No file is larger than asked for, none is split inside a row, and none is needlessly small."""
    files = write(ROWS, max_bytes=4_000)
    assert len(files) > 2
    assert max(file.bytes for file in files) <= 4_000
    assert min(file.bytes for file in files[:-1]) > 4_000 - max(map(len, ROWS))
    for file in files:
        text = content(client, bucket, file.key).decode()
        assert len(list(csv.DictReader(io.StringIO(text, newline="")))) == file.rows
    assert sum(file.rows for file in files) == len(ROWS)


@pytest.mark.parametrize(
    ("rows", "layout", "counts"),
    [
        ([b"1,x\n", b"2,%b\n" % (b"x" * 500), b"3,x\n", b"4,x\n"], {"max_bytes": 25}, [1, 1, 2]),
        ([b"1,x\n"] * 4, {"max_rows": 2}, [2, 2]),
        ([], {"max_rows": 2}, [0]),
        ([], {}, [0]),
    ],
    ids=["a row over the limit is alone in its file", "no empty file follows a full one", "no rows", "one file"],
)
def test_numbers_of_files(
    write: Callable[..., Any], client: Any, bucket: str, rows: list[bytes], layout: dict[str, Any], counts: list[int]
) -> None:
    """A row is never cut, and there is always one file."""
    files = write(rows, **layout)
    assert [file.rows for file in files] == counts
    assert all(content(client, bucket, file.key).startswith(HEADER) for file in files)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_compression(write: Callable[..., Any], client: Any, bucket: str, compression: Any) -> None:
    """A compressed file is the plain file compressed, and says so in its name and its headers."""
    (file,) = write(ROWS, compression=compression)
    body = content(client, bucket, file.key)
    assert unpacked(body, compression) == HEADER + b"".join(ROWS)
    assert file.bytes == len(body) < len(b"".join(ROWS))
    head = client.head_object(Bucket=bucket, Key=file.key)
    assert (head["ContentType"], head["ContentEncoding"]) == ("text/csv", compression)
    assert head["ContentDisposition"] == 'attachment; filename="b.csv"'


def test_a_name_that_is_no_ascii(write: Callable[..., Any], client: Any, bucket: str) -> None:
    """A browser saves the file under its own name, whatever its characters."""
    (file,) = write([], key='a/€ "1".csv')
    head = client.head_object(Bucket=bucket, Key=file.key)
    assert head["ContentDisposition"] == "attachment; filename*=UTF-8''%E2%82%AC%20%221%22.csv"


def test_no_file_is_visible_before_all_are_written(client: Any, bucket: str) -> None:
    """A failure in the last row leaves none of the files before it, and no open upload."""
    with pytest.raises(KeyError), writer(client, bucket, "a.csv", FileLayout(max_rows=1)) as files:  # noqa: PT012
        for row in ROWS[:3]:
            files.write(row, 1)
        assert (files.opened, files.visible) == (3, 0)
        raise KeyError
    assert keys(client, bucket) == []
    assert open_uploads(client, bucket) == []


def test_a_failure_between_files_says_how_many_are_visible(client: Any, bucket: str) -> None:
    """Files become visible one after the other: an error has the number of those that are."""
    hook(client, "PutObject", lambda params: refusal("QuotaFull"))  # of the last file
    writing = writer(client, bucket, "a.csv", FileLayout(max_rows=1))
    with pytest.raises(StoreError, match="QuotaFull"), writing as files:  # noqa: PT012
        for row in ROWS[:3]:
            files.write(row, 1)
        files.complete()
    assert (files.opened, files.visible) == (3, 2)
    assert keys(client, bucket) == ["a-00001.csv", "a-00002.csv"]
    assert open_uploads(client, bucket) == []


def test_a_store_that_is_gone_is_asked_once(client: Any, bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    """Aborting many files does not wait for the store once a file; the log names each upload that stays."""
    requests = record(client)
    with pytest.raises(KeyError), writer(client, bucket, "a.csv", FileLayout(max_rows=1)) as files:  # noqa: PT012
        for row in ROWS[:4]:
            files.write(row, 1)
        hook(client, "AbortMultipartUpload", lambda params: refusal("ServiceUnavailable", 503))
        raise KeyError
    assert [name for name, _ in requests].count("AbortMultipartUpload") == 1
    assert sum("Cannot abort upload" in message for message in caplog.messages) == 3


@pytest.mark.parametrize(
    ("estimate", "layout", "size"),
    [(0, {}, 6 * 2**20), (42 * 2**30, {}, 13 * 2**20), (42 * 2**30, {"max_bytes": 10**9}, 6 * 2**20)],
)
def test_parts_are_chosen_by_the_estimate(
    write: Callable[..., Any], client: Any, estimate: int, layout: dict[str, Any], size: int
) -> None:
    """The larger a file is estimated, the larger its parts; a file is never larger than asked for."""
    sizes = part_sizes(client)
    write([b"1,%b\n" % (b"x" * 2**20)] * 15, estimate=estimate, piece=2**20, **layout)
    parts = [sizes[number] for number in sorted(sizes)]
    assert set(parts[:-1]) == {size}
