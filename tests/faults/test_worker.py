"""Tasks that are stopped, by Airflow or by the kernel; run by the task SDK's own supervisor."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest

from tests.faults.catalogue import WORKER, Fault
from tests.faults.world import World


@pytest.fixture(scope="module")
def world(database: str, endpoint: str) -> Iterator[World]:
    """A world with a worker."""
    with World(database, endpoint, random.Random(1)) as world:
        yield world


@pytest.mark.parametrize("fault", WORKER, ids=str)
def test_fault(world: World, fault: Fault) -> None:
    """The bucket holds the whole file or what was there before, the error knows which, the next attempt succeeds."""
    world.next_generation()
    outcome = fault.run(world)
    assert fault.publishes in (None, outcome.published), outcome
    assert outcome.published or re.search(fault.tells, outcome.told or ""), outcome.told
    world.check_next()
