"""An export when something fails or stops it: nothing is published, and nothing is left behind.

What comes to harm on the network, in a server or in a worker is in tests/faults.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import psycopg2.extensions
import pytest
import sqlalchemy as sa

from demo import services
from streaming_export import (
    DatabaseError,
    Export,
    ExportCancelled,
    ExportError,
    ExportResult,
    StoreError,
    cancellation,
)
from streaming_export.cancellation import Cancellation
from streaming_export.s3 import upload
from tests.conftest import content, keys, let_export, open_uploads
from tests.streaming_export.exporting import new_export
from tests.streaming_export.proxy import Proxy, proxied
from tests.streaming_export.store import hook, part_number, record, refusal
from tests.streaming_export.waiting import PATIENCE, Running, eventually

# A query sleeps so long that a test that waited for its end would fail. pg_sleep() is volatile: a query that calls
# it is read by one connection only.
NAP = """
CREATE FUNCTION {schema}.nap(seconds float) RETURNS text IMMUTABLE LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_sleep(seconds); RETURN NULL; END'
"""
CANARY = "secret@example.com"

WAYS: dict[str, dict[str, Any]] = {
    "batches": {"unique_key": "id", "yield_per": 2_000},
    "stream": {},
    "rows": {"method": "rows", "yield_per": 1_000},
}
every_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(scope="module")
def numbers(engine: sa.Engine) -> Iterator[str]:
    """Name of a table of the ids 1 to 60,000."""
    schema = f"faults_{uuid.uuid4().hex}"
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
        let_export(connection, schema)
        connection.exec_driver_sql(NAP.format(schema=schema))
        connection.exec_driver_sql(f"CREATE TABLE {schema}.numbers (id bigint PRIMARY KEY)")
        connection.exec_driver_sql(f"INSERT INTO {schema}.numbers SELECT generate_series(1, 60000)")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"VACUUM ANALYZE {schema}.numbers")
    yield f"{schema}.numbers"
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")


class World:
    """An export's database and store, with an object that is there already, and what the export leaves in them."""

    def __init__(self, engine: sa.Engine, database: str, endpoint: str, bucket: str, table: str) -> None:
        self.superuser = engine
        self.engine = sa.create_engine(database, poolclass=sa.NullPool)
        self.client = services.s3_client(endpoint)
        self.requests = record(self.client)
        self.bucket = bucket
        self.table = table
        self.name = f"test {uuid.uuid4().hex}"
        self.before = b"what was there before"
        self.client.put_object(Bucket=bucket, Key="a.csv", Body=self.before)
        self.places = {"database": database, "endpoint": endpoint}
        self._threads = set(threading.enumerate())
        self._programs: list[subprocess.Popen[str]] = []

    def wide(self, column: str = "0") -> str:
        """A query of 60 MB, seven parts, with a column of the test's."""
        return f"SELECT id, repeat('x', 1000) AS filler, {column} AS value FROM {self.table} ORDER BY id"

    def sleeping_at(self, row: int) -> str:
        """The same, sleeping at a row."""
        nap = self.table.replace("numbers", "nap")
        return self.wide(f"CASE WHEN id = {row} THEN {nap}(600 + 0 * id) END")

    def new_export(self, query: str, **options: Any) -> Export:
        """An export to a.csv."""
        arguments = {"client": self.client, "engine": self.engine, "key": "a.csv", **options}
        return new_export(query, bucket=self.bucket, application_name=self.name, **arguments)

    def export(self, query: str, **options: Any) -> ExportResult:
        """Export to a.csv."""
        return self.new_export(query, **options).run()

    def start(self, query: str, **options: Any) -> tuple[Running, Export]:
        """Export in another thread."""
        export = self.new_export(query, **options)
        return Running(export.run), export

    def start_program(self, query: str, on_signal: str, **arguments: Any) -> subprocess.Popen[str]:
        """Export in another process."""
        arguments = {
            **self.places,
            "on_signal": on_signal,
            "pool": {},
            "query": query,
            "bucket": self.bucket,
            "key": "a.csv",
            "application_name": self.name,
            **arguments,
        }
        program = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("program.py"), json.dumps(arguments)],
            # Freed memory is overwritten (mallopt(3)), so that its use is noticed.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MALLOC_PERTURB_": "165"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._programs.append(program)
        return program

    def close(self) -> None:
        """End what still runs."""
        for program in self._programs:
            program.kill()
            program.communicate()
        self.end_backends()

    def backends(self, where: str = "true") -> list[int]:
        """The server's processes that work for our exports."""
        query = sa.text(f"SELECT pid FROM pg_stat_activity WHERE application_name = :name AND {where}")
        with self.engine.connect() as connection:
            return list(connection.execute(query, {"name": self.name}).scalars())

    def end_backends(self, where: str = "true") -> None:
        """End them, as an administrator or a crash would."""
        with self.engine.connect() as connection:
            for pid in self.backends(where):
                connection.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})

    def sleeps(self) -> bool:
        """Whether the query has come to its sleep."""
        return bool(self.backends("wait_event = 'PgSleep'"))

    def waits_for_lock(self) -> bool:
        """Whether the query waits for a lock."""
        return bool(self.backends("wait_event_type = 'Lock'"))

    def stalls(self) -> bool:
        """Whether the server has been waiting for us to take rows for a while."""
        return all(self.backends("wait_event = 'ClientWrite'") for _ in range(10))

    def assert_nothing_left(self) -> None:
        """No open upload, no thread and no connection; the earlier object as it was."""
        assert open_uploads(self.client, self.bucket) == []
        assert keys(self.client, self.bucket) == ["a.csv"]
        assert content(self.client, self.bucket, "a.csv") == self.before
        assert eventually(lambda: not self.backends())
        assert eventually(lambda: not self.threads())

    def threads(self) -> set[threading.Thread]:
        """Threads that were not there at the beginning."""
        return set(threading.enumerate()) - self._threads

    def parts(self) -> int:
        """How many parts the store was asked to take."""
        return sum(name == "UploadPart" for name, _ in self.requests)


@pytest.fixture
def world(engine: sa.Engine, exporter: sa.Engine, endpoint: str, bucket: str, numbers: str) -> Iterator[World]:
    """A world of the test's own; whatever sleeps in it is ended."""
    world = World(engine, exporter.url.render_as_string(), endpoint, bucket, numbers)
    yield world
    world.close()


# ---- Failing while rows are read


@every_way
def test_a_query_that_fails_in_a_late_row(world: World, way: str) -> None:
    """A query that fails when parts have been sent already leaves nothing."""
    with pytest.raises(DatabaseError, match="Nothing was published") as caught:
        world.export(world.wide("1 / (id - 36000)"), **WAYS[way])
    assert caught.value.sqlstate == "22012"
    assert world.parts() >= 3
    world.assert_nothing_left()


@every_way
def test_a_count_that_fails(world: World, way: str) -> None:
    """Rows that the database could not count are not published, though all were read."""
    counting = "FETCH" if way == "batches" else "SELECT count"  # the walk along the key counts as well

    class Cursor(psycopg2.extensions.cursor):
        def execute(self, query: Any, vars: Any = None) -> None:
            if str(query).startswith(counting):
                world.end_backends(f"pid = {self.connection.info.backend_pid}")
            super().execute(query, vars)

    world.engine = sa.create_engine(world.engine.url, poolclass=sa.NullPool, connect_args={"cursor_factory": Cursor})
    with pytest.raises(DatabaseError, match="Nothing was published"):
        world.export(world.wide(), **WAYS[way])
    world.assert_nothing_left()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_connection_that_cannot_be_opened(world: World, number: int) -> None:
    """When one of the connections cannot be opened, those that are open already are closed."""
    opened: list[object] = []

    def refuse(*_: Any) -> None:
        opened.append(None)
        if len(opened) == number:
            raise psycopg2.OperationalError("too many connections (injected by a test)")

    sa.event.listen(world.engine, "do_connect", refuse)
    with pytest.raises(DatabaseError, match="too many connections"):
        world.export(world.wide(), **WAYS["batches"])
    expected = max(2, number)  # the first two connect at the same time
    assert len(opened) in (expected, expected + 1)  # one more cancels what runs
    sa.event.remove(world.engine, "do_connect", refuse)
    world.assert_nothing_left()


def test_a_connection_that_ends_in_the_middle_of_copy(world: World) -> None:
    """The error names what may have ended it while the export waited for the store: the driver says nothing."""
    with proxied(world.engine.url.render_as_string()) as (database, network):
        network.after_bytes(20_000_000, network.cut_last)
        engine = sa.create_engine(database, poolclass=sa.NullPool)
        told = r"(?s)lost in the middle of COPY.*Nothing was published.*tcp_user_timeout.*waits for a slow store"
        with pytest.raises(DatabaseError, match=told) as caught:
            world.export(world.wide(), engine=engine)
    assert caught.value.transient
    world.assert_nothing_left()


@every_way
@pytest.mark.parametrize("fails", [False, True])
def test_the_engines_pool_is_as_before(world: World, way: str, fails: bool) -> None:
    """An export's connections are its own: even a pool that is exhausted stays as it is, and the export goes on."""
    engine = sa.create_engine(world.engine.url, pool_size=1, max_overflow=0, pool_timeout=0)
    held = engine.connect()
    query = f"SELECT id, {'1 / (id - 50000)' if fails else '0'} AS value FROM {world.table} ORDER BY id"
    with pytest.raises(DatabaseError) if fails else nullcontext():
        world.export(query, engine=engine, **WAYS[way])
    assert eventually(lambda: not world.backends())
    assert held.exec_driver_sql("SHOW application_name").scalar() != world.name
    held.close()
    engine.dispose()


# ---- Failing while parts are sent


@every_way
def test_the_database_is_let_go_before_the_store(world: World, way: str) -> None:
    """A refused part cancels the query; however long the abort takes, no snapshot or connection is held meanwhile."""
    gone: list[bool] = []
    hook(world.client, "UploadPart", lambda params: refusal("QuotaFull") if part_number(params) == 2 else None)
    hook(world.client, "AbortMultipartUpload", lambda params: gone.append(eventually(lambda: not world.backends())))
    with pytest.raises(StoreError, match=r"(?s)QuotaFull.*sending part 2 of s3://.*Nothing was published"):
        world.export(world.sleeping_at(50_000), **WAYS[way])
    assert set(gone) == {True}
    world.assert_nothing_left()


@every_way
def test_a_part_that_fails_while_the_query_computes(world: World, way: str) -> None:
    """The export does not wait for the next row to learn that the store has refused a part."""

    def refuse_later(params: dict[str, Any]) -> Any:
        assert eventually(world.sleeps)
        return refusal("QuotaFull")

    hook(world.client, "UploadPart", refuse_later)
    exporting, export = world.start(world.sleeping_at(12_000), **WAYS[way])
    ended = exporting.ends(within=10)
    export.cancel()
    assert exporting.ends()
    assert ended
    assert isinstance(exporting.error, StoreError)
    world.assert_nothing_left()


def test_a_file_that_fails_when_others_are_visible(world: World) -> None:
    """When some files are visible already, the error does not say that nothing was published."""
    hook(world.client, "CompleteMultipartUpload", lambda p: refusal("QuotaFull") if "00002" in p["url"] else None)
    with pytest.raises(StoreError, match=r"QuotaFull: .*completing s3://.*a-00002.csv") as caught:
        world.export("SELECT id FROM generate_series(1, 3) AS id", max_file_rows=1)
    assert keys(world.client, world.bucket) == ["a-00001.csv", "a.csv"]
    assert "othing was published" not in str(caught.value)


# ---- No further thread


@pytest.mark.parametrize("allowed", range(12))
def test_no_further_thread(world: World, monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    """Wherever a limit of processes or memory refuses a thread, the export ends at once, and says so."""
    start = threading.Thread.start
    started: list[str] = []

    def start_some(thread: threading.Thread) -> None:
        if len(started) == allowed:
            raise RuntimeError("can't start new thread")
        started.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_some)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="can't start new thread") as caught:
        world.export(world.wide(), **WAYS["batches"])
    assert time.monotonic() - began < cancellation._END_SECONDS, started
    assert "othing was published" in " ".join(caught.value.__notes__)
    monkeypatch.undo()
    world.assert_nothing_left()


# ---- Cancelling


def assert_cancelled(world: World, exporting: Running, export: Export) -> None:
    """`cancel` returns within its time, the export ends with ExportCancelled, and nothing is left."""
    assert Running(export.cancel).ends(within=8)  # 3 s, and a busy machine's
    assert exporting.ends()
    assert isinstance(exporting.error, ExportCancelled)
    assert "Nothing was published" in str(exporting.error)
    world.assert_nothing_left()


@every_way
def test_cancel_while_rows_are_read(world: World, way: str) -> None:
    """Cancelled in the middle, an export leaves nothing."""
    reading = threading.Event()
    hook(world.client, "UploadPart", lambda params: reading.set() if part_number(params) == 2 else None)
    exporting, export = world.start(world.sleeping_at(59_999), **WAYS[way])
    assert reading.wait(PATIENCE)
    assert_cancelled(world, exporting, export)


@every_way
def test_cancel_while_the_query_computes(world: World, way: str) -> None:
    """A query that has not given its first row is cancelled on the server."""
    exporting, export = world.start(world.sleeping_at(1), **WAYS[way])
    assert eventually(world.sleeps)
    assert_cancelled(world, exporting, export)


def test_cancel_while_the_query_waits_for_a_lock(world: World) -> None:
    """An export that waits for a lock before it knows its columns is cancelled."""
    with world.superuser.begin() as other:
        other.exec_driver_sql(f"LOCK TABLE {world.table} IN ACCESS EXCLUSIVE MODE")
        exporting, export = world.start(world.wide())
        assert eventually(world.waits_for_lock)
        assert_cancelled(world, exporting, export)


@pytest.fixture
def short_abort(monkeypatch: pytest.MonkeyPatch) -> None:
    """An abort gives up sooner on parts that are on their way."""
    monkeypatch.setattr(upload, "_ABORT_SECONDS", 1.0)


def test_cancel_while_the_store_takes_no_part(world: World, short_abort: None) -> None:
    """A store that does not answer holds up neither `cancel` nor the export's end."""
    release = threading.Event()
    hook(world.client, "UploadPart", lambda params: release.wait(2 * PATIENCE) and None)
    exporting, export = world.start(world.wide())
    assert eventually(world.stalls)
    cancelled = Running(export.cancel).ends(within=8)
    ended = exporting.ends(within=15)
    release.set()
    assert (cancelled, ended) == (True, True)
    assert_cancelled(world, exporting, export)


@pytest.mark.parametrize(
    ("options", "last_part"), [({}, 3), ({"max_file_rows": 7_000}, 2)], ids=["one file", "two files"]
)
def test_cancel_while_the_store_does_not_take_the_last_part(
    world: World, short_abort: None, options: dict[str, Any], last_part: int
) -> None:
    """The same when all rows are read, and only the last part of the last file is still on its way."""
    sending, release = threading.Event(), threading.Event()

    def hold_last(params: dict[str, Any]) -> None:
        if part_number(params) == last_part and "-00001" not in params["url"]:
            sending.set()
            release.wait(2 * PATIENCE)

    hook(world.client, "UploadPart", hold_last)
    exporting, export = world.start(f"{world.wide()} LIMIT 14000", **options)
    assert sending.wait(PATIENCE)
    cancelled = Running(export.cancel).ends(within=8)
    ended = exporting.ends(within=15)
    release.set()
    assert (cancelled, ended) == (True, True)
    assert_cancelled(world, exporting, export)


@pytest.mark.parametrize("row", [1, 70_000], ids=["sleeping", "quick"])
def test_cancel_before_the_start(world: World, row: int) -> None:
    """An export that was cancelled before it began sends nothing, and does not wait for its query."""
    export = world.new_export(world.sleeping_at(row))
    export.cancel()
    exporting = Running(export.run)
    assert_cancelled(world, exporting, export)
    assert not {"PutObject", "CreateMultipartUpload"} & {name for name, _ in world.requests[1:]}


def test_cancel_before_the_start_with_a_lock(world: World) -> None:
    """A cancel that comes before the query's first statement is not lost."""
    with world.superuser.begin() as other:
        other.exec_driver_sql(f"LOCK TABLE {world.table} IN ACCESS EXCLUSIVE MODE")
        export = world.new_export(world.wide())
        export.cancel()
        exporting = Running(export.run)
        ended = exporting.ends(within=10)
        assert_cancelled(world, exporting, export)
    assert ended


def test_cancel_may_interrupt_itself() -> None:
    """A signal that comes while the handler of an earlier one cancels may cancel as well, wherever it comes."""
    cancellation, begun, runs, end = Cancellation(), threading.Event(), threading.Event(), threading.Event()
    cancellation.on_cancel = begun.set
    exporting = Running(lambda: cancellation.run(lambda: (runs.set(), end.wait())))
    assert runs.wait(PATIENCE)

    def trace(_: object, event: str, __: object) -> Any:
        if event == "line":
            cancellation.cancel()  # as another handler would; Python does not trace inside of a trace
        return trace

    def cancel() -> None:
        sys.settrace(trace)
        cancellation.cancel()

    ended = Running(cancel).ends(within=10)
    end.set()
    assert exporting.ends()
    assert ended
    assert begun.is_set()


def test_cancel_after_the_end(world: World) -> None:
    """What is published stays, however often the export is cancelled afterwards."""
    export = world.new_export("SELECT 1 AS id")
    result = export.run()
    export.cancel()
    export.cancel()
    assert result.rows == 1
    assert content(world.client, world.bucket, "a.csv") == b"id\n1\n"


def test_cancel_after_publishing(world: World) -> None:
    """If the export is cancelled when its object is visible already, no error says that nothing was published."""
    export = world.new_export("SELECT 1 AS id")

    def cancel(params: dict[str, Any]) -> Any:
        if content(world.client, world.bucket, "a.csv") == world.before:
            return None
        export.cancel()
        return refusal("403")

    hook(world.client, "HeadObject", cancel)
    with pytest.raises(StoreError, match="visible but not verified"):
        export.run()
    assert content(world.client, world.bucket, "a.csv") == b"id\n1\n"


def test_cancel_between_two_files(world: World) -> None:
    """A cancel that comes when some files are visible already does not keep the others, and the manifest, back."""
    export = world.new_export("SELECT id FROM generate_series(1, 2) AS id", max_file_rows=1)

    def cancel_after_first(params: dict[str, Any]) -> None:
        if len(keys(world.client, world.bucket)) == 2:
            export.cancel()

    hook(world.client, "HeadObject", cancel_after_first)
    assert export.run().rows == 2
    assert keys(world.client, world.bucket) == ["a-00001.csv", "a-00002.csv", "a.csv"]
    assert json.loads(content(world.client, world.bucket, "a.csv.manifest.json"))["rows"] == 2


@every_way
def test_cancel_at_any_moment(world: World, way: str) -> None:
    """Whenever the cancel comes: either the export says what it has published, or what was there before stays."""
    query = f"SELECT id, repeat('x', 110) AS filler FROM {world.table}"  # two parts
    whole = world.export(query, key="whole.csv", **WAYS[way])
    for eighth in range(9):
        exporting, export = world.start(query, **WAYS[way])
        timer = threading.Timer(whole.seconds * eighth / 8, export.cancel)
        timer.start()
        assert exporting.ends()
        timer.join()
        head = world.client.head_object(Bucket=world.bucket, Key="a.csv")
        if isinstance(exporting.error, ExportCancelled):
            assert head["ContentLength"] == len(world.before)
        else:
            assert exporting.error is None
            assert head["ContentLength"] == whole.bytes
            world.client.put_object(Bucket=world.bucket, Key="a.csv", Body=world.before)
        assert open_uploads(world.client, world.bucket) == []
    assert eventually(lambda: not world.backends())
    assert eventually(lambda: not world.threads())


# ---- Signals


@pytest.mark.parametrize(
    ("number", "on_signal", "ended_by"),
    [(signal.SIGTERM, "cancel", "ExportCancelled"), (signal.SIGINT, "raise", "Interrupted")],
)
def test_a_signal_while_the_query_computes(world: World, number: signal.Signals, on_signal: str, ended_by: str) -> None:
    """A signal's handler runs at once, though Postgres is silent, and ends the export, whether it cancels or raises.

    The query is cancelled on the server even where the engine's pool has no connection left.
    """
    pool = {"pool_size": 2, "max_overflow": 0}
    program = world.start_program(world.sleeping_at(20_000), on_signal, pool=pool)
    assert eventually(lambda: world.sleeps() and open_uploads(world.client, world.bucket))
    program.send_signal(number)
    output, _ = program.communicate(timeout=PATIENCE)
    assert (output.strip(), program.returncode) == (ended_by, 0)
    world.assert_nothing_left()


def test_a_signal_while_the_query_waits_for_a_lock(world: World) -> None:
    """A signal's handler runs at once even while the export waits for Postgres to describe the query."""
    with world.superuser.begin() as other:
        other.exec_driver_sql(f"LOCK TABLE {world.table} IN ACCESS EXCLUSIVE MODE")
        program = world.start_program(world.wide(), "raise")
        assert eventually(world.waits_for_lock)
        program.send_signal(signal.SIGTERM)
        output, _ = program.communicate(timeout=PATIENCE)
        assert (output.strip(), program.returncode) == ("Interrupted", 0)
        world.assert_nothing_left()


@pytest.mark.parametrize(("how", "on_signal"), [(Proxy.go_deaf, "cancel"), (Proxy.go_silent, "raise")])
def test_a_signal_when_the_server_is_out_of_reach(world: World, how: Callable[[Proxy], None], on_signal: str) -> None:
    """The export ends even if the cancel, or anything at all, does not get through; the program may go on after."""
    with proxied(world.places["database"]) as (database, proxy):
        program = world.start_program(world.sleeping_at(20_000), on_signal, database=database)
        assert program.stdout
        assert eventually(lambda: world.sleeps() and open_uploads(world.client, world.bucket))
        how(proxy)
        program.send_signal(signal.SIGTERM)
        assert Running(program.stdout.readline).ends()
        assert open_uploads(world.client, world.bucket) == []
        assert content(world.client, world.bucket, "a.csv") == world.before
    # The network tells the connections that they are over.
    program.communicate(timeout=PATIENCE)
    assert program.returncode == 0


# ---- What errors tell


class Interrupted(BaseException):
    """As Airflow's AirflowTaskTimeout: not an Exception."""


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        (lambda _: "done", "complete by then: what it wrote is visible"),
        (lambda cancelled: cancelled.wait(PATIENCE) and raise_cancelled(), "ExportCancelled: Nothing was published"),
        (lambda _: time.sleep(3), "may or may not be visible"),
    ],
    ids=["when it is done", "and it ends", "and it does not end"],
)
def test_what_interrupts_an_export_notes_what_became_of_it(
    monkeypatch: pytest.MonkeyPatch, ends: Callable[[threading.Event], Any], told: str
) -> None:
    """A time-out comes from outside and knows nothing of exports: the note on it says what was published."""
    monkeypatch.setattr(cancellation, "_END_SECONDS", 1.0)
    cancelled = threading.Event()
    stopping = Cancellation()
    stopping.on_cancel = cancelled.set

    def work() -> Any:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)
        return ends(cancelled)

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(Interrupted) as caught:
            stopping.run(work)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert told in " ".join(caught.value.__notes__)


def raise_cancelled() -> None:
    raise ExportCancelled("Nothing was published.")


@pytest.mark.parametrize("method", ["copy", "rows"])
@pytest.mark.parametrize(
    "query",
    [
        "SELECT CAST(:canary AS int) AS value",
        "SELECT CASE WHEN id = 5000 THEN CAST(:canary AS text) ELSE '1' END::int AS value FROM {table}",
        "SELECT CAST(:canary AS timestamptz) AS value",
        "SELECT CAST(:canary AS regclass) AS value",
        "SELECT current_setting(:canary) AS value",
        "SELECT {raising}(:canary, 'P0001') AS value",
        "SELECT {raising}(:canary, 'UE001') AS value",
        "SELECT {raising}(:canary, '55000') AS value",
    ],
)
def test_errors_hold_no_values(world: World, query: str, method: str, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the error, nor the errors chained to it, nor the log quotes a value of a row or of a parameter."""
    raising = f"{world.table}_raising"
    with world.superuser.begin() as connection:
        body = "BEGIN RAISE EXCEPTION USING MESSAGE = value, DETAIL = value, ERRCODE = state; END"
        connection.exec_driver_sql(
            f"CREATE OR REPLACE FUNCTION {raising}(value text, state text) RETURNS int LANGUAGE plpgsql AS $$ {body} $$"
        )
    sql = query.format(table=world.table, raising=raising)
    with caplog.at_level(logging.DEBUG, "streaming_export"), pytest.raises(ExportError) as caught:
        world.export(sql, parameters={"canary": CANARY}, method=method)
    assert isinstance(caught.value, DatabaseError)
    assert caught.value.sqlstate
    assert caught.value.sqlstate in str(caught.value)
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    assert CANARY not in caplog.text
    world.assert_nothing_left()


def test_a_value_that_its_type_refuses_is_not_quoted(world: World) -> None:
    """A parameter that SQLAlchemy refuses, as an unknown name of an enum, is an error of ours without the value."""
    statement = sa.select(sa.bindparam("status", type_=sa.Enum("new", "paid", validate_strings=True)))
    with pytest.raises(ExportError) as caught:
        world.export(statement, parameters={"status": CANARY})  # type: ignore[arg-type]
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    world.assert_nothing_left()


# ---- Many exports


def test_many_exports_leave_neither_threads_nor_files(world: World) -> None:
    """A program that exports again and again, with and without success, keeps its threads and open files."""

    def exports() -> None:
        for way in WAYS:
            world.export(f"SELECT id FROM {world.table}", **WAYS[way])
            with pytest.raises(DatabaseError):
                world.export(f"SELECT id, 1 / (id - 9000) AS value FROM {world.table}", **WAYS[way])

    exports()
    assert eventually(lambda: not world.threads())
    files = psutil.Process().num_fds()
    for _ in range(2):
        exports()
    assert eventually(lambda: not world.threads())
    assert psutil.Process().num_fds() <= files
