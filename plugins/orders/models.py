"""The orders table, and the queries that export it."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ARRAY, BigInteger, DateTime, Select, Text, any_, bindparam, or_, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

#: What the status of an order can be.
STATUSES = ("pending", "paid", "shipped", "delivered", "cancelled", "refunded")

Orders = Select[tuple[int, str, int, str, datetime]]


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


def select_orders() -> Orders:
    """All orders, with the columns of the file: id, customer_email, total_cents, status, created_at."""
    return select(Order.id, Order.customer_email, Order.total_cents, Order.status, Order.created_at)


def select_orders_created() -> Orders:
    """Orders created at or after the parameter `created_from` and before `created_to`."""
    created_from, created_to = (bindparam(name, type_=Text) for name in ("created_from", "created_to"))
    return select_orders().where(Order.created_at >= created_from, Order.created_at < created_to)


def select_orders_by() -> Orders:
    """The same, of the parameter `statuses` (a list); each parameter that is None leaves its condition out."""
    created_from, created_to = (bindparam(name, type_=Text) for name in ("created_from", "created_to"))
    statuses = bindparam("statuses", type_=ARRAY(Text))
    return select_orders().where(
        or_(created_from.is_(None), Order.created_at >= created_from),
        or_(created_to.is_(None), Order.created_at < created_to),
        or_(statuses.is_(None), Order.status == any_(statuses)),
    )
