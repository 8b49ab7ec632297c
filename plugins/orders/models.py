"""The orders table, and the query that exports it."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, DateTime, Select, Text, select
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


def select_orders() -> Select[tuple[int, str, int, str, datetime]]:
    """All orders, with the columns of the file: id, customer_email, total_cents, status, created_at."""
    return select(Order.id, Order.customer_email, Order.total_cents, Order.status, Order.created_at)
