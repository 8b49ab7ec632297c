"""The downloads, in Airflow's real app: what browsers, curl and requests get; a failed one never looks complete."""

from __future__ import annotations

import csv
import gzip
import io
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
import sqlalchemy as sa

from demo import services
from tests.exports_page.conftest import ROWS as ORDERS
from tests.exports_page.server import Airflow, file_of, raw, rest

LIVE = "exports/orders.csv"
ROWS = 400_000  # of about 78 bytes: more than sockets and buffers hold


@pytest.fixture(scope="module")
def many(database: str, shop: str, engine: sa.Engine) -> Iterator[int]:
    """More rows of orders, in the way that streams in pieces; for the tests after those of the table as it is."""
    table = services.load_orders(database, ORDERS)
    services.make_exporter(database)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO orders SELECT 1000000 + i, 'customer' || i || '@example.com', i, 'paid',"
            f" timestamptz '2026-11-01' + i * interval '1 second' FROM generate_series(1, {ROWS}) AS i"
        )
    yield table + ROWS
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM orders WHERE id > 1000000")


@pytest.fixture
def broken(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table can be read but for its last row: the stream fails when most of it was sent."""
    from orders_live.reading import LiveOrders

    read = LiveOrders.read

    def failing(self: LiveOrders) -> bytes:
        if self._csv.rows > ROWS / 2:
            raise RuntimeError("this is the test's")
        return read(self)

    monkeypatch.setattr(LiveOrders, "read", failing)


def connections(engine: sa.Engine) -> int:
    """How many connections downloads have to the database."""
    with engine.connect() as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'airflow exports page%%'"
        return int(connection.exec_driver_sql(query).scalar_one())


def wait_until_gone(engine: sa.Engine, seconds: float) -> float:
    """Wait until downloads have no connections; returns the seconds that it took."""
    start = time.monotonic()
    while connections(engine):
        assert time.monotonic() - start < seconds, "the connections are still there"
        time.sleep(0.02)
    return time.monotonic() - start


def test_the_live_table(airflow: Airflow, table: int, engine: sa.Engine) -> None:
    """The table as CSV: an attachment of its date, header first, ordered by id, every row once."""
    answer = airflow.session("user").get(f"{airflow.url}/{LIVE}")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/csv")
    assert (
        answer.headers["Content-Disposition"]
        == f'attachment; filename="orders-{time.strftime("%Y%m%d", time.gmtime())}.csv"'
    )
    header, *rows = csv.reader(io.StringIO(answer.text, newline=""))
    assert header == ["id", "customer_email", "total_cents", "status", "created_at"]
    ids = [int(row[0]) for row in rows]
    assert len(ids) == table
    assert ids == sorted(set(ids))
    wait_until_gone(engine, 3)


def test_compressed_or_not_the_bytes_are_the_same(airflow: Airflow, table: int) -> None:
    """A browser that accepts gzip gets it from us, and others are not given any: Airflow's gzip stays out."""
    session = airflow.session("user")
    plain = session.get(f"{airflow.url}/{LIVE}", headers={"Accept-Encoding": "identity"})
    packed = session.get(f"{airflow.url}/{LIVE}", stream=True)
    assert plain.headers["Content-Encoding"] == "identity"
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.raw.read(decode_content=False)) == plain.content


def test_parameters(airflow: Airflow, table: int) -> None:
    """Only the orders that are asked for; an empty answer has its header."""
    session = airflow.session("user")
    asked = [("created_from", "2026-11-01T00:00:00+00:00"), ("created_to", "2026-11-03T00:00:00+00:00")]
    answer = session.get(f"{airflow.url}/{LIVE}", params=[*asked, ("status", "paid"), ("status", "pending")])
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert {row["status"] for row in rows} == {"paid", "pending"}
    assert {row["created_at"][:10] for row in rows} == {"2026-11-01", "2026-11-02"}
    none = session.get(f"{airflow.url}/{LIVE}", params={"created_from": "2040-01-01T00:00:00+00:00"})
    assert none.text == "id,customer_email,total_cents,status,created_at\n"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("created_from=yesterday", "created_from"),
        ("created_to=2026-11-01T00:00:00", "created_to"),
        ("created_from=2026-11-02T00:00:00Z&created_to=2026-11-01T00:00:00Z", "created_from"),
        ("created_from=20261101T000000Z", "created_from"),
        ("created_from=2026-11-01T00:00:00Z&created_from=2026-11-02T00:00:00Z", "created_from"),
        ("status=stolen", "status"),
        ("statuses=paid", "statuses"),
        ("limit=5", "limit"),
    ],
)
def test_what_the_trigger_form_refuses_is_refused(airflow: Airflow, query: str, field: str) -> None:
    """422 names the field; nothing is read."""
    answer = airflow.session("user").get(f"{airflow.url}/{LIVE}?{query}")
    assert answer.status_code == 422
    (problem,) = answer.json()["detail"]
    assert problem["loc"] == ["query", field]
    assert problem["msg"].startswith(field)


def test_what_can_not_be_opened_has_a_status(airflow: Airflow, engine: sa.Engine, table: int) -> None:
    """A database that refuses is a 503 with what to do, not a broken file."""
    with engine.begin() as connection:
        connection.exec_driver_sql("REVOKE SELECT ON orders FROM orders_exporter")
    try:
        answer = airflow.session("user").get(f"{airflow.url}/{LIVE}")
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql("GRANT SELECT ON orders TO orders_exporter")
    assert answer.status_code == 503
    assert "permission denied" in answer.json()["detail"]


def test_a_broken_stream_never_looks_complete(
    airflow: Airflow, broken: None, engine: sa.Engine, tmp_path: Path
) -> None:
    """The last chunk never comes: curl ends with 18, requests raises, compressed or not."""
    connection = raw(airflow, LIVE)
    found = rest(connection)
    assert b"HTTP/1.1 200" in found
    assert b"transfer-encoding: chunked" in found
    assert len(found) > 1_000_000
    assert not found.endswith(b"0\r\n\r\n")
    wait_until_gone(engine, 3)
    token = f"Authorization: Bearer {airflow.token('user')}"
    for option in ([], ["--compressed"]):
        command = ["curl", "-sS", *option, "-H", token, "-o", str(tmp_path / "orders.csv"), f"{airflow.url}/{LIVE}"]
        assert subprocess.run(command, capture_output=True).returncode == 18
    for encoding in ("identity", "gzip"):
        with pytest.raises((requests.exceptions.ChunkedEncodingError, requests.exceptions.ConnectionError)):
            airflow.session("user").get(f"{airflow.url}/{LIVE}", headers={"Accept-Encoding": encoding})


def test_a_gone_browser_frees_its_connections(airflow: Airflow, many: int, engine: sa.Engine) -> None:
    """Within a second."""
    connection = raw(airflow, LIVE)
    connection.recv(1000)
    assert connections(engine) > 0
    connection.close()
    assert wait_until_gone(engine, 1.5) < 1


def test_a_stalled_browser_is_dropped(
    airflow: Airflow, many: int, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its database is closed after the limit; what it reads later has no end."""
    monkeypatch.setattr("exports_page.download.STALLED_SECONDS", 1.0)
    connection = raw(airflow, LIVE)
    found = connection.recv(1000)
    start = time.monotonic()
    while not connections(engine):
        time.sleep(0.01)
    assert wait_until_gone(engine, 4) + time.monotonic() - start > 0.5
    assert not (found + rest(connection)).endswith(b"0\r\n\r\n")


def test_two_at_a_time(airflow: Airflow, many: int, engine: sa.Engine) -> None:
    """The third is asked to come back, and has its turn when one has ended."""
    first, second = raw(airflow, LIVE), raw(airflow, LIVE)
    first.recv(1000), second.recv(1000)
    session = airflow.session("user")
    for method in ("GET", "HEAD"):
        answer = session.request(method, f"{airflow.url}/{LIVE}")
        assert answer.status_code == 429
        assert int(answer.headers["Retry-After"]) > 0
    first.close()
    wait_until_gone_once = time.monotonic() + 5
    while session.head(f"{airflow.url}/{LIVE}").status_code == 429:
        assert time.monotonic() < wait_until_gone_once
    second.close()
    wait_until_gone(engine, 3)


def test_three_downloads_take_little(airflow: Airflow, shop: str, keys: list[str], many: int) -> None:
    """Two of the table and one of a file at a time, 100 MB in all: memory stays flat, and so does the CPU."""
    process = psutil.Process()
    token = f"Authorization: Bearer {airflow.token('user')}"
    urls = [f"{airflow.url}/{LIVE}"] * 2 + [f"{airflow.url}/{file_of(shop, keys[-1])}"]
    command = ["curl", "-sSf", "-H", token, "-o", "/dev/null"]

    def download() -> None:
        running = [subprocess.Popen([*command, url]) for url in urls]
        assert [one.wait() for one in running] == [0, 0, 0]

    download()
    before, used, peak, done = process.memory_info().rss, process.cpu_times(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    download()
    done.set()
    watcher.join()
    seconds = sum(process.cpu_times()[:2]) - sum(used[:2])
    assert peak - before < 40 * 2**20
    assert seconds < 4, "a plain StreamingResponse over yield_per takes 13 s and more for 2 million rows"
