"""A database, a store and an object in it; attempts to export to it, and what must be true after each of them.

What an attempt should have written is computed here, from the generation that the database was in, and never asked
of the engine.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import re
import shutil
import signal
import tempfile
import threading
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa
from botocore.config import Config
from botocore.exceptions import ClientError

from demo import services
from streaming_export import Bucket, ExportError, manifest_reader
from streaming_ingest.verified import VerifiedFile
from tests.conftest import make_exporter
from tests.faults.outcome import Outcome
from tests.faults.store_proxy import MANIFEST, StoreProxy
from tests.faults.tasks import Worker
from tests.streaming_export.exporting import export
from tests.streaming_export.proxy import proxied
from tests.streaming_export.waiting import PATIENCE, Running, eventually

KEY = "exports/rows.csv"

#: Rows that make two parts, and rows that make one put.
MULTIPART, SMALL = 13_000, 100

WAYS: dict[str, dict[str, Any]] = {
    "batches": {"unique_key": "id", "yield_per": 1_000},
    "stream": {},
    "rows": {"method": "rows", "yield_per": 1_000},
}

READ_TIMEOUT = 3  # seconds, after which a request that hangs is given up
STORE_PATIENCE = 5  # seconds in which it is tried again
_CLIENT: dict[str, Any] = {
    "connect_timeout": READ_TIMEOUT,
    "read_timeout": READ_TIMEOUT,
    "retries": {"mode": "standard", "total_max_attempts": 1},
}

_direct = functools.cache(services.s3_client)  # of all worlds: it may be used by several threads

# How an error says what is visible, and whether that is then the new object; the first that fits.
_STATES = {
    "may or may not be": None,
    "Nothing was published": False,
    "visible": True,
}

# What a task may meet before it begins to export, when it lacks memory or time.
_NOT_OURS = ("MemoryError", "RuntimeError", "OSError", "AirflowTaskTimeout")

# Words by which an error says what to do.
_REMEDY = re.compile(r"[Rr]etry|[Ee]xport again|Grant|Create|Correct|Renew|Raise|raise|an index|Check")


@dataclass(frozen=True)
class Visible:
    """What a reader finds in the bucket; None for what is not there."""

    content: bytes | None
    manifest: bytes | None


def outcome_of(exporting: Running) -> Outcome:
    """How an export in a thread has ended."""
    if exporting.error is None:
        return Outcome(True, None, "published")
    assert isinstance(exporting.error, ExportError), repr(exporting.error)
    return Outcome(False, str(exporting.error).replace("\n", " "), type(exporting.error).__name__)


class Database:
    """A PostgreSQL server that can be stopped at once and started again."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="pg-"))  # a socket's path is short
        self._stack = ExitStack()
        self.start()
        make_exporter(self.uri)

    def start(self) -> None:
        self.uri = self._stack.enter_context(services.postgres(self._folder))

    def stop_at_once(self) -> None:
        """Shut down without waiting for anybody: the next start recovers (PostgreSQL manual, "Immediate Shutdown")."""
        pid = int((self._folder / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGQUIT)

    def restart(self) -> None:
        self._stack.close()
        self.start()

    def close(self) -> None:
        self._stack.close()
        shutil.rmtree(self._folder)

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class World:
    """Where one export is tried again and again.

    :param database: URI of a PostgreSQL server.
    :param endpoint: URL of an S3 server.
    :param chance: decides what a fault leaves open, such as the way of reading.
    """

    def __init__(self, database: str | Database, endpoint: str, chance: random.Random) -> None:
        self.server = database if isinstance(database, Database) else None
        uri = database.uri if isinstance(database, Database) else database
        self._stack = ExitStack()
        self.chance = chance
        self.endpoint = endpoint
        self.uri = uri
        self.rows = MULTIPART
        self.generation = 0
        self.name = f"faults_{uuid.uuid4().hex}"
        self.bucket = self.name.replace("_", "-")
        self.direct = _direct(endpoint)
        self.direct.create_bucket(Bucket=self.bucket)
        self._create_tables()
        self.store = StoreProxy(endpoint)
        self._stack.callback(self.store.close)
        self.client = services.s3_client(self.store.url, Config(**_CLIENT))
        through, self.network = self._stack.enter_context(proxied(uri))
        self.proxied_uri = through
        self._worker: Worker | None = None
        self._threads = set(threading.enumerate())

    def close(self) -> None:
        """End what still runs, and remove the tables."""
        ours = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{self.name}'"
        with psycopg.connect(self.uri, autocommit=True) as connection:
            connection.execute(ours)
            connection.execute(f"DROP SCHEMA {self.name} CASCADE")
        self._stack.close()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- What is exported

    @property
    def query(self) -> str:
        """Rows that tell their generation."""
        generation = f"(SELECT number FROM {self.name}.generation)"
        filler = f"repeat(md5(id || '/' || {generation}), 16)"
        return (
            f"SELECT id, {generation} AS generation, {filler} AS filler FROM {self.name}.numbers"
            f" WHERE id <= {self.rows} ORDER BY id"
        )

    def next_generation(self) -> None:
        """Have all rows be others, in one transaction."""
        self.generation += 1
        with psycopg.connect(self.uri) as connection:
            connection.execute(f"UPDATE {self.name}.generation SET number = {self.generation}")

    def whole(self) -> bytes:
        """The file of this generation."""
        return _whole(self.generation, self.rows)

    def sql(self, statement: str) -> list[Any]:
        """Run a statement as the administrator."""
        with psycopg.connect(self.uri, autocommit=True) as connection:
            answer = connection.execute(statement)
            return answer.fetchall() if answer.description else []

    def backends(self, where: str = "true") -> list[int]:
        """The server's processes that work for our attempts, the oldest first."""
        ours = f"application_name = '{self.name}' AND {where}"
        return [pid for (pid,) in self.sql(f"SELECT pid FROM pg_stat_activity WHERE {ours} ORDER BY backend_start")]

    # ---- Attempts

    def attempt(self, *query: str, settle: Callable[[], object] = lambda: None, **arguments: Any) -> Outcome:
        """Export, and check what is there when `settle` has returned."""
        before = self.visible()
        exporting = self.start(*query, **arguments)
        assert exporting.ends(within=4 * PATIENCE), "the export hangs"
        settle()
        outcome = outcome_of(exporting)
        self.check(before, outcome)
        return outcome

    def attempt_as_task(self, **arguments: Any) -> Outcome:
        """The same as a task of Airflow's; see `Worker.run`."""
        before = self.visible()
        way = WAYS[self.chance.choice(list(WAYS))]
        outcome = self.worker().run(query=self.query, s3_bucket=self.bucket, s3_key=KEY, **way, **arguments)
        self.check(before, outcome)
        return outcome

    def worker(self) -> Worker:
        """A worker of Airflow's, started if there is none, or none any more."""
        if self._worker is None or not self._worker.alive():
            # Airflow kills what has not ended 5 s after SIGTERM; a part that hangs must have been given up by then.
            self._worker = Worker(self.proxied_uri, self.store.url, {**_CLIENT, "read_timeout": 2})
            self._stack.callback(self._worker.close)
        return self._worker

    def start(
        self,
        query: str | None = None,
        libpq: str = "",
        on_connect: Callable[[int], object] | None = None,
        **options: Any,
    ) -> Running:
        """Export through the proxies, in another thread.

        :param libpq: settings of the sessions, as ``-c name=value``.
        :param on_connect: called with the PID of each backend.
        """
        url = sa.make_url(self.proxied_uri).set(drivername="postgresql+psycopg2", username=services.EXPORTER)
        engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args={"options": libpq})
        if on_connect:
            sa.event.listen(engine, "connect", lambda connection, _: on_connect(connection.info.backend_pid))
        way = options or (WAYS[self.chance.choice(list(WAYS))] if query is None else {})
        arguments = {"bucket": self.bucket, "key": KEY, "application_name": self.name, **way}
        arguments |= {"engine": engine, "client": self.client, "patience": STORE_PATIENCE}
        return Running(lambda: export(query or self.query, **arguments))

    # ---- What must be true

    def visible(self) -> Visible:
        """What a reader finds."""
        return Visible(self._content(KEY), self._content(KEY + MANIFEST))

    def check(self, before: Visible, outcome: Outcome) -> None:
        """The object is whole or as before, its manifest is true or found out, and the attempt knew which."""
        assert not self.network.events, "the fault has not happened"
        after = self.visible()
        new = after.content == self.whole()
        assert new or after.content == before.content, f"the object is neither whole nor as before: {_brief(after)}"
        self._check_manifest(after)
        if outcome.published:
            assert new, "an export said that it had published, and had not"
            assert self._describes(after), "an export said that it had published, and its manifest is of another file"
        elif outcome.kind in _NOT_OURS and not any(state in str(outcome.told) for state in _STATES):
            assert after == before, f"{outcome} came before an export, and something was published"
        elif outcome.told is not None:
            self._check_told(outcome.told, before, after, new)

    def check_both(self, generations: list[int], outcomes: list[Outcome]) -> None:
        """After two attempts at a time: the object is that of one of them, and both knew that they were not alone."""
        after = self.visible()
        whole = [_whole(generation, self.rows) for generation in generations]
        assert after.content in whole, f"the object is neither of the two: {_brief(after)}"
        self._check_manifest(after)
        assert any(outcome.published for outcome in outcomes), "none of the two has published"
        for outcome in outcomes:
            assert outcome.published or _REMEDY.search(str(outcome.told)), (
                f"the error does not say what to do: {outcome}"
            )

    def check_next(self) -> None:
        """The next attempt succeeds with the right bytes, and leaves nothing open that an earlier one has left."""
        self.next_generation()
        outcome = self.attempt()
        assert outcome.published, f"the next attempt failed: {outcome.told}"
        uploads = self.direct.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        assert uploads == [], "uploads are left open"
        assert eventually(lambda: not self.backends()), "connections are left open"
        if self.server:
            assert eventually(lambda: not self.sql("SELECT pg_ls_dir('pg_snapshots')")), "a snapshot is left"

    def check_threads(self) -> None:
        """No thread of an export is left; only for a world that is alone."""
        assert eventually(lambda: not self.threads()), f"threads are left: {self.threads()}"

    def threads(self) -> list[str]:
        """Threads of exports."""
        new = set(threading.enumerate()) - self._threads
        return [thread.name for thread in new if "process_request_thread" not in thread.name and thread.name != "proxy"]

    def _check_told(self, told: str, before: Visible, after: Visible, new: bool) -> None:
        says_new = next((says for state, says in _STATES.items() if state in told), "nothing")
        assert says_new != "nothing", f"the error does not say what was published: {told}"
        if says_new is False:
            assert after == before, f"the error says that nothing was published, and something was: {told}"
        if says_new is True:
            assert new, f"the error says that the object is visible, and it is not: {told}"
        assert _REMEDY.search(told), f"the error does not say what to do: {told}"
        assert ".. " not in told, f"the error is not made of sentences: {told}"

    def _check_manifest(self, after: Visible) -> None:
        """A manifest describes the object that is there, or its readers notice."""
        if after.manifest is None or self._describes(after):
            return
        bucket = Bucket(self.direct, self.bucket)
        published = manifest_reader.read(bucket, f"s3://{self.bucket}/{KEY}{MANIFEST}")
        try:
            VerifiedFile(bucket, published.files[0], None).verify()
        except ExportError:
            return
        raise AssertionError("a manifest is of another object, and its reader does not notice")

    def _describes(self, after: Visible) -> bool:
        assert after.manifest is not None
        (file,) = json.loads(after.manifest)["files"]
        content = after.content or b""
        return (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())

    def _content(self, key: str) -> bytes | None:
        try:
            body: bytes = self.direct.get_object(Bucket=self.bucket, Key=key)["Body"].read()
            return body
        except ClientError as exc:
            if exc.response["Error"]["Code"] != "NoSuchKey":
                raise
            return None

    def _create_tables(self) -> None:
        with psycopg.connect(self.uri) as connection:
            connection.execute(f"CREATE SCHEMA {self.name}")
            connection.execute(f"GRANT USAGE ON SCHEMA {self.name} TO {services.EXPORTER}")
            select = f"GRANT SELECT ON TABLES TO {services.EXPORTER}"
            connection.execute(f"ALTER DEFAULT PRIVILEGES IN SCHEMA {self.name} {select}")
            connection.execute(f"CREATE TABLE {self.name}.generation AS SELECT 0 AS number")
            connection.execute(f"CREATE TABLE {self.name}.numbers (id bigint PRIMARY KEY)")
            connection.execute(f"INSERT INTO {self.name}.numbers SELECT generate_series(1, {MULTIPART})")
            connection.execute(f"ANALYZE {self.name}.numbers")


@functools.lru_cache(maxsize=8)
def _whole(generation: int, rows: int) -> bytes:
    lines = ["id,generation,filler\n"]
    for number in range(1, rows + 1):
        digest = hashlib.md5(f"{number}/{generation}".encode(), usedforsecurity=False).hexdigest()
        lines.append(f"{number},{generation},{digest * 16}\n")
    return "".join(lines).encode()


def _brief(visible: Visible) -> str:
    content = visible.content
    return "nothing" if content is None else f"{len(content):,} bytes, begins with {content[:60]!r}"
