"""What `orders_by_status.sql` calls the table and its columns, quoted where they need it."""

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
