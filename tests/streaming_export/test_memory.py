"""How much a process grows while it exports: with all that botocore and psycopg2 take in one that has not before."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from demo import services
from tests.conftest import let_export
from tests.streaming_export.waiting import eventually

MB = 1_000_000
ROWS = 500_000

URL = re.compile(r"https?://127\.0\.0\.1:\d+")

# Takes the number of rows, their width in bytes and options of the export; returns bytes.
Growth = Callable[..., int]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from Linux's /proc")


@pytest.fixture(scope="module")
def discarding_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a store in a process of its own that throws away what it gets, faster than Postgres gives it."""
    folder = tmp_path_factory.mktemp("store")
    with server("benchmarks.store", folder / "objects", "--discard", log=folder / "log") as url:
        yield url


@pytest.fixture(scope="module")
def tls_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a store that is reached by TLS, as in production."""
    log = tmp_path_factory.mktemp("tls") / "log"
    with server("moto.server", "-H", "127.0.0.1", "-p", "0", "--ssl", log=log) as url:
        yield url


@contextmanager
def server(module: str, *arguments: str | Path, log: Path) -> Iterator[str]:
    """Run a server that prints its URL; yields the URL."""
    command = [sys.executable, "-m", module, *arguments]
    with log.open("wb") as output, services.guarded(command, output, env=environment()):
        assert eventually(lambda: URL.search(log.read_text()))
        yield URL.findall(log.read_text())[0]


@pytest.fixture(scope="module")
def growth(exporter: sa.Engine, engine: sa.Engine, discarding_store: str) -> Iterator[Growth]:
    """Measures the growth, in bytes, of a process that exports rows."""
    schema = f"memory_{uuid.uuid4().hex}"
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
        let_export(connection, schema)
        connection.exec_driver_sql(f"CREATE TABLE {schema}.numbers (id bigint)")
        connection.exec_driver_sql(f"INSERT INTO {schema}.numbers SELECT generate_series(1, {ROWS})")
        connection.exec_driver_sql(f"ALTER TABLE {schema}.numbers ADD PRIMARY KEY (id)")
        connection.exec_driver_sql(f"ANALYZE {schema}.numbers")

    def measure(rows: int, width: int = 80, **options: Any) -> int:
        arguments = {
            "database": exporter.url.render_as_string(),
            "endpoint": discarding_store,
            "bucket": "memory",
            "key": "a.csv",
            # The server would put a text that is the same for all rows into the plan.
            "query": f"SELECT id, repeat('x', {width - 8} + (id * 0)::int) AS filler"
            f" FROM {schema}.numbers WHERE id <= {rows}",
            "rows": rows,
            **options,
        }
        print(json.dumps(arguments), file=program.stdin, flush=True)
        return int(program.stdout.readline())

    command = [sys.executable, "-W", "ignore", Path(__file__).with_name("growth.py")]
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        yield measure
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")


def environment() -> dict[str, str]:
    """What a program of the tests needs to find the project's modules."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.mark.parametrize(
    ("rows", "width", "options"),
    [
        (ROWS, 800, {"unique_key": "id", "yield_per": 10_000}),
        (ROWS, 800, {}),
        (ROWS // 2, 400, {"method": "rows"}),
    ],
    ids=["batches", "stream", "rows"],
)
def test_ten_times_the_rows_take_no_more_memory(growth: Growth, rows: int, width: int, options: dict[str, Any]) -> None:
    """Ten times as many rows make the process grow by less than 16 MB more, and by less than 64 MB in all."""
    # Few fill all buffers, too; but all parts are on their way at once only if the store happens to be slow meanwhile.
    few, many = max(growth(rows // 10, width, **options) for _ in range(3)), growth(rows, width, **options)
    assert many - few < 16 * MB
    assert many < 64 * MB


@pytest.mark.parametrize(
    ("width", "options"),
    [
        (100_000, {}),
        (MB, {"unique_key": "id"}),
        (MB, {"unique_key": "id", "yield_per": 50}),
    ],
    ids=["stream", "defaults", "small ranges"],
)
def test_memory_does_not_depend_on_the_width_of_rows(growth: Growth, width: int, options: dict[str, Any]) -> None:
    """Rows of 100 KB and of 1 MB: the process grows by less than 64 MB, as with narrow ones."""
    assert growth(150 * MB // width, width, **options) < 64 * MB


@pytest.mark.parametrize("width", [8 * MB, 100 * MB])
def test_wider_rows_cost_three_copies(growth: Growth, width: int) -> None:
    """A row is in libpq's input buffer, in libpq's copy of it, and in psycopg2's bytes; nowhere else as a whole."""
    assert growth(2, width, unique_key="id") < 3 * width + 64 * MB


def test_tls_takes_no_more_memory(growth: Growth, tls_store: str) -> None:
    """The bound holds over TLS, where botocore would copy each part to send its checksum behind it."""
    assert growth(ROWS // 2, unique_key="id", endpoint=tls_store) < 64 * MB
