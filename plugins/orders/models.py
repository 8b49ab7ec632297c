"""The table that is exported: the one file to edit for a table of your own.

DAGs, form, `orders_by_status.sql`, the role's script and the ingest take everything from here: `Order`, its primary
key, `CREATED_AT`, `STATUS`, `STATUSES`, `AMOUNT`, `select_orders()`. A column that is not here is not exported.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, BigInteger, DateTime, Select, Table, Text, any_, bindparam, cast, inspect, or_, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Base of the tables of the orders database."""


class Order(Base):
    """An order of a customer."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    customer_email: Mapped[str] = mapped_column(Text)
    total_cents: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


#: When a row was created, which decides its daily file. A timestamptz with an index.
CREATED_AT = Order.created_at

#: The column that the form selects by, and that `orders_by_status` groups by.
STATUS = Order.status

#: All values of the status.
STATUSES = ("pending", "paid", "shipped", "delivered", "cancelled", "refunded")

#: The column that `orders_by_status` sums; with None it only counts.
AMOUNT = Order.total_cents


def select_orders() -> Select[Any]:
    """All rows, with the columns of the file, in order: those of the model."""
    return select(*TABLE.columns)


# Nothing below needs an edit.

TABLE: Table = inspect(Order).local_table

if len(TABLE.primary_key.columns) != 1:
    raise TypeError(f"{TABLE.name}: write primary_key=True on one column; composite keys are not supported.")

#: Name of the primary key, by which files are ordered and loaded.
UNIQUE_KEY: str = TABLE.primary_key.columns[0].name


def select_orders_created() -> Select[Any]:
    """Rows created at or after the parameter `created_from` and before `created_to`."""
    created_from, created_to = (bindparam(name, type_=Text) for name in ("created_from", "created_to"))
    return select_orders().where(CREATED_AT >= created_from, CREATED_AT < created_to)


def select_orders_by() -> Select[Any]:
    """The same, for the statuses in the parameter `statuses` (a list); a parameter that is None has no effect."""
    created_from, created_to = (bindparam(name, type_=Text) for name in ("created_from", "created_to"))
    statuses = bindparam("statuses", type_=ARRAY(Text))
    return select_orders().where(
        or_(created_from.is_(None), CREATED_AT >= created_from),
        or_(created_to.is_(None), CREATED_AT < created_to),
        or_(statuses.is_(None), cast(STATUS, Text) == any_(statuses)),
    )
