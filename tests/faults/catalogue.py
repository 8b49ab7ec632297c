"""What can go wrong, each with how the attempt must end: the short tests and the soak draw from here."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from demo import services
from tests.faults import store_proxy as on_the_way
from tests.faults.outcome import Outcome
from tests.faults.store_proxy import Action
from tests.faults.world import MULTIPART, SMALL, WAYS, Database, World, outcome_of
from tests.streaming_export.waiting import Running, eventually

#: Makes something happen during an attempt, and returns how that ended.
Run = Callable[["World"], Outcome]


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong during an attempt.

    :param kind: of which there are several.
    :param name: which one it is.
    :param run: makes it happen.
    :param publishes: whether the attempt publishes in spite of it; None if that depends on the moment.
    :param tells: a regular expression that its error matches.
    :param short: whether the short tests have it as well as the soak.
    """

    kind: str
    name: str
    run: Run
    publishes: bool | None
    tells: str = ""
    short: bool = True

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"

    def judge(self, outcome: Outcome) -> None:
        """The attempt has ended as it must."""
        assert self.publishes in (None, outcome.published), f"it must have ended otherwise: {outcome}"
        told = outcome.told or ""
        assert outcome.published or re.search(self.tells, told), f"it must tell {self.tells!r}: {outcome}"


# ---- The store

# Requests of an attempt, in their order: whether it has parts; whether one that fails for ever, or hangs for ever,
# stops the attempt; what the error says.
_REQUESTS: dict[str, tuple[bool, bool, bool, str]] = {
    "GetManifest": (False, True, True, "reading .*Nothing was published"),
    "HeadObject": (False, True, True, "not verified|Nothing was published"),
    "ListMultipartUploads": (False, False, True, "looking at .*Nothing was published"),
    "CreateMultipartUpload": (True, True, True, "starting .*Nothing was published"),
    "UploadPart": (True, True, True, "sending part .*Nothing was published"),
    "CompleteMultipartUpload": (True, True, True, "completing .*Nothing was published"),
    "PutObject": (False, True, True, "writing .*"),
    "PutManifest": (False, True, True, "their manifest is not written yet|their manifest may or may not be"),
}


def _request(operation: str, action: Action, times: float = float("inf"), skip: int = 0) -> Run:
    def run(world: World) -> Outcome:
        world.rows = MULTIPART if _REQUESTS[operation][0] else SMALL
        with world.store.inject(operation, action, skip, times):
            return world.attempt()

    return run


def _request_faults() -> list[Fault]:
    faults = []
    for operation, (_, failing_stops, hanging_stops, tells) in _REQUESTS.items():
        error = on_the_way.refuse("InternalError", 500)
        faults += [
            Fault("store", f"{operation} fails once", _request(operation, error, 1), True),
            Fault("store", f"{operation} fails always", _request(operation, error), not failing_stops, tells),
            Fault("store", f"{operation} hangs once", _request(operation, on_the_way.hang, 1), True, short=False),
            Fault("store", f"{operation} hangs always", _request(operation, on_the_way.hang), not hanging_stops, tells),
            Fault("store", f"{operation} answers late", _request(operation, on_the_way.answer_late, 1), True),
        ]
    return faults


def _arriving_late(operation: str, after_next: bool = False, without_abort: bool = False) -> Run:
    """Requests that reach the store when the attempt, or even the next one, has ended."""

    def run(world: World) -> Outcome:
        world.rows = MULTIPART if _REQUESTS[operation][0] else SMALL
        held = on_the_way.Held()
        denied = world.store.inject("AbortMultipartUpload", on_the_way.refuse("AccessDenied", 403))
        with world.store.inject(operation, held), denied if without_abort else nullcontext():
            outcome = world.attempt() if after_next else world.attempt(settle=held.let_go)
        if after_next:
            world.check_next()
            published = world.visible()
            held.let_go()
            assert world.visible() == published, (
                "a request of an earlier attempt has changed what a later one published"
            )
        return outcome

    return run


_WRITES = ("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "PutObject", "PutManifest")
_LATE = [
    *(Fault("store", f"{name} arrives after the attempt", _arriving_late(name), False) for name in _WRITES),
    *(
        Fault("store", f"{name} arrives after the next attempt", _arriving_late(name, after_next=True), False)
        for name in _WRITES
    ),
    Fault(
        "store",
        "CompleteMultipartUpload arrives after the attempt, which could not abort",
        _arriving_late("CompleteMultipartUpload", without_abort=True),
        False,
    ),
]

STORE = [*_request_faults(), *_LATE]


# ---- The store's and the network's other troubles


def _any_request(requests: str, action: Action, times: float = float("inf"), skip: int = 0) -> Run:
    def run(world: World) -> Outcome:
        world.rows = MULTIPART
        with world.store.inject(requests, action, skip, times):
            return world.attempt()

    return run


def _while_aborting(action: Action, times: float = float("inf")) -> Run:
    """A part is refused, and the abort that follows comes to harm as well."""

    def run(world: World) -> Outcome:
        world.rows = MULTIPART
        refused = on_the_way.refuse("QuotaFull", 400)
        with (
            world.store.inject("UploadPart", refused),
            world.store.inject("AbortMultipartUpload", action, times=times),
        ):
            return world.attempt()

    return run


def _manifest_out_of_sight(world: World) -> Outcome:
    """The answer to writing the manifest is lost, the retry is refused, and nobody can look who has written it."""
    world.rows = SMALL
    with (
        world.store.inject("PutManifest", on_the_way.lose_answer, times=1),
        world.store.inject("HeadManifest", on_the_way.refuse("ServiceUnavailable", 503)),
    ):
        return world.attempt()


def _missing_bucket(world: World) -> Outcome:
    bucket, world.bucket = world.bucket, f"{world.bucket}-missing"
    try:
        exporting = world.start()
        assert exporting.ends()
        return outcome_of(exporting)
    finally:
        world.bucket = bucket


STORE += [
    Fault("store", "a part's connection is reset once", _request("UploadPart", on_the_way.reset_half_way, 1), True),
    Fault(
        "store",
        "a part's connection is reset always",
        _request("UploadPart", on_the_way.reset_half_way),
        False,
        "sending part .*Nothing was published",
    ),
    *(
        Fault("store", f"the answer to {name} is lost", _request(name, on_the_way.lose_answer, 1), True)
        for name in ("CompleteMultipartUpload", "PutObject", "PutManifest")
    ),
    Fault(
        "store",
        "the answer to CompleteMultipartUpload is truncated",
        _request("CompleteMultipartUpload", on_the_way.truncate_answer, 1),
        None,
    ),
    Fault("store", "the manifest is truncated on its way", _request("GetManifest", on_the_way.truncate_answer), None),
    *(
        Fault(
            "store",
            f"the body of {name} arrives damaged",
            _request(name, on_the_way.damage, 1),
            True,
        )
        for name in ("UploadPart", "PutObject")
    ),
    Fault(
        "store",
        "a part has a wrong ETag",
        _request("UploadPart", on_the_way.change_header("ETag", '"0123456789abcdef0123456789abcdef"'), 1),
        False,
        "InvalidPart.*Nothing was published",
    ),
    Fault(
        "store",
        "the object has a wrong ETag",
        _request("HeadObject", on_the_way.change_header("ETag", '"0123456789abcdef0123456789abcdef"'), 1, skip=1),
        True,
    ),
    Fault(
        "store",
        "the object has a wrong size",
        _request("HeadObject", on_the_way.change_header("Content-Length", "5"), 1, skip=1),
        False,
        "it has 5 bytes instead of .*visible.*Do not use it; export again",
    ),
    Fault(
        "store",
        "the answer to PutManifest is lost, and it can't be read",
        _manifest_out_of_sight,
        False,
        "whole and verified; their manifest may or may not be.*[Rr]etry",
    ),
    Fault("store", "the bucket is missing", _missing_bucket, False, "NoSuchBucket.*Nothing was published.*Create"),
    Fault(
        "store",
        "access is denied",
        _any_request("(Create|Put).*", on_the_way.refuse("AccessDenied", 403)),
        False,
        "AccessDenied.*Nothing was published.*Grant",
    ),
    Fault(
        "store",
        "access is denied half-way",
        _any_request(".*", on_the_way.refuse("AccessDenied", 403), skip=5),
        False,
        "AccessDenied.*Nothing was published.*Grant",
    ),
    Fault(
        "store",
        "the credentials expire half-way",
        _any_request(".*", on_the_way.refuse("ExpiredToken", 400), skip=5),
        False,
        "ExpiredToken.*Nothing was published.*Retry",
    ),
    Fault("store", "the store is busy", _any_request(".*", on_the_way.refuse("SlowDown", 503), times=1, skip=4), True),
    Fault("store", "the store is slow", _any_request(".*", on_the_way.delay(0.2)), True),
    Fault("store", "the network is slow", _request("UploadPart", on_the_way.throttle(0.5)), True),
    *(
        Fault("store", f"the abort {how}", _while_aborting(action, times), False, "QuotaFull.*Nothing was published")
        for how, action, times in (
            ("fails once", on_the_way.refuse("InternalError", 500), 1),
            ("fails always", on_the_way.refuse("InternalError", 500), float("inf")),
            ("hangs always", on_the_way.hang, float("inf")),
            ("answers late", on_the_way.answer_late, 1),
            ("is refused", on_the_way.refuse("AccessDenied", 403), float("inf")),
        )
    ),
]


# ---- Postgres

#: The kind whose faults need a server of their own.
OWN_SERVER = "postgres"

_READING = "(query LIKE 'COPY%' OR query LIKE 'FETCH%')"


def _while_reading(
    happen: Callable[[World], object], settle: Callable[[World], object] = lambda _: None, **way: Any
) -> Run:
    """Something happens when so many bytes of rows have come, somewhere in the middle of a batch."""

    def run(world: World) -> Outcome:
        world.rows = MULTIPART
        world.network.after_bytes(world.chance.randrange(500_000, 4_000_000), lambda: happen(world))
        return world.attempt(settle=lambda: settle(world), **way)

    return run


def _reader(world: World) -> int:
    """The PID of a backend that reads, or has read: which of several is ahead is up to the network."""
    assert eventually(lambda: world.backends(_READING))
    return world.chance.choice(world.backends(f"{_READING} AND state = 'active'") or world.backends(_READING))


def _end_a_reader(world: World) -> None:
    world.sql(f"SELECT pg_terminate_backend({_reader(world)})")


# The connections of an attempt: the owner of the snapshot and the first reader, at the same time; the other readers.
_SECOND, _SECOND_READER = 2, 3

# The file of an exported snapshot has the name of the transaction that holds it, in hexadecimal.
_HOLDER = """
    SELECT DISTINCT pid FROM pg_locks JOIN pg_stat_activity USING (pid), pg_ls_dir('pg_snapshots') AS file
    WHERE application_name = '{name}'
    AND virtualtransaction = concat_ws('/', ('x' || split_part(file, '-', 1))::bit(32)::int,
                                            ('x' || split_part(file, '-', 2))::bit(32)::int)
"""


def _end_the_owner(world: World) -> None:
    [(owner,)] = world.sql(_HOLDER.format(name=world.name))
    world.sql(f"SELECT pg_terminate_backend({owner})")


def _ended_before_the_readers_come(world: World) -> Outcome:
    world.network.before_connection(_SECOND_READER, lambda: _end_the_owner(world))
    return world.attempt(**WAYS["batches"])


def _rows_changed_meanwhile(world: World) -> Outcome:
    """The snapshot has been taken, not all readers are there yet: they must see what it sees."""
    change = f"UPDATE {world.name}.generation SET number = number + "
    world.network.before_connection(_SECOND_READER, lambda: world.sql(f"{change} 1000"))
    return world.attempt(settle=lambda: world.sql(f"{change} -1000"), **WAYS["batches"])


def _kill_a_backend(world: World) -> None:
    os.kill(_reader(world), signal.SIGKILL)


def _answers(world: World) -> None:
    """Return when the server has recovered from a crash."""

    def answers() -> bool:
        try:
            world.sql("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    assert eventually(answers)


def _server(world: World) -> Database:
    assert world.server, "this fault needs a server of its own"
    return world.server


def _statement_timeout(world: World) -> Outcome:
    slow = world.query.replace("SELECT id,", "SELECT id, CASE WHEN id = 50 THEN pg_sleep(600)::text END AS nap,")
    return world.attempt(slow, libpq="-c statement_timeout=300")


def _locked(world: World, until_it_waits: bool) -> Outcome:
    with psycopg.connect(world.uri) as locking:
        locking.execute(f"LOCK TABLE {world.name}.numbers IN ACCESS EXCLUSIVE MODE")

        def release() -> None:
            assert eventually(lambda: world.backends("wait_event_type = 'Lock'"))
            locking.rollback()

        releasing = Running(release) if until_it_waits else None
        outcome = world.attempt(libpq="-c lock_timeout=10s" if until_it_waits else "-c lock_timeout=200")
        assert releasing is None or (releasing.ends() and releasing.error is None)
        return outcome


# Rows that have to be sorted, more than fit into the memory for it.
_SORTING = "SELECT md5(i::text) AS id, repeat('x', 100) AS filler FROM generate_series(1, 50000) AS i ORDER BY 1"
_LITTLE_MEMORY = "-c work_mem=64kB"


def _too_little_disk_allowed(world: World) -> Outcome:
    world.sql(f"GRANT SET ON PARAMETER temp_file_limit TO {services.EXPORTER}")
    return world.attempt(_SORTING, libpq=f"{_LITTLE_MEMORY} -c temp_file_limit=100kB")


def _disk_full(world: World) -> Outcome:
    """Every write to a temporary file meets /dev/full, of which the kernel says that no space is left (Linux)."""
    (folder,) = [Path(row) for (row,) in world.sql("SHOW data_directory")]
    temporary = folder / "base" / "pgsql_tmp"
    temporary.mkdir(exist_ok=True)

    def fill(pid: int) -> None:
        for number in range(10):
            (temporary / f"pgsql_tmp{pid}.{number}").symlink_to("/dev/full")

    try:
        return world.attempt(_SORTING, libpq=_LITTLE_MEMORY, on_connect=fill)
    finally:
        for link in temporary.iterdir():
            link.unlink(missing_ok=True)


def _changed_meanwhile(change: str, undo: str) -> Run:
    """A table is dropped or altered between two batches: that waits for the attempt; the next one meets it."""

    def run(world: World) -> Outcome:
        world.rows = MULTIPART
        changing: list[Running] = []

        def begin() -> None:
            changing.append(Running(lambda: world.sql(change.format(table=f"{world.name}.numbers"))))
            waiting = f"SELECT 1 FROM pg_locks WHERE NOT granted AND relation = '{world.name}.numbers'::regclass"
            assert eventually(lambda: world.sql(waiting))

        world.network.after_bytes(world.chance.randrange(500_000, 4_000_000), begin)
        assert world.attempt().published
        assert changing[0].ends()
        assert changing[0].error is None
        outcome = world.attempt()
        world.sql(undo.format(table=f"{world.name}.numbers", rows=MULTIPART))
        return outcome

    return run


def _changed_before(connection: int) -> Run:
    """Somebody changes the table, or queues for it behind the first connection, before another connection is open."""

    def run(world: World) -> Outcome:
        changing: list[Running] = []
        table = f"{world.name}.numbers"

        def begin() -> None:
            changing.append(Running(lambda: world.sql(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS more int")))
            waiting = f"SELECT 1 FROM pg_locks WHERE NOT granted AND relation = '{table}'::regclass"
            assert eventually(lambda: changing[0].ends(0) or world.sql(waiting))

        world.network.before_connection(connection, begin)
        outcome = world.attempt(**WAYS["batches"])
        assert changing[0].ends()
        return outcome

    return run


_CREATE = "CREATE TABLE {table} (id bigint PRIMARY KEY); INSERT INTO {table} SELECT generate_series(1, {rows})"
_UNPUBLISHED = "Nothing was published"

POSTGRES = [
    *(
        Fault(
            "postgres",
            f"a reader's session is ended ({name})",
            _while_reading(_end_a_reader, **way),
            False if name == "rows" else None,  # COPY may have sent all by then, as far as that reader has to
            _UNPUBLISHED,
        )
        for name, way in WAYS.items()
    ),
    Fault("postgres", "the session of the snapshot's owner is ended", _while_reading(_end_the_owner), None),
    Fault(
        "postgres",
        "the session of the snapshot's owner is ended before the readers come",
        _ended_before_the_readers_come,
        False,
        _UNPUBLISHED,
    ),
    Fault(
        "postgres",
        "the network to one reader is cut",
        _while_reading(lambda world: world.network.cut_last(), **WAYS["batches"]),
        False,
        _UNPUBLISHED,
    ),
    Fault("postgres", "all rows change before the readers come", _rows_changed_meanwhile, True),
    Fault("postgres", "statement_timeout", _statement_timeout, False, "57014.*Nothing was published.*slow store"),
    Fault("postgres", "a sort needs more disk than is allowed", _too_little_disk_allowed, False, "53400.*raise it"),
    Fault("postgres", "the disk is full while sorting", _disk_full, False, "53100.*Nothing was published.*an index"),
    Fault(
        "postgres",
        "the table is dropped between two batches",
        _changed_meanwhile("DROP TABLE {table}", _CREATE),
        False,
        "42P01.*Nothing was published.*Correct",
    ),
    Fault(
        "postgres",
        "the table is altered between two batches",
        _changed_meanwhile("ALTER TABLE {table} RENAME id TO number", "ALTER TABLE {table} RENAME number TO id"),
        False,
        "42703.*Nothing was published.*Correct",
    ),
    Fault("postgres", "the table is altered before a reader comes", _changed_before(_SECOND_READER), True),
    Fault("postgres", "the table is altered before the second connection", _changed_before(_SECOND), True),
    Fault("postgres", "the table is locked", lambda world: _locked(world, False), False, "55P03.*pg_locks"),
    Fault("postgres", "the table is locked for a while", lambda world: _locked(world, True), True),
]

POSTGRES += [  # these take the whole server down
    Fault(
        "postgres",
        "the server is stopped at once",
        _while_reading(lambda world: _server(world).stop_at_once(), lambda world: _server(world).restart()),
        False,
        _UNPUBLISHED,
    ),
    Fault(
        "postgres",
        "a backend is killed, and the server starts anew",
        _while_reading(_kill_a_backend, _answers),
        False,
        _UNPUBLISHED,
    ),
]


# ---- Two attempts

_MOMENTS = [
    # What an attempt asks of the store, in this order, and which of its kind it is.
    *(("GetManifest", 0), ("HeadObject", 0), ("ListMultipartUploads", 0), ("CreateMultipartUpload", 0)),
    *(("UploadPart", 0), ("UploadPart", 1), ("CompleteMultipartUpload", 0), ("HeadObject", 1), ("PutManifest", 0)),
]


def _overtaken(request: str, skip: int) -> Run:
    """Another run for the same key begins and ends while a request of the first is on its way."""

    def run(world: World) -> Outcome:
        world.rows = MULTIPART
        held = on_the_way.Held()
        with world.store.inject(request, held, skip, times=1):
            overtaken = world.start()
            held.wait()
            world.next_generation()
            second = world.attempt()
            held.let_go()
            assert overtaken.ends()
        first = outcome_of(overtaken)
        world.check_both([world.generation - 1, world.generation], [first, second])
        return first

    return run


def _completed_when_the_next_begins(world: World) -> Outcome:
    """A completion that an attempt had given up arrives when the next one looks at what there is."""
    world.rows = MULTIPART
    held = on_the_way.Held()
    denied = on_the_way.refuse("AccessDenied", 403)
    with world.store.inject("CompleteMultipartUpload", held):
        with world.store.inject("AbortMultipartUpload", denied):
            assert not world.attempt().published
        world.next_generation()
        world.rows = SMALL
        with world.store.inject("ListMultipartUploads", on_the_way.first(held.let_go), times=1):
            return world.attempt()


TWO = [
    *(
        Fault(
            "two runs",
            f"another is done while this waits for {request} {skip + 1}",
            _overtaken(request, skip),
            None,
            short=request in ("UploadPart", "CompleteMultipartUpload", "PutManifest"),
        )
        for request, skip in _MOMENTS
    ),
    Fault("two runs", "a late completion arrives when the next begins", _completed_when_the_next_begins, True),
]


# ---- The worker


def _stopped(stop: Callable[[World], object]) -> Run:
    """The task is stopped at some moment: when it asks for something, or when so many bytes of rows have come."""

    def run(world: World) -> Outcome:
        world.rows = MULTIPART
        world.worker()
        if world.chance.random() < 0.5:
            world.network.after_bytes(world.chance.randrange(6_000_000), lambda: stop(world))
            return world.attempt_as_task()
        request, skip = world.chance.choice(_MOMENTS)
        with world.store.inject(request, on_the_way.first(lambda: stop(world)), skip, times=1):
            return world.attempt_as_task()

    return run


def _stopped_while_the_store_hangs(stop: Callable[[World], object]) -> Run:
    """The task is stopped when a part is on its way, and stays there."""

    def run(world: World) -> Outcome:
        world.rows = MULTIPART
        world.worker()
        with world.store.inject("UploadPart", on_the_way.first(lambda: stop(world), on_the_way.hang), times=1):
            return world.attempt_as_task()

    return run


def _out_of_time(world: World) -> Outcome:
    world.rows = MULTIPART
    return world.attempt_as_task(timeout=world.chance.uniform(0.05, 1))


def _out_of_memory(world: World) -> Outcome:
    world.rows = MULTIPART
    return world.attempt_as_task(memory=world.chance.randrange(10**6, 90 * 10**6))


def _ask_to_end(world: World) -> None:
    world.worker().stop_task(signal.SIGTERM)


def _kill(world: World) -> None:
    world.worker().stop_task(signal.SIGKILL)


def _end_its_time(world: World) -> None:
    """What the kernel does when the time of execution_timeout is over."""
    world.worker().stop_task(signal.SIGALRM)


def _shut_down(world: World) -> None:
    world.worker().process.send_signal(signal.SIGTERM)


def _mark_failed(world: World) -> None:
    world.worker().process.send_signal(signal.SIGUSR1)


_CANCELLED = r"cancelled\. Nothing was published"

WORKER = [
    Fault("worker", "SIGTERM to the task", _stopped(_ask_to_end), None),
    Fault("worker", "SIGTERM while the store hangs", _stopped_while_the_store_hangs(_ask_to_end), False, _CANCELLED),
    Fault("worker", "marked failed, or cleared", _stopped_while_the_store_hangs(_mark_failed), False, _CANCELLED),
    Fault("worker", "execution_timeout", _out_of_time, None),
    Fault(
        "worker",
        "execution_timeout while the store hangs",
        _stopped_while_the_store_hangs(_end_its_time),
        False,
        f"Timeout.*{_CANCELLED}",
    ),
    Fault("worker", "SIGKILL to the task, as by the kernel when memory is short", _stopped(_kill), None),
    Fault("worker", "SIGKILL while the store hangs", _stopped_while_the_store_hangs(_kill), False),
    Fault("worker", "no more memory for the process", _out_of_memory, None),
    # After these a new worker has to be started.
    Fault("worker", "SIGTERM to the worker", _stopped(_shut_down), None),
    Fault("worker", "SIGKILL to the worker and the task", _stopped(lambda world: world.worker().stop_all()), None),
]

FAULTS = [*STORE, *POSTGRES, *TWO, *WORKER]
