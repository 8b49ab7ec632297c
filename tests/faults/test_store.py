"""Faults of the object store and of the network to it; a few at a time, for most of their time is waiting."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.faults.catalogue import STORE, TWO, Fault
from tests.faults.outcome import Outcome
from tests.faults.world import SMALL, World

AT_A_TIME = 10
FAULTS = [fault for fault in [*STORE, *TWO] if fault.short]


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, database: str, endpoint: str) -> Iterator[dict[str, Future[Outcome]]]:
    """How the attempts end, for all faults that were selected."""

    def run(fault: Fault) -> Outcome:
        with World(database, endpoint, random.Random(fault.name)) as world:
            outcome = fault.run(world)
            world.rows = SMALL  # for the sake of time; the soak draws it
            world.check_next()
            return outcome

    selected = [item.callspec.params.get("fault") for item in request.session.items if hasattr(item, "callspec")]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        yield {fault.name: pool.submit(run, fault) for fault in FAULTS if fault in selected}


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_fault(outcomes: dict[str, Future[Outcome]], fault: Fault) -> None:
    """The bucket holds the whole file or what was there before, the error knows which, the next attempt succeeds."""
    outcome = outcomes[fault.name].result()
    assert fault.publishes in (None, outcome.published), outcome
    assert outcome.published or re.search(fault.tells, outcome.told or ""), outcome.told
