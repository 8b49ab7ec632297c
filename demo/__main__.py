"""`make demo`: Airflow streams a table of orders from PostgreSQL to an S3 server, and on into another database.

    python -m demo --orders 200000

Exits with 0 only if the file in the store and the table in the analytics database have as many rows as the table of
orders. Its files stay in .demo/.
"""

from demo.interrupts import end_at_once, end_in_order

if __name__ == "__main__":
    end_at_once()  # before the imports, which take a second

import argparse
import csv
import itertools
import json
import os
import re
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from demo import services
from demo.guard import guarded
from demo.steps import alive, say

FOLDER = services.PROJECT / ".demo"
STAYS = "stopped; its objects stay in .demo/s3, and make ui serves them again"
GONE = "stopped; it does not keep its objects"
LOG = FOLDER / "airflow.log"


def main() -> int:
    end_in_order()
    parser = argparse.ArgumentParser("make demo", usage="make demo ORDERS=200000")
    parser.add_argument("--orders", metavar="ORDERS", type=number, default=200_000)
    rows = parser.parse_args().orders
    services.isolate_environment()
    try:
        with services.alone(FOLDER):
            return demo(rows)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except RuntimeError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1


def demo(rows: int) -> int:
    """Run the services, the DAG and the check; returns the exit status."""
    for copy in FOLDER.glob("orders-*.csv*"):  # of an earlier run
        copy.unlink()
    say("Starting PostgreSQL")
    with alive(), services.postgres(FOLDER / "postgres") as database:
        say("Starting an S3 server")
        with services.s3(FOLDER / "s3") as endpoint:
            services.create_bucket(endpoint)
            say(f"Filling the table orders: {counted(rows)}", lambda: services.written(database))
            services.load_orders(database, rows, datetime.now(UTC).date())
            services.make_exporter(database)
            analytics = services.analytics(database)
            say(f"Running the DAGs orders_export and orders_ingest in Airflow (output: {relative(LOG)})", airflow_says)
            services.unpublish(endpoint)
            result = run_dag(database, endpoint)
            say("Downloading the file and counting its rows")
            export = result["export"]
            copy = FOLDER / Path(export["key"]).name
            download(endpoint, export["bucket"], export["key"], copy)
            in_table, in_file = services.count_orders(database), count_rows(copy)
            in_analytics = services.count_orders(analytics, "analytics")
            say("Stopping the services")
    print_summary(result, copy, in_table, in_file, in_analytics)
    if not in_table == in_file == export["rows"] == in_analytics:
        print(
            f"WRONG: the table has {counted(in_table)}, the file {in_file:,}, the task reported {export['rows']:,}, and"
            f" the analytics database has {in_analytics:,}.",
            file=sys.stderr,
        )
        return 1
    return 0


def run_dag(database: str, endpoint: str) -> dict[str, Any]:
    """Run both DAGs in a separate process and return its result, see run_dag.py.

    Raises RuntimeError with the end of Airflow's output if the run did not succeed.
    """
    home, answer = FOLDER / "airflow", FOLDER / "result.json"
    home.mkdir(exist_ok=True)
    answer.unlink(missing_ok=True)
    environment = os.environ | services.airflow_environment(home, database, endpoint)
    command = [sys.executable, "-P", str(Path(__file__).with_name("run_dag.py")), str(answer)]
    with LOG.open("wb") as log, guarded(command, log, env=environment) as airflow:
        airflow.wait()
    result = json.loads(answer.read_text()) if answer.exists() else {"state": "failed"}
    if result["state"] != "success":
        what = "The ingest" if result.get("export") else "The export"
        raise airflow_failed(f"{what} failed: {result.get('error') or 'Airflow ended before the task did'}")
    return result


def airflow_failed(what: str) -> RuntimeError:
    """The error that says `what` after the end of Airflow's output."""
    tail = "\n  ".join(LOG.read_text(errors="replace").splitlines()[-20:])
    return RuntimeError(
        f"The last lines of {relative(LOG)}:\n  {tail}\n\n{what.rstrip('.')}. The whole output is in {relative(LOG)}."
    )


def download(endpoint: str, bucket: str, key: str, path: Path) -> None:
    """Stream the object into the file `path`, which appears when it is complete."""
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            shutil.copyfileobj(services.s3_client(endpoint).get_object(Bucket=bucket, Key=key)["Body"], file, 2**20)
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


def count_rows(path: Path) -> int:
    """The number of CSV rows in the file, without the header; not of lines, since values contain line breaks."""
    with path.open(encoding="utf-8", newline="") as file:
        return sum(1 for _ in csv.reader(file)) - 1


def print_summary(result: dict[str, Any], copy: Path, in_table: int, in_file: int, in_analytics: int) -> None:
    """Print what happened, for a newcomer."""
    export, seconds = result["export"], max(result["export"]["seconds"], 0.001)
    growth = (result["memory_peak"] - result["memory_before"]) / 2**20
    with copy.open(encoding="utf-8", newline="\n") as file:
        lines = "".join(f"    {line}" for line in itertools.islice(file, 5))
    print(f"""
Airflow's DAG orders_export streamed the table orders from PostgreSQL to S3, and orders_ingest from there into the
analytics database.

  object   s3://{export["bucket"]}/{export["key"]}
  manifest {export["manifest_url"]}
  rows     {in_file:,} in the file, {in_table:,} in the table, {in_analytics:,} in the analytics database
  size     {copy.stat().st_size / 1e6:,.1f} MB
  time     {seconds:,.1f} s, {export["rows"] / seconds:,.0f} rows/s
  loaded   in {result["ingest"][0]["seconds"]:,.1f} s ({result["ingest"][0]["outcome"]})
  memory   the process grew by {growth:,.0f} MB at most while it exported
  copy     {relative(copy)}
  store    {STAYS if services.keeps_objects() else GONE}

  The first five lines:
{lines}
What next?
  make ui                      the same with Airflow's web interface
  make demo ORDERS=5000000     more rows, about the same memory
  README.md                    your own database, table and bucket
""")


def airflow_says() -> str:
    """The export's progress, from Airflow's log; before and after it, the running task."""
    lines = LOG.read_text(errors="replace").splitlines()[-200:]
    said = [found for line in lines if (found := re.search(r"([\d,]+ rows, .*? rows/s)|starting task_id=(\w+)", line))]
    if not said:
        return "Airflow starts"
    rows, task = said[-1].groups()
    return f"Airflow: {rows}" if rows else f"Airflow runs {task}"


def relative(path: Path) -> Path:
    return path.relative_to(services.PROJECT)


def counted(rows: int) -> str:
    return f"{rows:,} row{'' if rows == 1 else 's'}"


def number(text: str) -> int:
    """`text` as a number of rows, for argparse."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows, such as 200000")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
