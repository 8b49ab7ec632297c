"""The rounds of all contenders: A B C …, A B C …, so that a slower phase of the machine affects all of them."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from benchmarks.checks import Rows
from benchmarks.contenders import OURS, Contender
from benchmarks.data import Data
from benchmarks.measure import Figures, run
from benchmarks.setting import Setting
from demo.steps import say

SHORT_ROWS = 500_000  # with fewer, a run should take a minute or two: one round that counts, no memory tests
ROUNDS, SHORT_ROUNDS, SLOW_ROUNDS = 5, 1, 2
# Of CSV; with more, and in a short run, a slow contender gets SLOW_ROUNDS, and the first, which is looked at, counts.
SLOW_BYTES = 200_000_000
NOTHING_ROUNDS = 3

Runs = dict[str, list[dict[str, Any]]]


class Stage:
    """One data set, and the contenders that are measured with it.

    :param failed: gets the names of contenders that fail twice running, each with the reason; they are left out then.
    """

    def __init__(self, setting: Setting, data: Data, rows: int, select: str, failed: dict[str, str]) -> None:
        self.setting, self.data, self.rows, self.select, self.failed = setting, data, rows, select, failed

    def measure(self, chosen: Sequence[Contender], asked: int | None) -> dict[str, Any]:
        """All rounds; each contender's file is checked once, in a round before those that count."""
        expected = Rows(self.setting, self.data, self.select)
        rounds = asked or (SHORT_ROUNDS if self.rows < SHORT_ROWS else ROUNDS)
        runs: Runs = {contender.name: [] for contender in chosen}
        looked: dict[str, Figures] = {}
        for number in range(rounds + 1):
            for contender in self._remaining(chosen):
                slow = contender.slow and (expected.bytes > SLOW_BYTES or self.rows < SHORT_ROWS)
                if slow and number >= min(rounds, SLOW_ROUNDS):
                    continue
                first = looked.get(contender.name)
                figures = self._run(contender, expected if first is None else None, first.bytes if first else None)
                if figures is None:
                    continue
                looked.setdefault(contender.name, figures)
                self._say(f"round {number} of {rounds}" if number else "looking at the file", contender, figures)
                if number or slow:
                    runs[contender.name].append(asdict(figures))
        files = {name: figures.file for name, figures in looked.items()}
        return {**self._description(), "bytes": expected.bytes, "files": files, "runs": runs}

    def behind(self, chosen: Sequence[Contender], asked: int | None) -> dict[str, Any]:
        """The same behind each network, without a check of the files."""
        rounds = asked or (SHORT_ROUNDS if self.rows < SHORT_ROWS else ROUNDS)
        found: dict[int, Runs] = {trip: {contender.name: [] for contender in chosen} for trip in self.setting.behind}
        for number in range(1, rounds + 1):
            for contender in self._remaining(chosen):
                for trip, setting in self.setting.behind.items():
                    if figures := self._run(contender, None, None, setting):
                        self._say(f"{trip} ms, round {number} of {rounds}", contender, figures)
                        found[trip][contender.name].append(asdict(figures))
        return {**self._description(), "trips": found}

    def starts(self, chosen: Sequence[Contender]) -> Runs:
        """What the programs of pipelines take without rows."""
        table = self.data.table
        data = replace(self.data, table=f"(select * from {table} where false) as {table}")
        select = f"select * from ({self.select}) as nothing where false"
        return {
            contender.name: [asdict(run(self.setting, contender, data, select)) for _ in range(NOTHING_ROUNDS)]
            for contender in self._remaining(chosen)
            if contender.starts
        }

    def _remaining(self, chosen: Sequence[Contender]) -> Iterator[Contender]:
        return (contender for contender in chosen if contender.name not in self.failed)

    def _run(
        self, contender: Contender, expected: Rows | None, size: int | None, setting: Setting | None = None
    ) -> Figures | None:
        for again in (True, False):
            try:
                return run(setting or self.setting, contender, self.data, self.select, expected, size)
            except RuntimeError as error:
                if contender.name.startswith(OURS):
                    raise
                say(f"{error}\n  {'Once more.' if again else 'Going on without it.'}")
                failure = str(error)
        self.failed[contender.name] = failure
        return None

    def _description(self) -> dict[str, Any]:
        return {"name": self.data.name, "title": f"{self.rows:,} {self.data.title}", "rows": self.rows}

    def _say(self, when: str, contender: Contender, figures: Figures) -> None:
        """One line on a run."""
        growth = (figures.memory_peak - figures.memory_before) / 2**20
        note = f"  {figures.file}" if figures.file else ""
        say(
            f"{self.rows:>10,} {self.data.name}, {when}: {contender.name:20} {figures.seconds:6.2f} s,"
            f" {self.rows / figures.seconds:>9,.0f} rows/s, {growth:5.0f} MB{note}"
        )
