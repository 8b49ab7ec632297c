"""What the planner knows about a query: rows, size and cost, whether each run returns the same, is its key unique."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from streaming_export.postgres.query import Query
from streaming_export.postgres.sessions import run_sql

#: When a query returns the same rows each time it runs on one snapshot: "always"; "as many", because it numbers or
#: limits rows, and their order may differ; "in one transaction", because it asks for the time of its transaction; or
#: "never", because it asks for the time of its statement, or for random numbers.
Repeats = Literal["always", "as many", "in one transaction", "never"]

# A name in quotes, or a string, without repeated groups: those take 100 bytes of memory for each character of a long
# literal. What contains its own quote counts as two here. Names are matched first, since one may have an apostrophe.
_QUOTED = re.compile(r"""("[^"]*")|'[^']*'""")
_CALL = re.compile(r'(?:"([^"]+(?:""[^"]+)*)"|([^\W\d]\w*))\(')

# PostgreSQL manual, 9.9.5 "Current Date/Time", as plans show them.
_TRANSACTION_TIME = re.compile(r"\b(CURRENT_DATE|CURRENT_TIME|CURRENT_TIMESTAMP|LOCALTIME|LOCALTIMESTAMP)\b")

# Strings that mean the time of the transaction (PostgreSQL manual, 8.5.1.4 "Special Values"). The plan does not show
# those of the query, and only it shows those of views: before PostgreSQL 10, CURRENT_DATE was stored as one.
_TIME_STRING = re.compile(r"['$]\s*(now|today|tomorrow|yesterday)\b", re.IGNORECASE)

# Of the functions that a plan names: whether any is volatile; and whether any depends on the transaction or connection,
# as now() does, and as a user's stable function may. A stable function of an extension is assumed not to.
#
# Of a table's column: whether it has a unique index, and no NULL. A table with children has rows that its indexes do
# not know, unless they are partitions. A constraint that is not valid says nothing of the rows that were there before.
_CATALOG = sa.text(
    """
    SELECT coalesce(bool_or(provolatile = 'v' OR proname = 'statement_timestamp'), false),
           coalesce(bool_or(provolatile = 's' AND (
               proname IN ('now', 'transaction_timestamp', 'pg_backend_pid') OR p.oid >= 16384 AND NOT EXISTS (
                   SELECT FROM pg_catalog.pg_depend
                   WHERE classid = 'pg_catalog.pg_proc'::regclass AND objid = p.oid AND deptype = 'e'))), false),
           EXISTS (
               SELECT FROM pg_catalog.pg_attribute AS a
               JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid AND (c.relkind = 'p' OR NOT c.relhassubclass)
               JOIN pg_catalog.pg_index AS i
                   ON i.indrelid = c.oid AND i.indkey[0] = a.attnum AND i.indnkeyatts = 1
               WHERE a.attrelid = :table AND a.attnum = :column AND a.attnotnull
                   AND i.indisunique AND i.indisvalid AND i.indpred IS NULL
                   AND NOT EXISTS (
                       SELECT FROM pg_catalog.pg_constraint
                       WHERE conrelid = c.oid AND contype = 'n' AND conkey[1] = a.attnum AND NOT convalidated))
    FROM pg_catalog.pg_proc AS p WHERE proname = ANY(:names)
    """
)

# What chooses or numbers rows by the order in which they come. That may differ in each run, even on one snapshot: scans
# of a large table begin where others are (PostgreSQL manual, 19.13.1, synchronize_seqscans), and may be parallel.
_BY_ORDER = {"Limit", "WindowAgg", "Unique"}
_KEPT = {"Materialize", "Sort", "CTE Scan", "Function Scan"}  # keep their rows for the next who asks
_INDEX_SCANS = {"Index Scan", "Index Only Scan"}

# What gives each row of a table once at most; the scans of partitions are joined by the two that append.
_ONCE = {"Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Heap Scan", "Tid Scan", "Tid Range Scan", "Subquery Scan"}
_ONCE |= {"Sort", "Incremental Sort", "Gather", "Gather Merge", "Limit", "Result", "Unique", "WindowAgg"}
_ONCE |= {"Append", "Merge Append"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What the planner estimates.

    :param rows: number of rows.
    :param bytes: of all rows, as text.
    :param cost: in the planner's unit.
    :param repeats: when the query returns the same rows again.
    :param unique: whether an index shows that the key is unique and never NULL; False if that is not known.
    :param batch_rows: rows of a batch, or of a key range.
    :param range_cost: cost of finding the end of one key range; None without a key.
    """

    rows: int
    bytes: int
    cost: float
    repeats: Repeats
    unique: bool
    batch_rows: int
    range_cost: float | None


def plan(connection: sa.Connection, query: Query, batch_rows: Callable[[int], int]) -> Plan:
    """The planner's view of a query's SELECT (PostgreSQL manual, EXPLAIN); reads no row.

    :param batch_rows: rows of a batch, for rows of so many bytes.
    """
    top = _explain(connection, query.select(), "VERBOSE, ")
    repeats, unique = _look_up(connection, query, top)
    rows = batch_rows(max(1, top["Plan Width"]))
    return Plan(
        rows=int(top["Plan Rows"]),
        bytes=int(top["Plan Rows"] * top["Plan Width"]),
        cost=float(top["Total Cost"]),
        repeats=repeats,
        unique=unique,
        batch_rows=rows,
        range_cost=cost_of_range(connection, query, rows) if query.key else None,
    )


def cost_of_range(connection: sa.Connection, query: Query, rows: int) -> float:
    """The planner's cost of finding the end of one key range of `rows` rows."""
    return float(_explain(connection, f"{query.keys()} LIMIT {rows}")["Total Cost"])


def _explain(connection: sa.Connection, sql: str, options: str = "") -> dict[str, Any]:
    plans = run_sql(connection, f"EXPLAIN ({options}FORMAT JSON) {sql}").scalar_one()
    top: dict[str, Any] = (json.loads(plans) if isinstance(plans, str) else plans)[0]["Plan"]
    return top


def _look_up(connection: sa.Connection, query: Query, top: dict[str, Any]) -> tuple[Repeats, bool]:
    """When the query returns the same rows again, and whether its key is known to be unique.

    The first is decided by the functions that the plan calls, also in views. A false match only costs time.
    """
    text = "\n".join(_QUOTED.sub(r"\1", value) for value in _texts(top))
    names = {quoted.replace('""', '"') or name for quoted, name in _CALL.findall(text)}
    table, column = query.key.origin if query.key else (0, 0)
    values = {"names": sorted(names), "table": table, "column": column}
    volatile, of_transaction, indexed = connection.execute(_CATALOG, values).one()
    unique = indexed and _once(top)
    if volatile or "Sample Scan" in text:
        return "never", unique
    time_string = any(map(_TIME_STRING.search, (query.sql, *_texts(top))))
    if of_transaction or time_string or _TRANSACTION_TIME.search(text):
        return "in one transaction", unique
    # Another server may give each connection other rows (PostgreSQL manual, F.38.5 "Transaction Management").
    if "Foreign Scan" in text:
        return "in one transaction", unique
    return "as many" if _by_order(top, text) else "always", unique


def _texts(value: Any) -> Iterator[str]:
    """All texts of a plan."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


def _by_order(node: dict[str, Any], text: str) -> bool:
    """Whether the rows may depend on the order of other rows.

    :param text: of the whole plan.
    """
    name, kind = node.get("Subplan Name", ""), node["Node Type"]
    # A subquery that each row asks for itself does not choose among the rows; one that all ask is hashed, or kept.
    if node.get("Parent Relationship") == "SubPlan" and kind not in _KEPT and f"hashed {name}" not in text:
        return False
    below = node.get("Plans", ())
    # One value, as of min() or max(): an index gives it in the same order each time.
    if name.startswith("InitPlan") and kind == "Limit" and {one["Node Type"] for one in below} <= _INDEX_SCANS:
        return False
    return kind in _BY_ORDER or any(_by_order(one, text) for one in below)


def _once(node: dict[str, Any]) -> bool:
    """Whether a plan gives no row of its tables twice."""
    if node["Node Type"] not in _ONCE:
        return False
    below = () if node["Node Type"] == "Bitmap Heap Scan" else node.get("Plans", ())
    return all(_once(one) for one in below if one["Parent Relationship"] not in ("InitPlan", "SubPlan"))
