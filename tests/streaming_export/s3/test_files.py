"""Files of an export: split between rows, each with its header, compressed or not."""

from __future__ import annotations

import csv
import gzip
import io
from typing import Any

import pytest
import sqlalchemy as sa
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming_export import export
from streaming_export.files import _ROW, Format
from streaming_export.query import csv_field
from tests.conftest import content, keys, open_uploads

HEADER = b"id,customer_email,total_cents,status,created_at\n"


def run(exporter: sa.Engine, client: Any, bucket: str, **options: Any) -> Any:
    """Export the table orders."""
    arguments: dict[str, Any] = {"unique_key": "id", "key": "a/orders.csv", **options}
    return export("SELECT * FROM orders", engine=exporter, client=client, bucket=bucket, **arguments)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.lists(st.text(alphabet='ab,"\n\r\\é'), min_size=2, max_size=3), min_size=1, max_size=20))
def test_rows_end_where_a_reader_ends_them(table: list[list[str]]) -> None:
    """A row ends at a line break outside of quotes, whatever is between quotes."""
    rows = [(",".join(map(csv_field, row)) + "\n").encode() for row in table]
    assert [match.group() for match in _ROW.finditer(b"".join(rows))] == rows


@pytest.mark.parametrize(
    ("options", "first", "second"),
    [
        ({}, "a/b.csv", "a/b.csv"),
        ({"max_rows": 1}, "a/b-00001.csv", "a/b-00002.csv"),
        ({"max_bytes": 1, "compression": "gzip"}, "a/b-00001.csv.gz", "a/b-00002.csv.gz"),
        ({"compression": "zstd"}, "a/b.csv.zst", "a/b.csv.zst"),
    ],
)
def test_keys(options: dict[str, Any], first: str, second: str) -> None:
    """Files are numbered if there can be several, and their extension tells how they are compressed."""
    form = Format(HEADER, **options)
    assert (form.key("a/b.csv", 1), form.key("a/b.csv", 2)) == (first, second)


def test_an_extension_is_not_added_twice() -> None:
    """A key that says already how the file is compressed stays as it is."""
    assert Format(HEADER, "gzip").key("a/b.csv.gz", 1) == "a/b.csv.gz"


def test_a_key_without_extension_is_numbered_at_its_end() -> None:
    """Only the last name of a key can have an extension."""
    assert Format(HEADER, max_rows=1).key("dt=1.5/orders", 1) == "dt=1.5/orders-00001"


@pytest.mark.parametrize("method", ["copy", "rows"])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_split_by_rows(
    orders: int, exporter: sa.Engine, client: Any, bucket: str, method: str, compression: str | None
) -> None:
    """Each file has its header and at most as many rows; together, in order, they are the unsplit file."""
    whole = run(exporter, client, bucket, key="whole.csv")
    result = run(exporter, client, bucket, key="part.csv", method=method, compression=compression, max_file_rows=5_000)
    assert [file.rows for file in result.files] == [5_000, 5_000, orders - 10_000]
    assert result.rows == orders
    texts = [content(client, bucket, file.key) for file in result.files]
    if compression:
        texts = [gzip.decompress(text) for text in texts]
    assert all(text.startswith(HEADER) for text in texts)
    assert HEADER + b"".join(text.removeprefix(HEADER) for text in texts) == content(client, bucket, whole.key)


def test_split_by_bytes(orders: int, exporter: sa.Engine, client: Any, bucket: str) -> None:
    """No file is larger than asked for, none is split inside a row, and none is needlessly small."""
    result = run(exporter, client, bucket, max_file_bytes=100_000)
    assert len(result.files) > 2
    sizes = [file.bytes for file in result.files]
    assert max(sizes) <= 100_000
    assert min(sizes[:-1]) > 99_000
    ids: list[int] = []
    for file in result.files:
        rows = list(csv.DictReader(io.StringIO(content(client, bucket, file.key).decode(), newline="")))
        assert len(rows) == file.rows
        ids += [int(row["id"]) for row in rows]
    assert len(ids) == orders
    assert ids == sorted(ids)


def test_a_row_over_the_limit_is_a_file_of_its_own(schema: str, exporter: sa.Engine, client: Any, bucket: str) -> None:
    """A row is never cut: one that is larger than a file may be is alone in its file."""
    query = "SELECT i, repeat('x', CASE i WHEN 2 THEN 500 ELSE 5 END) AS t FROM generate_series(1, 4) AS i"
    result = export(query, engine=exporter, client=client, bucket=bucket, key="a.csv", max_file_bytes=25)
    assert [file.rows for file in result.files] == [1, 1, 2]


def test_exact_multiple_makes_no_empty_file(schema: str, exporter: sa.Engine, client: Any, bucket: str) -> None:
    """When the last file is exactly full, none follows it."""
    query = "SELECT i FROM generate_series(1, 4) AS i"
    result = export(query, engine=exporter, client=client, bucket=bucket, key="a.csv", max_file_rows=2)
    assert [file.rows for file in result.files] == [2, 2]


def test_no_rows_make_one_file(schema: str, exporter: sa.Engine, client: Any, bucket: str) -> None:
    """An empty result that is split is one file with just the header."""
    query = "SELECT 1 AS i WHERE false"
    result = export(query, engine=exporter, client=client, bucket=bucket, key="a.csv", max_file_rows=2)
    assert [content(client, bucket, file.key) for file in result.files] == [b"i\n"]


def test_no_file_is_visible_before_all_are_written(schema: str, exporter: sa.Engine, client: Any, bucket: str) -> None:
    """A failure in the last row leaves none of the files before it, and no open upload."""
    query = "SELECT 1 / (4 - i) AS n FROM generate_series(1, 4) AS i"
    with pytest.raises(Exception, match="Nothing was published"):
        export(query, engine=exporter, client=client, bucket=bucket, key="a.csv", max_file_rows=1)
    assert keys(client, bucket) == []
    assert open_uploads(client, bucket) == []


@pytest.mark.parametrize(("compression", "decompress"), [("gzip", gzip.decompress), ("zstd", None)])
def test_compression(
    orders: int, exporter: sa.Engine, client: Any, bucket: str, compression: str, decompress: Any
) -> None:
    """A compressed file is the plain file compressed, and says so in its name and its headers."""
    plain = run(exporter, client, bucket)
    packed = run(exporter, client, bucket, compression=compression)
    body = content(client, bucket, packed.key)
    text = decompress(body) if decompress else zstandard.ZstdDecompressor().stream_reader(body).read()
    assert text == content(client, bucket, plain.key)
    assert packed.bytes == len(body) < plain.bytes
    assert packed.key == plain.key + {"gzip": ".gz", "zstd": ".zst"}[compression]
    head = client.head_object(Bucket=bucket, Key=packed.key)
    assert (head["ContentType"], head["ContentEncoding"]) == ("text/csv", compression)
    assert head["ContentDisposition"] == 'attachment; filename="orders.csv"'


def test_compressed_bytes_are_the_same_each_time(orders: int, exporter: sa.Engine, client: Any, bucket: str) -> None:
    """The same rows give the same file, so that its checksum tells whether anything has changed."""
    first, second = (run(exporter, client, bucket, compression="gzip").sha256 for _ in range(2))
    assert first == second
