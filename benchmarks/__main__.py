"""`make bench`: measures this project's export and its peers in turn, and writes the results.

    python -m benchmarks [--rows 1000000 5000000] [--rounds 5] [--only ours psql-aws] [--data orders wide]

A whole run writes benchmarks/RESULTS.md and benchmarks/results.png. One of few rows or without the memory tests
writes both to .bench/, and one of some contenders or data sets prints its tables only. The raw figures are in
.bench/results.json.
"""

import argparse
import json
import os
import sys
from typing import Any

from benchmarks import checks, memory, network, profile, report, tables
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.data import DATA, ORDERS, WIDE, Data, drop
from benchmarks.engine import file_select
from benchmarks.rounds import SHORT_ROWS, Stage
from benchmarks.setting import FOLDER, Setting, opened
from demo import services
from demo.__main__ import end_in_order
from demo.steps import alive, say

DEFAULT_ROWS = [1_000_000, 5_000_000]
NETWORK = "network"
SHORT_WIDE = 10  # times as many orders as wide rows in a short run
ROUND_TRIPS = (0, 1, 20)  # milliseconds


def main() -> int:
    arguments = parse()
    environ = dict(os.environ)
    services.isolate_environment()
    os.chdir(services.PROJECT)
    FOLDER.mkdir(exist_ok=True)
    end_in_order()
    chosen, left_out = choose(arguments)
    say("Starting PostgreSQL and the stores")
    try:
        trips = () if "networks" in left_out else ROUND_TRIPS
        with opened(arguments.endpoint, environ, trips) as setting:
            results = measure(setting, chosen, arguments, left_out)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except RuntimeError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    (FOLDER / "results.json").write_text(json.dumps(results, indent=1))
    if not arguments.only and not arguments.data:
        report.write(report.HERE if results["memory"] else FOLDER)
    print("\n" + tables.tables(results))
    return 0 if all_right(results) else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=DEFAULT_ROWS, help="orders in the table")
    parser.add_argument("--rounds", type=int, help="of each contender")
    parser.add_argument("--only", nargs="+", choices=[contender.name for contender in CONTENDERS])
    parser.add_argument("--data", nargs="+", choices=[*(data.name for data in DATA), NETWORK])
    parser.add_argument("--endpoint", help="measure with this S3 server; credentials from AWS_*")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory tests")
    return parser.parse_args()


def choose(arguments: argparse.Namespace) -> tuple[list[Contender], dict[str, str]]:
    """The contenders to measure, and those that can't run here, each with the reason."""
    left_out = {}
    asked = [contender for contender in CONTENDERS if not arguments.only or contender.name in arguments.only]
    for contender in asked:
        if contender.missing:
            left_out[contender.name] = "it could not be installed"
    if wanted(arguments, NETWORK) and (missing := network.missing()):
        left_out["networks"] = missing
    elif not wanted(arguments, NETWORK):
        left_out["networks"] = "not asked for"
    for name, reason in left_out.items():
        say(f"Without {name}: {reason}")
    return [contender for contender in asked if contender.name not in left_out], left_out


def wanted(arguments: argparse.Namespace, name: str) -> bool:
    """Whether to measure a data set, or the networks."""
    return not arguments.data or name in arguments.data


def measure(
    setting: Setting, chosen: list[Contender], arguments: argparse.Namespace, left_out: dict[str, str]
) -> dict[str, Any]:
    """All figures, as JSON."""
    sizes = sorted(arguments.rows)
    results: dict[str, Any] = {"machine": report.machine(setting), "left_out": left_out, "failed": {}}
    results |= {"starts": {}, "sets": [], "network": {}, "profile": {}, "memory": {}}
    for data, rows in plan(arguments, sizes):
        stage = prepare(setting, data, rows, results["failed"])
        contenders = [contender for contender in chosen if data.name in contender.data]
        results["starts"] |= stage.starts([one for one in contenders if one.name not in results["starts"]])
        results["sets"].append(stage.measure(contenders, arguments.rounds))
        drop(setting, data)
    if setting.behind:
        stage = prepare(setting, ORDERS, sizes[-1], results["failed"])
        contenders = [contender for contender in chosen if NETWORK in contender.data]
        results["network"] = stage.behind(contenders, arguments.rounds)
    if wanted(arguments, ORDERS.name):
        say("Profile")
        select = prepare(setting, ORDERS, sizes[-1], {}).select
        results["profile"] = {"own": profile.by_thread(setting), "postgres": profile.by_statement(setting, select)}
    if sizes[-1] >= SHORT_ROWS and not (arguments.no_memory or arguments.only or arguments.data):
        results["memory"]["width"] = list(memory.by_width(setting))
        results["memory"]["rows"] = list(memory.by_rows(setting))
    return results


def plan(arguments: argparse.Namespace, sizes: list[int]) -> list[tuple[Data, int]]:
    """The data sets and their rows: orders of each size, the others of the smallest; few wide rows in a short run."""
    wide = sizes[0] if sizes[0] >= SHORT_ROWS else sizes[0] // SHORT_WIDE
    others = [(data, wide if data is WIDE else sizes[0]) for data in DATA if data is not ORDERS]
    steps = [(ORDERS, sizes[0]), *others, *((ORDERS, size) for size in sizes[1:])]
    return [(data, rows) for data, rows in steps if wanted(arguments, data.name)]


def prepare(setting: Setting, data: Data, rows: int, failed: dict[str, str]) -> Stage:
    """Fill a table."""
    say(f"Filling a table: {rows:,} {data.title}")
    with alive():
        data.load(setting, rows)
    return Stage(setting, data, rows, file_select(setting.uri, data.query, data.columns[0]), failed)


def all_right(results: dict[str, Any]) -> bool:
    """Whether every object was right."""
    files = [file for one in results["sets"] for file in one["files"].values()]
    files += [run["file"] for one in results["sets"] for runs in one["runs"].values() for run in runs]
    return not any(file and file.startswith(checks.WRONG) for file in files)


if __name__ == "__main__":
    sys.exit(main())
