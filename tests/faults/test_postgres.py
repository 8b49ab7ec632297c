"""Faults of Postgres and of the network to it, on a server of the tests' own: some take it down."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest

from tests.faults.catalogue import POSTGRES, SERVER, Fault
from tests.faults.world import Database, World


@pytest.fixture(scope="module")
def world(endpoint: str) -> Iterator[World]:
    """A world with a server of its own."""
    with Database() as server, World(server, endpoint, random.Random(1)) as world:
        yield world


@pytest.mark.parametrize("fault", [*POSTGRES, *SERVER], ids=str)
def test_fault(world: World, fault: Fault) -> None:
    """The bucket holds the whole file or what was there before, the error knows which, the next attempt succeeds."""
    world.next_generation()
    outcome = fault.run(world)
    assert fault.publishes in (None, outcome.published), outcome
    assert outcome.published or re.search(fault.tells, outcome.told or ""), outcome.told
    world.check_next()
    world.check_threads()
