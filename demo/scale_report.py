"""The report of `make scale`: which worker exported what, and whether files, table and analytics have the same rows."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from typing import Any
from urllib.parse import urlsplit

import psutil
import psycopg

from demo import services
from demo.cluster import Cluster, cpu_seconds

DAILY = "orders/daily/"
PIECES_MANIFEST = "orders/orders-in-pieces.csv.manifest.json"
BY_WORKER = """
SELECT hostname, count(*) FILTER (WHERE ti.state = 'success'), coalesce(sum(try_number - 1), 0)
FROM task_instance AS ti JOIN dag_run USING (dag_id, run_id)
WHERE dag_id = 'orders_export_daily' AND run_type = 'backfill' GROUP BY 1 ORDER BY 1
"""
PIECES = """
SELECT hostname, count(*) FROM task_instance
WHERE dag_id = 'orders_over_workers' AND task_id = 'export.export_piece' GROUP BY 1 ORDER BY 1
"""
SUM = "SELECT count(*), coalesce(sum(hashtextextended(o::text, 0)::numeric), 0) FROM {} AS o"


@dataclass
class Report:
    """The figures of a run.

    :param start: the first day.
    :param days: number of days.
    """

    cluster: Cluster
    start: date
    days: int
    killed: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    workers: list[tuple[str, int, int]] = field(default_factory=list)
    cpu: dict[str, float] = field(default_factory=dict)
    cpu_before: dict[str, float] = field(default_factory=dict)
    files: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    ids: int = 0
    manifest_rows: int = 0
    same_content: bool = False
    uploads: int = 0
    pieces: list[tuple[str, int]] = field(default_factory=list)
    rows_in_pieces: tuple[int, int] = (0, 0)
    pieces_loaded: bool = False

    def begin(self) -> None:
        """Record the CPU time that the programs used before there was anything to do."""
        self.cpu_before = _cpu_seconds(self.cluster)

    def look(self) -> None:
        """Collect the figures from the databases, the store and the processes."""
        cluster = self.cluster
        with psycopg.connect(cluster.metadata) as connection:
            self.workers = [(str(host), int(done), int(again)) for host, done, again in connection.execute(BY_WORKER)]
        self.cpu = {part: used - self.cpu_before.get(part, 0) for part, used in _cpu_seconds(cluster).items()}
        table, there = _sum(cluster.orders, "orders"), _sum(services.analytics(cluster.orders), "analytics.orders")
        self.same_content = table == there
        self.rows = {"table": table[0], "analytics": there[0], "files": 0}
        self._look_at_files()

    def look_at_pieces(self) -> None:
        """The same for the export in pieces: its manifest, and what was loaded."""
        with psycopg.connect(self.cluster.metadata) as connection:
            self.pieces = [(str(host), int(number)) for host, number in connection.execute(PIECES)]
        client = services.s3_client(self.cluster.store)
        body = client.get_object(Bucket=services.BUCKET, Key=PIECES_MANIFEST)["Body"].read()
        table = _sum(self.cluster.orders, "orders")
        self.rows_in_pieces = (table[0], json.loads(body)["rows"])
        self.pieces_loaded = table == _sum(services.analytics(self.cluster.orders), "analytics.orders")

    def _look_at_files(self) -> None:
        client = services.s3_client(self.cluster.store)
        ids: set[str] = set()
        for key in _keys(client, DAILY):
            body = client.get_object(Bucket=services.BUCKET, Key=key)["Body"].read()
            if key.endswith(".manifest.json"):
                self.manifest_rows += json.loads(body)["rows"]
                continue
            found = [row[0] for row in csv.reader(io.StringIO(body.decode(), newline=""))][1:]
            self.files += bool(found)
            self.rows["files"] += len(found)
            ids.update(found)
        self.ids = len(ids)
        uploads = client.list_multipart_uploads(Bucket=services.BUCKET).get("Uploads", [])
        self.uploads = len(uploads)

    def differences(self) -> list[str]:
        """What is wrong, in sentences."""
        table, wrong = self.rows["table"], []
        for what, found in (
            ("the files", self.rows["files"]),
            ("the files' unique ids", self.ids),
            ("the manifests", self.manifest_rows),
            ("the analytics table", self.rows["analytics"]),
        ):
            if found != table:
                wrong.append(f"{what}: {found:,}; the table has {table:,}.")
        if not self.same_content:
            wrong.append("the rows of the analytics table are not those of the table.")
        if self.files != self.days:
            wrong.append(f"{self.files} files with rows; there are {self.days} days.")
        if self.uploads:
            wrong.append(f"{self.uploads} uploads are left unfinished.")
        if self.rows_in_pieces[0] != self.rows_in_pieces[1] or not self.pieces_loaded:
            wrong.append("the export in pieces, as it was loaded, does not have the rows of the table.")
        if self.killed and not sum(again for *_, again in self.workers):
            wrong.append("nothing was tried again, so the killed worker was idle: run it again with more DAYS.")
        return wrong

    def text(self) -> str:
        """The report as text."""
        return "\n".join(["", *self._lines(), ""])

    def _lines(self) -> Iterator[str]:
        yield f"  {'':34}{'days':>10}{'retries':>10}"
        for host, days, again in self.workers:
            yield f"  {host + (', killed with -9' if host == self.killed else ''):34}{days:10,}{again:10,}"
        yield ""
        yield f"  {'rows in the table orders':34}{self.rows['table']:10,}"
        yield f"  {f'rows in {self.files} files':34}{self.rows['files']:10,}   {self.ids:,} unique ids"
        yield f"  {'rows in analytics.orders':34}{self.rows['analytics']:10,}   {self._content()}"
        yield f"  {'uploads left unfinished':34}{self.uploads:10,}"
        yield ""
        where = ", ".join(f"{number} on {host}" for host, number in self.pieces)
        yield f"  {'rows of the table, one more':34}{self.rows_in_pieces[0]:10,}"
        yield f"  {'rows in its export in pieces':34}{self.rows_in_pieces[1]:10,}   {where}"
        yield f"  {'the same, loaded':34}{'':10}   {'equal' if self.pieces_loaded else 'NOT equal'} to the table's"
        yield ""
        for what, seconds in self.seconds.items():
            yield f"  {what:34}{seconds:10.0f} s"
        yield ""
        tasks = sum(days for _, days, _ in self.workers)
        yield f"  {'processor seconds meanwhile':34}{'all':>10}{'each day':>10}"
        for part, seconds in self.cpu.items():
            yield f"  {part:34}{seconds:10.1f}{seconds / max(tasks, 1):10.3f}"

    def _content(self) -> str:
        return "equal to the table's" if self.same_content else "NOT the table's"


def _sum(uri: str, table: str) -> tuple[int, Any]:
    """Number of rows, and the sum of their hashes: equal for equal rows in any order."""
    with psycopg.connect(uri) as connection:
        row = connection.execute(SUM.format(table)).fetchone()
        assert row is not None
        return int(row[0]), row[1]


def _keys(client: Any, prefix: str) -> Iterator[str]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=services.BUCKET, Prefix=prefix):
        yield from (item["Key"] for item in page.get("Contents", []))


def _cpu_seconds(cluster: Cluster) -> dict[str, float]:
    """CPU seconds of Airflow's programs and of the services."""
    seconds, folder = cluster.cpu_seconds(), cluster.folder
    for name, service in (("orders-db", "the orders' database"), ("airflow-db", "Airflow's database")):
        pid = int((folder / name / "data" / "postmaster.pid").read_text().split()[0])
        seconds[service] = cpu_seconds(pid)
    broker = f"127.0.0.1:{urlsplit(cluster.broker).port}"
    for process in psutil.process_iter(["name", "cmdline"]):
        name, words = process.info["name"], process.info["cmdline"] or []
        if name == "valkey-server" and broker in " ".join(words):
            seconds["broker"] = cpu_seconds(process.pid)
        if name == "weed" and f"-dir={folder / 's3' / 'data'}" in words:
            seconds["S3 server"] = cpu_seconds(process.pid)
    return seconds
