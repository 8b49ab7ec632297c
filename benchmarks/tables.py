"""The figures of a run, as Markdown."""

from typing import Any

from benchmarks import targets
from benchmarks.checks import WRONG
from benchmarks.contenders import CONTENDERS, OURS, Contender
from benchmarks.figures import GB, MB, Results, Run, growth, median

_HEADS = [
    *("s", "rows/s", "CPU s, own", "of Postgres", "of the store", "CPU s per GB", "longest statement"),
    *("memory, growth", "memory, whole", "rounds", "file"),
]


def tables(results: Results) -> str:
    """All tables."""
    parts = [targets.table(results), _left_out(results)]
    parts += [_set(results, found) for found in results["sets"]]
    parts += [_network(results["network"]), _memory(results["memory"]), _profile(results)]
    return "\n\n".join(part for part in parts if part)


def _left_out(results: Results) -> str:
    failed = {name: text.splitlines()[-1].strip() for name, text in results["failed"].items()}
    reasons = {**results["left_out"], **failed}
    labels = {contender.name: contender.label for contender in CONTENDERS}
    return "\n".join(f"Left out: {labels.get(name, name)}: {reason}." for name, reason in reasons.items())


def _set(results: Results, found: dict[str, Any]) -> str:
    lines = [
        f"## {found['title']}, {found['bytes'] / MB:,.0f} MB of CSV",
        "",
        f"| | {' | '.join(_HEADS)} |",
        f"|---|{'--:|' * (len(_HEADS) - 1)}---|",
    ]
    for contender in CONTENDERS:
        if runs := found["runs"].get(contender.name):
            lines.append(_row(results, contender, found, runs))
    return "\n".join(lines)


def _row(results: Results, contender: Contender, found: dict[str, Any], runs: list[Run]) -> str:
    seconds, wrong = median(runs, "seconds"), any(run["file"] == WRONG for run in runs)
    cpu = [median(runs, name) for name in ("cpu_seconds", "postgres_cpu_seconds", "store_cpu_seconds")]
    cells = [
        contender.label,
        f"{seconds:.2f}",
        f"{found['rows'] / seconds:,.0f}",
        *(f"{value:.2f}" for value in cpu),
        f"{sum(cpu) / (found['bytes'] / GB):.1f}",
        f"{median(runs, 'longest_seconds'):.2f} s",
        f"{growth(results, contender.name, runs) / MB:,.0f} MB",
        f"{median(runs, 'memory_peak') / MB:,.0f} MB",
        str(len(runs)),
        WRONG if wrong else found["files"].get(contender.name) or "",
    ]
    return "| " + " | ".join(cells) + " |"


def _network(found: dict[str, Any]) -> str:
    if not found:
        return ""
    trips = sorted(found["trips"], key=int)
    heads = " | ".join(f"{trip} ms" for trip in trips)
    losses = " | ".join(f"lost at {trip} ms" for trip in trips[1:])
    lines = [
        f"## A network in between: {found['title']}",
        "",
        "Seconds by the round trip from the contender to PostgreSQL and to the store, and how much longer it takes than"
        " with none. Target: the operator loses less than 15 % at 20 ms.",
        "",
        f"| | {heads} | {losses} |",
        f"|---|{'--:|' * (2 * len(trips) - 1)}",
    ]
    for contender in CONTENDERS:
        runs = [found["trips"][trip].get(contender.name) for trip in trips]
        if all(runs):
            lines.append(_network_row(contender, [median(each, "seconds") for each in runs if each]))
    return "\n".join(lines)


def _network_row(contender: Contender, seconds: list[float]) -> str:
    lost = [f"{each / seconds[0] - 1:.0%}" for each in seconds[1:]]
    if contender.name == OURS and seconds[-1] / seconds[0] - 1 >= targets.NETWORK_LOSS:
        lost[-1] = f"**{lost[-1]}**"
    return f"| {contender.label} | {' | '.join([*(f'{each:.2f}' for each in seconds), *lost])} |"


def _memory(memory: dict[str, list[tuple[int, float]]]) -> str:
    if not memory:
        return ""
    fewest, most = memory["rows"]
    lines = [
        "## Memory of PostgresToS3Operator",
        "",
        f"From {fewest[0]:,} to {most[0]:,} orders the growth of its process changes by"
        f" {(most[1] - fewest[1]) / MB:+.1f} MB ({fewest[1] / MB:.1f} to {most[1] / MB:.1f} MB; target: at most +8).",
        "",
        "By the width of the rows, 400 MB of each, defaults (target: at most 64 MB):",
        "",
        "| " + " | ".join(f"{width:,} bytes" for width, _ in memory["width"]) + " |",
        "|" + "--:|" * len(memory["width"]),
        "| " + " | ".join(f"{grown / MB:.1f} MB" for _, grown in memory["width"]) + " |",
    ]
    return "\n".join(lines)


def _profile(results: Results) -> str:
    if not results["profile"]:
        return ""
    rows = max(found["rows"] for found in results["sets"] if found["name"] == "orders")
    lines = [f"## Where the CPU time goes: {rows:,} orders"]
    heads = {"own": "PostgresToS3Operator's process", "postgres": "PostgreSQL, each statement by itself"}
    for name, head in heads.items():
        lines += ["", f"| {head} | CPU s |", "|---|--:|"]
        lines += [f"| {text} | {seconds:.2f} |" for text, seconds in results["profile"][name].items()]
    return "\n".join(lines)
