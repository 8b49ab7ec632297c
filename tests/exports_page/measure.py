"""Measures orders.csv against a plain StreamingResponse over yield_per=500, in one run, on this machine.

    PYTHONPATH=plugins:. python -m tests.exports_page.measure [ROWS]

Both are served by Airflow's real app in a process of its own. Printed for each: seconds, CPU seconds of that process,
rows per second, milliseconds to the first byte, the most that memory grew, and the 95th percentile of the milliseconds
that another request took meanwhile.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil

from demo import services
from tests.exports_page.server import Airflow, serving

ROWS = 2_000_000
LIVE = "exports/orders.csv"

#: Path and accepted encoding, by what is measured.
WAYS = {
    "orders.csv": (LIVE, "identity"),
    "orders.csv, gzip": (LIVE, "gzip"),
    "StreamingResponse, yield_per=500": ("plain/orders.csv", "identity"),
}


def serve(home: Path, database: str) -> None:
    """The process that is measured: prints its URL, and ends with its standard input."""
    from airflow.utils import db
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
    from starlette.routing import Mount

    from orders.models import Order, select_orders

    db.initdb()
    plain = FastAPI()
    engine = create_async_engine(database.replace("postgresql://", "postgresql+asyncpg://"))

    async def lines() -> AsyncIterator[str]:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        async with AsyncSession(engine) as session:
            rows = await session.stream(select_orders().order_by(Order.id), execution_options={"yield_per": 500})
            async for some in rows.partitions():
                writer.writerows(some)
                yield buffer.getvalue()
                buffer.seek(0)
                buffer.truncate()

    @plain.get("/orders.csv")
    async def orders() -> StreamingResponse:
        return StreamingResponse(lines(), media_type="text/csv", headers={"Content-Encoding": "identity"})

    with serving(home, lambda app: app.router.routes.insert(0, Mount("/plain", plain))) as airflow:
        print(airflow.url, flush=True)
        sys.stdin.read()


def measure(airflow: Airflow, process: psutil.Process, path: str, headers: dict[str, str]) -> dict[str, float]:
    """Download once, with another request every 20 ms."""
    session, other, done = airflow.session("user"), airflow.session("user"), threading.Event()
    memory, taken = [process.memory_info().rss], []

    def sample() -> None:
        while not done.wait(0.01):
            memory.append(process.memory_info().rss)

    def ask() -> None:
        while not done.wait(0.02):
            start = time.monotonic()
            other.get(f"{airflow.url}/api/v2/dags?limit=5").raise_for_status()
            taken.append((time.monotonic() - start) * 1000)

    threads = [threading.Thread(target=sample), threading.Thread(target=ask)]
    for thread in threads:
        thread.start()
    cpu, start, first, size = sum(process.cpu_times()[:2]), time.monotonic(), 0.0, 0
    with session.get(f"{airflow.url}/{path}", stream=True, headers=headers) as answer:
        answer.raise_for_status()
        for chunk in answer.raw.stream(2**18, decode_content=False):
            first = first or time.monotonic()
            size += len(chunk)
    seconds, used = time.monotonic() - start, sum(process.cpu_times()[:2]) - cpu
    done.set()
    for thread in threads:
        thread.join()
    return {
        "MB": size / 1e6,
        "seconds": seconds,
        "CPU s": used,
        "first byte ms": (first - start) * 1000,
        "memory +MB": (max(memory) - memory[0]) / 2**20,
        "p95 ms": statistics.quantiles(taken, n=20)[-1] if len(taken) > 1 else float("nan"),
        "asked": len(taken),
    }


def main(rows: int) -> None:
    """Measure and print."""
    services.isolate_environment()
    with contextlib.ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = stack.enter_context(services.postgres(temporary / "postgres"))
        endpoint = stack.enter_context(services.s3())
        services.create_bucket(endpoint)
        services.load_orders(database, rows)
        services.make_exporter(database)
        home = temporary / "airflow"
        home.mkdir()
        environment = os.environ | services.airflow_environment(home, database, endpoint)
        environment |= {"AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"}
        command = [sys.executable, "-m", "tests.exports_page.measure", "serve", str(home), database]
        child = stack.enter_context(
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                text=True,
            )
        )
        assert child.stdout
        url = next(line for line in child.stdout if line.startswith("http")).strip()
        threading.Thread(target=child.stdout.read, daemon=True).start()
        process, airflow = psutil.Process(child.pid), Airflow(url)
        measure(airflow, process, f"{LIVE}?created_from=2040-01-01T00:00:00Z", {})
        for name, (path, encoding) in WAYS.items():
            found = measure(airflow, process, path, {"Accept-Encoding": encoding})
            figures = ", ".join(f"{what} {value:,.1f}" for what, value in found.items())
            print(f"{name}: {rows / found['seconds']:,.0f} rows/s, {figures}", flush=True)
        assert child.stdin
        child.stdin.close()


if __name__ == "__main__":
    arguments: list[Any] = sys.argv[1:]
    if arguments[:1] == ["serve"]:
        serve(Path(arguments[1]), arguments[2])
    else:
        main(int(arguments[0]) if arguments else ROWS)
