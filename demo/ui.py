"""`make ui`: PostgreSQL, the S3 server and Airflow with its web interface, until Ctrl-C.

It starts Airflow's four programs one by one: `airflow standalone` would also serve log files to the network, on two
fixed ports.
"""

from demo.interrupts import end_at_once, end_in_order

if __name__ == "__main__":
    end_at_once()  # before the imports, which take a second

import argparse
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

from demo import services
from demo.__main__ import FOLDER, LOG, airflow_failed, counted, number, relative
from demo.cluster import free_port
from demo.embedded_postgres import program
from demo.guard import ask_to_stop, guarded
from demo.steps import alive, say

HOME = FOLDER / "airflow-ui"  # not that of `make demo`, whose runs link to a server that has ended
PASSWORDS = HOME / "passwords.json"
USER, PASSWORD = "admin", "admin"  # the interface listens on this machine only
API_SERVER = ["api-server"]
# Started when the API server answers, because tasks that can't reach it fail and are retried.
OTHERS = (["scheduler", "--skip-serve-logs"], ["dag-processor"], ["triggerer", "--skip-serve-logs"])
START_SECONDS = 180


def main() -> int:
    end_in_order()
    parser = argparse.ArgumentParser("make ui", usage="make ui ORDERS=200000")
    parser.add_argument("--orders", metavar="ORDERS", type=number, default=200_000)
    rows = parser.parse_args().orders
    services.isolate_environment()
    try:
        with services.alone(FOLDER):
            ui(rows)
    except KeyboardInterrupt:
        say("Stopped.")
    except RuntimeError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


def ui(rows: int) -> None:
    """Run everything until a KeyboardInterrupt. Raises RuntimeError if a program of Airflow ends by itself."""
    with contextlib.ExitStack() as stack:
        with alive():
            say("Starting PostgreSQL and an S3 server")
            database = stack.enter_context(services.postgres(FOLDER / "postgres"))
            endpoint = stack.enter_context(services.s3(FOLDER / "s3"))
            services.create_bucket(endpoint)
            say(f"Filling the table orders: {counted(rows)}", lambda: services.written(database))
            today = datetime.now(UTC).date()
            services.load_orders(database, rows, today)
            services.make_exporter(database)
            services.analytics(database)
            port = free_port()
            log = stack.enter_context(LOG.open("wb"))
            environment = os.environ | services.airflow_environment(HOME, database, endpoint) | ui_environment(port)
            airflow = start_airflow(stack, environment, log, port)
        kept = "; all stays in .demo/s3" if services.keeps_objects() else ""
        print(f"""
  Airflow         http://127.0.0.1:{port}
  login           {USER}, password {PASSWORD}
  the exports     http://127.0.0.1:{port}/plugin/exports, where the link of each export leads
  the database    {program("psql")} '{database}'
  the S3 server   {endpoint}, access key {services.ACCESS_KEY}, secret {services.SECRET_KEY}{kept}

  All DAGs except orders_deadline are on: last night's runs start within a minute.
  "Trigger" on orders_export starts another run, with a form for a selection of the orders.
  orders_ingest loads what they publish into the database analytics, except selections made by hand.
  The orders are from {today - timedelta(30)} to {today - timedelta(1)}: for a file for each day, choose "Trigger" on
  orders_export_daily, then "Backfill".
  A DAG of your own in dags/ appears within seconds; for a table of your own, see README.md.
  Ctrl-C ends everything.
""")
        while all(part.poll() is None for part in airflow):
            time.sleep(1)
        raise airflow_failed("A program of Airflow ended by itself")


def ui_environment(port: int) -> dict[str, str]:
    """Environment variables, in addition to `services.airflow_environment`, for Airflow's programs on this port."""
    # A new home: old runs link to a server that has ended, and last night's runs would not start again.
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir()
    PASSWORDS.write_text(json.dumps({USER: PASSWORD}))
    return {
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__SECRET_KEY": secrets.token_hex(32),
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",  # seconds until a new file is seen; else 300
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "2",  # each is a process, from the start
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(PASSWORDS),
    }


def start_airflow(
    stack: contextlib.ExitStack, environment: dict[str, str], log: IO[bytes], port: int
) -> list[subprocess.Popen[bytes]]:
    """Create Airflow's database, then start its programs, which end with `stack`; returns when all are healthy."""
    prepare = [sys.executable, "-P", str(Path(__file__).with_name("run_dag.py"))]
    say(f"Making Airflow's database (output: {relative(LOG)})")
    with guarded(prepare, log, env=environment) as preparing:
        if preparing.wait():
            raise airflow_failed("Airflow could not make its database")
    airflow: list[subprocess.Popen[bytes]] = []

    def start(words: list[str]) -> None:
        command = [sys.executable, "-P", "-m", "airflow", *words]
        airflow.append(stack.enter_context(guarded(command, log, env=environment)))

    say("Starting Airflow's API server")
    start(API_SERVER)
    wait_for(lambda: health(port) is not None, airflow)
    say("Starting Airflow's scheduler, DAG processor and triggerer", lambda: not_yet(port))
    for words in OTHERS:
        start(words)
    wait_for(lambda: not_yet(port) == "", airflow)
    for part in airflow:
        stack.callback(ask_to_stop, part)  # all at once, before each is waited for
    return airflow


def wait_for(ready: Callable[[], bool], airflow: list[subprocess.Popen[bytes]]) -> None:
    """Return when `ready()`. Raises RuntimeError if a program of Airflow ends, or it takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if any(part.poll() is not None for part in airflow):
            raise airflow_failed("A program of Airflow ended while it started")
        if time.monotonic() > deadline:
            raise airflow_failed(f"Airflow did not answer within {START_SECONDS} s")
        time.sleep(0.5)


def health(port: int) -> dict[str, Any] | None:
    """The health of each program of Airflow, from the API server; None while that does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v2/monitor/health", timeout=5) as answer:
            parts: dict[str, Any] = json.load(answer)
    except (OSError, ValueError):
        return None
    return parts


def not_yet(port: int) -> str:
    """The programs that are not healthy, in words; "" if there are none."""
    parts = health(port)
    if parts is None:
        return "the API server does not answer yet"
    waiting = [name.replace("_", " ") for name, part in parts.items() if part["status"] != "healthy"]
    return f"waiting for {', '.join(waiting)}" if waiting else ""


if __name__ == "__main__":
    sys.exit(main())
