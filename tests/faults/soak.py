"""Random faults, one after the other, for as long as is wanted: make soak, or

    python -m tests.faults.soak --seconds 1200 --seed 42

Each step draws a fault from the catalogue, has an attempt meet it, checks what is there, and has the next attempt
succeed. A round has every fault once, in an order of its own. What a step draws depends on the seed and its number
only: --step repeats one. Ends with status 1 if
anything was ever not as it must be.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import logging
import random
import sys
import time
import traceback
from contextlib import ExitStack

from demo import services
from tests.faults.catalogue import FAULTS, Fault
from tests.faults.world import Database, Outcome, World


def main() -> int:
    """Run the soak, and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--step", type=int, help="only this one")
    arguments = parser.parse_args()
    logging.disable(logging.ERROR)  # what the exports tell of the faults
    services.isolate_environment()
    print(f"seed {arguments.seed}", flush=True)
    with services.s3() as endpoint, Database() as server:
        soak = Soak(server, endpoint, arguments.seed)
        deadline = time.monotonic() + arguments.seconds
        for step in [arguments.step] if arguments.step else itertools.count(1):
            soak.step(step)
            if time.monotonic() > deadline:
                break
        soak.close()
    soak.print_summary()
    return 1 if soak.broken else 0


class Soak:
    """The steps, and how they ended."""

    def __init__(self, server: Database, endpoint: str, seed: int) -> None:
        self.server = server
        self.endpoint = endpoint
        self.seed = seed
        self.started = time.monotonic()
        self.ended: collections.Counter[tuple[str, str]] = collections.Counter()
        self.kinds: collections.Counter[tuple[str, str]] = collections.Counter()
        self.broken: list[int] = []
        self._stack = ExitStack()
        self._world: World | None = None

    def step(self, number: int) -> None:
        """Have one fault happen."""
        chance = random.Random(f"{self.seed}/{number}")
        fault = self._draw(number)
        try:
            outcome = self._try(fault, chance)
        except Exception:
            self.broken.append(number)
            print(f"\nBROKEN by {fault}. To repeat it: --seed {self.seed} --step {number}\n{traceback.format_exc()}")
            self._forget_world()
            self.server.restart()
            how = "broken"
        else:
            how = "published" if outcome.published else "unpublished" if outcome.told is not None else "killed"
        self.ended[str(fault), how] += 1
        self.kinds[fault.kind, how] += 1
        if number % 50 == 0:
            print(f"{time.monotonic() - self.started:5.0f} s: {number} faults, {len(self.broken)} broken", flush=True)

    def close(self) -> None:
        """End what is left."""
        self._forget_world()

    def print_summary(self) -> None:
        """The table of all steps."""
        columns = ["published", "unpublished", "killed", "broken"]
        width = max(len(name) for name, _ in self.ended)
        print(f"\n{'fault':{width}} {'times':>6} " + " ".join(f"{name:>11}" for name in columns))
        for counted in (self.ended, self.kinds):
            for name in sorted({name for name, _ in counted}):
                counts = [counted[name, column] for column in columns]
                print(f"{name:{width}} {sum(counts):6} " + " ".join(f"{count:11}" for count in counts))
            print()
        seconds = time.monotonic() - self.started
        print(
            f"seed {self.seed}, {seconds:.0f} s, {self.ended.total()} faults, wrong files or states: {len(self.broken)}"
        )
        if self.broken:
            print(f"to repeat: --seed {self.seed} --step N, where N is one of {self.broken}")

    def _draw(self, number: int) -> Fault:
        """The faults come in rounds, each once in a round, so that none is left to chance."""
        past, place = divmod(number - 1, len(FAULTS))
        return random.Random(f"{self.seed}/round {past}").sample(FAULTS, len(FAULTS))[place]

    def _try(self, fault: Fault, chance: random.Random) -> Outcome:
        if self._world is None:
            self._world = self._stack.enter_context(World(self.server, self.endpoint, chance))
        world = self._world
        world.chance = chance
        world.next_generation()
        outcome = fault.run(world)
        fault.judge(outcome)
        world.check_next()
        world.check_threads()
        return outcome

    def _forget_world(self) -> None:
        self._world = None
        with contextlib.suppress(Exception):
            self._stack.close()
        self._stack = ExitStack()


if __name__ == "__main__":
    sys.exit(main())
