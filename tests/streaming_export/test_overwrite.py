"""What an export does not replace: with overwrite=False any object, and of two windows the later one."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from demo import services
from streaming_export import AlreadyExists, Options, VerificationError
from tests.conftest import content, keys, open_uploads
from tests.streaming_export.exporting import export
from tests.streaming_export.store import hook

LARGE = "SELECT i, repeat('x', 1000) AS x FROM generate_series(1, 20000) AS i"


@pytest.mark.parametrize("query", ["SELECT 1 AS one", LARGE], ids=["one put", "in parts"])
def test_an_object_that_is_there_stays(exporter: sa.Engine, client: Any, bucket: str, query: str) -> None:
    """The export fails before it reads a row, names the object, and a retry would not help."""
    client.put_object(Bucket=bucket, Key="a.csv", Body=b"precious")
    with pytest.raises(
        AlreadyExists, match=r"(?s)a\.csv already exists \(8 bytes of .*Nothing was published"
    ) as caught:
        export(query, engine=exporter, client=client, bucket=bucket, key="a.csv", overwrite=False)
    assert not caught.value.transient
    assert content(client, bucket, "a.csv") == b"precious"
    assert keys(client, bucket) == ["a.csv"]
    assert open_uploads(client, bucket) == []


@pytest.mark.parametrize("other", [{"compression": "gzip"}, {"max_file_rows": 1}], ids=["compressed", "split"])
def test_an_export_under_another_name_keeps_its_manifest(
    exporter: sa.Engine, client: Any, bucket: str, other: dict[str, Any]
) -> None:
    """The names of files depend on the options, but an export has one manifest, without which its files are lost."""
    first = export("SELECT 1 AS one", engine=exporter, client=client, bucket=bucket, key="a.csv", **other)
    before = content(client, bucket, "a.csv.manifest.json")
    with pytest.raises(AlreadyExists, match=r"(?s)a\.csv\.manifest\.json already exists .*Nothing was published"):
        export("SELECT 2 AS one", engine=exporter, client=client, bucket=bucket, key="a.csv", overwrite=False)
    assert content(client, bucket, "a.csv.manifest.json") == before
    assert keys(client, bucket) == [first.key, "a.csv.manifest.json"]


def test_where_nothing_is_the_export_goes_on(exporter: sa.Engine, client: Any, bucket: str) -> None:
    """The first export to a key is published."""
    result = export("SELECT 1 AS one", engine=exporter, client=client, bucket=bucket, key="a.csv", overwrite=False)
    assert result.rows == 1
    assert content(client, bucket, "a.csv") == b"one\n1\n"


@pytest.mark.parametrize(("operation", "query"), [("PutObject", "SELECT 1 AS one"), ("CompleteMultipartUpload", LARGE)])
def test_who_comes_in_between_stays(
    exporter: sa.Engine, client: Any, endpoint: str, bucket: str, operation: str, query: str
) -> None:
    """The write itself is conditional: an object that appears after the look at it is not overwritten either."""
    store = services.s3_client(endpoint)

    def intrude(params: dict[str, Any]) -> None:
        client.put_object(Bucket=bucket, Key="a.csv", Body=b"first")

    hook(store, operation, intrude)
    with pytest.raises(AlreadyExists, match="written while this export ran"):
        export(query, engine=exporter, client=store, bucket=bucket, key="a.csv", overwrite=False)
    assert content(client, bucket, "a.csv") == b"first"
    assert open_uploads(client, bucket) == []


def day(number: int) -> tuple[str, str]:
    """A day of November as a window."""
    return f"2026-11-{number:02}T00:00:00+00:00", f"2026-11-{number + 1:02}T00:00:00+00:00"


def test_an_older_window_does_not_replace_a_later_one(exporter: sa.Engine, client: Any, bucket: str) -> None:
    """A run that is retried or cleared late fails, if its key is that of later runs, too; the same window may come."""
    to = {"engine": exporter, "client": client, "bucket": bucket, "key": "newest.csv"}
    export("SELECT 5 AS day", window=day(5), **to)
    export("SELECT 6 AS day", window=day(6), **to)
    with pytest.raises(
        VerificationError, match=r"(?s)later window \(to 2026-11-07.*Nothing was published.*Put the window into the key"
    ) as caught:
        export("SELECT 5 AS day", window=day(5), **to)
    assert not caught.value.transient
    assert content(client, bucket, "newest.csv") == b"day\n6\n"
    export("SELECT 7 AS day", window=day(6), **to)
    assert content(client, bucket, "newest.csv") == b"day\n7\n"
    assert open_uploads(client, bucket) == []


def test_without_it_the_object_is_replaced(exporter: sa.Engine, client: Any, bucket: str) -> None:
    """That is the default."""
    assert Options().overwrite is True
    client.put_object(Bucket=bucket, Key="a.csv", Body=b"old")
    export("SELECT 1 AS one", engine=exporter, client=client, bucket=bucket, key="a.csv")
    assert content(client, bucket, "a.csv") == b"one\n1\n"
