"""Names of the table and its columns for `orders_by_status.sql`, quoted if necessary."""

from __future__ import annotations

from sqlalchemy import Column
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import InstrumentedAttribute

from orders.models import AMOUNT, CREATED_AT, STATUS, TABLE

_quoting = postgresql.dialect().identifier_preparer


def _name(column: InstrumentedAttribute[object] | Column[object] | None) -> str | None:
    return None if column is None else _quoting.quote(column.name)


#: For templates: `{{ sql.table }}`, `{{ sql.status }}`, …
SQL_NAMES = {
    "table": _quoting.format_table(TABLE),
    "created_at": _name(CREATED_AT),
    "status": _name(STATUS),
    "amount": _name(AMOUNT),
}
