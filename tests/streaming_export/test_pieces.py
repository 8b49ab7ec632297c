"""One export by several programs: the pieces add up to the snapshot, or there is no manifest."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import threading
from dataclasses import asdict
from typing import Any

import pytest
import sqlalchemy as sa

from demo import services
from streaming_export import (
    Bucket,
    DatabaseError,
    Export,
    ExportCancelled,
    ExportResult,
    InvalidArgument,
    Options,
    SnapshotGone,
    StoreError,
    VerificationError,
    open_csv,
)
from streaming_export.cancellation import Stop, cancelled
from streaming_export.pieces import Holder, Plan, of_piece, publish, report, reported
from tests.conftest import content
from tests.streaming_export.store import Answer, hook, refusal

KEY = "a/orders.csv"
QUERY = "SELECT * FROM orders"
Place = dict[str, Any]


@pytest.fixture
def place(exporter: sa.Engine, orders: int) -> Place:
    """The arguments that all programs share."""
    return {"engine": exporter, "unique_key": "id"}


@pytest.fixture
def store(client: Any, bucket: str) -> Bucket:
    return Bucket(client, bucket)


def export_piece(
    plan: Plan, number: int, store: Bucket, place: Place, options: Options | None = None, query: str = QUERY
) -> None:
    """What the program of a piece does, with a plan that has come as JSON."""
    plan = Plan.parse(json.loads(json.dumps(asdict(plan))))
    done = Export(
        query,
        bucket=store,
        key=plan.piece_key(number),
        snapshot=plan.snapshot,
        key_range=plan.ranges[number],
        whole=plan.document,
        options=of_piece(options or Options()),
        **place,
    ).run()
    assert done.manifest_url is None
    report(store, plan, number, done.files)


def rows_of(client: Any, bucket: str) -> list[tuple[int, int]]:
    """Id and total of each row of the export that is published."""
    manifest = json.loads(content(client, bucket, f"{KEY}.manifest.json"))
    rows: list[tuple[int, int]] = []
    for file in manifest["files"]:
        text = content(client, bucket, file["url"].removeprefix(f"s3://{bucket}/")).decode()
        rows += [(int(row["id"]), int(row["total_cents"])) for row in csv.DictReader(io.StringIO(text, newline=""))]
    return rows


def test_pieces_while_others_write(
    place: Place, store: Bucket, client: Any, bucket: str, orders: int, engine: sa.Engine
) -> None:
    """Whatever is written between and during the pieces, they are the rows of one moment, each once and in order."""

    def write() -> None:
        while not done.is_set():
            with engine.begin() as connection:
                connection.exec_driver_sql("UPDATE orders SET total_cents = total_cents + 1 WHERE mod(id, 97) = 3")
                connection.exec_driver_sql("DELETE FROM orders WHERE id IN (SELECT id FROM orders LIMIT 5)")
                connection.exec_driver_sql("INSERT INTO orders SELECT max(id) + 7, '', 1, 'paid', now() FROM orders")

    done, writer = threading.Event(), threading.Thread(target=write)
    with Holder(QUERY, bucket=store, key=KEY, pieces=4, **place) as holder:
        with engine.connect() as connection:
            before = connection.exec_driver_sql("SELECT id, total_cents FROM orders ORDER BY id").fetchall()
        writer.start()
        try:
            for number in (2, 0, 3, 1):
                export_piece(holder.plan, number, store, place)
        finally:
            done.set()
            writer.join()
        assert reported(store, holder.plan) == {0, 1, 2, 3}
        holder.check()
        result = publish(store, holder.plan)
    assert result.rows == orders
    assert json.loads(content(client, bucket, f"{KEY}.manifest.json"))["rows_verified"]
    assert [file.rows for file in result.files] == pytest.approx([orders / 4] * 4, abs=1_000)
    assert rows_of(client, bucket) == [tuple(row) for row in before]
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM orders").scalar_one() != orders


@pytest.mark.parametrize("pieces", [1, 3, 50])
def test_any_number_of_pieces(place: Place, store: Bucket, client: Any, bucket: str, orders: int, pieces: int) -> None:
    """There are no more pieces than there are ranges worth the name, and they have all rows."""
    options = Options(compression="gzip", max_file_rows=2_000)
    with Holder(QUERY, bucket=store, key=KEY, pieces=pieces, options=options, **place) as holder:
        assert 1 <= len(holder.plan.ranges) <= pieces
        for number in range(len(holder.plan.ranges)):
            export_piece(holder.plan, number, store, place, options)
        result = publish(store, holder.plan)
    assert result.rows == orders
    assert all(file.key.endswith(".csv.gz") and file.rows <= 2_000 for file in result.files)


def test_an_older_export_in_pieces_does_not_replace_a_newer_one(
    place: Place, store: Bucket, client: Any, bucket: str, orders: int
) -> None:
    """It may have looked before the newer one was published, or be published again; the newer one may be, too."""
    plans = []
    for _ in range(2):
        with Holder(QUERY, bucket=store, key=KEY, pieces=2, **place) as holder:
            plans.append(holder.plan)
            for number in range(2):
                export_piece(holder.plan, number, store, place)
    older, newer = plans
    kept = r"(?s)is of a later snapshot.*No manifest was written\. What was published before stays"
    published: list[ExportResult] = []

    def publish_newer(params: dict[str, Any]) -> Answer:
        published.append(publish(store, newer))
        return None

    late = services.s3_client(client.meta.endpoint_url)
    hook(late, "PutObject", publish_newer)  # the older one has seen that there is no manifest
    with pytest.raises(VerificationError, match=kept):
        publish(Bucket(late, bucket), older)
    assert len(published) == 1
    with pytest.raises(VerificationError, match=kept):
        publish(store, older)
    assert publish(store, newer).rows == orders  # a retry
    assert json.loads(content(client, bucket, f"{KEY}.manifest.json"))["export_id"] == newer.document["export_id"]


def test_an_empty_table(place: Place, store: Bucket, client: Any, bucket: str, engine: sa.Engine) -> None:
    """It is one piece, with a header."""
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM orders")
    with Holder(QUERY, bucket=store, key=KEY, pieces=4, **place) as holder:
        export_piece(holder.plan, 0, store, place)
        assert publish(store, holder.plan).rows == 0
    assert rows_of(client, bucket) == []


def test_nothing_is_published_before_all_is_there(place: Place, store: Bucket, client: Any, bucket: str) -> None:
    """While a piece is missing there is no manifest; nor is there a document that a reader takes for one."""
    with Holder(QUERY, bucket=store, key=KEY, pieces=3, **place) as holder:
        for number in (0, 2):
            export_piece(holder.plan, number, store, place)
        with pytest.raises(VerificationError, match=f"Piece 2 of s3://{bucket}/{KEY} is missing.\nNo manifest"):
            publish(store, holder.plan)
        listed = [found.key for found in store.list("")]
        assert [key for key in listed if key.endswith(".manifest.json")] == []
        export_piece(holder.plan, 1, store, place)
        publish(store, holder.plan)


def test_a_stop_after_the_manifest(place: Place, client: Any, bucket: str) -> None:
    """The error says that it was published."""
    hooked = services.s3_client(client.meta.endpoint_url)
    store = Bucket(hooked, bucket).within(stop := Stop())

    def end(params: dict[str, Any]) -> Answer:
        stop.set(cancelled())
        return refusal("SlowDown", 503)

    with Holder(QUERY, bucket=store, key=KEY, pieces=1, **place) as holder:
        export_piece(holder.plan, 0, store, place)
        hook(hooked, "HeadObject", end)  # which follows the manifest
        with pytest.raises(ExportCancelled, match="and their manifest are visible") as caught:
            publish(store, holder.plan)
    assert caught.value.published is True
    assert f"{KEY}.manifest.json" in [found.key for found in store.list("")]


def test_rows_that_do_not_add_up(place: Place, store: Bucket, client: Any, bucket: str) -> None:
    """If the pieces have other rows than the holder has counted, nothing is published."""
    with Holder(QUERY, bucket=store, key=KEY, pieces=2, **place) as holder:
        export_piece(holder.plan, 0, store, place)
        export_piece(dataclasses.replace(holder.plan, ranges=[(None, None)] * 2), 1, store, place)
        with pytest.raises(VerificationError, match=r"The pieces have [\d,]+ rows, but the database counts 12,345"):
            publish(store, holder.plan)
    assert f"{KEY}.manifest.json" not in [found.key for found in store.list("")]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"query": "SELECT id, customer_email, total_cents, 'new' AS status, created_at FROM orders"}, "query"),
        ({"options": Options()}, "masked"),
        ({"options": Options(mask={"customer_email": "redact"}, columns=["customer_email", "id"])}, "columns"),
        ({"options": Options(mask={"customer_email": "redact"}, compression="gzip")}, "csv"),
    ],
)
def test_a_piece_with_other_arguments(
    place: Place, store: Bucket, orders: int, changed: dict[str, Any], said: str
) -> None:
    """The DAG may change while an export runs: a piece that the manifest would not describe is not exported."""
    masked = Options(mask={"customer_email": "redact"})
    with Holder(QUERY, bucket=store, key=KEY, pieces=2, options=masked, **place) as holder:
        with pytest.raises(VerificationError, match=rf"(?s)differs .* in: .*{said}.*Nothing was published"):
            export_piece(holder.plan, 0, store, place, **{"options": masked} | changed)
        assert list(store.list("")) == []
        for number in (0, 1):
            export_piece(holder.plan, number, store, place, masked)
        assert publish(store, holder.plan).rows == orders


def test_a_plan_again(place: Place, store: Bucket, client: Any, bucket: str, orders: int, engine: sa.Engine) -> None:
    """Pieces of an earlier plan are not taken for those of the next, and what is published stays until its end."""
    with Holder(QUERY, bucket=store, key=KEY, pieces=2, **place) as holder:
        for number in (0, 1):
            export_piece(holder.plan, number, store, place)
        publish(store, holder.plan)
    published = rows_of(client, bucket)
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM orders WHERE mod(id, 2) = 0")
    with Holder(QUERY, bucket=store, key=KEY, pieces=2, **place) as second:
        assert reported(store, second.plan) == set()
        export_piece(second.plan, 0, store, place)
        assert rows_of(client, bucket) == published
        with pytest.raises(VerificationError, match="Piece 2"):
            publish(store, second.plan)
        export_piece(second.plan, 1, store, place)
        assert publish(store, second.plan).rows < orders
    assert len(rows_of(client, bucket)) < orders


def test_a_snapshot_that_nobody_holds(place: Place, store: Bucket, client: Any, bucket: str) -> None:
    """A piece that comes after the holder's end reads nothing, and says what to do."""
    with Holder(QUERY, bucket=store, key=KEY, pieces=2, **place) as holder:
        pass
    with pytest.raises(SnapshotGone, match=r"The snapshot [0-9A-F-]+ is no longer held") as caught:
        export_piece(holder.plan, 0, store, place)
    assert caught.value.transient is False
    assert list(store.list("")) == []


def test_a_piece_outlives_the_holder(
    place: Place, store: Bucket, engine: sa.Engine, orders: int, exporter: sa.Engine
) -> None:
    """Once it has begun it reads on, and what it reads stays locked: TRUNCATE waits for its end."""
    stack = contextlib.ExitStack()
    with Holder(QUERY, bucket=store, key=KEY, pieces=1, **place) as holder:
        stream = open_csv(QUERY, snapshot=holder.plan.snapshot, **place)
        stack.enter_context(stream)
    with stack, engine.connect() as connection:
        connection.exec_driver_sql("SET lock_timeout = '200ms'")
        with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
            connection.exec_driver_sql("TRUNCATE orders")
        connection.rollback()
        assert b"".join(stream).count(b"@") > 0
        assert stream.rows == orders


def test_a_lost_holder_notices(place: Place, store: Bucket, engine: sa.Engine) -> None:
    """If its connection is gone, so is the snapshot: the check says so."""
    with Holder(QUERY, bucket=store, key=KEY, pieces=2, application_name="a holder", **place) as holder:
        holder.check()
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'a holder'"
            )
        with pytest.raises(DatabaseError, match="holding the snapshot") as caught:
            holder.check()
        assert caught.value.transient


@pytest.mark.parametrize(
    ("query", "more", "said"),
    [
        ("SELECT id, customer_email FROM orders", {"unique_key": "customer_email"}, "unique_key='customer_email'"),
        ("SELECT id, now() AS at FROM orders", {}, "the same rows on each run"),
        ("SELECT id FROM orders LIMIT 100", {}, "the same rows on each run"),
        (QUERY, {"pieces": 0}, "pieces=0"),
        (QUERY, {"options": Options(overwrite=False)}, "overwrite=False"),
    ],
)
def test_what_can_not_be_pieces(place: Place, store: Bucket, query: str, more: dict[str, Any], said: str) -> None:
    """A key of text would show values of rows on its way; a query that differs from run to run has no pieces."""
    with (
        pytest.raises(InvalidArgument, match=said),
        Holder(query, bucket=store, key=KEY, **{"pieces": 2} | place | more),
    ):
        pass


def test_a_store_that_refuses(client: Any) -> None:
    """It is found out before the database is asked for anything, and before any piece is exported."""
    nowhere = sa.create_engine("postgresql+psycopg2://reader@127.0.0.1:1/shop")
    with (
        pytest.raises(StoreError, match=r"(?s)NoSuchBucket.*Nothing was published.*Create the bucket"),
        Holder(QUERY, bucket=Bucket(client, "no-such-bucket"), key=KEY, pieces=2, engine=nowhere, unique_key="id"),
    ):
        pass


def test_a_cancelled_holder(place: Place, store: Bucket) -> None:
    """It ends as an export does."""
    holder = Holder(QUERY, bucket=store, key=KEY, pieces=2, **place)
    holder.cancel()
    with pytest.raises(ExportCancelled, match="Nothing was published"), holder:
        pass


def test_cancelled_while_it_holds(place: Place, store: Bucket) -> None:
    """The next check of the snapshot raises."""
    with Holder(QUERY, bucket=store, key=KEY, pieces=2, **place) as holder:
        holder.cancel()
        with pytest.raises(ExportCancelled):
            holder.check()


@pytest.mark.parametrize("wrong", ["", "x", "1-1'; DROP TABLE orders; --", "0000-00-1; SELECT"])
def test_what_is_no_snapshot(place: Place, store: Bucket, wrong: str) -> None:
    """Only what Postgres calls a snapshot gets into a statement."""
    with pytest.raises(InvalidArgument, match="pg_export_snapshot"):
        Export(QUERY, bucket=store, key=KEY, snapshot=wrong, **place)
