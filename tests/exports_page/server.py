"""Airflow's real app with the page in it, served from a thread of this process; and exports for it to show."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import requests
import uvicorn

from demo import services
from demo.ui import free_port
from orders.models import select_orders

USERS = ("viewer", "user", "admin")
NOW = datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True)
class Airflow:
    """A running Airflow.

    :param url: of its root.
    """

    url: str

    @functools.cache  # noqa: B019  there is one of these
    def token(self, user: str) -> str:
        """A credential of a user."""
        answer = requests.post(f"{self.url}/auth/token", json={"username": user, "password": user}, timeout=30)
        answer.raise_for_status()
        return str(answer.json()["access_token"])

    def session(self, user: str) -> requests.Session:
        """A client that is logged in."""
        session = requests.Session()
        session.headers["Authorization"] = f"Bearer {self.token(user)}"
        return session


def environment(home: Path, port: int) -> dict[str, str]:
    """What makes Airflow know the users, whose passwords are their names."""
    passwords = home / "passwords.json"
    passwords.write_text(json.dumps({name: name for name in USERS}))
    return {
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        "AIRFLOW__API__SECRET_KEY": secrets.token_hex(32),
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:{name}" for name in USERS),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
    }


@contextmanager
def serving(home: Path, change: Callable[[Any], None] = lambda app: None) -> Iterator[Airflow]:
    """Serve Airflow's app, with the middleware of its api-server, until the end of the block.

    :param change: what else is done to the app.
    """
    port = free_port()
    os.environ.update(environment(home, port))
    from airflow.api_fastapi.app import create_app, purge_cached_app

    purge_cached_app()
    app = create_app(apps="core")
    change(app)
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, log_level="critical"))
    thread = threading.Thread(target=server.run, name="airflow", daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "Airflow ended while it started"
        time.sleep(0.05)
    try:
        yield Airflow(f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(20)


def save_dags() -> None:
    """Put the DAGs of this project into Airflow's database, as the dag-processor does."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db

    DagBundlesManager().sync_bundles_to_db()
    sync_bag_to_db(DagBag(services.PROJECT / "dags"), "dags-folder", None)


def publish_days(client: Any, exporter: Any, bucket: str, days: int) -> list[str]:
    """Export the orders once, and give each of the last days a file and a manifest with the figures of that day.

    Two nights are missing, one has few rows, and one took long.

    :returns: keys of the files, the oldest first.
    """
    from tests.streaming_export.exporting import export

    run = {"dag": "orders_export", "task": "export_orders", "run": "", "try": 1}
    result = export(
        select_orders(), engine=exporter, client=client, bucket=bucket, key="template.csv", unique_key="id", run=run
    )
    body = client.get_object(Bucket=bucket, Key="template.csv")["Body"].read()
    document = json.loads(client.get_object(Bucket=bucket, Key="template.csv.manifest.json")["Body"].read())
    for key in ("template.csv", "template.csv.manifest.json"):
        client.delete_object(Bucket=bucket, Key=key)
    lines = body.splitlines(keepends=True)
    keys = []
    for ago in range(days - 1, -1, -1):
        if ago in (12, 23):
            continue
        share = 0.62 + 0.3 * (days - ago) / days + 0.02 * math.sin(ago * 2.1)
        share *= 0.35 if ago == 6 else 1
        at = NOW.replace(hour=2, minute=0, second=31) - timedelta(days=ago + (NOW.hour < 3))
        seconds = 34.0 if ago == 17 else 3.4 + share + 0.3 * math.sin(ago)
        keys.append(_publish_day(client, bucket, document, lines[: max(int(len(lines) * share), 2)], at, seconds))
    assert result.rows
    return keys


def _publish_day(
    client: Any, bucket: str, template: dict[str, Any], lines: list[bytes], at: datetime, seconds: float
) -> str:
    key, body = f"orders/orders-{at:%Y%m%d}.csv", b"".join(lines)
    etag = client.put_object(Bucket=bucket, Key=key, Body=body, ContentType="text/csv")["ETag"].strip('"')
    # Values of some orders have line breaks; what is counted here is for the charts.
    document = json.loads(json.dumps(template)) | {"rows": len(lines) - 1, "bytes": len(body)}
    document["files"] = [
        {"url": f"s3://{bucket}/{key}", "rows": len(lines) - 1, "bytes": len(body), "etag": etag, "parts": 1}
        | {"sha256": hashlib.sha256(body).hexdigest()}
    ]
    document["entries"] = [{"url": f"s3://{bucket}/{key}", "mandatory": True, "meta": {"content_length": len(body)}}]
    document["run"]["run"] = f"scheduled__{at - timedelta(seconds=31):%Y-%m-%dT%H:%M:%S}+00:00"
    document["started_at"] = document["snapshot"]["taken_at"] = at.isoformat()
    document["finished_at"] = (at + timedelta(seconds=seconds)).isoformat()
    client.put_object(Bucket=bucket, Key=f"{key}.manifest.json", Body=json.dumps(document).encode())
    return key


def relist() -> None:
    """Forget what the bucket held."""
    from exports_page.api import catalogue

    catalogue._listing = catalogue._bucket = None
    forget()


def forget() -> None:
    """Forget what the manifests say, but not which there are."""
    from exports_page.api import catalogue

    catalogue._entries.clear()


def raw(airflow: Airflow, path: str, user: str = "user", *headers: str) -> socket.socket:
    """A connection on which a path was asked for."""
    place = urlsplit(airflow.url)
    connection = socket.create_connection((place.hostname or "", place.port or 0), timeout=60)
    lines = [f"GET /{path} HTTP/1.1", "Host: airflow", f"Authorization: Bearer {airflow.token(user)}", *headers]
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    return connection


def rest(connection: socket.socket) -> bytes:
    """All that still comes."""
    found = bytearray()
    while data := connection.recv(2**20):
        found += data
    return bytes(found)


def file_of(shop: str, key: str, **more: Any) -> str:
    """The path of a published file."""
    return "exports/files?" + urlencode({"manifest": f"s3://{shop}/{key}.manifest.json", **more})
