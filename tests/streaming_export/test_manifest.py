"""The manifest: true, written last, valid by its schema, read by name of what is wrong with it."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import streaming_export
from demo import services
from streaming_export import (
    ForeignBucket,
    InvalidArgument,
    ManifestInvalid,
    ManifestMissing,
    ManifestTooNew,
    StoreError,
    Superseded,
    manifest,
    manifest_reader,
)
from streaming_export.s3.bucket import Bucket
from streaming_export.s3.objects import ExportedFile
from tests.conftest import content, keys
from tests.streaming_export.publishing import KEY, MANIFEST, NOON, document, publish
from tests.streaming_export.store import hook, refusal

SCHEMA = json.loads((Path(streaming_export.__file__).parent / "manifest.schema.json").read_text())
FILES = [
    ExportedFile("a/b-00001.csv", 2, 20, "0" * 64, "etag", 1),
    ExportedFile("a/b-00002.csv", 1, 9, "1" * 64, "e", 1),
]
ROWS = [b"1\n", b"2\n", b"3\n"]


@pytest.fixture
def client(endpoint: str) -> Any:
    """A client of the test's own: its hooks reach no other test."""
    return services.s3_client(endpoint)


@pytest.fixture
def there(client: Any, bucket: str) -> Bucket:
    """The bucket."""
    return Bucket(client, bucket)


def validate(written: dict[str, Any]) -> None:
    jsonschema.validate(written, SCHEMA, format_checker=jsonschema.FormatChecker())


# ---- What it says


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"unique_key": None, "rows_verified": False, "masked": {"email": "hash"}},
        {"csv": manifest.FORMAT | {"compression": "gzip", "spreadsheet_safe": True}},
        {"window": {"from": "2026-11-01T00:00:00+00:00", "to": "2026-11-02T00:00:00+00:00"}},
        {"older_transactions": {"waited_seconds": 1.5, "unseen": "prepared"}},
        {"run": {"dag": "d", "task": "t", "run": "r", "try": 2, "note": None}},
    ],
)
def test_it_is_valid_by_its_schema(there: Bucket, changes: dict[str, Any]) -> None:
    """Whatever is exported, the manifest is what the schema says, and reads back as it was."""
    written = document(there, FILES, **changes)
    validate(written)
    body = json.dumps(written).encode()
    read = manifest_reader.parse(body, there.name, there.url(MANIFEST))
    assert (read.rows, [file.key for file in read.files]) == (3, [file.key for file in FILES])
    assert (read.unique_key, read.columns) == (changes.get("unique_key", "id"), (("id", "bigint"),))
    assert (read.export_id, read.taken_at) == (written["export_id"], NOON)
    assert read.run == changes.get("run", {"run": "scheduled"})
    assert (read.window is None) == ("window" not in changes)


def test_it_holds_no_personal_data() -> None:
    """Of parameters only dates, times and booleans are kept."""
    parameters = {
        "email": "canary@example.com",
        "id": 4711,
        "digits": "20260101",
        "since": "2026-01-01T00:00:00+00:00",
        "day": date(2026, 1, 2),
        "flag": True,
        "nothing": None,
    }
    assert {name: manifest.loggable(value) for name, value in parameters.items()} == {
        **dict.fromkeys(("email", "id", "digits", "nothing")),
        "since": "2026-01-01T00:00:00+00:00",
        "day": "2026-01-02",
        "flag": "true",
    }


def test_it_is_true_of_the_objects(there: Bucket, client: Any, bucket: str) -> None:
    """Sizes, ETags and numbers in it are those of the objects, and its id is in their metadata."""
    written = publish(there, ROWS, max_rows=2)
    assert written["rows"] == sum(file["rows"] for file in written["files"]) == len(ROWS)
    for entry, file in zip(written["entries"], written["files"], strict=True):
        head = client.head_object(Bucket=bucket, Key=file["url"].removeprefix(f"s3://{bucket}/"))
        assert entry["url"] == file["url"]
        assert entry["meta"]["content_length"] == file["bytes"] == head["ContentLength"]
        assert (file["etag"], head["Metadata"]["export-id"]) == (head["ETag"].strip('"'), written["export_id"])


# ---- Reading


def no_manifest(text: bytes) -> list[bytes]:
    """What may lie at a manifest's key: other JSON, none, or half of one."""
    return [
        b"{}",
        b"[]",
        b"[1, 2]",
        b"null",
        b'"run"',
        b"7",
        b"",
        b"<html>",
        text[: len(text) // 2],
        b"\xff",
        b"[" * 99_999,
    ]


def test_what_is_no_manifest_is_called_that(there: Bucket, client: Any, bucket: str) -> None:
    """Whatever else lies at the key: reading it, and asking who published it, say so by name."""
    publish(there, ROWS)
    for rubbish in no_manifest(content(client, bucket, MANIFEST)):
        client.put_object(Bucket=bucket, Key=MANIFEST, Body=rubbish)
        with pytest.raises(ManifestInvalid, match=rf"^The manifest s3://{bucket}/{MANIFEST} can't be used: .*\.\n"):
            manifest_reader.read(there, there.url(MANIFEST))
        with pytest.raises(ManifestInvalid):
            manifest.published_by(there, KEY)


def test_what_is_no_manifest_is_replaced(
    there: Bucket, client: Any, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A rerun logs what it finds, and replaces it."""
    client.put_object(Bucket=bucket, Key=MANIFEST, Body=b"<html>")
    publish(there, ROWS)
    assert "are not JSON" in caplog.text
    assert manifest.published_by(there, KEY) == "scheduled"


def test_who_published(there: Bucket, client: Any, bucket: str) -> None:
    """None if nobody has; a run without a name has none."""
    assert manifest.published_by(there, KEY) is None
    client.put_object(Bucket=bucket, Key=MANIFEST, Body=json.dumps(document(there, FILES, run={})).encode())
    assert manifest.published_by(there, KEY) == ""
    with pytest.raises(InvalidArgument, match=r"^key="):
        manifest.published_by(there, "a/../b")


@pytest.mark.parametrize(
    "url", ["s3://another/a.json", "https://host/a.json", "s3://", "s3://{bucket}/a/../b.json", "a.json"]
)
def test_a_manifest_elsewhere_is_refused(there: Bucket, url: str) -> None:
    """A manifest can't lie outside of the bucket."""
    with pytest.raises(ForeignBucket if "another" in url else ManifestInvalid):
        manifest_reader.read(there, url.format(bucket=there.name))


def test_a_manifest_that_is_missing(there: Bucket) -> None:
    """Without a manifest nothing was published."""
    with pytest.raises(ManifestMissing, match="was not published"):
        manifest_reader.read(there, there.url(MANIFEST))


def test_a_huge_manifest_is_not_read(there: Bucket) -> None:
    """What is too large to be a manifest stays out of memory."""
    there.client.put_object(Bucket=there.name, Key=MANIFEST, Body=b" " * 10_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(ManifestInvalid, match="it has 20,000 bytes or more"):
            manifest_reader.read(there, there.url(MANIFEST), most=20_000)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def lead_away(written: dict[str, Any]) -> None:
    for item in (*written["files"], *written["entries"]):
        item["url"] = "s3://another/items.csv"


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        (lambda written: written.update(manifest_version=2), ManifestTooNew, r"version 2.*up to 1"),
        (lead_away, ForeignBucket, r"s3://another/items\.csv"),
        (lambda written: written.pop("files"), ManifestInvalid, "the document violates"),
        (lambda written: written["files"][0].update(rows="3"), ManifestInvalid, r"files\.0\.rows violates"),
        (lambda written: written.update(manifest_version="1"), ManifestInvalid, "manifest_version violates"),
        (lambda written: written.update(rows=4), ManifestInvalid, "do not add up"),
        (lambda written: written["entries"][0]["meta"].update(content_length=1), ManifestInvalid, "its files differ"),
        (lambda written: written["columns"].append(written["columns"][0]), ManifestInvalid, "same name"),
        (lambda written: written["columns"][0].update(name="a\0b"), ManifestInvalid, "does not allow"),
        (lambda written: written["unique_key"].update(name="nope"), ManifestInvalid, "not one of its columns"),
        (lambda written: written["snapshot"].update(taken_at="yesterday"), ManifestInvalid, "not a time in ISO 8601"),
        (lambda written: written["snapshot"].update(taken_at="2026-11-01T00:00:00"), ManifestInvalid, "no time zone"),
    ],
)
def test_a_manifest_that_contradicts_is_refused(
    there: Bucket, change: Callable[[Any], object], error: type[Exception], why: str
) -> None:
    """A manifest that contradicts its schema or itself is refused, and the error says in what."""
    written = document(there, FILES)
    change(written)
    with pytest.raises(error, match=why):
        manifest_reader.parse(json.dumps(written).encode(), there.name, there.url(MANIFEST))


def test_other_versions_are_read(there: Bucket) -> None:
    """What earlier programs wrote more, and later ones may add, is ignored."""
    written = document(there, FILES) | {"colour": "green"}
    written.pop("export_id")
    written["unique_key"] = {"name": "id", "first": "1", "last": "3"}
    written["columns"][0]["nullable"] = False
    read = manifest_reader.parse(json.dumps(written).encode(), there.name, there.url(MANIFEST))
    assert (read.export_id, read.unique_key) == (None, "id")


# ---- Writing


def test_it_is_written_last(there: Bucket, client: Any, bucket: str) -> None:
    """When the manifest appears, the objects are complete; if it can't be written, the one before stays."""
    before = publish(there, ROWS)

    def refuse(params: dict[str, Any]) -> Any:
        return refusal("QuotaFull") if params["url"].endswith("manifest.json") else None

    hook(client, "PutObject", refuse)
    with pytest.raises(StoreError, match=r"QuotaFull: .*while writing s3://.*manifest\.json\."):
        publish(there, ROWS[:1])
    assert keys(client, bucket) == [KEY]
    assert content(client, bucket, KEY) == b"id\n1\n"
    assert json.loads(content(client, bucket, MANIFEST)) == before


def test_another_object_is_not_described(there: Bucket, client: Any, bucket: str) -> None:
    """If somebody has put another object in place of a file, the export fails, and may be tried again."""

    def replace(params: dict[str, Any]) -> None:
        if params["url"].endswith("manifest.json"):
            client.put_object(Bucket=bucket, Key=KEY, Body=b"other")

    hook(client, "PutObject", replace)
    with pytest.raises(Superseded, match=r"(?s)Another export replaced.*and their manifest are visible") as caught:
        publish(there, ROWS)
    assert (caught.value.transient, caught.value.published) == (True, True)


# ---- The newest

LATEST = "a/latest.json"
HOUR = timedelta(hours=1)


def named(client: Any, bucket: str) -> str:
    return str(json.loads(content(client, bucket, LATEST))["manifest_url"])


def test_it_says_what_is_newest(there: Bucket, client: Any, bucket: str) -> None:
    """It is JSON with the URL of the manifest, the time of its snapshot, and what else it was given."""
    assert manifest.move_latest(there, LATEST, "s3://b/one", NOON, {"rows": 7})
    assert json.loads(content(client, bucket, LATEST)) == {
        "manifest_url": "s3://b/one",
        "taken_at": "2026-11-05T12:00:00+00:00",
        "rows": 7,
    }
    with pytest.raises(InvalidArgument, match=r"^key="):
        manifest.move_latest(there, "a/../b", "s3://b/one", NOON)


@pytest.mark.parametrize(
    ("taken_at", "moves"),
    [
        (NOON + HOUR, True),
        (datetime.fromisoformat("2026-11-05T11:30:00-01:00"), True),
        (NOON, False),
        (NOON - HOUR, False),
        (datetime.fromisoformat("2026-11-05T12:30:00+01:00"), False),
    ],
)
def test_it_only_moves_forward(there: Bucket, client: Any, bucket: str, taken_at: datetime, moves: bool) -> None:
    """An export of a later snapshot takes over, whatever the offset of its clock; any other leaves it as it is."""
    manifest.move_latest(there, LATEST, "s3://b/one", NOON)
    assert manifest.move_latest(there, LATEST, "s3://b/two", taken_at) == moves
    assert named(client, bucket) == ("s3://b/two" if moves else "s3://b/one")


@pytest.mark.parametrize(
    ("day", "taken_at", "moves"),
    [(3, NOON + HOUR, False), (4, NOON + HOUR, True), (4, NOON - HOUR, False), (5, NOON - HOUR, True)],
)
def test_an_older_window_is_no_news(
    there: Bucket, client: Any, bucket: str, day: int, taken_at: datetime, moves: bool
) -> None:
    """Of two windows the later one is the newest, also if the other is exported again; of one, the later snapshot."""
    day_4 = ("2026-11-04T00:00:00+00:00", "2026-11-05T00:00:00+00:00")
    manifest.move_latest(there, LATEST, "s3://b/one", NOON, window=day_4)
    assert json.loads(content(client, bucket, LATEST))["window"] == {"from": day_4[0], "to": day_4[1]}
    window = (f"2026-11-0{day}T02:00:00+02:00", f"2026-11-0{day + 1}T02:00:00+02:00")
    assert manifest.move_latest(there, LATEST, "s3://b/two", taken_at, window=window) == moves
    assert named(client, bucket) == ("s3://b/two" if moves else "s3://b/one")


@pytest.mark.parametrize("made", [True, False], ids=["moved", "made"])
@pytest.mark.parametrize(("others", "newest"), [(2 * HOUR, "the other"), (HOUR / 2, "this one")])
def test_one_that_came_between(
    there: Bucket, client: Any, bucket: str, endpoint: str, made: bool, others: timedelta, newest: str
) -> None:
    """Whoever loses a race reads again: a later snapshot stays, an earlier one is overtaken."""
    if made:
        manifest.move_latest(there, LATEST, "s3://b/one", NOON)
    other = Bucket(services.s3_client(endpoint), bucket)
    moves = [lambda: manifest.move_latest(other, LATEST, "the other", NOON + others)]
    hook(client, "PutObject", lambda params: moves.pop()() and None if moves else None)
    assert manifest.move_latest(there, LATEST, "this one", NOON + HOUR) == (newest == "this one")
    assert named(client, bucket) == newest


@pytest.mark.parametrize(
    "rubbish",
    [
        b"{",
        b"[]",
        b"<html>",
        b"[" * 100_000,
        b'{"taken_at": "yesterday"}',
        b'{"taken_at": 7}',
        b'{"taken_at": "9999-12-31T00:00:00+00:00"}',
    ],
    ids=["half", "list", "html", "deep", "day", "number", "no manifest"],
)
def test_what_cannot_be_read_is_replaced(
    there: Bucket, client: Any, bucket: str, rubbish: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Rubbish under the key does not stop exports, and the log names it."""
    client.put_object(Bucket=bucket, Key=LATEST, Body=rubbish)
    assert manifest.move_latest(there, LATEST, "s3://b/one", datetime(2026, 1, 1, tzinfo=UTC))
    assert named(client, bucket) == "s3://b/one"
    assert f"s3://{bucket}/{LATEST} does not name a manifest" in caplog.text


def test_a_failure_says_that_the_export_is_published(there: Bucket, client: Any, bucket: str) -> None:
    """What can't be moved does not make the export undone."""
    hook(client, "PutObject", lambda params: refusal("QuotaFull"))
    with pytest.raises(
        StoreError, match=r"\ns3://b/one is published, but .*latest\.json does not name it yet\.\n"
    ) as caught:
        manifest.move_latest(there, LATEST, "s3://b/one", NOON)
    assert caught.value.published is True
