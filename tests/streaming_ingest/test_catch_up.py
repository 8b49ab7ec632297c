"""Catching up: after a run the table equals what is published, whatever became of the events."""

from __future__ import annotations

import importlib
import json
import random
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from demo import services
from streaming_export import Bucket, StoreError, manifest
from streaming_export.s3.files import FileLayout, FileWriter
from streaming_ingest import IngestResult, NotAllLoaded, catch_up
from tests.streaming_export.publishing import document
from tests.streaming_export.store import Answer, hook, record, refusal

NIGHTLY, DAILY = "orders/orders-", "orders/daily/"
PREFIXES = (NIGHTLY, DAILY)
MODULE = importlib.import_module("streaming_ingest.catch_up")
START = datetime(2026, 9, 1, tzinfo=UTC)


class Shop:
    """Publishes exports, and knows what a table that holds all of them has.

    A row is an id and the text of the snapshot that it is from.
    """

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.published: list[tuple[int, int | None, dict[int, str]]] = []  # hour of the snapshot, day, rows
        self.hour = 0

    def day(self, day: int, *, hour: int | None = None) -> str:
        """Publish the rows of a day, or publish them again."""
        where = f"{DAILY}dt={day:03}/orders.csv"
        window = tuple((START + timedelta(days=day + n)).isoformat() for n in (0, 1))
        return self._publish(where, day, window, range(10 * day, 10 * day + 3), hour)

    def month(self, *, hour: int) -> str:
        """Publish the rows of the first 30 days."""
        window = tuple((START + timedelta(days=n)).isoformat() for n in (0, 30))
        return self._publish(f"{DAILY}month.csv", 0, window, range(300), hour)

    def recent(self, day: int, *, hour: int) -> str:
        """Publish the rows of a day to the key that every day has."""
        window = tuple((START + timedelta(days=day + n)).isoformat() for n in (0, 1))
        return self._publish(f"{DAILY}recent.csv", day, window, range(10 * day, 10 * day + 3), hour)

    def night(self, day: int, *, hour: int | None = None) -> str:
        """Publish all rows of all days up to this one."""
        return self._publish(f"{NIGHTLY}{day:03}.csv", None, None, range(10 * day + 3), hour)

    def expected(self) -> dict[int, str]:
        """The rows of the newest export of all, and of the days that were exported later."""
        rows: dict[int, str] = {}
        for _, day, more in sorted(self.published, key=lambda one: one[0]):
            rows = rows | more if day is not None else more
        return rows

    def _publish(self, key: str, day: int | None, window: Any, ids: range, hour: int | None) -> str:
        self.hour += 1
        hour = self.hour if hour is None else hour
        rows = dict.fromkeys(ids, f"of hour {hour}")
        export_id, place = uuid.uuid4().hex, manifest.manifest_key(key)
        before = manifest.current(self.bucket, place)
        with FileWriter(self.bucket, key, FileLayout(), b"id,v\n", export_id=export_id) as writer:
            writer.open()
            writer.write("".join(f"{id},{text}\n" for id, text in rows.items()).encode(), len(rows))
            files = writer.complete()
        taken_at = (START + timedelta(hours=hour)).isoformat()
        written = document(
            self.bucket,
            files,
            export_id=export_id,
            columns=[{"name": "id", "type": "bigint"}, {"name": "v", "type": "text"}],
            window={"from": window[0], "to": window[1]} if window else None,
            snapshot={"taken_at": taken_at, "wal_position": None, "standby": False, "server_version": "18.0"},
        )
        manifest.publish(self.bucket, place, written, before, files)
        self.published.append((hour, day, rows))
        return self.bucket.url(place)


@pytest.fixture
def shop(endpoint: str, bucket: str) -> Shop:
    """The bucket's shop, with a client of its own."""
    return Shop(Bucket(services.s3_client(endpoint), bucket, patience=0))


@pytest.fixture
def table(engine: sa.Engine, schema: str) -> Callable[[], dict[int, str]]:
    """The rows of the table orders."""

    def rows() -> dict[int, str]:
        with engine.connect() as connection:
            return {row[0]: row[1] for row in connection.exec_driver_sql(f"SELECT id, v FROM {schema}.orders")}

    return rows


@pytest.fixture
def run(engine: sa.Engine, schema: str, shop: Shop) -> Callable[..., list[IngestResult]]:
    """A run of the ingest."""
    return lambda **more: catch_up(
        PREFIXES, **{"engine": engine, "bucket": shop.bucket, "table": "orders", "schema": schema} | more
    )


@pytest.fixture
def while_loading(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Has something happen after each load, while the run goes on."""
    load = MODULE.ingest

    def set_up(happens: Callable[[], object]) -> None:
        def loads_and_happens(*args: Any, **kwargs: Any) -> Any:
            result = load(*args, **kwargs)
            happens()
            return result

        monkeypatch.setattr(MODULE, "ingest", loads_and_happens)

    return set_up


class Airflow:
    """Its queue of events: what waits while a run goes on is lost, but for the first of them (see docs/scaling.md)."""

    def __init__(self) -> None:
        self.waiting: list[str] = []
        self.lost: list[str] = []

    def next_run(self) -> list[str]:
        """The events of the next run."""
        taken, self.lost = self.waiting[:1], self.lost + self.waiting[1:]
        self.waiting = []
        return taken


def test_forty_events_in_any_order(
    shop: Shop,
    run: Callable[..., list[IngestResult]],
    table: Callable[[], dict[int, str]],
    while_loading: Callable[[Callable[[], object]], None],
) -> None:
    """Forty exports, of days and of all rows, come at any time and in any order of their snapshots.

    After each run the table equals what is published, although Airflow loses most of the events.
    """
    chance, airflow = random.Random(1), Airflow()
    events = [(shop.day, day) for day in range(36)] + [(shop.night, 9 * week) for week in range(4)]
    hours = chance.sample(range(40), 40)
    chance.shuffle(events)

    def publish() -> None:
        if hours and chance.random() < 0.4:
            kind, day = events.pop()
            airflow.waiting.append(kind(day, hour=hours.pop()))

    while_loading(publish)
    runs = 0
    while hours or airflow.waiting:
        publish()
        if airflow.next_run():
            runs += 1
            run()
            assert table() == shop.expected()
    assert runs > 5
    assert len(airflow.lost) > 10, "the test lost too few events to show anything"


def test_a_run_without_an_event(shop: Shop, run: Callable[..., Any], table: Callable[[], dict[int, str]]) -> None:
    """Without anything new a run reads no manifest and changes nothing; a file again of an old day is new."""
    for day in (1, 2, 3):
        shop.day(day)
    assert len(run()) == 3
    requests = record(shop.bucket.client)
    assert run() == []
    assert [operation for operation, _ in requests] == ["ListObjectsV2"] * len(PREFIXES)
    shop.day(1)
    assert [result.outcome for result in run()] == ["upserted"]
    assert table() == shop.expected()


def test_exports_of_all_rows(shop: Shop, run: Callable[..., Any], table: Callable[[], dict[int, str]]) -> None:
    """Of many exports of all rows only the newest is loaded: what it replaces is outdated, and read once."""
    for day in (1, 2, 3):
        shop.night(day)
    shop.day(4)
    assert [result.outcome for result in run()] == ["replaced", "outdated", "outdated", "upserted"]
    assert table() == shop.expected()
    assert run() == []


def test_a_late_export_of_all_rows(shop: Shop, run: Callable[..., Any], table: Callable[[], dict[int, str]]) -> None:
    """One that comes after windows of later snapshots takes their rows away, and the same run puts them back."""
    shop.day(5, hour=10)
    run()
    shop.night(3, hour=5)
    assert [result.outcome for result in run()] == ["replaced", "upserted"]
    assert table() == shop.expected()


def test_a_late_export_of_all_rows_without_the_windows(shop: Shop, run: Callable[..., Any]) -> None:
    """If what it takes away can't be put back, the run fails."""
    day = shop.day(5, hour=10)
    run()
    shop.night(3, hour=5)
    shop.bucket.client.delete_object(Bucket=shop.bucket.name, Key=day.removeprefix(shop.bucket.url("")))
    with pytest.raises(NotAllLoaded, match=f"{day} is gone or replaced, and an older export, which") as caught:
        run()
    assert "All other exports are loaded, 1 of them by this run." in str(caught.value)
    with pytest.raises(NotAllLoaded, match=f"{day} is gone or replaced"):  # and so does the next
        run()
    shop.night(5, hour=11)
    assert [result.outcome for result in run()] == ["replaced"]


def test_a_late_export_of_a_longer_window(shop: Shop, run: Callable[..., Any], table: Callable[[], Any]) -> None:
    """It brings no older rows back into the days in it, of later snapshots: the same run loads these again."""
    for day, hour in ((5, 10), (6, 3), (7, 9)):
        shop.day(day, hour=hour)
    run()
    shop.month(hour=5)
    assert [result.outcome for result in run()] == ["upserted"] * 3  # the month, and the days 7 and 5
    assert table() == shop.expected()
    assert run() == []


def test_a_key_whose_window_moves_on(shop: Shop, run: Callable[..., Any], table: Callable[[], Any]) -> None:
    """The window before is not there to be loaded again, though its manifest's key is: the run fails."""
    for day, hour in ((5, 10), (6, 11)):
        recent = shop.recent(day, hour=hour)
        run()
    shop.night(6, hour=5)
    for _ in range(2):
        with pytest.raises(NotAllLoaded, match=f"{recent} is gone or replaced, and an older export"):
            run()
    shop.night(6, hour=12)
    run()
    assert table() == shop.expected()


def test_a_window_that_goes_before_it_is_loaded_again(shop: Shop, run: Callable[..., Any]) -> None:
    """Its manifest is removed after it was listed and read: the run that meets this fails, not only the next."""
    day = shop.day(5, hour=10)
    run()
    shop.night(3, hour=5)
    key = day.removeprefix(shop.bucket.url(""))
    times = []

    def reply(params: dict[str, Any]) -> None:
        if params["url_path"].endswith(key.rpartition("/")[2]):
            times.append(1)
            if len(times) == 2:  # first it is read to find its place in the order
                shop.bucket.client.delete_object(Bucket=shop.bucket.name, Key=key)

    hook(shop.bucket.client, "GetObject", reply)
    with pytest.raises(NotAllLoaded, match=f"{day} is gone or replaced, and an older export, which"):
        run()


def test_a_dropped_table(
    shop: Shop, run: Callable[..., Any], table: Callable[[], dict[int, str]], engine: sa.Engine, schema: str
) -> None:
    """Whoever drops the table gets all that is published again."""
    shop.night(2)
    shop.day(3)
    run()
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP TABLE {schema}.orders")
    run()
    assert table() == shop.expected()


def test_a_history_of_before(
    shop: Shop, run: Callable[..., Any], table: Callable[[], dict[int, str]], engine: sa.Engine, schema: str
) -> None:
    """A history without ETags gets them: each manifest is read once more, and nothing is loaded twice."""
    shop.day(1)
    run()
    with engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {schema}.load_history DROP COLUMN manifest_etag")
    assert [result.outcome for result in run()] == ["already_loaded"]
    assert run() == []
    assert table() == shop.expected()


def broken(shop: Shop) -> Iterator[tuple[str, Any]]:
    """Keys of hostile and broken manifests, and what changes a good one into it."""
    yield f"{DAILY}truncated", lambda text: text[: len(text) // 2]
    yield f"{DAILY}nothing", lambda text: b""
    yield f"{DAILY}not-ours", lambda text: b'{"hello": "world"}'
    yield f"{DAILY}deep", lambda text: b"[" * 100_000
    yield f"{DAILY}elsewhere", lambda text: text.replace(f"s3://{shop.bucket.name}/".encode(), b"s3://elsewhere/")
    yield f"{DAILY}gone", lambda text: text.replace(b"dt=001/orders.csv", b"dt=999/orders.csv")
    yield f"{DAILY}lies", lambda text: edited(text, lambda document: document["files"][0].update(sha256="0" * 64))
    future = {"taken_at": "2999-01-01T00:00:00+00:00"}
    yield f"{NIGHTLY}future", lambda text: edited(text, lambda document: document["snapshot"].update(future))
    yield f"{NIGHTLY}columns", lambda text: edited(text, lambda document: document["columns"][1].update(name="w"))
    yield f"{DAILY}version", lambda text: edited(text, lambda document: document.update(manifest_version=99))


def edited(text: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(text)
    change(document)
    return json.dumps(document).encode()


def test_broken_manifests_hold_up_nothing(
    shop: Shop, run: Callable[..., Any], table: Callable[[], dict[int, str]], client: Any
) -> None:
    """They are named, the run fails at its end, and everything else is loaded; once fixed, they are loaded, too."""
    url = shop.day(1)
    good = client.get_object(Bucket=shop.bucket.name, Key=url.split("/", 3)[3])["Body"].read()
    wrong = {manifest.manifest_key(key): change(good) for key, change in broken(shop)}
    for key, text in wrong.items():
        client.put_object(Bucket=shop.bucket.name, Key=key, Body=text)
    shop.day(2)
    with pytest.raises(NotAllLoaded) as caught:
        run()
    assert [key for key in wrong if shop.bucket.url(key) not in str(caught.value)] == []
    assert f"{len(wrong)} exports could not be loaded" in str(caught.value)
    assert "All other exports are loaded, 2 of them by this run." in str(caught.value)
    assert table() == shop.expected()
    for key in wrong:
        client.delete_object(Bucket=shop.bucket.name, Key=key)
    assert run() == []


def test_a_store_that_fails(shop: Shop, run: Callable[..., Any], table: Callable[[], dict[int, str]]) -> None:
    """A transient failure ends the run: a retry continues from there."""
    for day in (1, 2, 3):
        shop.day(day)
    fails = [True]

    def reply(params: dict[str, Any]) -> Answer:
        return refusal("SlowDown", 503) if fails and params["url_path"].endswith("002/orders.csv") else None

    hook(shop.bucket.client, "GetObject", reply)
    with pytest.raises(StoreError, match="SlowDown") as caught:
        run()
    assert caught.value.transient
    assert len(table()) == 3
    fails.clear()
    assert len(run()) == 2
    assert table() == shop.expected()


def test_a_look_at_many(shop: Shop) -> None:
    """A listing continues over pages, in the order of the keys."""
    client, keys = shop.bucket.client, [f"many/{n:04}" for n in range(5)]
    for key in keys:
        client.put_object(Bucket=shop.bucket.name, Key=key, Body=b"x")
    client.meta.events.register("provide-client-params.s3.ListObjectsV2", lambda params, **_: {**params, "MaxKeys": 2})
    assert [found.key for found in shop.bucket.list("many/")] == keys
    found = next(shop.bucket.list("many/"))
    assert found.etag == shop.bucket.head(found.key).etag  # type: ignore[union-attr]
    assert found.size == 1
