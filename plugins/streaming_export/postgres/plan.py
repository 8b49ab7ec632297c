"""What the planner says of a query: how much it gives and costs, and whether each run of it gives the same."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from streaming_export.postgres.query import Query

#: When a query gives the same rows each time it is run on one snapshot: "always"; "in one transaction", since it asks
#: for the time of its transaction; or "never", since it asks for the time of its statement, or for random numbers.
Repeats = Literal["always", "in one transaction", "never"]

# Of simple repeats alone: a repeated group costs 100 bytes of memory for each character of a long literal. A string
# with a quote in it is two strings here.
_STRING = re.compile(r"'[^']*'")
_CALL = re.compile(r'(?:"([^"]+(?:""[^"]+)*)"|([^\W\d]\w*))\(')

# Of PostgreSQL manual, 9.9.5 "Current Date/Time", as plans show them.
_TRANSACTION_TIME = re.compile(r"\b(CURRENT_DATE|CURRENT_TIME|CURRENT_TIMESTAMP|LOCALTIME|LOCALTIMESTAMP)\b")

# Strings that are a time of the transaction when they are read (PostgreSQL manual, 8.5.1.4 "Special Values").
_TIME_STRING = re.compile(r"'\s*(now|today|tomorrow|yesterday)\b", re.IGNORECASE)

# Functions by the names in a plan: those that are volatile; and those that are stable and of the user, or told apart by
# transaction or connection. A stable function of an extension is taken for one that depends on its arguments alone.
_FUNCTIONS = sa.text(
    """
    SELECT coalesce(bool_or(provolatile = 'v' OR proname = 'statement_timestamp'), false),
           coalesce(bool_or(provolatile = 's' AND (
               proname IN ('now', 'transaction_timestamp', 'pg_backend_pid') OR p.oid >= 16384 AND NOT EXISTS (
                   SELECT FROM pg_catalog.pg_depend
                   WHERE classid = 'pg_catalog.pg_proc'::regclass AND objid = p.oid AND deptype = 'e'))), false)
    FROM pg_catalog.pg_proc AS p WHERE proname = ANY(:names)
    """
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the planner estimates.

    :param rows: number of rows.
    :param bytes: of all rows, as text.
    :param cost: in the planner's unit.
    :param repeats: when the query gives the same rows again.
    """

    rows: int
    bytes: int
    cost: float
    repeats: Repeats


def plan(connection: sa.Connection, query: Query) -> Plan:
    """The planner's view of a query's SELECT (PostgreSQL manual, EXPLAIN); no row is read."""
    top = _explain(connection, query.select(), "VERBOSE, ")
    return Plan(
        rows=int(top["Plan Rows"]),
        bytes=int(top["Plan Rows"] * top["Plan Width"]),
        cost=float(top["Total Cost"]),
        repeats=_repeats(connection, query, json.dumps(top, ensure_ascii=False)),
    )


def cost_of_range(connection: sa.Connection, query: Query, rows: int) -> float:
    """What the planner estimates for finding the end of one key range of so many rows."""
    return float(_explain(connection, f"{query.keys()} LIMIT {rows}")["Total Cost"])


def _explain(connection: sa.Connection, sql: str, options: str = "") -> dict[str, Any]:
    explained = connection.execution_options(no_parameters=True).exec_driver_sql(
        f"EXPLAIN ({options}FORMAT JSON) {sql}"
    )
    plans = explained.scalar_one()
    top: dict[str, Any] = (json.loads(plans) if isinstance(plans, str) else plans)[0]["Plan"]
    return top


def _repeats(connection: sa.Connection, query: Query, plan_text: str) -> Repeats:
    """By the functions that the plan calls, those of views included; a name too many only costs time."""
    text = _STRING.sub("''", plan_text.replace('\\"', '"'))
    if '"Sample Scan"' in text:
        return "never"
    names = {quoted.replace('""', '"') or name for quoted, name in _CALL.findall(text)}
    volatile, of_transaction = (
        connection.execute(_FUNCTIONS, {"names": sorted(names)}).one() if names else (False, False)
    )
    if volatile:
        return "never"
    if of_transaction or _TRANSACTION_TIME.search(text) or _TIME_STRING.search(query.sql):
        return "in one transaction"
    return "always"
