"""TLS of the Postgres connection: each connection of an export verifies the server, or reads nothing."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from demo.embedded_postgres import SOCKET
from streaming_export import DatabaseError, ExportCancelled
from tests.conftest import content, keys, open_uploads
from tests.postgres_to_s3.test_operator import CONTEXT, Make, make, queries
from tests.postgres_to_s3.tls import Authority, TlsProxy, tls_proxied
from tests.streaming_export.waiting import Running, eventually

__all__ = ["make"]

HOST, PASSWORD = "db.test", "s3cret-of-the-db"

Behind = Callable[..., contextlib.AbstractContextManager[TlsProxy]]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority that the connection trusts."""
    return Authority(tmp_path_factory.mktemp("tls") / "trusted")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another one."""
    return Authority(tmp_path_factory.mktemp("tls") / "stranger")


@pytest.fixture
def behind(database: str, authority: Authority, airflow_home: Path, monkeypatch: pytest.MonkeyPatch) -> Behind:
    """Has `orders_db` lead, with sslmode=verify-full, to a server of these contexts."""
    server = f"{sa.make_url(database).query['host']}/{SOCKET}"

    @contextlib.contextmanager
    def run(*contexts: ssl.SSLContext | None) -> Iterator[TlsProxy]:
        with tls_proxied(server, *contexts) as proxy:
            connection = json.loads(os.environ["AIRFLOW_CONN_ORDERS_DB"])
            connection |= {"host": HOST, "port": proxy.port, "password": PASSWORD}
            tls = {"sslmode": "verify-full", "sslrootcert": str(authority.certificate)}
            connection["extra"] = {**tls, "hostaddr": "127.0.0.1"}  # instead of asking a name server
            monkeypatch.setenv("AIRFLOW_CONN_ORDERS_DB", json.dumps(connection))
            yield proxy

    return run


def refused(make: Make, client: Any, bucket: str, why: str) -> None:
    """The export fails and says why, without the password, before anything is read or written."""
    with pytest.raises(DatabaseError, match=why) as caught:
        make(readers=3).execute(CONTEXT)
    assert "Nothing was published" in str(caught.value)
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))
    assert keys(client, bucket) == open_uploads(client, bucket) == []


@pytest.mark.parametrize("method", ["copy", "rows"])
def test_each_connection_is_verified(
    make: Make, orders: int, behind: Behind, authority: Authority, client: Any, bucket: str, method: Any
) -> None:
    """Those of the wait, of the snapshot's holder and of each reader; the server has no other way in."""
    window = ("2026-10-01T00:00:00+00:00", "2026-11-01T00:00:00+00:00")
    with behind(authority.context(HOST)) as proxy:
        operator = make(method=method, readers=3, yield_per=1_000, window=window, wait_for_transactions=30)
        assert operator.execute(CONTEXT)["rows"] == orders
        readers = 3 if method == "copy" else 1
        assert (proxy.asked, proxy.accepted, proxy.plain) == (1 + 1 + readers, 1 + 1 + readers, 0)
    assert content(client, bucket, "a/file.csv").startswith(b"id,customer_email,")


def test_the_connection_that_cancels_is_verified(
    make: Make, orders: int, behind: Behind, authority: Authority, engine: sa.Engine
) -> None:
    """The query of a stopped task is cancelled through one more connection, by TLS as well."""
    operator = make(query="SELECT id, pg_sleep(60)::text AS nap FROM orders", unique_key=None, verify_rows=False)
    with behind(authority.context(HOST)) as proxy:
        exporting = Running(lambda: operator.execute(CONTEXT))
        assert eventually(lambda: queries(engine, "%pg_sleep%"))
        before = proxy.accepted
        operator.on_kill()
        assert exporting.ends()
        assert isinstance(exporting.error, ExportCancelled)
        assert proxy.accepted > before
        assert (proxy.asked, proxy.plain) == (proxy.accepted, 0)
    assert queries(engine, "%pg_sleep%") == []


@pytest.mark.parametrize(
    ("who", "host", "ended", "why"),
    [
        ("stranger", HOST, False, "certificate verify failed"),
        ("authority", "other.test", False, 'certificate for "other.test" does not match host name "db.test"'),
        ("authority", HOST, True, "certificate verify failed"),
    ],
    ids=["another authority", "another host", "expired"],
)
def test_a_wrong_certificate_is_refused(
    request: pytest.FixtureRequest,
    make: Make,
    orders: int,
    behind: Behind,
    client: Any,
    bucket: str,
    who: str,
    host: str,
    ended: bool,
    why: str,
) -> None:
    """The error says what is wrong with it; the server has not even got the user's name."""
    with behind(request.getfixturevalue(who).context(host, ended)) as proxy:
        refused(make, client, bucket, why)
        assert (proxy.asked, proxy.accepted, proxy.plain) == (2, 0, 0)  # two connect at the same time


def test_a_server_without_tls_is_refused(make: Make, orders: int, behind: Behind, client: Any, bucket: str) -> None:
    """It is not talked to in plain text."""
    with behind(None) as proxy:
        refused(make, client, bucket, "server does not support SSL, but SSL was required")
        assert (proxy.asked, proxy.accepted, proxy.plain) == (2, 0, 0)  # two connect at the same time


@pytest.mark.parametrize("right", [1, 3], ids=["first reader", "last reader"])
def test_readers_verify_too(
    make: Make,
    orders: int,
    behind: Behind,
    authority: Authority,
    stranger: Authority,
    client: Any,
    bucket: str,
    exporter: sa.Engine,
    right: int,
) -> None:
    """A reader does not trust the server for the holder's sake: the export fails, and leaves no connection."""
    contexts = [*[authority.context(HOST)] * right, stranger.context(HOST)]
    with behind(*contexts) as proxy:
        refused(make, client, bucket, "certificate verify failed")
        assert (proxy.accepted, proxy.plain) == (right, 0)
        assert proxy.asked > right  # the others are reading by then: a connection that cancels them asks as well
        assert eventually(lambda: not sessions(exporter))


def sessions(exporter: sa.Engine) -> int:
    """How many of the role's connections there are, but for this one."""
    mine = "SELECT count(*) FROM pg_stat_activity WHERE usename = current_user AND pid <> pg_backend_pid()"
    with exporter.connect() as connection:
        return int(connection.exec_driver_sql(mine).scalar_one())
