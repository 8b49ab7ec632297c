"""`make bench`: measures this project's export and its peers in turn, and writes what came of it.

    python -m benchmarks [--rows 1000000 5000000] [--rounds 5] [--only ours psql-aws] [--endpoint URL]

A whole run writes benchmarks/RESULTS.md and benchmarks/results.png. One of few rows, or without the memory
tests, writes both to .bench/, and one of some contenders prints its tables only. The raw figures are in
.bench/results.json.
"""

import argparse
import json
import os
import sys
from dataclasses import asdict
from typing import Any

from benchmarks import memory, profile, report
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.measure import Figures, Rows, run
from benchmarks.setting import FOLDER, Setting, opened
from demo import services
from demo.__main__ import end_in_order
from demo.steps import alive, say

DEFAULT_ROWS = [1_000_000, 5_000_000]
SHORT_ROWS = 500_000  # with fewer, a run shall be over in a minute: no warm-up, fewer rounds, no memory tests
ROUNDS, SHORT_ROUNDS, SLOW_ROUNDS = 5, 2, 2
SLOW_ROWS = 1_000_000  # with more, a slow contender gets SLOW_ROUNDS


def main() -> int:
    arguments = parse()
    environ = dict(os.environ)
    services.isolate_environment()
    os.chdir(services.PROJECT)
    FOLDER.mkdir(exist_ok=True)
    end_in_order()
    chosen = [contender for contender in CONTENDERS if not arguments.only or contender.name in arguments.only]
    say("Starting PostgreSQL and the stores")
    try:
        with opened(arguments.endpoint, environ) as setting:
            results = measure(setting, chosen, arguments)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except RuntimeError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    (FOLDER / "results.json").write_text(json.dumps(results, indent=1))
    if not arguments.only:
        report.write(results, report.HERE if results["memory"] else FOLDER)
    print("\n" + report.tables(results))
    return 0 if all_right(results) else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=DEFAULT_ROWS, help="orders in the table")
    parser.add_argument("--rounds", type=int, help="of each contender")
    parser.add_argument("--only", nargs="+", choices=[contender.name for contender in CONTENDERS])
    parser.add_argument("--endpoint", help="measure with this S3 server; credentials from AWS_*")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory tests")
    return parser.parse_args()


def measure(setting: Setting, chosen: list[Contender], arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures, as JSON."""
    sizes = sorted(arguments.rows)
    results: dict[str, Any] = {"machine": report.machine(setting), "sizes": {}, "starts": {}, "memory": {}}
    for size in sizes:
        say(f"Filling the table orders: {size:,} rows")
        with alive():
            services.load_orders(setting.uri, size)
            services.make_exporter(setting.uri)
        select = setting.select()
        results["starts"] = results["starts"] or starts(setting, chosen, select)
        results["sizes"][str(size)] = one_size(setting, chosen, select, size, arguments.rounds)
    say("Profile")
    results["profile"] = {"own": profile.by_thread(setting), "postgres": profile.by_statement(setting, select)}
    if sizes[-1] >= SHORT_ROWS and not (arguments.no_memory or arguments.only):
        results["memory"]["width"] = list(memory.by_width(setting))
        results["memory"]["rows"] = list(memory.by_rows(setting))
    return results


def one_size(
    setting: Setting, chosen: list[Contender], select: str, size: int, asked_rounds: int | None
) -> dict[str, Any]:
    """The rounds of all contenders with a table of `size` orders: A B C …, A B C …"""
    rows = Rows(setting, select)
    short = size < SHORT_ROWS
    rounds = asked_rounds or (SHORT_ROUNDS if short else ROUNDS)
    runs: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in chosen}
    for number in range(1 if short else 0, rounds + 1):
        for contender in chosen:
            slow = contender.slow and size > SLOW_ROWS
            if slow and not 0 < number <= SLOW_ROUNDS:
                continue
            figures = run(setting, contender, select, rows)
            say_figures(number, rounds, contender, size, figures)
            if number:
                runs[contender.name].append(asdict(figures))
    return {"bytes": rows.bytes, "runs": runs}


def starts(setting: Setting, chosen: list[Contender], select: str) -> dict[str, Any]:
    """What the programs of pipelines take without rows."""
    nothing = f"select * from ({select}) as nothing where false"
    return {
        contender.name: [asdict(run(setting, contender, nothing)) for _ in range(3)]
        for contender in chosen
        if contender.starts
    }


def say_figures(number: int, rounds: int, contender: Contender, size: int, figures: Figures) -> None:
    """One line on a run."""
    which = f"round {number} of {rounds}" if number else "warm-up"
    wrong = "  THE OBJECT IS WRONG" if figures.right is False else ""
    say(
        f"{size:>10,} rows, {which}: {contender.name:15} {figures.seconds:6.2f} s, {size / figures.seconds:>9,.0f}"
        f" rows/s, {(figures.memory_peak - figures.memory_before) / 2**20:5.0f} MB{wrong}"
    )


def all_right(results: dict[str, Any]) -> bool:
    """Whether every object was right."""
    sizes = results["sizes"].values()
    return all(run["right"] is not False for size in sizes for runs in size["runs"].values() for run in runs)


if __name__ == "__main__":
    sys.exit(main())
