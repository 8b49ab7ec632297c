"""`make scale`: Airflow on several Celery workers, each as on a separate machine; one of them is killed.

    python -m demo.scale --workers 2 --days 60

Fills a table with 5,000 orders a day, backfills `orders_export_daily` and kills a worker with SIGKILL halfway, while
`orders_ingest` loads what is published into the analytics database. Then it exports the table in pieces. Exits with 0
only if the files and the analytics table have exactly the orders of the table.
"""

import argparse
import contextlib
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import psycopg

from demo import services
from demo.__main__ import FOLDER, end_in_order, relative
from demo.broker import valkey
from demo.cluster import Cluster, free_port, running
from demo.scale_report import Report
from demo.steps import alive, say

HOME = FOLDER / "scale"
DAGS = ("dags/orders_export_daily.py", "dags/orders_ingest.py", "demo/scale_group.py")
ORDERS_A_DAY = 5_000
SLOTS = 2
PATIENCE = 120.0  # seconds without a finished task after which it gives up

# `demo/orders.sql` makes 30 days, which begin on this date. This stretches them to DAYS days that end before yesterday.
SPREAD = """
UPDATE orders SET created_at = %(start)s + (created_at - timestamptz '2026-10-23 00:00+00') * %(days)s / 30
"""
DONE = """
SELECT count(*) FILTER (WHERE ti.state = 'success'), count(*) FILTER (WHERE ti.state = 'failed'),
       count(*) FILTER (WHERE ti.state = 'running' AND hostname = %(host)s)
FROM task_instance AS ti JOIN dag_run USING (dag_id, run_id)
WHERE dag_id = 'orders_export_daily' AND run_type = 'backfill'
"""
GROUP = "SELECT state FROM dag_run WHERE dag_id = 'orders_over_workers'"


def main() -> int:
    parser = argparse.ArgumentParser("make scale", usage="make scale WORKERS=2 DAYS=60")
    parser.add_argument("--workers", type=int, default=2, choices=range(2, 17), metavar="WORKERS")
    parser.add_argument("--days", type=int, default=60, choices=range(4, 3_651), metavar="DAYS")
    asked = parser.parse_args()
    services.isolate_environment()
    end_in_order()
    try:
        with services.alone(FOLDER), alive():
            shutil.rmtree(HOME, ignore_errors=True)
            report = scale(asked.workers, asked.days)
            shutil.rmtree(HOME)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except RuntimeError as error:
        print(f"\n{error}\nThe logs are in {relative(HOME)}.", file=sys.stderr)
        return 1
    print(report.text())
    for difference in report.differences():
        print(f"WRONG: {difference}", file=sys.stderr)
    return 1 if report.differences() else 0


def scale(workers: int, days: int) -> Report:
    """Run everything; returns the report."""
    start = datetime.now(UTC).date() - timedelta(days=days + 1)  # yesterday is for the schedule, and has no orders
    with services_of(days, start) as cluster:
        report = Report(cluster, start, days)
        say("Making Airflow's database")
        cluster.call("db", "migrate")
        say(f"Starting Airflow with {workers} workers of {SLOTS} slots")
        with running(cluster, workers) as stack:
            begun = time.monotonic()
            report.begin()
            say(f"Backfilling orders_export_daily: {days} days from {start}")
            last = start + timedelta(days=days - 1)
            backfill = ["backfill", "create", "--dag-id", "orders_export_daily", "--from-date", str(start)]
            cluster.call(*backfill, "--to-date", str(last), "--max-active-runs", str(workers * SLOTS + 2))
            kill_one(cluster, stack, days, report)
            wait_for_days(cluster, days, days)
            report.seconds["all days exported"] = time.monotonic() - begun
            say("Waiting for orders_ingest")
            wait_for_ingest(cluster)
            report.seconds["and loaded"] = time.monotonic() - begun
            report.look()
            say("Exporting all orders in pieces, on all workers at once: one snapshot, one manifest")
            begun = time.monotonic()
            add_order(cluster)
            cluster.call("dags", "unpause", "orders_over_workers", "--yes")
            wait_for_group(cluster)
            report.seconds["in pieces, and loaded"] = time.monotonic() - begun
            report.look_at_pieces()
            say("Stopping: the workers, then the rest")
        return report


@contextlib.contextmanager
def services_of(days: int, start: date) -> Iterator[Cluster]:
    """Two PostgreSQL servers, an S3 server and a broker; the table of orders, and a folder of DAGs."""
    dags = HOME / "dags"
    dags.mkdir(parents=True)
    for name in DAGS:
        shutil.copy(services.PROJECT / name, dags)
    say("Starting PostgreSQL twice, for the orders and for Airflow, an S3 server and a broker")
    with (
        services.postgres(HOME / "orders-db") as orders,
        services.postgres(HOME / "airflow-db") as metadata,
        services.s3(HOME / "s3") as store,
        valkey(HOME / "broker", free_port()) as broker,
    ):
        services.create_bucket(store)
        say(f"Filling the table orders: {days * ORDERS_A_DAY:,} rows of {days} days")
        services.load_orders(orders, days * ORDERS_A_DAY)
        with psycopg.connect(orders, autocommit=True) as connection:
            midnight = datetime(start.year, start.month, start.day, tzinfo=UTC)
            connection.execute(SPREAD, {"start": midnight, "days": days})
            connection.execute("VACUUM ANALYZE orders")
        services.make_exporter(orders)
        services.analytics(orders)
        yield Cluster(HOME, dags, metadata, orders, store, broker, SLOTS)


def kill_one(cluster: Cluster, stack: contextlib.ExitStack, days: int, report: Report) -> None:
    """Kill the first worker in the middle of a task, when a third of the days is done; start another one."""
    victim = "worker-1"
    while wait_for_days(cluster, days // 3, days, busy=victim):
        cluster.signal(victim, signal.SIGSTOP)
        time.sleep(0.5)  # what it has reported by now is noted
        with psycopg.connect(cluster.metadata) as connection:
            if state_of_days(connection, victim)[2]:
                break
        cluster.signal(victim, signal.SIGCONT)  # its task had ended
    say(f"kill -9 of {victim} with all that it runs; another worker takes its place")
    cluster.kill(victim)
    report.killed = victim
    cluster.start_worker(stack, f"worker-{len([host for host in cluster.parts if 'worker' in host]) + 2}")


def state_of_days(connection: psycopg.Connection, busy: str | None) -> tuple[int, int, int]:
    """How many days are exported, how many failed for good, and how many the worker `busy` is exporting."""
    succeeded, failed, there = connection.execute(DONE, {"host": busy}).fetchone() or (0, 0, 0)
    return succeeded, failed, there


def wait_for_days(cluster: Cluster, done: int, days: int, busy: str | None = None) -> bool:
    """Return when `done` of the `days` days are exported, and the worker `busy` is exporting one: whether it is.

    Raises RuntimeError if a day failed for good, or none ends for a long time.
    """
    before, changed, said = -1, time.monotonic(), time.monotonic()
    with psycopg.connect(cluster.metadata, autocommit=True) as connection:
        while True:
            cluster.check()
            succeeded, failed, running_there = state_of_days(connection, busy)
            if failed:
                raise RuntimeError(f"{failed} days failed for good.")
            if succeeded >= done and (busy is None or running_there or succeeded >= days):
                return bool(running_there)
            now = time.monotonic()
            if succeeded != before:
                before, changed = succeeded, now
            if now - changed > PATIENCE:
                raise RuntimeError(f"No day was exported for {PATIENCE:.0f} s; {succeeded} of {days} are.")
            if now - said > 4.5:
                said = now
                say(f"  {succeeded} of {days} days")
            time.sleep(0.1)


def add_order(cluster: Cluster) -> None:
    """Make the table differ from what is loaded, so that the next load can be seen."""
    with psycopg.connect(cluster.orders, autocommit=True) as connection:
        connection.execute("INSERT INTO orders SELECT max(id) + 1, 'a@b', 1, 'paid', now() FROM orders")


def wait_for_group(cluster: Cluster) -> None:
    """Return when the export in pieces is published and loaded. Raises RuntimeError if it failed or does not end."""
    deadline = time.monotonic() + 2 * PATIENCE
    with psycopg.connect(cluster.metadata, autocommit=True) as connection:
        while time.monotonic() < deadline:
            cluster.check()
            states = [row[0] for row in connection.execute(GROUP)]
            if "failed" in states:
                raise RuntimeError("The export in pieces failed.")
            if states == ["success"]:
                return wait_for_ingest(cluster)
            time.sleep(0.2)
    raise RuntimeError("The export in pieces does not end.")


def wait_for_ingest(cluster: Cluster) -> None:
    """Return when no run of the ingest is running or waiting. Raises RuntimeError if one failed for good."""
    quiet = time.monotonic()
    with psycopg.connect(cluster.metadata, autocommit=True) as connection:
        while time.monotonic() - quiet < 5:  # an event becomes a run within a second or two
            cluster.check()
            states = dict(
                connection.execute("SELECT state, count(*) FROM dag_run WHERE dag_id = 'orders_ingest' GROUP BY 1")
            )
            waiting = connection.execute("SELECT count(*) FROM asset_dag_run_queue").fetchone()
            if states.get("failed"):
                raise RuntimeError("A run of orders_ingest failed.")
            if states.keys() & {"running", "queued"} or (waiting and waiting[0]):
                quiet = time.monotonic()
            time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
