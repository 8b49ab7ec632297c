"""Each fault of the catalogue once; many at a time, for most of their time is waiting."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.faults.catalogue import FAULTS, OWN_SERVER, Fault
from tests.faults.outcome import Outcome
from tests.faults.world import SMALL, Database, World
from tests.streaming_export.waiting import eventually

AT_A_TIME = 12
SHORT = [fault for fault in FAULTS if fault.short]


class Running:
    """Faults that are happening, and those that wait for their turn."""

    def __init__(self, database: str, endpoint: str) -> None:
        self.outcomes: dict[Fault, Future[Outcome]] = {}
        self._threads = set(threading.enumerate())
        self._places = database, endpoint
        self._pool = ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="faults")

    def start(self, faults: list[Fault]) -> None:
        """Those that share a server or a worker one after the other, all others when there is room."""
        self.outcomes = {fault: Future() for fault in faults}
        for kind in ("worker", OWN_SERVER):
            self._pool.submit(self._in_one_world, [fault for fault in faults if fault.kind == kind], kind == OWN_SERVER)
        for fault in faults:
            if fault.kind not in ("worker", OWN_SERVER):
                self._pool.submit(self._in_one_world, [fault], False)

    def end(self) -> None:
        """Wait for those that have begun."""
        self._pool.shutdown(cancel_futures=True)

    def threads(self) -> set[str]:
        """Threads that were not there at the beginning."""
        new = set(threading.enumerate()) - self._threads
        return {thread.name for thread in new if not thread.name.startswith("faults")}

    def _in_one_world(self, faults: list[Fault], own_server: bool) -> None:
        if not faults:
            return
        database, endpoint = self._places
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(Database()) if own_server else database
            world = stack.enter_context(World(server, endpoint, random.Random(str(faults[0]))))
            for fault in faults:
                try:
                    self.outcomes[fault].set_result(self._run(world, fault))
                except BaseException as exc:  # whatever it is, its test raises it
                    self.outcomes[fault].set_exception(exc)

    def _run(self, world: World, fault: Fault) -> Outcome:
        world.next_generation()
        outcome = fault.run(world)
        world.rows = SMALL  # for the sake of time; the soak draws it
        world.check_next()
        return outcome


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest, database: str, endpoint: str) -> Iterator[Running]:
    """All faults whose tests were selected."""
    selected = [item.callspec.params.get("fault") for item in request.session.items if hasattr(item, "callspec")]
    running = Running(database, endpoint)
    running.start([fault for fault in SHORT if fault in selected])
    yield running
    running.end()


@pytest.mark.parametrize("fault", SHORT, ids=str)
def test_fault(running: Running, fault: Fault) -> None:
    """The bucket holds the whole file or what was there before, the error knows which, the next attempt succeeds."""
    fault.judge(running.outcomes[fault].result())


def test_no_thread_is_left(running: Running) -> None:
    """Whatever has happened, all threads of the exports end."""
    running.end()
    assert eventually(lambda: not running.threads()), running.threads()
